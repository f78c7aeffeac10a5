package peering

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }
func ptr[T any](v T) *T         { return &v }

func community(t testing.TB, s string) Community {
	var c Community
	if err := c.UnmarshalText([]byte(s)); err != nil {
		t.Fatal(err)
	}
	return c
}

// judge is a node 192.168.0.1 of AS 64512 with a block, and four neighbours.
func judge() *Plan {
	return &Plan{
		ASN: 64512, RouterID: ip("192.168.0.1"), Listen: []netip.Addr{ip("192.168.0.1"), ip("fd00::1")},
		Believed: []netip.Prefix{pfx("10.244.0.0/16"), pfx("fd00:244::/56")},
		Own:      []netip.Prefix{pfx("10.244.0.0/26"), pfx("192.168.0.1/32"), pfx("fd00:244::/122")},
		Neighbors: []Neighbor{
			{Address: ip("192.168.0.2"), Name: "mesh", Node: "b", Session: Session{RemoteASN: 64512}},
			{Address: ip("192.168.0.3"), Name: "mesh", Node: "c", Session: Session{RemoteASN: 64512}},
			{Address: ip("192.168.0.254"), Name: "rack", Session: Session{RemoteASN: 65000}},
			{Address: ip("192.168.0.255"), Name: "other-rack", Session: Session{RemoteASN: 65001}},
		},
	}
}

