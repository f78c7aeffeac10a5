package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/path"
	"github.com/heddle-net/heddle/internal/peering"
)

// deepest is over how many other routes a next hop is looked for.
const deepest = 4

// resolver finds the way to next hops that are in no segment of this node, over what BGP told of networks behind
// routers (RFC 4271 section 9.1.2.1). A next hop is looked up as a packet to it would be, by the longest prefix; a
// default route does not count, and neither do ranges of pods, which are no place for routers.
type resolver struct {
	routes  map[netip.Prefix][]peering.Route
	lengths map[model.Family][]int // of prefixes, the longest first
}

// resolver indexes what was learned, once somebody asks.
func (l *learner) resolver() *resolver {
	if l.far != nil {
		return l.far
	}
	l.far = &resolver{routes: map[netip.Prefix][]peering.Route{}, lengths: map[model.Family][]int{}}
	for i := range l.in.Learned {
		r := &l.in.Learned[i]
		x := r.Prefix
		if !r.Best || r.Rejected || x.Bits() <= 0 || l.blocks.pool(x) != nil {
			continue
		}
		if why, _ := l.refused(x, nil); why != "" {
			continue
		}
		l.far.routes[x] = append(l.far.routes[x], *r)
		if f := model.FamilyOf(x.Addr()); !slices.Contains(l.far.lengths[f], x.Bits()) {
			l.far.lengths[f] = append(l.far.lengths[f], x.Bits())
		}
	}
	for _, bits := range l.far.lengths {
		slices.SortFunc(bits, func(a, b int) int { return b - a })
	}
	return l.far
}

// longest are the routes of the longest prefix that holds an address. What is only a last resort carries nothing but
// a last resort; a neighbour that restarts goes on forwarding (RFC 4724).
func (r *resolver) longest(a netip.Addr, lastResort bool) (found []peering.Route) {
	for _, bits := range r.lengths[model.FamilyOf(a)] {
		for _, x := range r.routes[netip.PrefixFrom(a, bits).Masked()] {
			if lastResort || !x.LongLived {
				found = append(found, x)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// over finds the ways to a next hop that is in no segment. behind are the destinations that it is a way to, the last
// one by itself: none of them may hold the next hop, or the way to it would lead over itself.
func (l *learner) over(via netip.Addr, lastResort bool, behind ...netip.Prefix) (hops []hop, why string) {
	why = "it is in no segment of this node"
	if pool := l.blocks.pool(netip.PrefixFrom(via, via.BitLen())); pool != nil {
		return nil, fmt.Sprintf("%s, but in pool %q", why, pool.Name)
	}
	if slices.ContainsFunc(behind, func(x netip.Prefix) bool { return x.Contains(via) }) {
		return nil, itself(behind)
	}
	routes := l.resolver().longest(via, lastResort)
	switch {
	case len(routes) == 0:
		return nil, why
	case len(behind) > deepest:
		return nil, fmt.Sprintf("it is behind more than %d other routes", deepest)
	}
	x := routes[0].Prefix
	behind = append(slices.Clone(behind), x)
	for _, r := range routes {
		next, no := l.beyond(&r, lastResort, behind)
		if no != "" {
			why = fmt.Sprintf("it is behind %s, whose next hop %s does not help: %s", x, r.NextHop, no)
			continue
		}
		for _, h := range next {
			if !slices.ContainsFunc(hops, func(o hop) bool { return o.Via == h.Via }) {
				h.segment = fmt.Sprintf("over %s, %s", x, h.segment)
				hops = append(hops, h)
			}
		}
	}
	if len(hops) > 0 {
		why = ""
	}
	return hops, why
}

// beyond finds the ways of a route that leads to a next hop.
func (l *learner) beyond(r *peering.Route, lastResort bool, behind []netip.Prefix) (hops []hop, why string) {
	via := r.NextHop
	switch up := l.in.Host.OnLink(via); {
	case !via.IsValid() || model.FamilyOf(via) != model.FamilyOf(r.Prefix.Addr()):
		return nil, "it is of another family"
	case l.in.Host.Uplink(via) != nil:
		return nil, "it is this node itself"
	case up != nil:
		if slices.ContainsFunc(behind, func(x netip.Prefix) bool { return leadsBack(via, x, up) }) {
			return nil, itself(behind)
		}
		h := direct(via, up)
		h.segment = fmt.Sprintf("by %s in segment %s", via, up.Prefix.Masked())
		return []hop{h}, ""
	}
	return l.over(via, lastResort, behind...)
}

// itself says that a way leads to where it begins.
func itself(behind []netip.Prefix) string {
	if len(behind) == 1 {
		return "it lies inside the destination itself"
	}
	return "the way to it leads over itself"
}

// leadsBack reports whether a next hop on an uplink would be looked for by the route to x itself.
func leadsBack(via netip.Addr, x netip.Prefix, up *model.Uplink) bool {
	return x.Bits() >= up.Prefix.Bits() && x.Contains(via)
}

// direct is the way by a next hop on an uplink.
func direct(via netip.Addr, up *model.Uplink) hop {
	return hop{
		Choice:  path.Choice{Path: model.PathDirect, Outer: model.FamilyOf(via), Via: via, Link: up.Link, MTU: up.MTU},
		segment: "next hop in segment " + up.Prefix.Masked().String(),
	}
}
