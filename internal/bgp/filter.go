package bgp

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/osrg/gobgp/v4/api"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// ruleset is what peering.Plan's Believe and Tell say of every route, in the form in which gobgp judges by itself:
// one list of statements for each direction, of which the first that matches decides.
//
// Neighbours that are judged alike share statements, so their number does not grow with the mesh. gobgp compares a
// neighbour with a set one by one, for every route: so the largest group of a family comes last, when the others are
// decided, and is everybody that is left.
type ruleset struct {
	sets     []*api.DefinedSet
	imports  []*api.Statement
	exports  []*api.Statement
	judgedIn map[netip.Addr]string // what decides about a neighbour's routes; equal texts: nothing changed for it
	judgeOut map[netip.Addr]string
	named    map[string]string // sets by what they hold
}

var families = [...]model.Family{model.IPv4, model.IPv6}

func newRuleset(p *peering.Plan) *ruleset {
	r := &ruleset{judgedIn: map[netip.Addr]string{}, judgeOut: map[netip.Addr]string{}, named: map[string]string{}}
	r.unmark(p)
	r.believe(p)
	r.tell(p)
	return r
}

func (r *ruleset) request() *api.SetPoliciesRequest {
	return &api.SetPoliciesRequest{
		DefinedSets: r.sets,
		Policies:    []*api.Policy{{Name: "import", Statements: r.imports}, {Name: "export", Statements: r.exports}},
	}
}

// same reports whether gobgp would judge alike by both.
func (r *ruleset) same(o *ruleset) bool {
	eq := func(a, b []*api.Statement) bool {
		return slices.EqualFunc(a, b, func(x, y *api.Statement) bool { return x.String() == y.String() })
	}
	return eq(r.imports, o.imports) && eq(r.exports, o.exports) &&
		slices.EqualFunc(r.sets, o.sets, func(x, y *api.DefinedSet) bool { return x.String() == y.String() })
}

// kin is what neighbours that are judged alike have in common.
type kin struct {
	kind    peering.SessionKind
	node    bool // of this network
	family  model.Family
	nextHop peering.NextHop
	local   uint32 // the AS that the session shows
	filters string
}

// kins are the groups, the smaller ones first. sets are what gobgp tells them by.
func (r *ruleset) kins(p *peering.Plan, of func(*peering.Neighbor) kin) (keys []kin, members map[kin][]*peering.Neighbor, sets map[kin]*api.MatchSet) {
	members = map[kin][]*peering.Neighbor{}
	for i := range p.Neighbors {
		n := &p.Neighbors[i]
		k := of(n)
		k.family = model.FamilyOf(n.Address)
		if members[k] == nil {
			keys = append(keys, k)
		}
		members[k] = append(members[k], n)
	}
	slices.SortStableFunc(keys, func(a, b kin) int { return cmp.Compare(len(members[a]), len(members[b])) })
	last := map[model.Family]kin{}
	for _, k := range keys {
		last[k.family] = k
	}
	sets = map[kin]*api.MatchSet{}
	for _, k := range keys {
		var list []string
		for _, n := range members[k] {
			list = append(list, netip.PrefixFrom(n.Address, n.Address.BitLen()).String())
		}
		if last[k.family] == k {
			list = []string{everything(k.family).String()}
		}
		sets[k] = &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: r.set(api.DefinedType_DEFINED_TYPE_NEIGHBOR, list, nil)}
	}
	return keys, members, sets
}

