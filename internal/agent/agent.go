// Package agent is the node's daemon: it watches the store and the kernel, builds the node's plan and
// has the drivers make the kernel equal to it; it registers the node, claims its blocks, and serves
// CNI requests and people's questions.
//
// It decides nothing about networking (internal/plan does) and makes no kernel call of its own
// (internal/kernel does). Its loops have one shape: wait, snapshot, build, apply, report.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/internal/bgp"
	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/enforce"
	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/ledger"
)

// Options are the parts that an agent is made of.
type Options struct {
	Config  config.Config // validated
	Version string
	Log     *slog.Logger
	Store   store.Store
	// Drivers apply a plan in this order; each also watches its part of the kernel.
	Drivers []kernel.Driver
	Pods    kernel.Pods
	Facts   kernel.Facts
	// Filter, Flows and Packets are the policy side.
	Filter  kernel.Filter
	Flows   kernel.Flows
	Packets kernel.Packets
	// Speaker is the node's BGP; nil: it never speaks.
	Speaker bgp.Speaker
}

// Agent is one node's daemon. It runs once.
type Agent struct {
	Options
	id      string // of this node, from the ledger
	ledger  *ledger.Ledger
	view    *store.View
	started time.Time
	metrics *metrics
	policy  *enforce.Enforcer

	kick      chan struct{} // asks for a pass
	register  chan struct{} // asks for a look at what this node has in the store
	applied   chan struct{} // tells that a pass is through
	endpoints chan struct{} // asks for the workloads to be published
	speak     chan struct{} // tells that there is a plan for the BGP speaker

	// attaching is held for reading while a workload's interface is made or taken away, and for
	// writing while a pass is under way: a pass never sees half a workload, and never sweeps what it
	// has not yet heard of.
	attaching sync.RWMutex
	keys      keyLocks
	// keeper is the register loop's, but for those who ask it.
	keeper  blockKeeper
	written written
	// publishing is held while this node's entry in the store is read and written.
	publishing sync.Mutex
	// remembering is held while the cluster is written to the ledger: the newest is written last.
	remembering sync.Mutex

	mu    sync.Mutex
	state state
}

// state is what the loops tell each other, guarded by Agent.mu. Values are replaced, never changed.
type state struct {
	synced    bool // the view has been in step with the store once in this life
	self      *model.Node
	published *model.Node    // what the store has of this node
	writing   *model.Node    // a write of it that is under way, or whose end is not known
	written   store.Revision // of published
	announced []model.Path   // sent on by the pass under way, beside what self says
	input     *plan.Input
	plan      *plan.Plan
	blocks    []model.Block // own
	lost      map[string]time.Duration
	withdrawn map[string]bool
	silent    map[string]time.Time // nodes that BGP does not count on, and when they were last seen to be lost
	listed    model.Cluster        // as it was when heartbeats were last read
	pass      Pass
	turned    time.Time // when the loop last ended a pass, also one that could do nothing
	ready     error
	// toldReady: a store.Readier was told what saidReady says.
	toldReady, saidReady bool
	storeErr             error
	storeSince           time.Time
	passIssues           []model.Problem
	storeIssues          []model.Problem
	unpublished          []model.Problem
	netConf              []model.Problem
	certificate          []model.Problem
	writtenIssues        []model.Problem // of settings
	bgpIssues            []model.Problem
	spoke                bool // the speaker was given a plan
	// certificateEnd is when the certificate that the store is shown ends.
	certificateEnd time.Time
	// remembered are the cluster and the plan that the ledger has.
	remembered     model.Cluster
	rememberedPlan *plan.Plan
}

// Pass is what the last pass of the loop did.
type Pass struct {
	Count    int           `json:"count"`
	At       time.Time     `json:"at"`
	Duration time.Duration `json:"duration"` // nanoseconds
	Changed  int           `json:"changed"`  // kernel objects
}

var errStarting = errors.New("the agent is starting")

