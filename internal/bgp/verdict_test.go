package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// What the property test tells and filters: few values, so that much matches.
var (
	somePrefixes = []string{
		"0.0.0.0/0", "10.0.0.0/8", "10.244.0.0/16", "10.244.1.0/24", "10.244.1.64/26", "10.244.2.0/26", "10.245.0.0/16", "192.0.2.0/24", "128.0.0.0/1", "10.99.0.1/32", "203.0.113.7/32",
		"0.0.0.0/1", "127.1.0.0/16", "169.254.0.0/15", "224.0.0.0/3", "240.0.0.0/5",
		"::/0", "fd44::/32", "fd44:0:0:1::/64", "fd44:0:0:1::40/122", "fd45::/32", "2001:db8::/32", "fe80::/64", "8000::/1", "::/1", "ff00::/8", "::1/128", "fd99::1/128",
	}
	someCommunities = []peering.Community{{A: 64512, B: 1}, {A: 64512, B: 11}, {A: 65001, B: 1}, {Large: true, A: 64512, B: 1, C: 1}, {Large: true, A: 4200000000, B: 1, C: 11}}
	someASes        = []uint32{65101, 65102, 4200000001}
)

func drawCommunities(t *rapid.T, most int) []peering.Community {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(someCommunities), 0, most, func(c peering.Community) peering.Community { return c }).Draw(t, "communities")
}

func drawRule(t *rapid.T) peering.Rule {
	f := rapid.SampledFrom([]model.Family{model.IPv4, model.IPv6}).Draw(t, "family")
	r := peering.Rule{
		Direction: rapid.SampledFrom([]peering.Direction{peering.Import, peering.Export}).Draw(t, "direction"), Family: f,
		Kind:   rapid.SampledFrom([]peering.SessionKind{"", "", peering.Internal, peering.External}).Draw(t, "kind"),
		Accept: rapid.Bool().Draw(t, "accept"),
	}
	if rapid.IntRange(0, 3).Draw(t, "any prefix") > 0 {
		x := netip.MustParsePrefix(rapid.SampledFrom(somePrefixes).Filter(func(s string) bool { return model.FamilyOf(netip.MustParsePrefix(s).Addr()) == f }).Draw(t, "cidr"))
		r.CIDR, r.Match = x, rapid.SampledFrom([]peering.Match{peering.MatchEqual, peering.MatchNotEqual, peering.MatchIn, peering.MatchNotIn}).Draw(t, "match")
	}
	most := 32
	if f == model.IPv6 {
		most = 128
	}
	if rapid.Bool().Draw(t, "bounded") {
		low := rapid.IntRange(0, most).Draw(t, "low")
		r.MinLength = &low
		if rapid.Bool().Draw(t, "both") {
			high := rapid.IntRange(low, most).Draw(t, "high")
			r.MaxLength = &high
		}
	}
	if rapid.IntRange(0, 4).Draw(t, "with communities") == 0 {
		r.Communities = drawCommunities(t, 2)
	}
	if rapid.IntRange(0, 4).Draw(t, "with path") == 0 {
		r.ASPath = rapid.SampledFrom([][]uint32{{65001}, {65101}, {65101, 65102}, {65001, 65101}, {650}, {65101, 65101}}).Draw(t, "path")
	}
	if r.Direction == peering.Export {
		r.Learned = rapid.Bool().Draw(t, "learned")
	}
	if r.Accept {
		for range rapid.IntRange(0, 3).Draw(t, "operations") {
			var o peering.Operation
			switch rapid.IntRange(0, 2).Draw(t, "operation") {
			case 0:
				c := rapid.SampledFrom(someCommunities).Draw(t, "community")
				o.AddCommunity = &c
			case 1:
				o.PrependAS = rapid.SliceOfN(rapid.SampledFrom(append(someASes, 64512)), 1, 3).Draw(t, "prepend")
			default:
				v := rapid.SampledFrom([]uint32{50, 100, 200}).Draw(t, "preference")
				o.Preference = &v
			}
			r.Operations = append(r.Operations, o)
		}
	}
	return r
}

