package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/memory"
)

// fuse is a context that ends after a number of looks at it. The ledger and the store in memory look once before
// each of their operations: so an agent can die before any of its writes, and so after any of the ones before.
type fuse struct {
	context.Context
	cancel context.CancelFunc
	mu     sync.Mutex
	left   int
}

func newFuse(left int) *fuse {
	ctx, cancel := context.WithCancel(context.Background())
	return &fuse{Context: ctx, cancel: cancel, left: left}
}

func (f *fuse) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left--; f.left < 0 {
		f.cancel()
	}
	return f.Context.Err()
}

// deaf is a store whose caller may die between a write and its answer.
type deaf struct{ store.Store }

func (d deaf) Put(ctx context.Context, o model.Object, at store.Revision) (store.Revision, error) {
	rev, err := d.Store.Put(ctx, o, at)
	if err == nil && ctx.Err() != nil {
		return 0, fmt.Errorf("%w: dead", store.ErrUnavailable)
	}
	return rev, err
}

func (d deaf) Delete(ctx context.Context, kind model.Kind, key string, at store.Revision) error {
	err := d.Store.Delete(ctx, kind, key, at)
	if err == nil && ctx.Err() != nil {
		return fmt.Errorf("%w: dead", store.ErrUnavailable)
	}
	return err
}

// crashers are nodes that share a store, and die at random.
type crashers struct {
	*rapid.T
	dir    string
	shared *memory.Store
	nodes  []*crasher
	pods   int
	deaths int
	loans  int // addresses that were found in use away from their block
}

type crasher struct {
	*Agent
	name string
	stop func()
}

func (c *crashers) boot(n *crasher) {
	conf := config.Default()
	conf.Node, conf.StateDir, conf.RunDir, conf.Cooldown = n.name, filepath.Join(c.dir, n.name), filepath.Join(c.dir, n.name), config.Duration(1)
	conf.Attachment = model.AttachRouted
	conf.HostLocalDir = filepath.Join(c.dir, "none")
	a, err := New(Options{Config: conf, Log: slog.New(slog.DiscardHandler), Store: deaf{c.shared}})
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = a.view.Run(ctx) })
	n.Agent, n.stop = a, func() {
		cancel()
		done.Wait()
		_ = a.ledger.Close()
	}
	c.catchUp(n)
	c.passes(n)
}

// catchUp waits until the node has heard of all that the store has.
func (c *crashers) catchUp(n *crasher) {
	_, rev, err := c.shared.List(context.Background(), model.KindBlock, model.KindPool)
	if err != nil {
		c.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Microsecond) {
		if _, synced := n.view.Snapshot(); synced && n.view.Revision() >= rev {
			return
		}
		if time.Now().After(end) {
			c.Fatal("the view is stuck")
		}
	}
}

// passes stands for a pass: what the node has now is in its kernel.
func (c *crashers) passes(n *crasher) {
	cluster, known, _ := n.cluster()
	if !known {
		return
	}
	n.update(func(s *state) { s.plan, s.input = &plan.Plan{MTU: 1500}, &plan.Input{Self: n.name, Cluster: cluster} })
}

// turn is one of the register loop.
func (c *crashers) turn(ctx context.Context, n *crasher) {
	n.reconcileBlocks(ctx, n.snapshot().blocks)
}

// add is an ADD without its interface.
func (c *crashers) add(ctx context.Context, n *crasher, w model.Workload) error {
	for range 3 { // each of them may be a loan that another is faster to use
		n.attaching.RLock()
		s := n.snapshot()
		_, _, next, err := n.placeNow(ctx, &s, w)
		n.attaching.RUnlock()
		if err == nil || len(next) == 0 {
			return err
		}
		q := next[0]
		q.answer = make(chan error, 1)
		n.keeper.asks.add(q)
		err = errors.New("not answered")
		for i := 0; i < 4 || i < 100 && q.asked.IsValid(); i++ {
			c.turn(ctx, n)
			c.passes(n)
			if len(q.answer) > 0 {
				err = <-q.answer
				break
			}
			time.Sleep(300 * time.Microsecond) // another node decides meanwhile
		}
		n.keeper.asks.end(q, nil)
		if err != nil {
			return err
		}
	}
	return errors.New("full again and again")
}