// New opens the node's ledger. It fails when another agent has it open.
func New(o Options) (*Agent, error) {
	if err := os.MkdirAll(o.Config.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("stateDir %s: %w", o.Config.StateDir, err)
	}
	if err := os.MkdirAll(o.Config.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("runDir %s: %w", o.Config.RunDir, err)
	}
	l, err := ledger.Open(filepath.Join(o.Config.StateDir, "ledger.db"), ledger.Options{
		RunPath:  filepath.Join(o.Config.RunDir, "workloads.db"),
		Attached: mayHold,
		Log:      o.Log,
		CoolDown: time.Duration(o.Config.Cooldown),
		Taken:    func(addr netip.Addr) bool { return hostLocalHas(o.Config.HostLocalDir, addr) },
	})
	if err != nil {
		return nil, err
	}
	a := &Agent{
		Options:   o,
		ledger:    l,
		view:      store.NewView(o.Store, o.Log),
		started:   time.Now(),
		kick:      make(chan struct{}, 1),
		register:  make(chan struct{}, 1),
		applied:   make(chan struct{}, 1),
		endpoints: make(chan struct{}, 1),
		speak:     make(chan struct{}, 1),
	}
	a.metrics = newMetrics(a)
	a.state.ready = errStarting
	if err := a.recall(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	a.policy, err = enforce.New(enforce.Options{
		Node: o.Config.Node, Log: o.Log, Store: o.Store, Filter: o.Filter, Flows: o.Flows, Packets: o.Packets,
		Named:  o.Config.Store.Type == config.StoreKubernetes,
		Memory: filepath.Join(o.Config.StateDir, "policy.json.gz"), Changed: func() { poke(a.kick) },
	})
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return a, nil
}

// Run serves until ctx ends. It leaves the kernel as it is: pods keep their network.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.ledger.Close()) }()
	unlock, err := lockNode()
	if err != nil {
		return err
	}
	defer unlock()
	control, err := a.listenControl()
	if err != nil {
		return err
	}
	plugins, err := cni.Listen(a.cniSocket())
	if err != nil {
		return errors.Join(err, control.close())
	}
	server := cni.Server{Pods: (*pods)(a), Log: a.Log, Observe: a.metrics.request}

	a.holdWorkloads()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.view.Run(ctx) })
	g.Go(func() error { return a.passLoop(ctx) })
	g.Go(func() error { return a.policy.Run(ctx) })
	g.Go(func() error { return a.registerLoop(ctx) })
	g.Go(func() error { return a.publishLoop(ctx) })
	g.Go(func() error { return a.rememberLoop(ctx) })
	if a.Speaker != nil {
		g.Go(func() error { return a.Speaker.Run(ctx) })
		g.Go(func() error { return a.speakLoop(ctx) })
	}
	g.Go(func() error { return a.netConfLoop(ctx) })
	g.Go(func() error { return a.certificateLoop(ctx) })
	g.Go(func() error { return a.forward(ctx) })
	g.Go(func() error { return control.serve(ctx) })
	g.Go(func() error { return server.Serve(ctx, plugins) })
	for _, d := range a.Drivers {
		g.Go(func() error { return d.Watch(ctx, func() { poke(a.kick) }) })
	}
	a.Log.Info("agent runs", "node", a.Config.Node, "version", a.Version, "store", a.Config.Store.Type, "attachment", a.Config.Attachment)
	err = g.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// forward turns a change of the cluster into a pass and a look at our registration.
func (a *Agent) forward(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.view.Changed():
			poke(a.kick)
			poke(a.register)
		}
	}
}

func (a *Agent) cniSocket() string     { return filepath.Join(a.Config.RunDir, "cni.sock") }
func (a *Agent) controlSocket() string { return filepath.Join(a.Config.RunDir, "agent.sock") }

// snapshot copies the state that the loops share.
func (a *Agent) snapshot() state {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

func (a *Agent) update(f func(*state)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.state)
}

// poke fills a channel of capacity one: the loop that reads it has at least one more turn to take.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