// lines are routes in an order and form in which they can be compared.
func lines(rs []path, external bool) []string {
	out := []string{}
	for _, r := range rs {
		cs := slices.Clone(r.Communities)
		slices.SortFunc(cs, func(a, b peering.Community) int { return slices.Compare([]byte(a.String()), []byte(b.String())) })
		pref := r.Preference
		if external {
			pref = 0
		}
		out = append(out, fmt.Sprint(r.Prefix, " from ", r.Neighbor, " path ", r.ASPath, " ", cs, " preference ", pref))
	}
	slices.Sort(out)
	return out
}

// TestGobgpJudgesAsThePlanDoes lets gobgp judge routes by the statements that were made of random filters, and
// compares with what the plan itself says of each: what is believed, what is told, and with which attributes.
func TestGobgpJudgesAsThePlanDoes(t *testing.T) {
	// Node 1 judges; 2 is another AS, 3 of the own AS and of the network, 4 too and a client, 5 is a foreign AS over
	// IPv6 that wants the next hops as they are.
	judge := newNode(t, 1)
	ases := map[int]uint32{2: 65001, 3: 64512, 4: 64512, 5: 65002}
	where := func(n, own int) netip.Addr {
		if n == 5 || own == 5 {
			return at6(own)
		}
		return at(own)
	}
	for n := 2; n <= 5; n++ {
		told := newNode(t, n)
		told.plan.ASN = ases[n]
		told.knows(where(n, 1), func(x *peering.Neighbor) { x.RemoteASN, x.Filters = 64512, []string{"paths"} })
		// They believe nothing: one that liked another's route better than its own would tell of it no more.
		rules := []peering.Rule{{Direction: peering.Import, Family: model.IPv4}, {Direction: peering.Import, Family: model.IPv6}}
		for i, p := range somePrefixes {
			if (i+n)%4 == 0 && n < 4 {
				continue
			}
			a := peering.Announcement{Prefix: prefix(p)}
			for k, c := range someCommunities {
				if (i+n+k)%3 == 0 {
					a.Communities = append(a.Communities, c)
				}
			}
			told.plan.Announced = append(told.plan.Announced, a)
			r := peering.Rule{Direction: peering.Export, Family: family(a.Prefix), CIDR: a.Prefix, Match: peering.MatchEqual, Accept: true}
			if long := (i + n) % 4; long > 0 {
				r.Operations = []peering.Operation{{PrependAS: someASes[:long]}}
			}
			rules = append(rules, r)
		}
		told.plan.Filters = []peering.Filter{{Name: "paths", Rules: rules}}
		told.speak()
		judge.knows(where(n, n), func(x *peering.Neighbor) {
			x.RemoteASN, x.Name = ases[n], fmt.Sprint("n", n)
			if n == 3 || n == 4 {
				x.Node, x.Client = x.Name, n == 4
			}
			if n == 5 {
				x.NextHop = peering.NextHopKeep
			}
		})
	}
	for _, p := range []string{"10.244.7.0/26", "fd44:0:0:7::/122"} {
		judge.plan.Announced = append(judge.plan.Announced, peering.Announcement{Prefix: prefix(p), Communities: someCommunities[:2]})
	}
	judge.plan.ClusterID = at(1)
	judge.speak()
	// Martians do not even reach the table of what was received from some; the others are all there.
	until(t, "all have told all", func() bool {
		for _, s := range judge.Status() {
			if s.State != peering.Established || s.Received < 18 {
				return false
			}
		}
		return judge.Settled()
	})
	base := judge.plan
	rapid.Check(t, func(t *rapid.T) {
		p := base
		p.Neighbors = slices.Clone(base.Neighbors)
		for i := range rapid.IntRange(0, 3).Draw(t, "filters") {
			p.Filters = append(p.Filters, peering.Filter{Name: fmt.Sprint("f", i), Rules: rapid.SliceOfN(rapid.Custom(drawRule), 0, 4).Draw(t, "rules")})
		}
		for i := range p.Neighbors {
			p.Neighbors[i].Filters = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"f0", "f1", "f2"}), 0, 2, rapid.ID[string]).Draw(t, "of neighbor")
		}
		for _, x := range rapid.SliceOfNDistinct(rapid.SampledFrom(somePrefixes), 0, 3, rapid.ID[string]).Draw(t, "own") {
			p.Own = append(p.Own, prefix(x))
		}
		for _, x := range rapid.SliceOfNDistinct(rapid.SampledFrom(somePrefixes), 0, 2, rapid.ID[string]).Draw(t, "lent") {
			p.Lent = append(p.Lent, prefix(x))
		}
		judge.plan = p
		judge.apply()
		judge.mu.Lock()
		judge.dirty.Store(true)
		judge.read()
		known := slices.Clone(judge.routes)
		judge.mu.Unlock()
		for i := range p.Neighbors {
			n := &p.Neighbors[i]
			var want, got []path
			for _, f := range families {
				_ = judge.bgp.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: n.Address.String(), Family: wire(f)}, func(nlri bgp.NLRI, paths []*apiutil.Path) {
					x, _ := prefixOf(nlri)
					r := route(x, paths[0], p.ASN)
					if looped(&r, &p, n) != "" {
						return
					}
					if in, ok, _ := p.Believe(n, r.Route); ok {
						r.Route = in
						want = append(want, r)
					}
				})
			}
			for _, r := range known {
				if r.Neighbor == n.Address && !r.Rejected {
					got = append(got, r)
				}
			}
			if w, g := lines(want, false), lines(got, false); !slices.Equal(w, g) {
				t.Fatalf("%s is believed\n%v\nthe plan says\n%v", n.Name, g, w)
			}
		}
		for i := range p.Neighbors {
			n := &p.Neighbors[i]
			external := n.Kind(p.ASN) == peering.External
			var want, got []path
			announced := map[netip.Prefix]bool{}
			for _, a := range p.Announced {
				announced[a.Prefix] = true
				if out, ok, _ := p.Tell(n, peering.Route{Prefix: a.Prefix, Communities: a.Communities, Preference: 100}, true); ok {
					want = append(want, path{Route: out})
				}
			}
			var last netip.Prefix
			for _, r := range known {
				if !r.Best || r.Prefix == last || announced[r.Prefix] {
					continue
				}
				last = r.Prefix
				out, ok, _ := p.Tell(n, r.Route, false)
				from := p.Neighbors[slices.IndexFunc(p.Neighbors, func(x peering.Neighbor) bool { return x.Address == r.Neighbor })]
				if !external && from.Kind(p.ASN) == peering.Internal && !from.Client && !n.Client {
					ok = false // RFC 4456: no filter changes that
				}
				if ok && slices.Contains(r.all, n.RemoteASN) {
					ok = false // the neighbour would see a loop
				}
				if ok {
					out.Neighbor = netip.Addr{}
					want = append(want, path{Route: out})
				}
			}
			for _, f := range families {
				_ = judge.bgp.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_ADJ_OUT, Name: n.Address.String(), Family: wire(f)}, func(nlri bgp.NLRI, paths []*apiutil.Path) {
					x, _ := prefixOf(nlri)
					r := route(x, paths[0], p.ASN)
					r.Neighbor = netip.Addr{}
					if external {
						if len(r.ASPath) == 0 || r.ASPath[0] != p.ASN {
							t.Errorf("%s does not see this AS first in the path: %v", n.Name, r.ASPath)
						}
					}
					got = append(got, r)
				})
			}
			// This node's own AS goes before the path, and again before what filters put there.
			if external {
				for _, rs := range [][]path{want, got} {
					for k := range rs {
						rs[k].ASPath = slices.DeleteFunc(slices.Clone(rs[k].ASPath), func(as uint32) bool { return as == p.ASN })
					}
				}
			}
			if w, g := lines(want, external), lines(got, external); !slices.Equal(w, g) {
				t.Fatalf("%s is told\n%v\nthe plan says\n%v", n.Name, g, w)
			}
		}
	})
}
