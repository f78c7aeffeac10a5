// Package enforce keeps the kernel's policy maps equal to the node's decision table: it follows policies
// and workloads in the store, has the compiler make the table and the driver apply it, cuts the flows that a
// change denies, and answers what was denied and why.
//
// It decides nothing about who may talk to whom (internal/policy does), and makes no kernel call of its own
// (internal/kernel does).
package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/store"
)

// Options are the parts that an Enforcer is made of.
type Options struct {
	Node    string
	Log     *slog.Logger
	Store   store.Store
	Filter  kernel.Filter
	Flows   kernel.Flows
	Packets kernel.Packets
	// Memory is the file in which policies and workloads are kept for a start without the store.
	Memory string
	// Named: the store tells of every pod by its name, and none is admitted before that.
	Named bool
	// Changed is called when policies come to be or cease to be there at all: the node's plan depends on that.
	Changed func()
}

// Enforcer is the policy side of one node's agent. It runs once.
type Enforcer struct {
	Options
	kick    chan struct{} // asks for a look at the kernel's maps
	cut     chan struct{} // asks for a look at the kernel's flows
	changed chan struct{} // tells that the memory is old
	record  recorder
	// remembering is held while the memory is written.
	remembering sync.Mutex
	settled     sync.Once

	drift atomic.Bool // the kernel may not hold what it was told

	// applying is held from the table's making until it is in the kernel. Only its holder compiles, so what it reads of
	// the table stays. It is taken before mu, which nobody holds while the kernel is at work: what others tell
	// meanwhile goes into the kernel together, next.
	applying sync.Mutex
	// asking is held while what is known is copied for a question. It is taken before mu.
	asking sync.Mutex

	mu       sync.Mutex
	compiler *policy.Compiler
	touched  map[string]bool // keys of objects that changed while what is known is being copied
	// known: policies have been read, from the store or from memory. Until then the kernel is left as it is.
	known bool
	// placed: the node knows its own addresses. Until then, too, the kernel is left as it is.
	placed bool
	// synced: they have been read from the store in this life.
	synced bool
	// applied: the kernel holds what the compiler's table held after its last Compile.
	applied bool
	// heard is the revision of the store's state that the compiler has been told of, inKernel of that in the kernel.
	heard, inKernel store.Revision
	resources       map[string]*model.Resource // by key, as people wrote them
	policies        int
	names           map[netip.Addr]named
	workloads       int
	pods            map[string]*model.Endpoint // what the store says of pods of this node, by key
	held            map[string]int             // workloads of this node by the key of their pod
	told            chan struct{}              // closed and replaced when the store tells of a pod of this node
	netns           map[netip.Addr]string      // of local workloads: paths
	// gone are addresses of former workloads, whose flows are still to be ended: who gets an address next must
	// not get what was let through to the one before.
	gone   map[netip.Addr]bool
	broken map[string]model.Problem
	issues []model.Problem // the driver's
	last   Turn
}

// Turn is what the last change of the kernel's maps was.
type Turn struct {
	Count    int           `json:"count"`
	At       time.Time     `json:"at"`
	Duration time.Duration `json:"duration"` // nanoseconds
}

// fullInterval is after how long the kernel's maps are read and compared though nothing was seen to change.
const fullInterval = 30 * time.Second

// ErrUnknown says that a workload cannot be admitted yet.
var ErrUnknown = errors.New("policies are not known yet: waiting for the store")

// New reads the memory of an earlier life.
func New(o Options) (*Enforcer, error) {
	e := &Enforcer{
		Options: o, kick: make(chan struct{}, 1), cut: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		compiler:  policy.NewCompiler(policy.Options{Node: o.Node}),
		resources: map[string]*model.Resource{}, names: map[netip.Addr]named{}, netns: map[netip.Addr]string{},
		gone: map[netip.Addr]bool{}, pods: map[string]*model.Endpoint{}, held: map[string]int{}, told: make(chan struct{}),
		broken: map[string]model.Problem{},
	}
	if e.Changed == nil {
		e.Changed = func() {}
	}
	return e, e.recall()
}

// Run follows the store and the kernel until ctx ends. It leaves the kernel as it is.
func (e *Enforcer) Run(ctx context.Context) error {
	feed := store.NewFeed(e.Store, e.Log, model.KindEndpoint, model.KindResource)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return feed.Run(ctx, e.Take) })
	g.Go(func() error { return e.applyLoop(ctx) })
	g.Go(func() error { return e.cutLoop(ctx) })
	g.Go(func() error { return e.rememberLoop(ctx) })
	g.Go(func() error { return e.Filter.Watch(ctx, e.drifted) })
	g.Go(func() error {
		return e.Packets.Listen(ctx, e.seen, func(n int) { e.record.miss(n) })
	})
	return g.Wait()
}

// drifted makes the next turn read the kernel. The driver may call it from within a call of ours: it takes
// no lock.
func (e *Enforcer) drifted() {
	e.drift.Store(true)
	poke(e.kick)
}

