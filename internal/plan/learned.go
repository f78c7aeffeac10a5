package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/path"
	"github.com/heddle-net/heddle/internal/peering"
)

// told is what BGP says of one prefix, as it becomes a route.
type told struct {
	route  Route
	choice path.Choice // of its first way
	// spare: the store knows the block, and this is taken only while what the pool asks for is not ready: BGP may be
	// how the block was reached before a change of mode.
	spare bool
	won   []int // the Origins that it stands for
}

// hop is one way of a route that BGP told of.
type hop struct {
	path.Choice
	segment string // why it is that way
}

// learn finds out which prefixes BGP gives a way to, and how. What it says of an own block is never used, whatever
// was configured to be believed; of a block that the store knows only where the pool's path is BGP.
func (b *builder) learn() {
	b.told, b.lost = map[netip.Prefix]told{}, map[netip.Prefix]string{}
	if len(b.in.Learned) == 0 {
		return
	}
	known := make(map[netip.Prefix]*theirs, len(b.theirs))
	for i := range b.theirs {
		known[b.theirs[i].dst] = &b.theirs[i]
	}
	l := &learner{builder: b, names: map[netip.Addr]string{}, nodes: map[netip.Addr]*model.Node{}}
	l.prepare()
	for from := 0; from < len(b.in.Learned); {
		to := from + 1
		for to < len(b.in.Learned) && b.in.Learned[to].Prefix == b.in.Learned[from].Prefix {
			to++
		}
		l.prefix(b.in.Learned[from:to], known)
		from = to
	}
}

// learner is the work of one learn.
type learner struct {
	*builder
	names map[netip.Addr]string      // of neighbours
	nodes map[netip.Addr]*model.Node // by address
	far   *resolver
}

func (l *learner) prepare() {
	if l.plan.BGP != nil {
		for _, n := range l.plan.BGP.Neighbors {
			l.names[n.Address] = n.Name
			if n.Node != "" {
				l.names[n.Address] = "node " + n.Node
			}
		}
	}
	for i := range l.in.Cluster.Nodes {
		n := &l.in.Cluster.Nodes[i]
		for _, a := range []netip.Addr{n.Address4, n.Address6, n.Public4, n.Public6} {
			l.nodes[a] = n
		}
	}
}

// prefix judges what the neighbours say of one prefix.
func (l *learner) prefix(routes []peering.Route, known map[netip.Prefix]*theirs) {
	dst := routes[0].Prefix
	pool := l.blocks.pool(dst)
	refused, spare := l.refused(dst, known[dst])
	if spare {
		pool = nil // plain, as BGP's way was
	}
	var hops []hop
	var won []int // into Origins
	for i := range routes {
		r := &routes[i]
		o := Origin{Dst: dst, From: l.from(r.Neighbor), Via: r.NextHop, Reason: r.Reason}
		switch {
		case r.Rejected || !r.Best:
		case refused != "" && !spare:
			o.Reason = refused
		default:
			hs, why := l.hops(r, pool)
			if why != "" && spare {
				o.Reason = refused
				break
			}
			if why != "" {
				o.Reason, l.lost[dst] = why, why
				l.problem("bgp-nexthop-unreachable", model.Failure, "next hop "+r.NextHop.String(), why+", so that there is no way to: "+dst.String(), "heddle routes")
				break
			}
			o.Reason = r.Reason
			for _, h := range hs {
				o.Reason = join(o.Reason, h.segment)
				hops, won = append(hops, h), append(won, len(l.plan.Origins))
			}
			if spare {
				o.Reason = refused
			}
		}
		l.plan.Origins = append(l.plan.Origins, o)
	}
	if len(hops) == 0 {
		return
	}
	hops, won = l.several(hops, won)
	t := told{route: routeBy(dst, hops), choice: hops[0].Choice, spare: spare, won: won}
	t.choice.Reason = "told by " + l.plan.Origins[won[0]].From[len("bgp: "):]
	for _, h := range hops {
		if h.Path == model.PathIPIP {
			l.into = append(l.into, h.Via)
		}
	}
	t.choice.Path = model.PathBGP
	l.told[dst] = t
	if !spare {
		l.uses(t, "")
	}
}