// believe is peering.Plan.Believe.
func (r *ruleset) believe(p *peering.Plan) {
	r.imports = append(r.imports, &api.Statement{Name: r.next(peering.Import), Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL}, Actions: accept()})
	for _, f := range families {
		never := &api.Conditions{PrefixSet: r.prefixes(neverRouted(f)), AfiSafiIn: safi(f)}
		r.imports = append(r.imports, &api.Statement{Name: r.next(peering.Import), Conditions: never, Actions: reject()})
		hops := &api.Conditions{NextHopInList: badHops(f, p.Listen), AfiSafiIn: safi(f)}
		r.imports = append(r.imports, &api.Statement{Name: r.next(peering.Import), Conditions: hops, Actions: reject()})
	}
	own, hosts := map[model.Family][]*api.Prefix{}, map[model.Family][]*api.Prefix{}
	for _, x := range p.Own {
		of := own
		if x.IsSingleIP() {
			of = hosts
		}
		of[family(x)] = append(of[family(x)], overlapping(x)...)
	}
	lent := map[model.Family][]netip.Prefix{}
	for _, x := range p.Lent {
		lent[family(x)] = append(lent[family(x)], x)
	}
	pools := map[model.Family][]*api.Prefix{}
	for _, x := range p.Believed {
		pools[family(x)] = append(pools[family(x)], inside(x, 0, 128))
	}
	keys, members, sets := r.kins(p, func(n *peering.Neighbor) kin {
		return kin{kind: n.Kind(p.ASN), node: n.Node != "", filters: strings.Join(n.Filters, "\n")}
	})
	for _, k := range keys {
		first := len(r.imports)
		add := func(c *api.Conditions, a *api.Actions) {
			c.NeighborSet = sets[k]
			r.imports = append(r.imports, &api.Statement{Name: r.next(peering.Import), Conditions: c, Actions: a})
		}
		for rule := range r.rules(p, members[k][0], peering.Import, add) {
			c, ok := r.conditions(rule, nil)
			if !ok {
				continue
			}
			if !rule.Accept {
				add(c, reject())
				continue
			}
			r.accepting(rule, 0, c, nil, add)
		}
		for _, f := range families {
			add(&api.Conditions{PrefixSet: r.prefixes([]*api.Prefix{inside(everything(f), 0, 0)}), AfiSafiIn: safi(f)}, reject())
			if len(hosts[f]) > 0 {
				add(&api.Conditions{PrefixSet: r.prefixes(hosts[f]), AfiSafiIn: safi(f)}, reject())
			}
			// What is lent to another lies in an own block, and is that other's all the same.
			var given []*api.Prefix
			for _, x := range lent[f] {
				if !k.node {
					given = append(given, inside(x, 0, 128))
					continue
				}
				for _, pool := range p.Believed { // and nobody of this network is believed about more than pools
					if x.Overlaps(pool) {
						given = append(given, inside(narrower(x, pool), 0, 128))
					}
				}
			}
			if len(given) > 0 {
				add(&api.Conditions{PrefixSet: r.prefixes(given), AfiSafiIn: safi(f)}, accept())
			}
			if len(own[f]) > 0 {
				add(&api.Conditions{PrefixSet: r.prefixes(own[f]), AfiSafiIn: safi(f)}, reject())
			}
			switch {
			case !k.node:
				add(&api.Conditions{AfiSafiIn: safi(f)}, accept())
			case len(pools[f]) > 0:
				add(&api.Conditions{PrefixSet: r.prefixes(pools[f]), AfiSafiIn: safi(f)}, accept())
			}
		}
		add(&api.Conditions{}, reject())
		r.sign(r.judgedIn, members[k], r.imports[first:], fmt.Sprint(p.Listen))
	}
}

// narrower is the one that lies in the other, of two that overlap.
func narrower(x, y netip.Prefix) netip.Prefix {
	if x.Bits() < y.Bits() {
		return y
	}
	return x
}

