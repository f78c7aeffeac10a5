package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/ledger"
	"github.com/heddle-net/heddle/internal/store/memory"
)

func pool(cidr string, size int) *model.Pool {
	return &model.Pool{
		Name: "flannel", CIDR: netip.MustParsePrefix(cidr), BlockSize: size,
		Path: model.PathDirect, Encap: model.EncapNever,
	}
}

// registrar is an agent of which only the half that talks to the store runs: real ledger, real view.
func registrar(t *testing.T, s store.Store, node, stateDir string) *Agent {
	t.Helper()
	c := config.Default()
	c.Node, c.StateDir, c.RunDir = node, stateDir, t.TempDir()
	a, err := New(Options{Config: c, Log: slog.New(slog.DiscardHandler), Store: s})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = a.view.Run(ctx) })
	done.Go(func() {
		_ = store.NewFeed(s, nil, model.KindEndpoint, model.KindResource).Run(ctx, a.policy.Take)
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
		_ = a.ledger.Close()
	})
	return a
}

// knowsPolicies waits until the agent has read them: it is not ready before.
func knowsPolicies(t *testing.T, a *Agent) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); a.policy.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(a.policy.Ready())
		}
	}
}

// reconcile gives the view time to see what the test wrote, then runs reconcileBlocks once.
func reconcile(t *testing.T, a *Agent, seen func(model.Cluster) bool) []model.Problem {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for {
		c, synced := a.view.Snapshot()
		if synced && seen(c) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the view never saw the store's state")
		}
		time.Sleep(time.Millisecond)
	}
	_, issues := a.reconcileBlocks(context.Background(), a.snapshot().blocks)
	return issues
}

func put(t *testing.T, s store.Store, o model.Object) {
	t.Helper()
	if _, err := s.Put(context.Background(), o, store.AnyRevision); err != nil {
		t.Fatal(err)
	}
}

func reserve(t *testing.T, a *Agent, id string) {
	t.Helper()
	w := model.Workload{ContainerID: id, IfName: "eth0", Attachment: model.AttachBridge}
	if _, _, err := a.ledger.Reserve(context.Background(), w, prefixes(a.snapshot().blocks), time.Now()); err != nil {
		t.Fatal(err)
	}
}

func TestLostBlockIsClaimedAgainNotReplaced(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	put(t, s, pool("10.244.0.0/16", 24))
	hasPool := func(c model.Cluster) bool { return len(c.Pools) == 1 }
	if issues := reconcile(t, a, hasPool); len(issues) > 0 {
		t.Fatal(issues)
	}
	own := a.snapshot().blocks[0]
	reserve(t, a, "pod")
	if err := s.Delete(context.Background(), model.KindBlock, own.Key(), store.AnyRevision); err != nil {
		t.Fatal(err)
	}
	if issues := reconcile(t, a, func(c model.Cluster) bool { return len(c.Pools) == 1 && len(c.Blocks) == 0 }); len(issues) > 0 {
		t.Fatal(issues)
	}
	item, err := s.Get(context.Background(), model.KindBlock, own.Key())
	if err != nil || item.Object.(*model.Block).Node != "n1" {
		t.Fatalf("block %s is %v, %v: want it claimed again by n1", own.CIDR, item.Object, err)
	}
	if got := a.snapshot().blocks; len(got) != 1 || got[0] != own {
		t.Fatalf("own blocks %v, want %v unchanged", got, own)
	}
}

func TestNodeIsNotRenumberedWhileItHasPods(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	put(t, s, pool("10.244.0.0/16", 24))
	reconcile(t, a, func(c model.Cluster) bool { return len(c.Pools) == 1 })
	own := a.snapshot().blocks[0]
	reserve(t, a, "pod")

	put(t, s, &model.Block{CIDR: own.CIDR, Pool: "flannel", Node: "thief"})
	issues := reconcile(t, a, func(c model.Cluster) bool { return len(c.Blocks) == 1 && c.Blocks[0].Node == "thief" })
	if len(issues) != 1 || issues[0].Code != "block-lost" || !strings.Contains(issues[0].Detail, `"thief"`) {
		t.Errorf("problems %v, want one block-lost that names the thief", issues)
	}
	if got := a.snapshot().blocks; len(got) != 1 || got[0] != own {
		t.Fatalf("own blocks %v, want %v kept while a pod uses it", got, own)
	}

	if _, _, err := a.ledger.Release(context.Background(), "pod/eth0", time.Now()); err != nil {
		t.Fatal(err)
	}
	reconcile(t, a, func(model.Cluster) bool { return true })
	if got := a.snapshot().blocks; len(got) != 1 || got[0].CIDR == own.CIDR {
		t.Fatalf("own blocks %v, want another than the stolen %v once no pod uses it", got, own.CIDR)
	}
}