// applyLoop makes the kernel's maps equal to the table.
func (e *Enforcer) applyLoop(ctx context.Context) error {
	full := time.NewTicker(fullInterval)
	defer full.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.kick:
		case <-full.C:
			e.drift.Store(true)
		}
		begin := time.Now()
		err := e.flush(ctx)
		if err != nil && ctx.Err() == nil {
			e.Log.Error("policies are not in the kernel", "error", err)
			poke(e.kick)
			store.Pause(ctx, time.Second)
		}
		// Changes that come meanwhile are gathered: the loop takes half of one core at most.
		store.Pause(ctx, time.Since(begin))
	}
}

// flush brings the kernel up to what the compiler has been told before the call. The caller does not hold mu.
func (e *Enforcer) flush(ctx context.Context) error {
	e.applying.Lock()
	defer e.applying.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.known || !e.placed {
		return nil
	}
	begin := time.Now()
	if e.drift.Swap(false) {
		e.applied = false
	}
	d, heard := e.compiler.Compile(), e.heard
	if d == nil && e.applied {
		e.inKernel = heard
		return nil
	}
	if e.applied {
		var err error
		e.outside(func() { err = e.Filter.Update(ctx, d) })
		if err != nil {
			e.applied = false
			if ctx.Err() != nil {
				return err
			}
			e.Log.Warn("the kernel refused a change of its policy maps: comparing them whole", "error", err)
		}
	}
	changed := 0
	if !e.applied {
		t := *e.compiler.Table()
		t.Sources = maps.Clone(t.Sources) // the one part that changes before the next Compile
		var problems []model.Problem
		e.outside(func() { changed, problems = e.Filter.Apply(ctx, &t) })
		e.issues = problems
		for _, p := range problems {
			if p.Severity == model.Failure {
				return errors.New(p.String())
			}
		}
		e.applied = true
	}
	e.inKernel = heard
	if d == nil && changed == 0 {
		return nil
	}
	e.last = Turn{Count: e.last.Count + 1, At: begin, Duration: time.Since(begin)}
	e.Log.Debug("policy maps changed", "took", e.last.Duration, "repaired", changed)
	poke(e.cut)
	return nil
}

// outside does something without mu, which the caller holds before and after.
func (e *Enforcer) outside(f func()) {
	e.mu.Unlock()
	defer e.mu.Lock()
	f()
}

// Admit puts a workload's entries into the kernel, before it has an interface. When it returns nil, what
// the policies say of the workload is in force.
func (e *Enforcer) Admit(ctx context.Context, w model.Workload, mac string) error {
	if err := e.admit(w, mac); err != nil {
		return err
	}
	if err := e.flush(ctx); err != nil {
		e.mu.Lock()
		e.release(w, mac)
		e.mu.Unlock()
		poke(e.kick)
		return fmt.Errorf("policies of %s: %w", w.String(), err)
	}
	return nil
}

func (e *Enforcer) admit(w model.Workload, mac string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case !e.known || !e.placed:
		return ErrUnknown
	case !e.named(&w):
		return fmt.Errorf("%s: %w", w.String(), ErrUnnamed)
	}
	e.hold(w, mac)
	return nil
}

// Hold tells of a workload that is there already, at the agent's start.
func (e *Enforcer) Hold(w model.Workload, mac string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hold(w, mac)
	poke(e.kick)
}

// Dismiss takes a workload's entries and flows away after its interface is gone.
func (e *Enforcer) Dismiss(w model.Workload, mac string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.release(w, mac)
	for _, a := range w.Addresses {
		if _, again := e.netns[a]; !again {
			e.gone[a] = true
		}
	}
	poke(e.kick)
	poke(e.cut)
}

func (e *Enforcer) hold(w model.Workload, mac string) {
	if key := e.podKey(&w); key != "" {
		e.held[key]++
		e.putForeign(key)
	}
	e.put("e/"+e.Node+":"+w.HostLink, &policy.Endpoint{
		Key: e.Node + ":" + w.HostLink, Node: e.Node, Namespace: w.Namespace, Name: w.Name, Labels: w.Labels, Addresses: w.Addresses,
	})
	for _, a := range w.Addresses {
		e.compiler.PutSource(policy.Source{Link: w.HostLink, MAC: mac, Addr: a})
		e.netns[a] = w.Netns
		delete(e.gone, a)
	}
}

func (e *Enforcer) release(w model.Workload, mac string) {
	e.drop("e/" + e.Node + ":" + w.HostLink)
	if key := e.podKey(&w); e.held[key] > 1 {
		e.held[key]--
	} else {
		delete(e.held, key) // its pod may have that address in the store for a moment longer: it is nobody's
	}
	for _, a := range w.Addresses {
		e.compiler.DeleteSource(policy.Source{Link: w.HostLink, MAC: mac, Addr: a})
		if e.netns[a] == w.Netns { // else another workload has the address by now
			delete(e.netns, a)
		}
	}
}

// SetNode tells the node's own addresses and its interfaces.
func (e *Enforcer) SetNode(addrs []netip.Addr, links map[string][]netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.placed = true
	e.compiler.SetNode(addrs)
	e.compiler.SetLinks(links)
	poke(e.kick)
}

// Ready tells why workloads cannot be admitted; nil when they can.
func (e *Enforcer) Ready() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.known {
		return ErrUnknown
	}
	for _, p := range e.issues {
		if p.Severity == model.Failure {
			return errors.New(p.String())
		}
	}
	return nil
}

// Policed reports whether there is any policy in the cluster.
func (e *Enforcer) Policed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.policies > 0
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
