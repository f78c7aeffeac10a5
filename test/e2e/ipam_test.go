package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/test/harness/labstore"
)

// small has blocks of five addresses that pods may have, of IPv4, and of six, of IPv6.
const small = `{"Network":"10.244.0.0/24","SubnetLen":29,"EnableIPv6":true,"IPv6Network":"fd00:244::/112","IPv6SubnetLen":125,"Backend":{"Type":"host-gw"}}`

// storeOf opens the lab's store from outside of the lab.
func storeOf(ctx context.Context, t *testing.T, l *lab.Lab) store.Store {
	t.Helper()
	pid, err := l.Node(l.Nodes()[0]).InitPID()
	if err != nil {
		t.Fatal(err)
	}
	return labstore.Open(ctx, t, l, func(f func() error) error { return within(fmt.Sprintf("/proc/%d/ns/net", pid), f) })
}

// change rewrites the pools in the store, and waits until every node has heard of it.
func change(ctx context.Context, t *testing.T, l *lab.Lab, s store.Store, how func(*model.Pool)) {
	t.Helper()
	items, _, err := s.List(ctx, model.KindPool)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]*model.Pool{}
	for _, it := range items {
		p := it.Object.(*model.Pool)
		how(p)
		want[p.Name] = p
		if _, err := s.Put(ctx, p, it.Revision); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range l.Nodes() {
		eventually(t, 30*time.Second, n+" knows of the pools", func() error {
			st, err := l.Status(ctx, n)
			if err != nil {
				return err
			}
			for i := range st.Pools {
				if p := &st.Pools[i]; !p.Equal(want[p.Name]) {
					return fmt.Errorf("it has %+v", *p)
				}
			}
			return nil
		})
	}
}

func blocksOf(ctx context.Context, t *testing.T, l *lab.Lab, node string, f model.Family) (blocks []netip.Prefix) {
	t.Helper()
	for _, b := range status(ctx, t, l, node).Blocks {
		if b.Family() == f {
			blocks = append(blocks, b.CIDR)
		}
	}
	return blocks
}

func TestNodeTakesFurtherBlocksAsItsPodsNeedThem(t *testing.T) {
	for _, attachment := range []string{"bridge", "routed"} {
		t.Run(attachment, func(t *testing.T) {
			ctx, l := up(t, "flat", small, func(s *lab.Spec) { s.Attachment, s.Pods = attachment, 0 })
			change(ctx, t, l, storeOf(ctx, t, l), func(p *model.Pool) { p.MaxBlocks = 4 })
			// More than two blocks hold, all at once: no ADD fails, though most of them find their blocks full.
			failed := make(chan error, 13)
			for i := range 12 {
				go func() {
					_, err := l.AddPod(ctx, "n1", fmt.Sprintf("p%d", i))
					failed <- err
				}()
			}
			go func() { _, err := l.AddPod(ctx, "n2", "far"); failed <- err }()
			for range 13 {
				if err := <-failed; err != nil {
					t.Error(err)
				}
			}
			if t.Failed() {
				t.FailNow()
			}
			for _, f := range []model.Family{model.IPv4, model.IPv6} {
				own := blocksOf(ctx, t, l, "n1", f)
				if len(own) < 2 || len(own) > 4 {
					t.Errorf("n1 has the %s blocks %v, want two to four", f, own)
				}
				homes := map[netip.Prefix]int{}
				var seen []netip.Addr
				for _, p := range pods(t, l) {
					a := p.Address(f)
					if slices.Contains(seen, a) {
						t.Errorf("two pods have %s", a)
					}
					seen = append(seen, a)
					for _, b := range own {
						if b.Contains(a) {
							homes[b]++
						}
					}
				}
				if len(homes) < 2 {
					t.Errorf("pods of n1 are in the %s blocks %v: the test shows nothing", f, homes)
				}
			}
			reach(ctx, t, l)
			if attachment == "routed" {
				for _, b := range blocksOf(ctx, t, l, "n1", model.IPv4) {
					if out := run(ctx, t, l, "n1", "ip", "route", "show", "type", "blackhole"); !strings.Contains(out, b.String()) {
						t.Errorf("n1 has no blackhole route for its block %s:\n%s", b, out)
					}
				}
			}
		})
	}
}