// old makes blocks that are empty look as if they had been so for long.
func (n *crasher) old() {
	for b, since := range n.keeper.empty {
		n.keeper.empty[b] = since.Add(-emptyFor)
	}
}

// holds checks what must be so at any time, in whatever state nodes died.
func (c *crashers) holds() {
	items, _, err := c.shared.List(context.Background(), model.KindBlock)
	if err != nil {
		c.Fatal(err)
	}
	owner := map[netip.Prefix]string{}
	for i, it := range items {
		b := it.Object.(*model.Block)
		owner[b.CIDR] = b.Node
		for _, other := range items[:i] {
			if o := other.Object.(*model.Block); o.CIDR.Overlaps(b.CIDR) && o.CIDR.IsSingleIP() == b.CIDR.IsSingleIP() {
				c.Fatalf("blocks %v and %v overlap", *o, *b)
			}
		}
	}
	given, uses := map[netip.Addr]string{}, map[netip.Prefix]string{}
	for _, n := range c.nodes {
		for _, b := range n.snapshot().blocks {
			if other, twice := uses[b.CIDR]; twice {
				c.Fatalf("%s and %s both use block %s", other, n.name, b.CIDR)
			}
			if uses[b.CIDR] = n.name; owner[b.CIDR] != n.name {
				c.Fatalf("%s uses block %s, which is %q's in the store", n.name, b.CIDR, owner[b.CIDR])
			}
		}
		for _, w := range n.ledger.List() {
			for _, a := range w.Addresses {
				if other, twice := given[a]; twice {
					c.Fatalf("%s was given to %s and to %s/%s", a, other, n.name, w.Key())
				}
				given[a] = n.name + "/" + w.Key()
				if w.Addresses[0].Is4() && slices.ContainsFunc(n.snapshot().blocks, func(b model.Block) bool { return b.Lender != "" && b.CIDR.Contains(a) }) {
					c.loans++
				}
				if !slices.ContainsFunc(n.snapshot().blocks, func(b model.Block) bool { return b.CIDR.Contains(a) }) {
					c.Fatalf("%s gave %s, which is in none of its blocks %v", n.name, a, n.snapshot().blocks)
				}
			}
		}
	}
}

// TestBlocksSurviveDeathsAtAnyWriteOfManyNodes: whenever an agent dies, no block has two owners and no address two
// workloads, and after all have come back every block has its owner or is free.
func TestBlocksSurviveDeathsAtAnyWriteOfManyNodes(t *testing.T) {
	deaths, histories, loans := 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		histories++
		c := &crashers{T: rt, dir: filepath.Join(t.TempDir(), fmt.Sprint(histories)), shared: memory.New()}
		p := &model.Pool{Name: "p", CIDR: netip.MustParsePrefix("10.0.0.0/27"), BlockSize: 29, Path: model.PathDirect, Encap: model.EncapNever, MaxBlocks: 4}
		// As many blocks as nodes, so that who needs more borrows addresses, or one more.
		p.Max = netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.16", "10.0.0.16", "10.0.0.24"}).Draw(rt, "last"))
		if _, err := c.shared.Put(context.Background(), p, 0); err != nil {
			rt.Fatal(err)
		}
		for i := range 3 {
			n := &crasher{name: fmt.Sprintf("n%d", i)}
			c.nodes = append(c.nodes, n)
			if _, err := c.shared.Put(context.Background(), &model.Node{Name: n.name, Address4: netip.AddrFrom4([4]byte{192, 168, 0, byte(i + 1)})}, 0); err != nil {
				rt.Fatal(err)
			}
			c.boot(n)
		}
		defer func() {
			for _, n := range c.nodes {
				n.stop()
			}
		}()
		for range rapid.IntRange(1, 15).Draw(rt, "steps") {
			c.step(p)
			c.holds()
		}
		deaths, loans = deaths+c.deaths, loans+c.loans
		c.recover(p)
	})
	t.Logf("%d deaths and %d looks at a borrowed address in %d histories", deaths, loans, histories)
	if deaths < histories {
		t.Error("the test shows too little")
	}
}