func TestWhatANeighbourIsBelieved(t *testing.T) {
	node, rack := judge().Neighbors[0], judge().Neighbors[2]
	accept := Filter{Name: "a", Rules: []Rule{
		{Direction: Import, Family: model.IPv4, CIDR: pfx("0.0.0.0/0"), Match: MatchEqual, Accept: true},
		{Direction: Import, Family: model.IPv4, CIDR: pfx("10.244.0.0/26"), Match: MatchIn, Accept: true, Kind: External},
		{Direction: Import, Family: model.IPv4, CIDR: pfx("172.16.0.0/12"), Match: MatchIn, MaxLength: ptr(24), Accept: true},
		{Direction: Import, Family: model.IPv4, CIDR: pfx("172.16.0.0/12"), Match: MatchIn},
		{Direction: Export, Family: model.IPv4},
	}}
	with := func(n Neighbor, names ...string) Neighbor { n.Filters = names; return n }
	for _, c := range []struct {
		name        string
		n           Neighbor
		prefix, hop string
		want        bool
		why         string
	}{
		{name: "a block of another node", n: node, prefix: "10.244.0.64/26", hop: "192.168.0.2", want: true, why: "in pool range 10.244.0.0/16"},
		{name: "an address of another node's block", n: node, prefix: "10.244.9.9/32", hop: "192.168.0.2", want: true, why: "told by node b"},
		{name: "the pool itself", n: node, prefix: "10.244.0.0/16", hop: "192.168.0.2", why: "it contains this node's own 10.244.0.0/26"},
		{name: "IPv6", n: node, prefix: "fd00:244::40/122", hop: "fd00::2", want: true, why: "fd00:244::/56"},
		{name: "outside of all pools", n: node, prefix: "10.0.0.0/24", hop: "192.168.0.2", why: "believed about pools only"},
		{name: "outside of all pools, by another", n: rack, prefix: "10.0.0.0/24", hop: "192.168.0.254", want: true, why: "told by rack"},
		{name: "default", n: rack, prefix: "0.0.0.0/0", hop: "192.168.0.254", why: "a default route"},
		{name: "default of IPv6", n: rack, prefix: "::/0", hop: "fd00::2", why: "a default route"},
		{name: "default with a filter", n: with(rack, "a"), prefix: "0.0.0.0/0", hop: "192.168.0.254", want: true, why: `accepted by filter "a", importV4 rule 1`},
		{name: "half of everything", n: rack, prefix: "128.0.0.0/1", hop: "192.168.0.254", why: "it contains this node's own 192.168.0.1/32"},
		{name: "own block", n: rack, prefix: "10.244.0.0/26", hop: "192.168.0.254", why: "it is this node's own 10.244.0.0/26"},
		{name: "a part of the own block", n: node, prefix: "10.244.0.7/32", hop: "192.168.0.2", why: "it lies in this node's own 10.244.0.0/26"},
		{name: "own address", n: rack, prefix: "192.168.0.1/32", hop: "192.168.0.254", why: "it is this node's own"},
		{name: "own block with a filter", n: with(rack, "a"), prefix: "10.244.0.7/32", hop: "192.168.0.254", want: true, why: "rule 2"},
		{name: "that filter is of eBGP", n: with(node, "a"), prefix: "10.244.0.7/32", hop: "192.168.0.2", why: "lies in"},
		{name: "a length that the filter has", n: with(node, "a"), prefix: "172.16.0.0/24", hop: "192.168.0.2", want: true, why: "rule 3"},
		{name: "a length that it has not", n: with(rack, "a"), prefix: "172.16.0.0/25", hop: "192.168.0.254", why: `rejected by filter "a", importV4 rule 4`},
		{name: "no such filter", n: with(rack, "b"), prefix: "10.0.0.0/24", hop: "192.168.0.254", why: `filter "b" is not there`},
		{name: "loopback", n: with(rack, "all"), prefix: "127.0.0.0/8", hop: "192.168.0.254", why: "never routed"},
		{name: "link-local", n: with(rack, "all"), prefix: "fe80::/64", hop: "fd00::2", why: "never routed"},
		{name: "multicast", n: with(rack, "all"), prefix: "239.0.0.0/8", hop: "192.168.0.254", why: "never routed"},
		{name: "this network", n: with(rack, "all"), prefix: "0.1.0.0/16", hop: "192.168.0.254", why: "never routed"},
		{name: "host bits", n: with(rack, "all"), prefix: "10.0.0.1/24", hop: "192.168.0.254", why: "not a prefix"},
		{name: "mapped", n: with(rack, "all"), prefix: "::ffff:10.0.0.0/120", hop: "fd00::2", why: "not a prefix of"},
		{name: "nowhere", n: with(rack, "all"), prefix: "10.0.0.0/24", hop: "0.0.0.0", why: "not an address to send to"},
		{name: "loopback as next hop", n: with(rack, "all"), prefix: "10.0.0.0/24", hop: "127.0.0.1", why: "not an address to send to"},
		{name: "multicast as next hop", n: with(rack, "all"), prefix: "10.0.0.0/24", hop: "224.0.0.5", why: "not an address to send to"},
		{name: "next hop of the other family", n: with(rack, "all"), prefix: "10.0.0.0/24", hop: "fd00::2", why: "is not of IPv4"},
		{name: "this node as next hop", n: with(rack, "all"), prefix: "10.0.0.0/24", hop: "192.168.0.1", why: "is this node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := judge()
			p.Filters = []Filter{accept, {Name: "all", Rules: []Rule{{Direction: Import, Family: 4, Accept: true}, {Direction: Import, Family: 6, Accept: true}}}}
			r := Route{Prefix: pfx(c.prefix), NextHop: ip(c.hop), Neighbor: c.n.Address, ASPath: []uint32{65000}}
			got, ok, why := p.Believe(&c.n, r)
			if ok != c.want || !strings.Contains(why, c.why) || got.Prefix != r.Prefix {
				t.Errorf("got %v, %q; want %v, …%q…", ok, why, c.want, c.why)
			}
		})
	}
}

