package netlink

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// diffRoutes compares our routes in the main table.
func (r *round) diffRoutes() {
	var all []route
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rs, err := r.c.owned(family, unix.RT_TABLE_MAIN)
		if err != nil {
			r.unread("routes", err)
			return
		}
		all = append(all, rs...)
	}
	current := make(map[netip.Prefix]*route, len(all))
	for i := range all {
		if all[i].keyed() {
			current[all[i].dst] = &all[i]
		}
	}
	want := make(map[netip.Prefix]bool, len(r.p.Routes))
	for i := range r.p.Routes {
		w := &r.p.Routes[i]
		want[w.Dst] = true
		index, hops, ok := r.routeLinks(w)
		cur := current[w.Dst]
		if !ok || cur != nil && (cur.proto == protocolOf(w) && cur.same(w, index, hops...) || r.leaves(cur, w)) {
			continue
		}
		o := op{route: w, code: "route-failed", subject: "route " + w.Dst.String(), next: "ip route get " + w.Dst.Addr().String()}
		if cur != nil {
			// One message changes the next hop: there is no moment without a route.
			o.req = routeRequest(unix.NLM_F_CREATE|unix.NLM_F_REPLACE, w, index, protocolOf(w), hops...)
		} else {
			o.req = routeRequest(unix.NLM_F_CREATE|unix.NLM_F_EXCL, w, index, protocolOf(w), hops...)
		}
		r.add(o)
	}
	for i := range all {
		k := &all[i]
		if want[k.dst] && current[k.dst] == k || r.stray[k.index] || r.p.Relearning && k.proto == plan.LearnedProtocol {
			continue
		}
		r.remove(op{req: delRoute(k), code: "route-failed", subject: "route " + k.dst.String(), next: "ip route show " + k.dst.String()})
	}
}

// leaves tells whether a route of ours to the same destination as the plan's stays, because it may be newer than what
// the plan knows.
func (r *round) leaves(cur *route, w *plan.Route) bool {
	elsewhere := w.Via.IsValid() || w.Encap.IsValid() || len(w.NextHops) > 0
	return elsewhere && (r.p.Recalled || r.p.Relearning && cur.proto == plan.LearnedProtocol && !w.Learned)
}

// routeLinks is routeLink for all ways of a route.
func (r *round) routeLinks(w *plan.Route) (index int, hops []nextHop, ok bool) {
	if len(w.NextHops) == 0 {
		index, ok = r.routeLink(w.Dst, w.Link)
		return index, nil, ok
	}
	for _, h := range w.NextHops {
		if index, ok = r.routeLink(w.Dst, h.Link); !ok {
			return 0, nil, false
		}
		hops = append(hops, nextHop{via: h.Via, index: index, onlink: h.OnLink})
	}
	return 0, hops, true
}

// routeLink finds the device of a route. Routes by a link of the plan that is not usable are left
// out silently: the link's own problem says it.
func (r *round) routeLink(dst netip.Prefix, name string) (index int, ok bool) {
	if name == "" {
		return 0, true
	}
	if l := r.usable[name]; l != nil {
		return l.index, true
	}
	for i := range r.p.Links {
		if r.p.Links[i].Name == name {
			return 0, false
		}
	}
	if l := r.links.byName[name]; l != nil {
		return l.index, true
	}
	r.fail("route-failed", "route "+dst.String(), fmt.Errorf("there is no link %s", name), "ip link show")
	return 0, false
}

// contest looks at what stands where a route of ours should be. What another program such as flanneld
// left is taken over when it is the very same route, or one into a tunnel that is ours: the device was
// that program's until we took it, with what hung on it. Anything else is not ours to replace.
func (r *round) contest(ops []op) {
	foreign := map[netip.Prefix]*route{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rs, err := r.c.routes(family, unix.RT_TABLE_MAIN, true)
		if err != nil {
			r.unread("routes", err)
			return
		}
		for i := range rs {
			if rs[i].keyed() && foreign[rs[i].dst] == nil {
				foreign[rs[i].dst] = &rs[i]
			}
		}
	}
	for _, o := range ops {
		w, f := o.route, foreign[o.route.Dst]
		index, hops, _ := r.routeLinks(w)
		if f == nil {
			r.fail(o.code, o.subject, unix.EEXIST, "ip route show "+w.Dst.String())
			continue
		}
		into := r.links.byIndex[f.index]
		if f.same(w, index, hops...) || into != nil && into.tunnel() && r.usable[into.name] == into {
			r.one(op{
				req:  routeRequest(unix.NLM_F_CREATE|unix.NLM_F_REPLACE, w, index, protocolOf(w), hops...),
				code: o.code, subject: o.subject, next: o.next,
			})
			continue
		}
		by := "no device"
		if l := r.links.byIndex[f.index]; l != nil {
			by = l.name
		}
		r.fail("foreign-route", o.subject, fmt.Errorf("a route of protocol %d by %s is there, and is not Heddle's", f.proto, by), "ip route show "+w.Dst.String())
	}
}

// uncover repeats IPv6 routes by an on-link gateway that the kernel refused. It does so while another
// route leads to the gateway's address by another device, and that is just the case when a block's
// route moves from a direct path to a tunnel: the gateway lies in the block. A route to the gateway
// alone, by the right device, is there while the block's route changes in one message; what a crash
// leaves of it carries our mark and goes in the next pass.
func (r *round) uncover(ops []op) {
	var reqs []*nl.NetlinkRequest
	for _, o := range ops {
		w := o.route
		index, _ := r.routeLink(w.Dst, w.Link)
		helper := plan.Route{Dst: netip.PrefixFrom(w.Via, w.Via.BitLen()), Link: w.Link}
		reqs = append(reqs,
			routeRequest(unix.NLM_F_CREATE|unix.NLM_F_EXCL, &helper, index, plan.RouteProtocol),
			o.req,
			delRoute(&route{dst: helper.Dst, typ: unix.RTN_UNICAST, proto: plan.RouteProtocol, table: unix.RT_TABLE_MAIN, index: index, metric: defaultMetric6}))
	}
	errs := r.c.run(reqs)
	var contested []op
	for i, o := range ops {
		switch err := errs[3*i+1]; {
		case err == nil:
			r.changed++
			r.done = append(r.done, o)
		case errors.Is(err, unix.EEXIST):
			contested = append(contested, o)
		default:
			r.fail(o.code, o.subject, err, o.next)
		}
	}
	if len(contested) > 0 {
		r.contest(contested)
	}
}
