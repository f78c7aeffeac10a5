package store

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// View keeps pools, nodes and blocks of the store at hand: read once, then followed by one watch. It
// outlives outages of the store; what it knew stays. Heartbeats are not in it: they would wake every node
// each time that any node shows a sign of life.
type View struct {
	store Store
	log   *slog.Logger

	changed chan struct{}

	mu      sync.Mutex
	synced  bool
	err     error // why the store cannot be followed now
	objects map[model.Kind]map[string]model.Object
	// revision is that of the store's state which the view has reached, at least.
	revision Revision
	built    *model.Cluster // nil when objects changed since
}

// viewKinds are those of model.Cluster.
var viewKinds = []model.Kind{model.KindPool, model.KindNode, model.KindBlock}

// NewView returns a view that is empty until Run has read the store. log may be nil.
func NewView(s Store, log *slog.Logger) *View {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &View{store: s, log: log, changed: make(chan struct{}, 1), objects: map[model.Kind]map[string]model.Object{}}
}

// Run keeps the view current until ctx ends, or until the store is closed.
func (v *View) Run(ctx context.Context) error {
	const lowest, highest = 100 * time.Millisecond, 5 * time.Second
	delay := lowest
	for {
		began := time.Now()
		err := v.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > 2*highest {
			delay = lowest
		}
		if err != nil {
			v.fail(err)
			v.log.Warn("the store cannot be followed; what was known stays", "reason", err, "retryIn", delay)
		}
		if !Pause(ctx, delay/2+rand.N(delay/2)) {
			return nil
		}
		delay = min(2*delay, highest)
	}
}

// follow reads everything and then every change, until the watch ends.
func (v *View) follow(ctx context.Context) error {
	read, err := v.read(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := v.store.Watch(ctx, read.oldest(), viewKinds...)
	if err != nil {
		return err
	}
	for e := range events {
		if e.Type == EventResync {
			// Changes may be missing. The watch goes on from there, and repeats at worst what is read now.
			if read, err = v.reread(ctx); err != nil {
				return err
			}
			continue
		}
		if e.Revision <= read[e.Kind] {
			continue // the list of this kind was read after this change
		}
		v.apply(e)
	}
	if ctx.Err() == nil {
		return fmt.Errorf("%w: the watch ended", ErrUnavailable)
	}
	return nil
}

// revisions are those at which the list of each kind was read.
type revisions map[model.Kind]Revision

func (r revisions) oldest() Revision {
	oldest := r[viewKinds[0]]
	for _, k := range viewKinds {
		oldest = min(oldest, r[k])
	}
	return oldest
}

// reread reads with patience: the watch is there, only the lists are missing.
func (v *View) reread(ctx context.Context) (revisions, error) {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
		read, err := v.read(ctx)
		if err == nil || ctx.Err() != nil {
			return read, err
		}
		v.fail(err)
		v.log.Warn("the store cannot be read anew", "reason", err, "retryIn", delay)
		if !Pause(ctx, delay/2+rand.N(delay/2)) {
			return nil, ctx.Err()
		}
	}
}

func (v *View) read(ctx context.Context) (revisions, error) {
	objects, read := map[model.Kind]map[string]model.Object{}, revisions{}
	for _, k := range viewKinds {
		items, rev, err := v.store.List(ctx, k)
		if err != nil {
			return nil, err
		}
		objects[k] = make(map[string]model.Object, len(items))
		for _, it := range items {
			objects[k][it.Object.Key()] = it.Object
		}
		read[k] = rev
	}
	v.mu.Lock()
	v.objects, v.synced, v.err, v.built, v.revision = objects, true, nil, nil, read.oldest()
	v.mu.Unlock()
	v.notify()
	return read, nil
}

func (v *View) fail(err error) {
	v.mu.Lock()
	v.err = err
	v.mu.Unlock()
}

// Err tells why the store could not be read or followed when that was last tried; nil once it could.
func (v *View) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

func (v *View) apply(e Event) {
	v.mu.Lock()
	if e.Type == EventDelete {
		delete(v.objects[e.Kind], e.Key)
	} else {
		v.objects[e.Kind][e.Key] = e.Object
	}
	v.built, v.revision = nil, max(v.revision, e.Revision)
	v.mu.Unlock()
	v.notify()
}

func (v *View) notify() {
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// Changed gets a value after one or many changes of pools, nodes or blocks.
func (v *View) Changed() <-chan struct{} { return v.changed }

// Revision is that of a state of the store which the next Snapshot has reached, at least: it holds what
// was written at or before it.
func (v *View) Revision() Revision {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.revision
}

// Snapshot returns the cluster as last seen, sorted, and whether the store was ever read. Snapshots
// share their memory until something changes: read them, do not write to them.
func (v *View) Snapshot() (model.Cluster, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.built == nil {
		c := &model.Cluster{}
		for _, o := range v.objects[model.KindPool] {
			c.Pools = append(c.Pools, *o.(*model.Pool))
		}
		for _, o := range v.objects[model.KindNode] {
			c.Nodes = append(c.Nodes, *o.(*model.Node))
		}
		for _, o := range v.objects[model.KindBlock] {
			c.Blocks = append(c.Blocks, *o.(*model.Block))
		}
		c.Sort()
		v.built = c
	}
	// Full slices: an append by one reader makes a copy of its own.
	return model.Cluster{Pools: slices.Clip(v.built.Pools), Nodes: slices.Clip(v.built.Nodes), Blocks: slices.Clip(v.built.Blocks)}, v.synced
}
