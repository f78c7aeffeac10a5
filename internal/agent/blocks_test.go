package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/memory"
)

// several is a pool of which nodes have up to four blocks, of five addresses each.
func several() *model.Pool {
	p := pool("10.244.0.0/24", 29)
	p.MaxBlocks = 4
	return p
}

// look has the view catch up, and then the register loop and a pass take a turn each, twice.
func look(t *testing.T, a *Agent, s store.Store) (issues []model.Problem) {
	t.Helper()
	for range 2 {
		_, rev, err := s.List(context.Background(), model.KindPool, model.KindBlock)
		if err != nil {
			t.Fatal(err)
		}
		issues = reconcile(t, a, func(model.Cluster) bool { return a.view.Revision() >= rev })
		c, _, _ := a.cluster()
		a.update(func(s *state) { s.plan, s.input = &plan.Plan{}, &plan.Input{Self: a.Config.Node, Cluster: c} })
	}
	return issues
}

func fill(t *testing.T, a *Agent, n int) {
	t.Helper()
	for i := range n {
		reserve(t, a, fmt.Sprintf("pod%d", i))
	}
}

func inStore(t *testing.T, s store.Store) (blocks []string) {
	t.Helper()
	items, _, err := s.List(context.Background(), model.KindBlock)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		b := it.Object.(*model.Block)
		blocks = append(blocks, b.CIDR.String()+" "+b.Node)
	}
	return blocks
}

func TestNextBlockIsClaimedBeforeTheLastIsFull(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	put(t, s, several())
	look(t, a, s)
	fill(t, a, 3)
	if look(t, a, s); len(a.snapshot().blocks) != 1 {
		t.Fatalf("blocks %v with two addresses left, want one", a.snapshot().blocks)
	}
	fill(t, a, 4)
	if look(t, a, s); len(a.snapshot().blocks) != 2 {
		t.Fatalf("blocks %v with one address left, want two", a.snapshot().blocks)
	}
}

func TestPoolOfOneBlockPerNodeNeverGivesASecond(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	put(t, s, pool("10.244.0.0/24", 29))
	look(t, a, s)
	fill(t, a, 5)
	if look(t, a, s); len(a.snapshot().blocks) != 1 {
		t.Fatalf("blocks %v, want one", a.snapshot().blocks)
	}
}

