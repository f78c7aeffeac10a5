package peering

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/internal/model"
)

// Believe says whether what a neighbour tells counts, as it counts (with what filters do to it), and why or why
// not, in one clause.
//
// No filter lifts what makes no sense: a prefix of loopback, link-local or multicast addresses, a next hop that
// is none. Beyond that the first rule that matches decides, in the order of the session's filters. Where none
// does, a node of this network is believed about the pools only, and others about everything; but nobody about
// a default route, and nobody about a range that holds, is or lies in one of this node's own, without what
// that has lent to others.
func (p *Plan) Believe(n *Neighbor, r Route) (Route, bool, string) {
	if why := nonsense(&r); why != "" {
		return r, false, why
	}
	if slices.ContainsFunc(p.Listen, func(own netip.Addr) bool { return own == r.NextHop }) {
		return r, false, fmt.Sprintf("its next hop %s is this node", r.NextHop)
	}
	v := p.filtered(n, Import, &r, false)
	switch v.is {
	case rejected:
		return r, false, v.why
	case accepted:
		return v.route, true, v.why
	}
	if r.Prefix.Bits() == 0 {
		return r, false, "a default route, which no filter accepts"
	}
	for _, own := range p.Own {
		if own.Overlaps(r.Prefix) && !(own.Bits() < own.Addr().BitLen() && slices.ContainsFunc(p.Lent, func(l netip.Prefix) bool { return within(r.Prefix, l) })) {
			return r, false, fmt.Sprintf("it %s this node's own %s, and no filter accepts that", relation(r.Prefix, own), own)
		}
	}
	if n.Node == "" {
		return r, true, fmt.Sprintf("told by %s", n.Name)
	}
	for _, pool := range p.Believed {
		if within(r.Prefix, pool) {
			return r, true, fmt.Sprintf("told by node %s, in pool range %s", n.Node, pool)
		}
	}
	return r, false, fmt.Sprintf("node %s is believed about pools only, and no filter accepts it", n.Node)
}

// Tell says whether a neighbour is told of a route, as it is told, and why or why not, in one clause. own says
// that the route is this node's; others are learned, and Neighbor tells from whom.
//
// The first rule that matches decides, in the order of the session's filters. Where none does, everybody is told
// of own routes. Learned ones are told by a route reflector only, and no further than RFC 4456 section 6 has it;
// it does not join two neighbours of other ASes. So no node carries traffic between others unless a filter says so:
// with a rule for learned routes, since one that does not name them accepts them only as far as they are told
// anyway.
func (p *Plan) Tell(n *Neighbor, r Route, own bool) (Route, bool, string) {
	if !own && r.Neighbor == n.Address {
		return r, false, "told by this neighbour itself"
	}
	v := p.filtered(n, Export, &r, !own)
	switch {
	case v.is == rejected:
		return r, false, v.why
	case v.is == accepted && (own || v.learned):
		return v.route, true, v.why
	case own:
		return r, true, "this node's own"
	}
	why, ok := p.reflects(n, &r)
	if !ok {
		return r, false, why
	}
	if v.is == accepted {
		return v.route, true, v.why
	}
	return r, true, why
}

// reflects says whether this node passes a learned route on by itself.
func (p *Plan) reflects(to *Neighbor, r *Route) (why string, ok bool) {
	if !p.ClusterID.IsValid() {
		return "learned, and this node is no route reflector", false
	}
	i, found := slices.BinarySearchFunc(p.Neighbors, r.Neighbor, func(n Neighbor, a netip.Addr) int { return n.Address.Compare(a) })
	if !found {
		return fmt.Sprintf("learned from %s, to which there is no session", r.Neighbor), false
	}
	from := &p.Neighbors[i]
	a, b := from.Kind(p.ASN), to.Kind(p.ASN)
	switch {
	case a == External && b == External:
		return fmt.Sprintf("learned from %s, and no way leads through this node from one foreign AS to another", from.Name), false
	case a == Internal && b == Internal && !from.Client && !to.Client:
		return "learned from a neighbour of the own AS that is no client", false
	}
	return fmt.Sprintf("reflected from %s", cmp.Or(from.Node, from.Name)), true
}

