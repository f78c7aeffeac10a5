package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/cni/wire"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store/memory"
)

func TestAddNamesTheMACOfAWorkloadWithoutAWish(t *testing.T) {
	in := plan.Input{
		Self: "n1",
		Cluster: model.Cluster{
			Pools:  []model.Pool{*pool("10.244.0.0/16", 24)},
			Blocks: []model.Block{{CIDR: netip.MustParsePrefix("10.244.1.0/24"), Pool: "flannel", Node: "n1"}},
		},
	}
	w := model.Workload{ContainerID: "c1", IfName: "eth0", Attachment: model.AttachBridge, Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}
	pod := plan.PodOf(in, w, 1450)
	if got := attached(w, pod); got.Workload.MAC == "" || got.Workload.MAC != pod.MAC {
		t.Fatalf("ADD says MAC %q, the interface gets %q", got.Workload.MAC, pod.MAC)
	}
}

// twoBlocks is a node after its network moved to another range: the old block is kept for its workloads.
func twoBlocks() (model.Cluster, []model.Block) {
	c := model.Cluster{Pools: []model.Pool{*pool("10.245.0.0/16", 24)}}
	return c, []model.Block{
		{CIDR: netip.MustParsePrefix("10.244.1.0/24"), Pool: "flannel", Node: "n1"},
		{CIDR: netip.MustParsePrefix("10.244.2.0/24"), Pool: "gone", Node: "n1"},
		{CIDR: netip.MustParsePrefix("10.245.1.0/25"), Pool: "flannel", Node: "n1"},
		{CIDR: netip.MustParsePrefix("10.245.1.0/24"), Pool: "flannel", Node: "n1"},
	}
}

func TestNewWorkloadsStayOutOfBlocksThatTheirPoolsHaveNoMore(t *testing.T) {
	c, own := twoBlocks()
	if got, err := inUse(c, own); err != nil || len(got) != 1 || got[0] != own[3] {
		t.Fatalf("blocks for new workloads: %v, %v: want only %v", got, err, own[3])
	}
	own = append(own[:3], model.Block{CIDR: netip.MustParsePrefix("fd00:1::/64"), Pool: "flannel6", Node: "n1"})
	c.Pools = append(c.Pools, model.Pool{Name: "flannel6", CIDR: netip.MustParsePrefix("fd00::/16"), BlockSize: 64})
	var refused *cni.Error
	if got, err := inUse(c, own); !errors.As(err, &refused) || refused.Code != cni.CodeTryAgainLater {
		t.Fatalf("while the new IPv4 block is missing: %v, %v: want the workload to wait for it", got, err)
	}
}

// TestBlockCountsOnceItsGatewayIsThere: a block may be claimed while a pass is under way that knows nothing
// of it, and makes no bridge.
func TestBlockCountsOnceItsGatewayIsThere(t *testing.T) {
	a := registrar(t, memory.New(), "n1", t.TempDir())
	a.Config.CNIConfDir = t.TempDir()
	c, own := twoBlocks()
	a.update(func(s *state) { s.blocks = own[3:] })
	before, after := &plan.Input{Self: "n1", Cluster: c}, &plan.Input{Self: "n1", Cluster: c}
	after.Cluster.Blocks = own[3:]
	knowsPolicies(t, a)
	a.Config.RunDir = t.TempDir()
	long := time.Now().Add(-time.Hour) // what an agent before left
	if err := errors.Join(os.WriteFile(filepath.Join(a.Config.RunDir, wire.ReadyFile), nil, 0o600), os.Chtimes(filepath.Join(a.Config.RunDir, wire.ReadyFile), long, long)); err != nil {
		t.Fatal(err)
	}
	a.judgeReady(context.Background(), before, &plan.Plan{}, nil)
	if err := (*pods)(a).Ready(); err == nil {
		t.Error("ready for pods, though the plan that is in the kernel has no block")
	}
	if got := applied(own, after); len(got) != 1 || got[0] != own[3] {
		t.Errorf("new workloads get addresses from %v, want only from %v, which the plan has", got, own[3])
	}
	a.notReady("only just started")
	ready := filepath.Join(a.Config.RunDir, wire.ReadyFile)
	if _, err := os.Stat(ready); err != nil {
		t.Errorf("an agent that has just started takes away what the one before left: %v", err)
	}
	a.judgeReady(context.Background(), after, &plan.Plan{}, nil)
	if err := (*pods)(a).Ready(); err != nil {
		t.Errorf("not ready with block and plan: %v", err)
	}
	if f, err := os.Stat(ready); err != nil || time.Since(f.ModTime()) > time.Minute {
		t.Errorf("ready, and %s was not touched: %v", ready, err)
	}
	a.notReady("the blocks are gone")
	if _, err := os.Stat(ready); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not ready any more, and %s is still there: %v", ready, err)
	}
}