func TestEmptyBlockIsGivenBackOnceItHasBeenSoForAWhile(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	a.Config.Cooldown = 1
	put(t, s, several())
	look(t, a, s)
	fill(t, a, 5)
	look(t, a, s)
	fill(t, a, 7)
	both := a.snapshot().blocks
	if len(both) != 2 {
		t.Fatalf("blocks %v, want two", both)
	}
	for i := 3; i < 7; i++ {
		if _, _, err := a.ledger.Release(context.Background(), fmt.Sprintf("pod%d/eth0", i), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.ledger.SetCoolDown(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	look(t, a, s)
	if got := a.snapshot().blocks; !slices.Equal(got, both) {
		t.Fatalf("blocks %v right after the last workload went, want %v", got, both)
	}
	// Two addresses are left in the first, so the second cannot be spared.
	backdate(a)
	if look(t, a, s); len(a.snapshot().blocks) != 2 {
		t.Fatalf("blocks %v, want the second kept: the first is nearly full", a.snapshot().blocks)
	}
	for i := range 3 {
		if _, _, err := a.ledger.Release(context.Background(), fmt.Sprintf("pod%d/eth0", i), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	reserve(t, a, "stays")
	home := a.ledger.ByContainer("stays")[0].Addresses[0]
	look(t, a, s)
	if len(a.snapshot().blocks) != 2 {
		t.Fatalf("blocks %v after one look, want two", a.snapshot().blocks)
	}
	backdate(a)
	look(t, a, s)
	look(t, a, s)
	got := a.snapshot().blocks
	if len(got) != 1 || !got[0].CIDR.Contains(home) {
		t.Fatalf("blocks %v, want the one in which %s is", got, home)
	}
	if want := []string{got[0].CIDR.String() + " n1"}; !slices.Equal(inStore(t, s), want) {
		t.Errorf("the store has %v, want %v", inStore(t, s), want)
	}
}

func backdate(a *Agent) {
	for b, since := range a.keeper.empty {
		a.keeper.empty[b] = since.Add(-emptyFor)
	}
}

// TestBlockIsKeptWhenAWorkloadComesAtTheLastMoment: an ADD takes an address between the look and the decision.
func TestBlockIsKeptWhenAWorkloadComesAtTheLastMoment(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	put(t, s, pool("10.244.0.0/24", 29))
	look(t, a, s)
	own := a.snapshot().blocks
	k := &keeping{Agent: a, state: a.snapshot(), own: own, now: time.Now()} // of which none shall be kept
	reserve(t, a, "late")
	k.commit(context.Background())
	if got := a.snapshot().blocks; !slices.Equal(got, own) {
		t.Fatalf("blocks %v, want %v: somebody lives there", got, own)
	}
}

func TestBlockIsDeletedInTheStoreOnlyOnceTheKernelHasHeard(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	p := several()
	put(t, s, p)
	look(t, a, s)
	p.Disabled = true
	put(t, s, p)
	look(t, a, s)
	backdate(a)
	turn := func() {
		_, rev, _ := s.List(context.Background(), model.KindBlock, model.KindPool)
		reconcile(t, a, func(model.Cluster) bool { return a.view.Revision() >= rev })
	}
	turn() // no pass between these: the kernel has the block's gateway
	turn()
	if got := a.snapshot().blocks; len(got) != 0 {
		t.Fatalf("blocks %v of a disabled pool, want none", got)
	}
	if got := inStore(t, s); len(got) != 1 {
		t.Fatalf("the store has %v: another node might use it while this kernel still does", got)
	}
	look(t, a, s)
	if got := inStore(t, s); len(got) != 0 {
		t.Fatalf("the store has %v, want nothing", got)
	}
}

func TestDisabledPoolKeepsTheBlocksInUse(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	p := several()
	put(t, s, p)
	look(t, a, s)
	fill(t, a, 1)
	p.Disabled = true
	put(t, s, p)
	for range 3 {
		issues := look(t, a, s)
		if len(issues) != 1 || issues[0].Code != "no-pool-for-node" {
			t.Fatalf("problems %v, want that no pool is for this node", issues)
		}
		backdate(a)
	}
	if len(a.snapshot().blocks) != 1 || len(inStore(t, s)) != 1 {
		t.Fatalf("blocks %v, in the store %v: want the one in use", a.snapshot().blocks, inStore(t, s))
	}
}

func TestPoolThatSelectsOtherNodesGivesNoBlock(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	other := several()
	other.NodeSelector = `rack == "2"`
	put(t, s, other)
	put(t, s, &model.Node{Name: "n1", Address4: netip.MustParseAddr("192.168.0.1"), Labels: map[string]string{"rack": "1"}})
	look(t, a, s)
	if got := a.snapshot().blocks; len(got) != 0 {
		t.Fatalf("blocks %v, want none", got)
	}
	put(t, s, &model.Node{Name: "n1", Address4: netip.MustParseAddr("192.168.0.1"), Labels: map[string]string{"rack": "2"}})
	if reconcile(t, a, func(c model.Cluster) bool { return c.Node("n1") != nil && c.Node("n1").Labels["rack"] == "2" }); true {
		look(t, a, s)
	}
	if got := a.snapshot().blocks; len(got) != 1 {
		t.Fatalf("blocks %v once the node has the label, want one", got)
	}
	other.NodeSelector = "("
	put(t, s, other)
	issues := look(t, a, s)
	if len(issues) == 0 || issues[0].Code != "pool-selector" || len(a.snapshot().blocks) != 1 {
		t.Errorf("problems %v, blocks %v: want the selector named, and the block kept", issues, a.snapshot().blocks)
	}
}

func TestWishedAddressHasItsBlockClaimed(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	put(t, s, several())
	put(t, s, &model.Block{CIDR: netip.MustParsePrefix("10.244.0.64/29"), Pool: "flannel", Node: "n2"})
	look(t, a, s)
	add := func(id, address string) (model.Workload, error) {
		w := model.Workload{ContainerID: id, IfName: "eth0", Wishes: &model.Wishes{Addresses: []netip.Addr{netip.MustParseAddr(address)}, MAC: "0a:00:00:00:00:01"}, MAC: "0a:00:00:00:00:01"}
		st := a.snapshot()
		got, _, next, err := a.placeNow(context.Background(), &st, w)
		if len(next) == 1 {
			next[0].answer = make(chan error, 1)
			a.keeper.asks.add(next[0])
			look(t, a, s)
			look(t, a, s)
			if err = <-next[0].answer; err == nil {
				st = a.snapshot()
				got, _, _, err = a.placeNow(context.Background(), &st, w)
			}
		}
		return got, err
	}
	w, err := add("a", "10.244.0.34")
	if err != nil || len(w.Addresses) != 1 || w.Addresses[0].String() != "10.244.0.34" {
		t.Fatalf("got %v, %v", w.Addresses, err)
	}
	if got := inStore(t, s); !slices.Contains(got, "10.244.0.32/29 n1") {
		t.Errorf("the store has %v, want the block around it claimed", got)
	}
	for address, want := range map[string]string{
		"10.244.0.34": "0a:00:00:00:00:01", // the MAC is looked at first
		"10.244.0.66": `block 10.244.0.64/29 of node "n2"`,
		"10.250.0.1":  "one of the network's pools",
	} {
		if _, err := add("b", address); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", address, err, want)
		}
	}
}

func TestSelectorsSeeTheNamespacesLabels(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	put(t, s, &model.Resource{APIVersion: "v1", Type: "Namespace", Name: "dev", Body: []byte(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"dev","labels":{"team":"a"}}}`)})
	p := several()
	p.NamespaceSelector = `team == "a" || kubernetes.io/metadata.name == "by-name"`
	put(t, s, p)
	look(t, a, s)
	knowsPolicies(t, a)
	for namespace, may := range map[string]bool{"dev": true, "by-name": true, "other": false, "": false} {
		st := a.snapshot()
		_, _, next, err := a.placeNow(context.Background(), &st, model.Workload{ContainerID: "c-" + namespace, IfName: "eth0", Namespace: namespace, Name: "p"})
		if may != (err == nil) || len(next) > 0 {
			t.Errorf("namespace %q: error %v, want it to get an address: %t", namespace, err, may)
		}
	}
}
