package kube

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// history is how many changes a reader may be behind before it must list again.
const history = 4096

// value is an object as it is shared with readers.
type value struct {
	object   model.Object
	revision store.Revision
}

type change struct {
	kind     model.Kind
	key      string
	object   model.Object // nil: deleted
	revision store.Revision
}

// catalog is what is known, and the one order in which it was learned.
type catalog struct {
	node string // this one
	log  *slog.Logger

	mu        sync.Mutex
	revision  store.Revision
	forgotten store.Revision // changes up to here are not in the history
	objects   map[model.Kind]map[string]value
	changes   []change
	grown     chan struct{} // closed and replaced at each change, and when a source has told everything
	closed    bool
	done      chan struct{}
	readers   sync.WaitGroup

	sources []*source // that run
	// looked: it is known which optional kinds are served.
	looked  bool
	lookErr error
	arrived chan struct{} // closed and replaced whenever a Node object was learned
	nodes   map[string]*nodeFacts
	holders map[netip.Prefix][]string // names of the nodes that have a range, sorted
	claimed map[string]*claimed       // Block objects by name
	// blocksAt is the version as of which all Block objects are known.
	blocksAt string
	filed    map[string]model.Pool // as they were put
	settled  []model.Pool          // of IPPools, by name
	// services: some policy names services; sliced: EndpointSlices are followed.
	services, sliced bool
}

func newCatalog(node string, log *slog.Logger) *catalog {
	c := &catalog{
		node: node, log: log, revision: 1, objects: map[model.Kind]map[string]value{}, grown: make(chan struct{}),
		done: make(chan struct{}), arrived: make(chan struct{}), nodes: map[string]*nodeFacts{},
		holders: map[netip.Prefix][]string{}, claimed: map[string]*claimed{}, filed: map[string]model.Pool{},
	}
	for _, k := range model.Kinds() {
		c.objects[k] = map[string]value{}
	}
	return c
}

// set makes an object what is known under its key. The same once more is no change. mu is held.
func (c *catalog) set(key string, o model.Object) {
	was, there := c.objects[o.Kind()][key]
	if there && same(was.object, o) {
		return
	}
	c.changed(change{kind: o.Kind(), key: key, object: o})
	c.objects[o.Kind()][key] = value{o, c.revision}
}

// drop forgets an object. mu is held.
func (c *catalog) drop(kind model.Kind, key string) {
	if _, there := c.objects[kind][key]; there {
		delete(c.objects[kind], key)
		c.changed(change{kind: kind, key: key})
	}
}

func (c *catalog) changed(news change) {
	c.revision++
	news.revision = c.revision
	if len(c.changes) >= 2*history {
		rest := c.changes[len(c.changes)-history:]
		c.forgotten = rest[0].revision - 1
		c.changes = append(make([]change, 0, 2*history), rest...)
	}
	c.changes = append(c.changes, news)
	c.wake()
}

// wake wakes who waits for a change or for a source. mu is held.
func (c *catalog) wake() {
	close(c.grown)
	c.grown = make(chan struct{})
}

// same reports whether two objects of one key say the same.
func same(a, b model.Object) bool {
	switch a := a.(type) {
	case *model.Endpoint:
		b := b.(*model.Endpoint)
		return a.UID == b.UID && a.ServiceAccount == b.ServiceAccount && slices.Equal(a.Addresses, b.Addresses) &&
			slices.Equal(a.Ports, b.Ports) && maps.Equal(a.Labels, b.Labels) && reflect.DeepEqual(a.Wishes, b.Wishes)
	case *model.Resource:
		b := b.(*model.Resource)
		return sameResource(a, b)
	case *model.Setting:
		return sameResource(&a.Resource, &b.(*model.Setting).Resource)
	case *model.Block:
		return *a == *b.(*model.Block)
	case *model.Pool:
		return a.Equal(b.(*model.Pool))
	}
	return false // nodes are compared by what they are made of: saying the same once more is a write as well
}

func sameResource(a, b *model.Resource) bool {
	return a.APIVersion == b.APIVersion && bytes.Equal(a.Body, b.Body)
}

// usable tells why nothing can be asked. mu is held.
func (c *catalog) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.closed {
		return fmt.Errorf("%w: the store is closed", store.ErrUnavailable)
	}
	return nil
}

// await waits until everything of the kinds is known, and leaves mu locked when it returns nil.
func (c *catalog) await(ctx context.Context, kinds ...model.Kind) error {
	c.mu.Lock()
	err := c.usable(ctx) // an ended context is the caller's doing, as long as nobody has waited
	for err == nil {
		missing := c.missing(kinds)
		if missing == nil {
			return nil
		}
		if missing.final {
			err = missing
			break
		}
		grown := c.grown
		c.mu.Unlock()
		select {
		case <-grown:
			c.mu.Lock()
			err = c.usable(context.Background())
		case <-c.done:
			c.mu.Lock()
			err = c.usable(context.Background())
		case <-ctx.Done():
			c.mu.Lock()
			err = missing
		}
	}
	c.mu.Unlock()
	return err
}