// TestReadyAgentRemembersWhatItNeedsWithoutTheStore: an agent that is killed right after it said that it is
// ready adds pods in its next life.
func TestReadyAgentRemembersWhatItNeedsWithoutTheStore(t *testing.T) {
	s := memory.New()
	put(t, s, pool("10.244.0.0/16", 24))
	a := registrar(t, s, "n1", t.TempDir())
	a.Config.CNIConfDir = t.TempDir()
	reconcile(t, a, func(c model.Cluster) bool { return len(c.Pools) == 1 })
	c, known, recalled := a.cluster()
	if !known || recalled {
		t.Fatalf("the cluster is known %t, from memory %t: the view has seen the store", known, recalled)
	}
	in := a.input(model.Node{Name: "n1"}, c, recalled, model.Host{})
	knowsPolicies(t, a)
	a.update(func(s *state) { s.plan, s.input = &plan.Plan{}, &in })
	a.judgeReady(context.Background(), &in, &plan.Plan{}, nil)
	if err := (*pods)(a).Ready(); err != nil {
		t.Fatal(err)
	}

	if err := a.ledger.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := New(Options{Config: a.Config, Log: slog.New(slog.DiscardHandler), Store: memory.New()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = next.ledger.Close() })
	c, known, recalled = next.cluster() // nobody runs its view: the store is away
	if err := next.policy.Ready(); err != nil {
		t.Errorf("the next life does not know the policies: %v", err)
	}
	if !known || len(c.Pools) != 1 || len(c.Blocks) != 1 {
		t.Errorf("the next life knows %v (%t), want the pool and this node's block", c, known)
	}
	if in := next.input(model.Node{Name: "n1"}, c, recalled, model.Host{}); !in.Recalled {
		t.Error("what the next life remembers passes for what the store has")
	}
}

func TestAddNamesNoRouteThatTheInterfaceDoesNotGet(t *testing.T) {
	c, own := twoBlocks()
	c.Blocks = own[3:]
	w := model.Workload{ContainerID: "c1", IfName: "eth0", Attachment: model.AttachBridge, Addresses: []netip.Addr{
		netip.MustParseAddr("fd00::2"), // of a block that is gone: its gateway is nobody
		netip.MustParseAddr("10.245.1.2"),
	}}
	got := attached(w, plan.PodOf(plan.Input{Self: "n1", Cluster: c}, w, 1450))
	if len(got.Routes) != 1 || !got.Routes[0].Addr().Is4() {
		t.Fatalf("routes %v, want the IPv4 default alone", got.Routes)
	}
}

// TestAddThatWaitsForItsPodHoldsUpNobody: the API server may tell of a pod long after the runtime has asked for it.
func TestAddThatWaitsForItsPodHoldsUpNobody(t *testing.T) {
	s := memory.New()
	put(t, s, pool("10.244.0.0/16", 24))
	a := registrar(t, s, "n1", t.TempDir())
	knowsPolicies(t, a)
	a.policy.Named = true
	a.policy.SetNode(nil, nil)
	c, own := twoBlocks()
	c.Blocks = own[3:]
	a.update(func(s *state) {
		s.blocks, s.plan, s.input, s.ready = own[3:], &plan.Plan{}, &plan.Input{Self: "n1", Cluster: c}, nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	added := make(chan error, 1)
	go func() {
		_, err := (*pods)(a).Add(ctx, model.Workload{ContainerID: "c1", IfName: "eth0", Namespace: "dev", Name: "web"}, nil)
		added <- err
	}()
	for range 50 {
		if !a.attaching.TryLock() {
			t.Error("a pass would wait for the store to tell of a pod")
			break
		}
		a.attaching.Unlock()
		time.Sleep(2 * time.Millisecond)
	}
	if l := a.ledger.List(); len(l) > 0 {
		t.Errorf("%v has an address though nobody has told of it", l)
	}
	select {
	case err := <-added:
		t.Errorf("ADD did not wait: %v", err)
	default:
	}
	cancel()
	var refused *cni.Error
	if err := <-added; !errors.As(err, &refused) || refused.Code != cni.CodeTryAgainLater {
		t.Errorf("%v, want an error that asks to try again later", err)
	}
}