// tell is peering.Plan.Tell, and the next hop that a session announces.
func (r *ruleset) tell(p *peering.Plan) {
	keys, members, sets := r.kins(p, func(n *peering.Neighbor) kin {
		return kin{
			kind: n.Kind(p.ASN), nextHop: cmp.Or(n.NextHop, peering.NextHopAuto),
			local: cmp.Or(n.LocalASN, p.ASN), filters: strings.Join(n.Filters, "\n"),
		}
	})
	for _, k := range keys {
		first := len(r.exports)
		add := func(c *api.Conditions, a *api.Actions) {
			c.NeighborSet = sets[k]
			r.exports = append(r.exports, &api.Statement{Name: r.next(peering.Export), Conditions: c, Actions: a})
		}
		var shown []uint32 // what stands before a path when statements see it
		var as uint32
		if k.kind == peering.External {
			shown, as = []uint32{k.local}, k.local
		}
		passes := func(f model.Family, t api.Conditions_RouteType) (*api.NexthopAction, bool) { return hop(p, k, f, t) }
		for rule := range r.rules(p, members[k][0], peering.Export, add) {
			for _, t := range told(p, k, rule.Learned) {
				c, ok := r.conditions(rule, shown)
				if !ok {
					break
				}
				c.RouteType = t
				if h, ok := passes(rule.Family, t); rule.Accept && ok {
					r.accepting(rule, as, c, h, add)
				} else {
					add(c, reject())
				}
			}
			// What an accepting rule matches, and is not told anyway, is decided too.
			if c, ok := r.conditions(rule, shown); ok && !rule.Learned {
				add(c, reject())
			}
		}
		for _, f := range families {
			for _, t := range told(p, k, false) {
				if h, ok := passes(f, t); ok {
					add(&api.Conditions{AfiSafiIn: safi(f), RouteType: t}, &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT, Nexthop: h})
				}
			}
		}
		add(&api.Conditions{}, reject())
		r.sign(r.judgeOut, members[k], r.exports[first:], "")
	}
}

// told are the routes that a neighbour is told of: by themselves, or because a rule for learned ones says so.
// Which of its own AS's routes a reflector passes on to whom (RFC 4456 section 6) gobgp decides itself.
func told(p *peering.Plan, k kin, learned bool) []api.Conditions_RouteType {
	switch {
	case learned:
		return []api.Conditions_RouteType{api.Conditions_ROUTE_TYPE_INTERNAL, api.Conditions_ROUTE_TYPE_EXTERNAL}
	case !p.ClusterID.IsValid():
		return []api.Conditions_RouteType{api.Conditions_ROUTE_TYPE_LOCAL}
	case k.kind == peering.External:
		return []api.Conditions_RouteType{api.Conditions_ROUTE_TYPE_LOCAL, api.Conditions_ROUTE_TYPE_INTERNAL}
	}
	return []api.Conditions_RouteType{api.Conditions_ROUTE_TYPE_LOCAL, api.Conditions_ROUTE_TYPE_INTERNAL, api.Conditions_ROUTE_TYPE_EXTERNAL}
}

// hop is the next hop that a session announces for a route of a family; nil: what the route has. Where it would
// be this node, and the session runs over the other family, it is this node's address of that family; without
// one the route cannot be told.
func hop(p *peering.Plan, k kin, f model.Family, t api.Conditions_RouteType) (*api.NexthopAction, bool) {
	own := t == api.Conditions_ROUTE_TYPE_LOCAL
	switch {
	case !own && k.nextHop == peering.NextHopKeep:
		return &api.NexthopAction{Unchanged: true}, true
	case !own && k.kind == peering.Internal && k.nextHop == peering.NextHopAuto:
		return nil, true
	case f == k.family:
		return &api.NexthopAction{Self: true}, true
	}
	if a, ok := ownAddress(p, f); ok {
		return &api.NexthopAction{Address: a.String()}, true
	}
	return nil, false
}

// ownAddress is this node's address of a family.
func ownAddress(p *peering.Plan, f model.Family) (netip.Addr, bool) {
	i := slices.IndexFunc(p.Listen, func(a netip.Addr) bool { return model.FamilyOf(a) == f })
	if i < 0 {
		return netip.Addr{}, false
	}
	return p.Listen[i], true
}