// unknown says what has not been learned yet.
type unknown struct {
	reason string
	final  bool // waiting is no use now
}

func (u *unknown) Error() string { return store.ErrUnavailable.Error() + ": " + u.reason }

func (u *unknown) Unwrap() error { return store.ErrUnavailable }

// missing tells what of the kinds is not known yet. mu is held.
func (c *catalog) missing(kinds []model.Kind) *unknown {
	for _, src := range c.sources {
		if src.synced || src.denied || !slices.ContainsFunc(kinds, src.feeds) {
			continue
		}
		if src.err != nil {
			return &unknown{src.err.Error(), true}
		}
		return &unknown{fmt.Sprintf("the API server has not told of all %s yet", src.resource.Resource), false}
	}
	optional := func(k model.Kind) bool {
		return k == model.KindResource || k == model.KindSetting || k == model.KindBlock
	}
	if slices.ContainsFunc(kinds, optional) && !c.looked {
		if c.lookErr != nil {
			return &unknown{c.lookErr.Error(), true}
		}
		return &unknown{"the API server has not told yet which kinds of policies, settings and blocks it serves", false}
	}
	if slices.Contains(kinds, model.KindResource) && c.services && !c.sliced {
		return &unknown{"a policy names services, and the API server has not told of their addresses yet", false}
	}
	// Who wants the network as a whole shall never see one without pools, and take it down.
	if slices.Contains(kinds, model.KindPool) && slices.Contains(kinds, model.KindBlock) && len(c.filed)+len(c.settled) == 0 {
		return &unknown{"no net-conf.json has been filed yet, and there is no IPPool, so there are no pools", false}
	}
	return nil
}

// Get implements store.Store. The caller may change what it gets.
func (c *catalog) Get(ctx context.Context, kind model.Kind, key string) (store.Item, error) {
	if err := store.CheckKey(kind, key); err != nil {
		return store.Item{}, err
	}
	if err := c.has(kind); err != nil {
		return store.Item{}, fmt.Errorf("%s %q: %w", kind, key, err)
	}
	if err := c.await(ctx, kind); err != nil {
		return store.Item{}, err
	}
	defer c.mu.Unlock()
	v, there := c.objects[kind][key]
	if !there {
		return store.Item{}, fmt.Errorf("%s %q: %w", kind, key, store.ErrNotFound)
	}
	return store.Item{Object: copied(v.object), Revision: v.revision}, nil
}

// copied is an object whose own fields may be changed; what it refers to is shared.
func copied(o model.Object) model.Object {
	switch o := o.(type) {
	case *model.Node:
		c := *o
		return &c
	case *model.Pool:
		c := *o
		return &c
	case *model.Block:
		c := *o
		return &c
	case *model.Endpoint:
		c := *o
		return &c
	case *model.Resource:
		c := *o
		return &c
	case *model.Setting:
		c := *o
		return &c
	}
	return o
}

// has refuses what Kubernetes has nothing for.
func (c *catalog) has(kind model.Kind) error {
	if kind == model.KindHeartbeat {
		return fmt.Errorf("%w: Kubernetes watches its nodes itself", store.ErrUnsupported)
	}
	return nil
}

// List implements store.Store. It waits until all objects are known, unless the API server cannot be reached;
// after that it answers from what is known, whether the API server is there or not.
func (c *catalog) List(ctx context.Context, kinds ...model.Kind) ([]store.Item, store.Revision, error) {
	if err := store.CheckKinds(kinds); err != nil {
		return nil, 0, err
	}
	// Of several kinds, heartbeats are the ones that nobody has.
	if len(kinds) == 1 {
		if err := c.has(kinds[0]); err != nil {
			return nil, 0, err
		}
	}
	if err := c.await(ctx, kinds...); err != nil {
		return nil, 0, err
	}
	defer c.mu.Unlock()
	n := 0
	for _, k := range kinds {
		n += len(c.objects[k])
	}
	items := make([]store.Item, 0, n)
	for _, k := range kinds {
		for _, key := range slices.Sorted(maps.Keys(c.objects[k])) {
			v := c.objects[k][key]
			items = append(items, store.Item{Object: v.object, Revision: v.revision})
		}
	}
	return items, c.revision, nil
}

// Keys implements store.Store. Those of endpoints, which nobody can write, are ErrUnsupported.
func (c *catalog) Keys(ctx context.Context, kind model.Kind, prefix string) ([]store.KeyRevision, error) {
	if err := store.CheckKey(kind, cmp.Or(prefix, "any")); err != nil {
		return nil, err
	}
	if kind == model.KindEndpoint {
		return nil, fmt.Errorf("%s: %w: Kubernetes tells of its pods itself", kind, store.ErrUnsupported)
	}
	if err := c.has(kind); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	if err := c.await(ctx, kind); err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	var keys []store.KeyRevision
	for key, v := range c.objects[kind] {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, store.KeyRevision{Key: key, Revision: v.revision})
		}
	}
	slices.SortFunc(keys, func(a, b store.KeyRevision) int { return cmp.Compare(a.Key, b.Key) })
	return keys, nil
}