func TestWhoIsToldWhat(t *testing.T) {
	b, c, rack, other := "192.168.0.2", "192.168.0.3", "192.168.0.254", "192.168.0.255"
	export := func(rules ...Rule) []Filter {
		for i := range rules {
			rules[i].Direction, rules[i].Family = Export, model.IPv4
		}
		return []Filter{{Name: "f", Rules: rules}}
	}
	for _, tc := range []struct {
		name      string
		from, to  string // from "" is this node
		reflector bool
		client    string
		filters   []Filter
		want      bool
		why       string
	}{
		{name: "own to the mesh", to: b, want: true, why: "own"},
		{name: "own to the rack", to: rack, want: true, why: "own"},
		{name: "own, rejected", to: rack, filters: export(Rule{}), why: "exportV4 rule 1"},
		{name: "own, rejected only where learned", to: rack, filters: export(Rule{Learned: true}), want: true, why: "own"},
		{name: "mesh to mesh", from: b, to: c, why: "no route reflector"},
		{name: "mesh to rack", from: b, to: rack, why: "no route reflector"},
		{name: "rack to mesh", from: rack, to: b, why: "no route reflector"},
		{name: "back to whom it is from", from: b, to: b, reflector: true, client: b, why: "itself"},
		{name: "a plain accept opens no way", from: b, to: rack, filters: export(Rule{Accept: true}), why: "no route reflector"},
		{name: "an accept of learned routes does", from: b, to: rack, filters: export(Rule{Accept: true, Learned: true}), want: true, why: "accepted by filter"},
		{name: "reflected from a client", from: b, to: c, reflector: true, client: b, want: true, why: "reflected from b"},
		{name: "reflected to a client", from: c, to: b, reflector: true, client: b, want: true, why: "reflected from c"},
		{name: "no client at either end", from: b, to: c, reflector: true, why: "no client"},
		{name: "reflected to the rack", from: b, to: rack, reflector: true, client: b, want: true, why: "reflected"},
		{name: "reflected to the rack from another reflector", from: b, to: rack, reflector: true, client: c, want: true, why: "reflected"},
		{name: "reflected from the rack", from: rack, to: b, reflector: true, want: true, why: "reflected from rack"},
		{name: "rack to rack", from: rack, to: other, reflector: true, client: b, why: "foreign AS"},
		{name: "rack to rack with a filter", from: rack, to: other, filters: export(Rule{Accept: true, Learned: true}), want: true, why: "accepted"},
		{name: "a plain accept does not stop a reflector", from: b, to: rack, reflector: true, client: b, filters: export(Rule{Accept: true}, Rule{}), want: true, why: "accepted"},
		{name: "a reject does", from: b, to: rack, reflector: true, client: b, filters: export(Rule{}), why: "rejected"},
		{name: "by kind of session", from: b, to: rack, filters: export(Rule{Accept: true, Learned: true, Kind: Internal}), why: "no route reflector"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := judge()
			p.Filters = tc.filters
			if tc.reflector {
				p.ClusterID = ip("10.0.0.1")
			}
			r := Route{Prefix: pfx("10.244.0.64/26"), NextHop: ip(b)}
			if tc.from != "" {
				r.Neighbor = ip(tc.from)
			}
			var to *Neighbor
			for i := range p.Neighbors {
				n := &p.Neighbors[i]
				n.Client = tc.client != "" && n.Address == ip(tc.client)
				if n.Address == ip(tc.to) {
					to = n
					if len(tc.filters) > 0 {
						n.Filters = []string{"f"}
					}
				}
			}
			if _, ok, why := p.Tell(to, r, tc.from == ""); ok != tc.want || !strings.Contains(why, tc.why) {
				t.Errorf("got %v, %q; want %v, …%q…", ok, why, tc.want, tc.why)
			}
		})
	}
}

