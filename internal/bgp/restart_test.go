package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/peering"
)

// TestLongLivedRoutesAreTheLastResort: a neighbor that is away for longer than its restart time has its routes kept
// for as long as it asked for, and they count less than anybody else's (RFC 9494).
func TestLongLivedRoutesAreTheLastResort(t *testing.T) {
	t.Parallel()
	away := func(d time.Duration) func(n *peering.Neighbor) {
		return func(n *peering.Neighbor) { n.RestartTime, n.LongLived = time.Second, d }
	}
	const long, short = 5 * time.Minute, 5 * time.Second
	a := newNode(t, 41).knows(at(42), away(long)).knows(at(43), nil).knows(at(44), func(n *peering.Neighbor) { n.RemoteASN = 65044 }).knows(at(45), away(short)).speak()
	telling := func(announced ...string) *node { return newNode(t, 42, announced...).knows(at(41), away(long)).speak() }
	b := telling("10.244.2.0/26", "10.244.8.0/26", "10.244.9.0/26", "10.244.10.0/26")
	newNode(t, 43, "10.244.8.0/26").knows(at(41), nil).speak()
	far := newNode(t, 44, "10.244.9.0/26")
	far.plan.ASN = 65044
	far.knows(at(41), func(n *peering.Neighbor) { n.RemoteASN = 64512 }).speak()
	brief := newNode(t, 45, "10.244.5.0/26", "10.244.8.0/26").knows(at(41), away(short)).speak()
	until(t, "a has all, and b's are as good as others' or better", func() bool {
		return a.best("10.244.2.0/26") == "10.99.0.42" && a.best("10.244.8.0/26") == "10.99.0.42 10.99.0.43 10.99.0.45" &&
			len(a.to("10.244.9.0/26")) == 2 && a.best("10.244.9.0/26") == "10.99.0.42" && a.best("10.244.5.0/26") == "10.99.0.45"
	})
	lasts := func(n int, p string) bool {
		return slices.ContainsFunc(a.to(p), func(r peering.Route) bool {
			return r.Neighbor == at(n) && r.LongLived && slices.Contains(r.Communities, peering.LLGRStale)
		})
	}
	brief.stop()
	until(t, "a route is kept beyond the restart time", func() bool { return lasts(45, "10.244.5.0/26") && a.best("10.244.5.0/26") == "10.99.0.45" })
	began := time.Now()
	until(t, "it ends", func() bool { return len(a.to("10.244.5.0/26")) == 0 && len(a.to("10.244.8.0/26")) == 2 })
	if took := time.Since(began); took < short/2 {
		t.Errorf("it ended after %s, %s were asked for", took, short)
	}
	if s := a.status(at(45)); s.Restarting || s.Received != 0 {
		t.Errorf("the status of a neighbor whose routes are gone: %+v", s)
	}

	b.stop()
	until(t, "b's routes are kept beyond its restart time, marked as such", func() bool {
		if a.best("10.244.2.0/26") == "" {
			t.Fatal("a route of b was lost")
		}
		return lasts(42, "10.244.2.0/26") && lasts(42, "10.244.8.0/26") && lasts(42, "10.244.9.0/26")
	})
	until(t, "they count less than anybody else's", func() bool {
		return a.best("10.244.2.0/26") == "10.99.0.42" && a.best("10.244.8.0/26") == "10.99.0.43" && a.best("10.244.9.0/26") == "10.99.0.44"
	})
	for p, why := range map[string]string{"10.244.2.0/26": "the only one; ", "10.244.8.0/26": "10.99.0.43 has a neighbor that is there; "} {
		rs := a.to(p)
		if got := rs[len(rs)-1].Reason; got != why+longLived {
			t.Errorf("%s: the reason is %q, want %q", p, got, why+longLived)
		}
	}
	if s := a.status(at(42)); !s.Restarting || !strings.Contains(s.Failure, awayCause) && !strings.Contains(s.Failure, "refused") { // by now
		t.Errorf("the status of b: %+v", s)
	}

	telling("10.244.2.0/26", "10.244.8.0/26", "10.244.9.0/26") // it comes back, without one of its routes
	until(t, "all is as it was, but for what b tells no more", func() bool {
		if a.best("10.244.2.0/26") == "" {
			t.Fatal("a route of b was lost while it came back")
		}
		rs := a.to("10.244.2.0/26")
		return !rs[0].Stale && !rs[0].LongLived && a.best("10.244.8.0/26") == "10.99.0.42 10.99.0.43" && a.best("10.244.9.0/26") == "10.99.0.42" && len(a.to("10.244.10.0/26")) == 0
	})
}

// TestNodeBecomesAReflectorWithoutLoss: what a node reflects changes, and the sessions are made anew for it. Neither
// side loses a route, not even for a moment, and those of another kind are not touched.
func TestNodeBecomesAReflectorWithoutLoss(t *testing.T) {
	t.Parallel()
	rr := newNode(t, 51, "10.244.51.0/26").knows(at(52), nil).knows(at(53), nil).knows(at(54), func(n *peering.Neighbor) { n.RemoteASN = 65054 }).speak()
	var x [55]*node
	for n := 52; n <= 53; n++ {
		x[n] = newNode(t, n, fmt.Sprintf("10.244.%d.0/26", n)).knows(at(51), nil).knows(at(105-n), nil).speak()
	}
	x[54] = newNode(t, 54)
	x[54].plan.ASN = 65054
	x[54].knows(at(51), func(n *peering.Neighbor) { n.RemoteASN = 64512 }).speak()
	had := func() error {
		for who, blocks := range map[*node][]string{rr: {"10.244.52.0/26", "10.244.53.0/26"}, x[52]: {"10.244.51.0/26", "10.244.53.0/26"}, x[53]: {"10.244.51.0/26", "10.244.52.0/26"}} {
			for _, b := range blocks {
				if !strings.HasPrefix(who.best(b), "10.99.0.5") {
					return fmt.Errorf("%s has no way to %s: %v", who.name, b, who.to(b))
				}
			}
		}
		return nil
	}
	until(t, "all have all", func() bool { return had() == nil && x[54].best("10.244.51.0/26") != "" })
	since, foreign := rr.status(at(52)).Since, rr.status(at(54)).Since
	for _, reflects := range []bool{true, false} {
		rr.plan.ClusterID = netip.Addr{}
		if reflects {
			rr.plan.ClusterID = at(51)
		}
		for i := range rr.plan.Neighbors {
			rr.plan.Neighbors[i].Client = reflects && i < 2
		}
		rr.apply()
		until(t, "the sessions are there again, and all was told", func() bool {
			if err := had(); err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{52, 53} {
				s := rr.status(at(n))
				if s.State != peering.Established || !s.Since.After(since) || s.Restarting || x[n].status(at(51)).Restarting || x[n].to("10.244.51.0/26")[0].Stale {
					return false
				}
			}
			return true
		})
		since = rr.status(at(53)).Since
		until(t, "what is told by others is reflected, or not any more", func() bool {
			if err := had(); err != nil {
				t.Fatal(err)
			}
			return (len(x[52].to("10.244.53.0/26")) == 2) == reflects && (len(x[53].to("10.244.52.0/26")) == 2) == reflects
		})
	}
	if s := rr.status(at(52)); s.Failure != "" || s.Flaps != 0 {
		t.Errorf("what this node did itself counts as a failure: %+v", s)
	}
	if s := rr.status(at(54)); s.Since != foreign {
		t.Errorf("a session of another kind was touched: %+v", s)
	}
}