// nonsense says why a route cannot be one; "" when it can.
func nonsense(r *Route) string {
	x, hop := r.Prefix, r.NextHop
	switch a := x.Addr(); {
	case !x.IsValid() || x != x.Masked():
		return "not a prefix"
	case a.Is4In6() || a.Zone() != "":
		return "not a prefix of IPv4 or IPv6"
	case x.Bits() > 0 && (martian(a) || slices.ContainsFunc(martians, func(m netip.Prefix) bool { return within(x, m) })):
		return "a range that is never routed: " + x.String()
	}
	switch {
	case !hop.IsValid() || hop.Is4In6() || hop.Zone() != "" || martian(hop):
		return fmt.Sprintf("its next hop %s is not an address to send to", hop)
	case model.FamilyOf(hop) != model.FamilyOf(x.Addr()):
		return fmt.Sprintf("its next hop %s is not of %s", hop, model.FamilyOf(x.Addr()))
	}
	return ""
}

// martians are ranges that no route leads to: "this network" (RFC 1122), the limited broadcast address.
var martians = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("::/127")}

func martian(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast()
}

// within reports whether x is y or a part of it.
func within(x, y netip.Prefix) bool { return y.Bits() <= x.Bits() && y.Contains(x.Addr()) }

// relation says how x overlaps y.
func relation(x, y netip.Prefix) string {
	switch {
	case x == y:
		return "is"
	case within(x, y):
		return "lies in"
	default:
		return "contains"
	}
}

// What filters say of a route.
const (
	passed = iota
	accepted
	rejected
)

// verdict is what filters say of a route, and what they make of it.
type verdict struct {
	is      int
	route   Route
	why     string
	learned bool // by a rule for learned routes
}

// filtered holds a route against the filters of a session.
func (p *Plan) filtered(n *Neighbor, d Direction, r *Route, learned bool) verdict {
	kind := n.Kind(p.ASN)
	for _, name := range n.Filters {
		i, ok := slices.BinarySearchFunc(p.Filters, name, func(f Filter, s string) int { return cmp.Compare(f.Name, s) })
		if !ok {
			return verdict{is: rejected, why: fmt.Sprintf("filter %q is not there, so nothing passes", name)}
		}
		for k := range p.Filters[i].Rules {
			rule := &p.Filters[i].Rules[k]
			if rule.Direction != d || rule.Kind != "" && rule.Kind != kind || d == Export && rule.Learned && !learned || !rule.matches(r) {
				continue
			}
			where := fmt.Sprintf("filter %q, %s", name, rule.place(p.Filters[i].Rules[:k]))
			if !rule.Accept {
				return verdict{is: rejected, why: "rejected by " + where}
			}
			return verdict{is: accepted, route: rule.operate(*r), why: "accepted by " + where, learned: rule.Learned}
		}
	}
	return verdict{is: passed}
}

// place names the rule as people find it: the how manieth of its list.
func (r *Rule) place(before []Rule) string {
	n := 1
	for i := range before {
		if before[i].Direction == r.Direction && before[i].Family == r.Family {
			n++
		}
	}
	return fmt.Sprintf("%sV%d rule %d", r.Direction, r.Family, n)
}

// matches holds the rule's conditions on the route itself against it.
func (r *Rule) matches(x *Route) bool {
	if model.FamilyOf(x.Prefix.Addr()) != r.Family || !r.matchesPrefix(x.Prefix) {
		return false
	}
	for _, c := range r.Communities {
		if !slices.Contains(x.Communities, c) {
			return false
		}
	}
	return len(r.ASPath) <= len(x.ASPath) && slices.Equal(r.ASPath, x.ASPath[:len(r.ASPath)])
}

func (r *Rule) matchesPrefix(x netip.Prefix) bool {
	long := (r.MinLength == nil || *r.MinLength <= x.Bits()) && (r.MaxLength == nil || x.Bits() <= *r.MaxLength)
	switch {
	case !r.CIDR.IsValid():
		return long
	case r.Match == MatchEqual:
		return x == r.CIDR && long
	case r.Match == MatchNotEqual:
		return x != r.CIDR || !long
	case r.Match == MatchNotIn:
		return !within(x, r.CIDR) || !long
	default:
		return within(x, r.CIDR) && long
	}
}

// operate does the rule's operations to a copy.
func (r *Rule) operate(x Route) Route {
	for _, o := range r.Operations {
		switch {
		case o.AddCommunity != nil:
			if !slices.Contains(x.Communities, *o.AddCommunity) {
				x.Communities = append(slices.Clone(x.Communities), *o.AddCommunity)
			}
		case o.Preference != nil:
			x.Preference = *o.Preference
		default:
			x.ASPath = slices.Concat(o.PrependAS, x.ASPath)
		}
	}
	return x
}