func TestBlocksSurviveARestartWithoutTheStore(t *testing.T) {
	s := memory.New()
	dir := t.TempDir()
	a := registrar(t, s, "n1", dir)
	put(t, s, pool("10.244.0.0/16", 24))
	reconcile(t, a, func(c model.Cluster) bool { return len(c.Pools) == 1 })
	own := a.snapshot().blocks
	if err := a.ledger.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(Options{Config: a.Config, Log: slog.New(slog.DiscardHandler), Store: memory.New()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.ledger.Close() }()
	if got := again.snapshot().blocks; len(got) != 1 || got[0] != own[0] {
		t.Fatalf("own blocks %v after a restart, want %v", got, own)
	}
	if again.id != a.id {
		t.Errorf("id %s after a restart, want %s", again.id, a.id)
	}
}

func TestRebootFreesWhatWorkloadsHeld(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	put(t, s, pool("10.244.0.0/16", 24))
	reconcile(t, a, func(c model.Cluster) bool { return len(c.Pools) == 1 })
	reserve(t, a, "pod")
	if err := a.forgetBeforeBoot(ledger.BootIDFile); err != nil {
		t.Fatal(err)
	}
	if got := a.ledger.List(); len(got) != 1 {
		t.Fatalf("workloads %v after a restart of the agent, want one", got)
	}
	other := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(other, []byte("another boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.forgetBeforeBoot(other); err != nil {
		t.Fatal(err)
	}
	if got := a.ledger.List(); len(got) != 0 {
		t.Fatalf("workloads %v after a reboot, want none", got)
	}
}

func TestBlockOfALostNodeIsFreedOnlyWhenThePoolIsFullAndItsGraceIsOver(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	a := registrar(t, s, "n2", t.TempDir())
	put(t, s, pool("10.244.0.0/24", 25))
	put(t, s, &model.Block{CIDR: netip.MustParsePrefix("10.244.0.0/25"), Pool: "flannel", Node: "alive"})
	put(t, s, &model.Block{CIDR: netip.MustParsePrefix("10.244.0.128/25"), Pool: "flannel", Node: "gone"})
	beat := func(node string, ago time.Duration) {
		put(t, s, &model.Heartbeat{Node: node, Renewed: time.Now().Add(-ago), TTL: time.Minute})
	}
	beat("alive", 0)
	full := func(c model.Cluster) bool { return len(c.Blocks) == 2 && len(c.Pools) == 1 }

	beat("gone", 23*time.Hour) // lost, within its grace
	if err := a.listHeartbeats(ctx); err != nil {
		t.Fatal(err)
	}
	issues := reconcile(t, a, full)
	if len(issues) != 1 || issues[0].Code != "pool-full" {
		t.Fatalf("problems %v, want pool-full", issues)
	}
	if lost := a.snapshot().lost; lost["gone"] < 22*time.Hour || lost["alive"] != 0 {
		t.Errorf("lost %v, want gone alone", lost)
	}

	beat("gone", 25*time.Hour)
	answered(a, time.Hour)
	if err := a.listHeartbeats(ctx); err != nil {
		t.Fatal(err)
	}
	if issues := reconcile(t, a, full); len(issues) > 0 {
		t.Fatal(issues)
	}
	if got := a.snapshot().blocks; len(got) != 1 || got[0].CIDR.String() != "10.244.0.128/25" {
		t.Fatalf("own blocks %v, want that of the node that is gone", got)
	}
}

func TestSecondMachineWithOneNameIsRefused(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	put(t, s, &model.Node{Name: "n1", ID: "another", Address4: netip.MustParseAddr("192.168.0.9")})
	a := registrar(t, s, "n1", t.TempDir())
	me := func(*state) *model.Node {
		return &model.Node{Name: "n1", ID: a.id, Address4: netip.MustParseAddr("192.168.0.4")}
	}

	put(t, s, &model.Heartbeat{Node: "n1", Renewed: time.Now(), TTL: time.Minute})
	if err := a.publish(ctx, me); err == nil || !strings.Contains(err.Error(), "192.168.0.9") {
		t.Fatalf("error %v, want a refusal that names the other machine", err)
	}
	put(t, s, &model.Heartbeat{Node: "n1", Renewed: time.Now().Add(-time.Hour), TTL: time.Minute})
	if err := a.publish(ctx, me); err != nil {
		t.Fatalf("the other one is lost, yet: %v", err)
	}
}
