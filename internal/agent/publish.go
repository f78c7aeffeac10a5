package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// publishAtOnce is how many writes of endpoints are under way together: the store makes several durable
// by one write to its disk.
const publishAtOnce = 8

// publishLoop keeps the endpoints that the store has of this node equal to its workloads, so that the
// policies of other nodes know them. It looks at what the store has now and then: somebody may have
// changed or removed it.
func (a *Agent) publishLoop(ctx context.Context) error {
	const lowest, highest = 100 * time.Millisecond, 5 * time.Second
	look := time.NewTicker(time.Duration(a.Config.LeaseTTL) / 3)
	defer look.Stop()
	p := &publisher{Agent: a, cleared: map[string]bool{}}
	for delay := lowest; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-a.endpoints:
		case <-look.C:
			p.looked = false
		}
		err := p.turn(ctx)
		if ctx.Err() != nil || errors.Is(err, store.ErrUnsupported) { // this store has its workloads from elsewhere
			return nil
		}
		a.publishResult(err)
		if err == nil {
			delay = lowest
			continue
		}
		if !store.Pause(ctx, delay/2+rand.N(delay/2)) {
			return nil
		}
		delay = min(2*delay, highest)
		poke(a.endpoints)
	}
}

// publishResult keeps for `heddle status` why endpoints are not published. That the store is away is said
// elsewhere.
func (a *Agent) publishResult(err error) {
	var problems []model.Problem
	if err != nil && !errors.Is(err, store.ErrUnavailable) {
		problems = append(problems, a.storeProblem("endpoints", err))
	}
	if err != nil {
		a.Log.Warn("workloads are not published; trying again", "error", err)
	}
	a.update(func(s *state) { s.unpublished = problems })
}

// publisher is the state of publishLoop.
type publisher struct {
	*Agent
	looked bool // stored is what the store has, as far as anybody knows
	// registered is the revision of this node in the store at the last look: who removes a node removes its
	// endpoints first.
	registered store.Revision

	mu sync.Mutex
	// stored is what the store has of this node, by key.
	stored map[string]storedEndpoint
	// cleared are the withdrawn nodes whose endpoints are gone.
	cleared map[string]bool
}

// storedEndpoint is what the store has under a key; no endpoint when that is not known.
type storedEndpoint struct {
	revision store.Revision
	endpoint *model.Endpoint
}

// turn makes the store equal to the ledger, as far as it can.
func (p *publisher) turn(ctx context.Context) error {
	s := p.snapshot()
	if s.published == nil {
		return nil // the name may be another machine's
	}
	look := !p.looked || s.written != p.registered
	if look {
		p.looked = false
		if err := p.look(ctx); err != nil {
			return err
		}
		p.looked, p.registered = true, s.written
	}
	stored, wanted := maps.Clone(p.stored), map[string]bool{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(publishAtOnce)
	var refused error // the first after which the rest may still go well
	do := func(f func(context.Context) error) {
		g.Go(func() error {
			err := f(gctx)
			if err == nil || errors.Is(err, store.ErrUnavailable) || gctx.Err() != nil {
				return err
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if refused == nil {
				refused = err
			}
			return nil
		})
	}
	for _, w := range p.ledger.List() {
		e := endpoint(p.Config.Node, w)
		if e == nil {
			continue
		}
		wanted[e.Key()] = true
		if has, is := stored[e.Key()]; !is || !reflect.DeepEqual(has.endpoint, e) {
			do(func(ctx context.Context) error { return p.put(ctx, e, is && has.endpoint == nil) })
		}
	}
	for key := range stored {
		if !wanted[key] {
			do(func(ctx context.Context) error { return p.remove(ctx, key) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if refused == nil && look {
		return p.clear(ctx, s.withdrawn)
	}
	return refused
}

// endpoint is what other nodes' policies need to know of a workload; nil for one that has no address.
func endpoint(node string, w model.Workload) *model.Endpoint {
	if len(w.Addresses) == 0 || w.HostLink == "" {
		return nil
	}
	e := &model.Endpoint{Node: node, Link: w.HostLink, Namespace: w.Namespace, Name: w.Name, Addresses: w.Addresses}
	if len(w.Labels) > 0 {
		e.Labels = w.Labels
	}
	return e
}

// look finds what the store has of this node. What is still at the revision that is known needs no reading.
func (p *publisher) look(ctx context.Context) error {
	keys, err := p.Store.Keys(ctx, model.KindEndpoint, p.Config.Node+":")
	if err != nil {
		return err
	}
	found := make(map[string]storedEndpoint, len(keys))
	for _, k := range keys {
		if found[k.Key] = p.stored[k.Key]; found[k.Key].revision != k.Revision {
			found[k.Key] = storedEndpoint{revision: k.Revision}
		}
	}
	p.stored = found
	return nil
}

// put writes an endpoint, unless the store, which has something under its key, has the same. A write that
// wakes every node of the network for nothing is dear.
func (p *publisher) put(ctx context.Context, e *model.Endpoint, read bool) error {
	if read {
		switch it, err := p.Store.Get(ctx, e.Kind(), e.Key()); {
		case err == nil && reflect.DeepEqual(it.Object, model.Object(e)):
			p.set(e.Key(), storedEndpoint{it.Revision, e})
			return nil
		case errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil:
			return err
		}
	}
	p.set(e.Key(), storedEndpoint{}) // in case that nobody learns what becomes of the write
	rev, err := p.Store.Put(ctx, e, store.AnyRevision)
	if err == nil {
		p.set(e.Key(), storedEndpoint{rev, e})
	}
	return err
}

func (p *publisher) set(key string, s storedEndpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stored[key] = s
}

func (p *publisher) remove(ctx context.Context, key string) error {
	if err := p.Store.Delete(ctx, model.KindEndpoint, key, store.AnyRevision); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.stored, key)
	return nil
}

// clear removes the endpoints of nodes that are withdrawn. About one node of the network does it at each
// look of all.
func (p *publisher) clear(ctx context.Context, withdrawn map[string]bool) error {
	maps.DeleteFunc(p.cleared, func(node string, _ bool) bool { return !withdrawn[node] })
	c, _ := p.view.Snapshot()
	for node := range withdrawn {
		if p.cleared[node] || rand.N(max(len(c.Nodes)-len(withdrawn), 1)) > 0 || p.alive(ctx, node) {
			continue
		}
		if err := RemoveEndpoints(ctx, p.Store, node); err != nil {
			return fmt.Errorf("endpoints of node %q, which is withdrawn: %w", node, err)
		}
		p.cleared[node] = true
	}
	return nil
}

// RemoveEndpoints removes what a node that is gone had published of its workloads. What changes meanwhile
// stays: then the node is not gone.
func RemoveEndpoints(ctx context.Context, s store.Store, node string) error {
	keys, err := s.Keys(ctx, model.KindEndpoint, node+":")
	for _, k := range keys {
		err = s.Delete(ctx, model.KindEndpoint, k.Key, k.Revision)
		if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrConflict) {
			return err
		}
		err = nil
	}
	return err
}
