package plan_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
	"github.com/heddle-net/heddle/internal/plan"
)

// What is told, and by which next hops: few values, so that ways lead over each other, back, and into ranges of pods.
var (
	farPrefixes = []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.2.0.0/16", "10.2.2.0/24", "10.3.0.0/16", "10.3.3.0/24", "10.4.0.0/16", "10.5.0.0/16", "10.6.0.0/16", "192.168.100.0/25", "192.168.0.0/16", "172.17.9.0/24"}
	farHops     = []string{"192.168.100.1", "192.168.100.2", "192.168.100.200", "192.168.7.7", "10.1.0.1", "10.1.1.1", "10.2.0.1", "10.2.2.1", "10.3.0.1", "10.3.3.1", "10.4.0.1", "10.5.0.1", "10.6.0.1", "10.99.0.1", "172.17.9.1", "203.0.113.1"}
)

func drawLearned(t *rapid.T) (out []peering.Route) {
	prefixes := rapid.SliceOfNDistinct(rapid.SampledFrom(farPrefixes), 1, len(farPrefixes), func(s string) string { return s }).Draw(t, "prefixes")
	for _, x := range prefixes {
		for _, via := range rapid.SliceOfNDistinct(rapid.SampledFrom(farHops), 1, 3, func(s string) string { return s }).Draw(t, "next hops of "+x) {
			r := peering.Route{Prefix: netip.MustParsePrefix(x), NextHop: netip.MustParseAddr(via), Neighbor: netip.MustParseAddr("192.168.100.1"), Best: true, Reason: "told"}
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0:
				r.Best, r.Rejected = false, true
			case 1:
				r.Best = false
			case 2:
				r.LongLived, r.Stale = true, true
			}
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b peering.Route) int { return a.Prefix.Compare(b.Prefix) })
	return out
}

// wayTo says by which routers a packet to an address goes, if every lookup is made by hand: the longest prefix that
// counts, and so on until a router is in the segment. seen are the prefixes that the way has come over.
func wayTo(routes []peering.Route, pool netip.Prefix, up netip.Prefix, to netip.Addr, lastResort bool, seen []netip.Prefix) (routers []netip.Addr) {
	if up.Masked().Contains(to) {
		for _, x := range seen {
			if x.Contains(to) && x.Bits() >= up.Bits() {
				return nil
			}
		}
		return []netip.Addr{to}
	}
	for _, x := range seen {
		if x.Contains(to) {
			return nil
		}
	}
	if len(seen) > 4 || pool.Contains(to) {
		return nil
	}
	var longest netip.Prefix
	counts := func(r *peering.Route) bool {
		return r.Best && !r.Rejected && r.Prefix.Bits() > 0 && r.Prefix.Contains(to) && (lastResort || !r.LongLived) && !(pool.Contains(r.Prefix.Addr()) && r.Prefix.Bits() >= pool.Bits())
	}
	for i := range routes {
		if counts(&routes[i]) && (!longest.IsValid() || routes[i].Prefix.Bits() > longest.Bits()) {
			longest = routes[i].Prefix
		}
	}
	for i := range routes {
		if r := &routes[i]; counts(r) && r.Prefix == longest {
			routers = append(routers, wayTo(routes, pool, up, r.NextHop, lastResort, append(slices.Clone(seen), longest))...)
		}
	}
	return routers
}

// TestWaysOverOtherRoutesEndInTheSegment: whatever is told, a route's routers are those in the segment that a packet to
// its next hops would meet; no way leads over a default route, over itself, over a rest of a neighbor that is away, or
// into the pods' range; and a prefix without any has no route and a problem.
func TestWaysOverOtherRoutesEndInTheSegment(t *testing.T) {
	var far, none int
	rapid.Check(t, func(t *rapid.T) {
		in := plan.Input{Self: "a", Attachment: model.AttachRouted, Learned: drawLearned(t)}
		pool, up := netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("192.168.100.100/24")
		in.Cluster.Pools = []model.Pool{{Name: "pods", CIDR: pool, BlockSize: 24, Path: model.PathBGP, Encap: model.EncapNever}}
		in.Cluster.Nodes = []model.Node{{Name: "a", Address4: up.Addr()}}
		in.Host.Uplinks = []model.Uplink{{Link: "eth0", Prefix: up, MTU: 1500}}
		p, err := plan.Build(in)
		if err != nil {
			t.Fatal(err)
		}
		got, want := map[netip.Prefix][]netip.Addr{}, map[netip.Prefix][]netip.Addr{}
		for _, r := range p.Routes {
			if !r.Learned {
				continue
			}
			if r.Via.IsValid() {
				got[r.Dst] = append(got[r.Dst], r.Via)
			}
			for _, h := range r.NextHops {
				got[r.Dst] = append(got[r.Dst], h.Via)
			}
		}
		for i := range in.Learned {
			r := &in.Learned[i]
			if !r.Best || r.Rejected {
				continue
			}
			routers := wayTo(in.Learned, pool, up, r.NextHop, r.LongLived, []netip.Prefix{r.Prefix})
			if len(routers) == 0 {
				none++
				if !slices.ContainsFunc(p.Problems, func(p model.Problem) bool {
					return p.Code == "bgp-nexthop-unreachable" && p.Subject == "next hop "+r.NextHop.String()
				}) {
					t.Fatalf("no way to %s, and no problem of it: %v", r.NextHop, p.Problems)
				}
				continue
			}
			if !up.Masked().Contains(r.NextHop) {
				far++
			}
			want[r.Prefix] = append(want[r.Prefix], routers...)
		}
		for x := range want {
			slices.SortFunc(want[x], netip.Addr.Compare)
			want[x] = slices.Compact(want[x])
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("of %+v\nthe plan has %v\nwant          %v", in.Learned, got, want)
		}
	})
	if far < 20 || none < 20 {
		t.Errorf("only %d ways over other routes were tried, and %d next hops without a way", far, none)
	}
}