func TestPodsStopWhereTheLimitOfBlocksIs(t *testing.T) {
	ctx, l := up(t, "flat", `{"Network":"10.244.0.0/24","SubnetLen":29,"Backend":{"Type":"host-gw"}}`, func(s *lab.Spec) { s.Pods = 0 })
	change(ctx, t, l, storeOf(ctx, t, l), func(p *model.Pool) { p.MaxBlocks = 2 })
	for i := range 10 {
		if _, err := l.AddPod(ctx, "n1", fmt.Sprintf("p%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := l.AddPod(ctx, "n1", "late")
	if err == nil || !strings.Contains(err.Error(), "the pool allows 2 per node") {
		t.Fatalf("error %v, want one that names the limit", err)
	}
}

// TestNodeWithoutABlockToClaimBorrowsAddresses: three blocks for three nodes, and more pods on one of them than its
// block holds.
func TestNodeWithoutABlockToClaimBorrowsAddresses(t *testing.T) {
	for _, backend := range []string{"host-gw", "vxlan"} {
		t.Run(backend, func(t *testing.T) {
			three := `{"Network":"10.244.0.0/27","SubnetLen":29,"SubnetMin":"10.244.0.0","SubnetMax":"10.244.0.16","Backend":{"Type":"` + backend + `"}}`
			ctx, l := up(t, "flat", three, func(s *lab.Spec) { s.Attachment, s.Pods = "routed", 3 })
			s := storeOf(ctx, t, l)
			change(ctx, t, l, s, func(p *model.Pool) { p.MaxBlocks = 4 })
			borrowed := 0
			for i := range 6 { // with the one that is there, seven
				p, err := l.AddPod(ctx, "n1", fmt.Sprintf("more%d", i))
				if err != nil {
					t.Fatal(err)
				}
				a := p.Address(model.IPv4)
				if !slices.ContainsFunc(blocksOf(ctx, t, l, "n1", model.IPv4), func(b netip.Prefix) bool { return b.Bits() == 29 && b.Contains(a) }) {
					borrowed++
				}
			}
			if borrowed != 2 {
				t.Errorf("%d pods of n1 have addresses of other nodes' blocks, want two", borrowed)
			}
			for i := range 8 { // until the lenders' own blocks are full: none of theirs is one that they have lent
				_, err := l.AddPod(ctx, []string{"n2", "n3"}[i%2], fmt.Sprintf("their%d", i))
				if err != nil {
					break
				}
			}
			seen := map[netip.Addr]string{}
			for _, p := range pods(t, l) {
				if other, twice := seen[p.Address(model.IPv4)]; twice {
					t.Errorf("%s and %s both have %s", p.Name, other, p.Address(model.IPv4))
				}
				seen[p.Address(model.IPv4)] = p.Name
			}
			for _, to := range pods(t, l) {
				for _, from := range []string{"p1", "p2", "p3", "more5"} {
					eventually(t, 20*time.Second, from+" reaches "+to.Name, func() error {
						_, err := l.Exec(ctx, from, "ping", "-c1", "-W1", to.Address(model.IPv4).String())
						return err
					})
				}
			}
			if out := run(ctx, t, l, "n1", "heddle", "ipam", "show"); !strings.Contains(out, "lent by") {
				t.Errorf("%s\nwant the loans named", out)
			}
		})
	}
}

// TestPoolThatIsDisabledDrains: its pods stay, and new ones come from elsewhere.
func TestPoolThatIsDisabledDrains(t *testing.T) {
	ctx, l := up(t, "flat", small, func(s *lab.Spec) { s.Pods = 2 })
	s := storeOf(ctx, t, l)
	other := &model.Pool{Name: "other", CIDR: netip.MustParsePrefix("10.245.0.0/24"), BlockSize: 29, Path: model.PathDirect, Encap: model.EncapNever, MaxBlocks: 2}
	if _, err := s.Put(ctx, other, 0); err != nil {
		t.Fatal(err)
	}
	change(ctx, t, l, s, func(p *model.Pool) { p.Disabled = p.Name == "flannel" })
	p, err := l.AddPod(ctx, "n1", "new")
	if err != nil {
		t.Fatal(err)
	}
	if !other.CIDR.Contains(p.Address(model.IPv4)) {
		t.Errorf("the new pod has %v, want an address in %s", p.Addresses, other.CIDR)
	}
	reach(ctx, t, l)
}

// TestBlockStolenInTheStoreIsSaidAndNoAddressIsGivenTwice: somebody writes another node's name into a block in use.
func TestBlockStolenInTheStoreIsSaidAndNoAddressIsGivenTwice(t *testing.T) {
	ctx, l := up(t, "flat", small, func(s *lab.Spec) { s.Pods = 2 })
	s := storeOf(ctx, t, l)
	own := blocksOf(ctx, t, l, "n1", model.IPv4)[0]
	if _, err := s.Put(ctx, &model.Block{CIDR: own, Pool: "flannel", Node: "n2"}, store.AnyRevision); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "n1 says that its block is lost", func() error { return problem(ctx, l, "n1", "block-lost", `"n2"`) })
	for i := range 3 {
		if _, err := l.AddPod(ctx, "n2", fmt.Sprintf("more%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	given := map[netip.Addr]string{}
	for _, p := range pods(t, l) {
		for _, a := range p.Addresses {
			if other, twice := given[a]; twice {
				t.Errorf("%s and %s both have %s", other, p.Name, a)
			}
			given[a] = p.Name
		}
	}
	if err := l.DelPod(ctx, "p1"); err != nil { // n1's
		t.Fatal(err)
	}
	eventually(t, time.Minute, "n1 has another block once nobody uses the stolen one", func() error {
		b := blocksOf(ctx, t, l, "n1", model.IPv4)
		if len(b) != 1 || b[0] == own {
			return fmt.Errorf("it has %v", b)
		}
		return nil
	})
	if _, err := s.Get(ctx, model.KindBlock, (&model.Block{CIDR: own}).Key()); err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
}