func TestConditionsOfARule(t *testing.T) {
	a, b := community(t, "65000:1"), community(t, "65000:1:2")
	route := Route{Prefix: pfx("10.1.0.0/24"), ASPath: []uint32{1, 2, 3}, Communities: []Community{a, b}}
	for _, c := range []struct {
		name string
		rule Rule
		want bool
	}{
		{"nothing", Rule{}, true},
		{"other family", Rule{Family: model.IPv6}, false},
		{"equal", Rule{CIDR: pfx("10.1.0.0/24"), Match: MatchEqual}, true},
		{"equal to a wider one", Rule{CIDR: pfx("10.1.0.0/16"), Match: MatchEqual}, false},
		{"not equal", Rule{CIDR: pfx("10.1.0.0/16"), Match: MatchNotEqual}, true},
		{"not equal to itself", Rule{CIDR: pfx("10.1.0.0/24"), Match: MatchNotEqual}, false},
		{"in itself", Rule{CIDR: pfx("10.1.0.0/24"), Match: MatchIn}, true},
		{"in a wider one", Rule{CIDR: pfx("10.0.0.0/8"), Match: MatchIn}, true},
		{"in a narrower one", Rule{CIDR: pfx("10.1.0.0/25"), Match: MatchIn}, false},
		{"not in", Rule{CIDR: pfx("10.2.0.0/16"), Match: MatchNotIn}, true},
		{"not in a wider one", Rule{CIDR: pfx("10.0.0.0/8"), Match: MatchNotIn}, false},
		{"in, of a length", Rule{CIDR: pfx("10.0.0.0/8"), Match: MatchIn, MinLength: ptr(24), MaxLength: ptr(24)}, true},
		{"in, too short", Rule{CIDR: pfx("10.0.0.0/8"), Match: MatchIn, MinLength: ptr(25)}, false},
		{"in, too long", Rule{CIDR: pfx("10.0.0.0/8"), Match: MatchIn, MaxLength: ptr(23)}, false},
		{"not equal, of another length", Rule{CIDR: pfx("10.1.0.0/24"), Match: MatchNotEqual, MinLength: ptr(25)}, true},
		{"not in with that length", Rule{CIDR: pfx("10.0.0.0/8"), Match: MatchNotIn, MaxLength: ptr(23)}, true},
		{"a length alone", Rule{MinLength: ptr(25)}, false},
		{"a community", Rule{Communities: []Community{b}}, true},
		{"all communities", Rule{Communities: []Community{a, b, {A: 1}}}, false},
		{"the path's begin", Rule{ASPath: []uint32{1, 2}}, true},
		{"the path's middle", Rule{ASPath: []uint32{2}}, false},
		{"more than the path", Rule{ASPath: []uint32{1, 2, 3, 4}}, false},
	} {
		if c.rule.Family == 0 {
			c.rule.Family = model.IPv4
		}
		if got := c.rule.matches(&route); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func TestOperationsChangeACopy(t *testing.T) {
	a, b := community(t, "65000:1"), community(t, "65000:2")
	p := judge()
	p.Filters = []Filter{{Name: "f", Rules: []Rule{{Direction: Import, Family: model.IPv4, Accept: true, Operations: []Operation{
		{AddCommunity: &b}, {AddCommunity: &a}, {PrependAS: []uint32{7, 8}}, {Preference: ptr(uint32(200))},
	}}}}}
	n := p.Neighbors[2]
	n.Filters = []string{"f"}
	communities := make([]Community, 1, 4)
	communities[0] = a
	r := Route{Prefix: pfx("10.0.0.0/24"), NextHop: n.Address, ASPath: []uint32{65000}, Communities: communities, Preference: 100}
	got, ok, _ := p.Believe(&n, r)
	if !ok || !slices.Equal(got.ASPath, []uint32{7, 8, 65000}) || !slices.Equal(got.Communities, []Community{a, b}) || got.Preference != 200 {
		t.Errorf("got %+v", got)
	}
	if len(r.ASPath) != 1 || len(r.Communities) != 1 || communities[:2][1] == b || r.Preference != 100 {
		t.Errorf("the route given became %+v", r)
	}
}

// Without filters nobody gets a route over the node's own ranges or everything into the kernel, whatever it says.
func TestNobodyTakesOverANode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := judge()
		four := rapid.Bool().Draw(t, "IPv4")
		draw := func(label string) netip.Addr {
			raw := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label)
			if rapid.Bool().Draw(t, label+" near") {
				copy(raw, p.Own[rapid.IntRange(0, 1).Draw(t, label+" own")].Addr().AsSlice())
			}
			if four {
				return netip.AddrFrom4([4]byte(raw[:4]))
			}
			return netip.AddrFrom16([16]byte(raw))
		}
		a := draw("prefix")
		x := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "length")).Masked()
		n := &p.Neighbors[rapid.IntRange(0, len(p.Neighbors)-1).Draw(t, "neighbour")]
		_, ok, why := p.Believe(n, Route{Prefix: x, NextHop: draw("next hop"), Neighbor: n.Address})
		if why == "" {
			t.Fatal("no reason")
		}
		if !ok {
			return
		}
		for _, own := range p.Own {
			if own.Overlaps(x) {
				t.Fatalf("%s is believed over %s: %s", x, own, why)
			}
		}
		if x.Bits() == 0 || n.Node != "" && !slices.ContainsFunc(p.Believed, func(b netip.Prefix) bool { return within(x, b) }) {
			t.Fatalf("%s is believed: %s", x, why)
		}
	})
}