// uses marks where a route came from that is in the plan, and why where that is not said yet.
func (b *builder) uses(t told, why string) {
	for _, i := range t.won {
		o := &b.plan.Origins[i]
		if o.Used = true; why != "" {
			o.Reason = why
		}
	}
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

func (l *learner) from(neighbor netip.Addr) string {
	if name := l.names[neighbor]; name != "" {
		return fmt.Sprintf("bgp: %s (%s)", neighbor, name)
	}
	return "bgp: " + neighbor.String()
}

// refused says why nothing is believed about a destination; "" when it is. spare: unless nothing else is there.
func (l *learner) refused(dst netip.Prefix, t *theirs) (why string, spare bool) {
	if !dst.IsValid() || dst != dst.Masked() {
		return "it is no network address", false
	}
	for _, own := range l.blocks.own {
		lent := t != nil && l.blocks.lent(own, dst)
		if dst.Bits() >= own.Bits() && own.Contains(dst.Addr()) && !lent {
			return "it lies in this node's own block " + own.String(), false
		}
	}
	if dst.IsSingleIP() && l.blocks.used[dst.Addr()] {
		return "a workload of this node has that address", false
	}
	if t != nil && t.pool.Path != model.PathBGP {
		return fmt.Sprintf("the store knows it as a block of node %q, and pool %q is carried by %s", t.peer.Name, t.pool.Name, t.pool.Path), t.pool.Path != model.PathNone
	}
	return "", false
}

// hops finds the ways to a next hop: inside a pool's range by the pool's encapsulation, else on-link, else over what
// BGP told of the network that it is in. Without one, why says what is wrong.
func (l *learner) hops(r *peering.Route, pool *model.Pool) (hops []hop, why string) {
	fam, via := model.FamilyOf(r.Prefix.Addr()), r.NextHop
	up := l.in.Host.OnLink(via)
	switch {
	case !via.IsValid():
		return nil, "it has no next hop"
	case model.FamilyOf(via) != fam:
		return nil, "it is of another family than the destination"
	case l.in.Host.Uplink(via) != nil:
		return nil, "it is this node itself"
	case pool != nil && pool.Path == model.PathNone:
		return nil, fmt.Sprintf("pool %q carries no packets", pool.Name)
	}
	if pool != nil && pool.Path == model.PathIPIP && (pool.Encap == model.EncapAlways || pool.Encap == model.EncapCrossSubnet && up == nil) {
		if why = l.closed(via, fam); why == "" && r.Prefix.Contains(via) {
			why = "it lies inside the destination itself"
		}
		if why == "" {
			own := l.in.Host.Uplink(l.self.Address(fam))
			h := hop{segment: fmt.Sprintf("by ipip over %s, as pool %q asks", fam, pool.Name)}
			h.Choice = path.Choice{Path: model.PathIPIP, Outer: fam, Via: via, Link: path.Device(pool, fam), MTU: path.TunnelMTU(own.MTU, pool, fam)}
			return []hop{h}, ""
		}
		if up == nil {
			return nil, why
		}
	}
	if up == nil {
		return l.over(via, r.LongLived, r.Prefix)
	}
	if leadsBack(via, r.Prefix, up) {
		return nil, itself([]netip.Prefix{r.Prefix})
	}
	h := direct(via, up)
	h.segment = join(h.segment, why)
	return []hop{h}, ""
}

// closed says why nothing goes by ipip to an address; "" when it may. Of one that is no node of this network nothing
// else is known than that it announces.
func (l *learner) closed(via netip.Addr, fam model.Family) string {
	n := l.nodes[via]
	switch {
	case l.in.Host.Uplink(l.self.Address(fam)) == nil:
		return fmt.Sprintf("this node has no ipip device for %s", fam)
	case l.self.LacksPath(model.PathIPIP):
		return "the kernel of this node has no ipip"
	case n == nil || n.AcceptsPath(model.PathIPIP):
		return ""
	case n.LacksPath(model.PathIPIP):
		return fmt.Sprintf("the kernel of %s has no ipip", n.Name)
	}
	return fmt.Sprintf("waiting for %s to accept ipip", n.Name)
}

// several tells which of the ways are used together: all, each once, but only the first where it leads into an IPv6
// tunnel, as the kernel takes no such way into a route of several.
func (l *learner) several(hops []hop, won []int) (used []hop, by []int) {
	for i, h := range hops {
		alone := h.Path == model.PathIPIP && h.Outer == model.IPv6
		switch {
		case slices.ContainsFunc(used, func(u hop) bool { return u.Via == h.Via }):
			by = append(by, won[i])
		case len(used) > 0 && (alone || used[0].Path == model.PathIPIP && h.Outer == model.IPv6):
			o := &l.plan.Origins[won[i]]
			o.Reason = join(o.Reason, "a route into an IPv6 tunnel has one way only")
		default:
			used, by = append(used, h), append(by, won[i])
		}
	}
	return used, by
}

// routeBy is the route that BGP told of.
func routeBy(dst netip.Prefix, hops []hop) Route {
	h := hops[0]
	r := Route{Dst: dst, Via: h.Via, Link: h.Link}
	if h.Path == model.PathIPIP {
		r = intoIPIP(dst, h.Via, h.Link)
	}
	r.Learned = true
	if len(hops) == 1 {
		return r
	}
	r.Via, r.Link, r.OnLink = netip.Addr{}, "", false
	for _, h := range hops {
		r.NextHops = append(r.NextHops, NextHop{Via: h.Via, Link: h.Link, OnLink: h.Path == model.PathIPIP})
	}
	slices.SortFunc(r.NextHops, func(a, b NextHop) int { return a.Via.Compare(b.Via) })
	return r
}

// learned adds the routes that BGP told of to what the store does not know.
func (b *builder) learned() {
	for i := range b.theirs {
		delete(b.told, b.theirs[i].dst)
	}
	for _, t := range b.told {
		b.plan.Routes = append(b.plan.Routes, t.route)
	}
}

// origins adds what the store says to what BGP does, and sorts.
func (b *builder) origins() {
	for _, p := range b.plan.Peers {
		o := Origin{Dst: p.Block, From: "store: node " + p.Node, Via: p.Via, Used: p.Path != "" && p.Path != model.PathBGP && p.Path != model.PathNone, Reason: p.Reason}
		if p.Path == model.PathBGP {
			if o.Via, o.Reason = (netip.Addr{}), "its pool is routed by BGP, which has told of it"; strings.HasPrefix(p.Reason, "stays") {
				o.Reason = p.Reason
			}
			if n := b.nodes[p.Node]; n != nil {
				o.Via = n.Address(model.FamilyOf(p.Block.Addr()))
			}
		}
		b.plan.Origins = append(b.plan.Origins, o)
	}
	for _, own := range b.blocks.own {
		b.plan.Origins = append(b.plan.Origins, Origin{Dst: own, From: "own block", Used: true, Reason: "this node's workloads are in it"})
	}
	slices.SortStableFunc(b.plan.Origins, func(x, y Origin) int {
		used := 0
		if x.Used != y.Used {
			used = 1
			if x.Used {
				used = -1
			}
		}
		return cmp.Or(x.Dst.Compare(y.Dst), used, cmp.Compare(x.From, y.From), x.Via.Compare(y.Via))
	})
}