// rules yields those of the neighbour's filters that apply to it, in order. A filter that is not there lets
// nothing pass.
func (r *ruleset) rules(p *peering.Plan, n *peering.Neighbor, d peering.Direction, add func(*api.Conditions, *api.Actions)) func(func(*peering.Rule) bool) {
	return func(yield func(*peering.Rule) bool) {
		for _, name := range n.Filters {
			i := slices.IndexFunc(p.Filters, func(f peering.Filter) bool { return f.Name == name })
			if i < 0 {
				add(&api.Conditions{}, reject())
				return
			}
			for k := range p.Filters[i].Rules {
				rule := &p.Filters[i].Rules[k]
				if rule.Direction == d && (rule.Kind == "" || rule.Kind == n.Kind(p.ASN)) && !yield(rule) {
					return
				}
			}
		}
	}
}

// conditions are those of a rule; false when it never matches. shown is what stands before the path by now.
func (r *ruleset) conditions(rule *peering.Rule, shown []uint32) (*api.Conditions, bool) {
	c := &api.Conditions{AfiSafiIn: safi(rule.Family)}
	if set, all := matching(rule); !all {
		if len(set) == 0 {
			return nil, false
		}
		c.PrefixSet = r.prefixes(set)
	}
	var small, large []string
	for _, x := range rule.Communities {
		if x.Large {
			large = append(large, x.String())
		} else {
			small = append(small, x.String())
		}
	}
	if small != nil {
		c.CommunitySet = &api.MatchSet{Type: api.MatchSet_TYPE_ALL, Name: r.set(api.DefinedType_DEFINED_TYPE_COMMUNITY, small, nil)}
	}
	if large != nil {
		c.LargeCommunitySet = &api.MatchSet{Type: api.MatchSet_TYPE_ALL, Name: r.set(api.DefinedType_DEFINED_TYPE_LARGE_COMMUNITY, large, nil)}
	}
	if len(rule.ASPath) > 0 {
		path := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(slices.Concat(shown, rule.ASPath))), " "), "[]")
		c.AsPathSet = &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: r.set(api.DefinedType_DEFINED_TYPE_AS_PATH, []string{"^" + path + "( |$)"}, nil)}
	}
	return c, true
}

// sign notes by what neighbours are judged.
func (r *ruleset) sign(signs map[netip.Addr]string, who []*peering.Neighbor, s []*api.Statement, more string) {
	var b strings.Builder
	b.WriteString(more)
	for _, x := range s {
		c := x.Conditions
		fmt.Fprint(&b, c.RouteType, c.AfiSafiIn, c.PrefixSet, c.CommunitySet, c.LargeCommunitySet, c.AsPathSet, x.Actions, "\n")
	}
	for _, n := range who {
		signs[n.Address] = b.String()
	}
}

func (r *ruleset) next(d peering.Direction) string {
	return fmt.Sprintf("%s %d", d, len(r.imports)+len(r.exports))
}

func (r *ruleset) prefixes(list []*api.Prefix) *api.MatchSet {
	return &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: r.set(api.DefinedType_DEFINED_TYPE_PREFIX, nil, list)}
}

// set is the name of a set that holds what is given. The name comes from what is in it, so that statements that
// look the same are the same.
func (r *ruleset) set(t api.DefinedType, list []string, prefixes []*api.Prefix) string {
	var b strings.Builder
	fmt.Fprint(&b, t, list)
	for _, p := range prefixes {
		fmt.Fprint(&b, " ", p.IpPrefix, p.MaskLengthMin, "-", p.MaskLengthMax)
	}
	key := b.String()
	if r.named[key] == "" {
		name := digest(key)
		r.named[key] = name
		r.sets = append(r.sets, &api.DefinedSet{DefinedType: t, Name: name, List: list, Prefixes: prefixes})
	}
	return r.named[key]
}

func accept() *api.Actions { return &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT} }
func reject() *api.Actions { return &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_REJECT} }

func safi(f model.Family) []*api.Family {
	afi := api.Family_AFI_IP
	if f == model.IPv6 {
		afi = api.Family_AFI_IP6
	}
	return []*api.Family{{Afi: afi, Safi: api.Family_SAFI_UNICAST}}
}