// step has some nodes do something at once, and perhaps die of it.
func (c *crashers) step(p *model.Pool) {
	if rapid.IntRange(0, 9).Draw(c.T, "pool") == 0 {
		p.Disabled = !p.Disabled
		if _, err := c.shared.Put(context.Background(), p, store.AnyRevision); err != nil {
			c.Fatal(err)
		}
	}
	var together sync.WaitGroup
	var busy atomic.Int32
	busy.Store(int32(len(c.nodes)))
	var dead []*crasher
	for _, n := range c.nodes {
		do := rapid.SampledFrom([]string{"add", "add", "adds", "fixed", "del", "del", "turn", "old", "nothing"}).Draw(c.T, n.name)
		// A look takes a handful of operations; most live through it.
		f := newFuse(rapid.SampledFrom([]int{0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 1000, 1000, 1000, 1000, 1000}).Draw(c.T, "operations"))
		c.pods++
		w := model.Workload{ContainerID: fmt.Sprintf("c%d", c.pods), IfName: "eth0"}
		if do == "fixed" {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 31).Draw(c.T, "address"))})
			w.Wishes = &model.Wishes{Addresses: []netip.Addr{a}}
		}
		late := rapid.Bool().Draw(c.T, "late") // the view may not have heard of all yet
		var gone []string
		for _, w := range n.ledger.List() {
			if rapid.Bool().Draw(c.T, "gone") {
				gone = append(gone, w.Key())
			}
		}
		if !late {
			c.catchUp(n)
		}
		if f.left < 1000 {
			dead = append(dead, n)
		}
		together.Go(func() {
			switch do {
			case "adds":
				for i := range 6 {
					w := w
					w.IfName = fmt.Sprintf("eth%d", i)
					_ = c.add(f, n, w)
				}
			case "add", "fixed":
				_ = c.add(f, n, w) // whatever comes of it: the invariants are what counts
			case "del":
				for _, key := range gone {
					_, _, _ = n.ledger.Release(f, key, time.Now())
				}
			case "old":
				n.old()
				c.turn(f, n)
				n.old()
				c.turn(f, n)
			}
			busy.Add(-1)
			for more := do != "nothing"; more; more = busy.Load() > 0 { // a loop goes on, as others may ask for something
				c.turn(f, n)
				c.passes(n)
				c.turn(f, n)
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	together.Wait()
	for _, n := range dead {
		c.deaths++
		n.stop()
		c.boot(n)
	}
}

// recover lets all live, ends all workloads, and wants nothing to be lost.
func (c *crashers) recover(p *model.Pool) {
	ctx := context.Background()
	p.Disabled = false
	if _, err := c.shared.Put(ctx, p, store.AnyRevision); err != nil {
		c.Fatal(err)
	}
	for _, n := range c.nodes {
		for _, w := range n.ledger.List() {
			if _, _, err := n.ledger.Release(ctx, w.Key(), time.Now()); err != nil {
				c.Fatal(err)
			}
		}
	}
	for range 12 {
		for _, n := range c.nodes {
			c.catchUp(n)
			n.keeper.asks.refuse(errors.New("over"))
			n.old()
			c.turn(ctx, n)
			c.passes(n)
		}
		c.holds()
	}
	items, _, err := c.shared.List(ctx, model.KindBlock)
	if err != nil {
		c.Fatal(err)
	}
	if len(items) != len(c.nodes) {
		for _, n := range c.nodes {
			c.Logf("%s: own %v, given up %v, empty since %v", n.name, n.snapshot().blocks, n.keeper.letGo, n.keeper.empty)
		}
		for _, it := range items {
			c.Logf("in the store: %+v", it.Object)
		}
		c.Fatalf("%d blocks are in the store, want one for each of %d nodes", len(items), len(c.nodes))
	}
	for _, n := range c.nodes {
		if b := n.snapshot().blocks; len(b) != 1 {
			c.Fatalf("%s has %v, want one block", n.name, b)
		}
	}
}
