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
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/ledger"
	"github.com/heddle-net/heddle/internal/store/memory"
)

// neighbours are two nodes of a pool with one block for each, five addresses large.
func neighbours(t *testing.T) (s store.Store, full, rich *Agent) {
	t.Helper()
	s = memory.New()
	p := pool("10.244.0.0/28", 29)
	p.MaxBlocks = 4
	put(t, s, p)
	for i, name := range []string{"full", "rich"} {
		put(t, s, &model.Node{Name: name, Address4: netip.AddrFrom4([4]byte{192, 168, 0, byte(i + 1)})})
	}
	full, rich = registrar(t, s, "full", t.TempDir()), registrar(t, s, "rich", t.TempDir())
	for _, a := range []*Agent{full, rich} {
		a.Config.Attachment, a.Config.Cooldown = model.AttachRouted, 1
		look(t, a, s)
		if err := a.ledger.SetCoolDown(context.Background(), 0); err != nil {
			t.Fatal(err)
		}
	}
	look(t, full, s) // of its neighbour, too
	fill(t, full, 5)
	return s, full, rich
}

// addFull is an ADD on a node whose blocks are full; turns are those that loops take meanwhile.
func addFull(t *testing.T, a *Agent, id string, turns func()) (model.Workload, error) {
	t.Helper()
	return addAs(t, a, model.Workload{ContainerID: id, IfName: "eth0"}, turns)
}

func addAs(t *testing.T, a *Agent, w model.Workload, turns func()) (model.Workload, error) {
	t.Helper()
	st := a.snapshot()
	got, _, next, err := a.placeNow(context.Background(), &st, w)
	if len(next) == 0 {
		return got, err
	}
	next[0].answer = make(chan error, 1)
	a.keeper.asks.add(next[0])
	turns()
	select {
	case err = <-next[0].answer:
	default:
		err = fmt.Errorf("not answered")
	}
	a.keeper.asks.end(next[0], nil)
	if err != nil {
		return got, err
	}
	st = a.snapshot()
	got, _, _, err = a.placeNow(context.Background(), &st, w)
	return got, err
}

func TestNodeBorrowsAnAddressAndGivesItBack(t *testing.T) {
	s, full, rich := neighbours(t)
	w, err := addFull(t, full, "guest", func() {
		look(t, full, s)
		look(t, rich, s)
		look(t, full, s)
	})
	if err != nil {
		t.Fatal(err)
	}
	home := rich.snapshot().blocks[0]
	if !home.CIDR.Contains(w.Addresses[0]) {
		t.Fatalf("got %v, want an address of %v", w.Addresses, home)
	}
	if lent := rich.ledger.Lent(); len(lent) != 1 || lent[w.Addresses[0]] != "full" {
		t.Fatalf("lent %v, want %v to node full", lent, w.Addresses)
	}
	for i := range 4 { // all that are left, and no more
		reserve(t, rich, fmt.Sprintf("own%d", i))
	}
	late := model.Workload{ContainerID: "late", IfName: "eth0"}
	if got, _, err := rich.ledger.Reserve(context.Background(), late, prefixes(rich.snapshot().blocks), time.Now()); err == nil {
		t.Fatalf("got %v of a block of which every address is in use or lent", got.Addresses)
	}

	if _, _, err := full.ledger.Release(context.Background(), "guest/eth0", time.Now()); err != nil {
		t.Fatal(err)
	}
	look(t, full, s)
	backdate(full)
	look(t, full, s)
	look(t, full, s)
	look(t, rich, s)
	if lent := rich.ledger.Lent(); len(lent) != 0 {
		t.Errorf("lent %v after the guest has gone, want nothing", lent)
	}
	if got := inStore(t, s); len(got) != 2 {
		t.Errorf("the store has %v, want the two blocks", got)
	}
}

func TestNobodyLendsWhatIsInUse(t *testing.T) {
	s, full, rich := neighbours(t)
	used := rich.ledger
	for i := range 5 {
		reserve(t, rich, fmt.Sprintf("own%d", i)) // which full has not heard of
	}
	_, err := addFull(t, full, "guest", func() {
		for range 12 {
			look(t, full, s)
			look(t, rich, s)
		}
	})
	if err == nil || !strings.Contains(err.Error(), "no other node of the pool lends an address") || !strings.Contains(err.Error(), "all 2 are taken") {
		t.Errorf("error %v, want that nobody lends", err)
	}
	if len(used.Lent()) != 0 || len(inStore(t, s)) != 2 {
		t.Errorf("lent %v, in the store %v", used.Lent(), inStore(t, s))
	}
}

func TestRequestThatNobodyWaitsForIsWithdrawn(t *testing.T) {
	s, full, rich := neighbours(t)
	_, err := addFull(t, full, "guest", func() { look(t, full, s) }) // rich is away
	if err == nil {
		t.Fatal("an address was lent without its owner")
	}
	if got := inStore(t, s); len(got) != 3 {
		t.Fatalf("the store has %v, want a request", got)
	}
	look(t, full, s)
	look(t, rich, s)
	if got := inStore(t, s); len(got) != 2 || len(rich.ledger.Lent()) != 0 {
		t.Errorf("the store has %v, lent is %v: want the request gone", got, rich.ledger.Lent())
	}
}

func TestBlockOutOfWhichAnAddressIsLentIsKept(t *testing.T) {
	s, full, rich := neighbours(t)
	w, err := addFull(t, full, "guest", func() { look(t, full, s); look(t, rich, s); look(t, full, s) })
	if err != nil {
		t.Fatal(err)
	}
	p := pool("10.244.0.0/28", 29)
	p.MaxBlocks, p.Disabled = 4, true
	put(t, s, p)
	for range 3 {
		look(t, rich, s)
		backdate(rich)
	}
	if got := rich.snapshot().blocks; len(got) != 1 || !slices.ContainsFunc(got, func(b model.Block) bool { return b.CIDR.Contains(w.Addresses[0]) }) {
		t.Errorf("blocks %v, want the one of %v kept", got, w.Addresses)
	}
}

func TestAddressOfAnotherNodesBlockIsLentToWhoAsksForItByName(t *testing.T) {
	s, full, rich := neighbours(t)
	named := rich.snapshot().blocks[0].CIDR.Addr().Next().Next().Next()
	ask := func(id string) (model.Workload, error) {
		w := model.Workload{ContainerID: id, IfName: "eth0", Wishes: &model.Wishes{Addresses: []netip.Addr{named}}}
		return addAs(t, full, w, func() {
			for range 3 {
				look(t, full, s)
				look(t, rich, s)
			}
		})
	}
	w, err := ask("guest")
	if err != nil || len(w.Addresses) != 1 || w.Addresses[0] != named {
		t.Fatalf("got %v, %v: want %s", w.Addresses, err, named)
	}
	if rich.ledger.Lent()[named] != "full" {
		t.Errorf("lent %v", rich.ledger.Lent())
	}
	named = named.Next()
	w = model.Workload{ContainerID: "home", IfName: "eth0"}
	if _, _, err := rich.ledger.Take(context.Background(), w, ledger.Ask{Blocks: prefixes(rich.snapshot().blocks), Fixed: []netip.Addr{named}}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := ask("late"); err == nil || !strings.Contains(err.Error(), `node "rich", whose block it is in, does not lend it`) {
		t.Errorf("error %v for an address in use, want a refusal that names the node", err)
	}
}
