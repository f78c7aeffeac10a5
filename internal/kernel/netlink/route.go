package netlink

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// defaultMetric6 is what the kernel gives an IPv6 route without a metric (IP6_RT_PRIO_USER).
const defaultMetric6 = 1024

// route is a route as the kernel has it.
type route struct {
	dst       netip.Prefix
	typ       uint8
	proto     uint8
	scope     uint8
	tos       uint8
	table     uint32
	via       netip.Addr
	index     int // of the device; 0 for none
	onlink    bool
	mtu       int // bytes; 0: none
	metric    uint32
	encap     netip.Addr // the other end of an IPv6 tunnel
	hops      []nextHop  // several ways, sorted
	multipath bool       // several ways, or one in a form that no plan has
}

// nextHop is one of several ways of a route.
type nextHop struct {
	via    netip.Addr
	index  int
	onlink bool
}

// protocolOf is the mark of a plan's route.
func protocolOf(w *plan.Route) uint8 {
	if w.Learned {
		return plan.LearnedProtocol
	}
	return plan.RouteProtocol
}

// owned lists the routes of a family that carry one of our marks, in the given table (0: every table).
func (c *conn) owned(family int, table uint8) ([]route, error) {
	own, err := c.routesOf(family, table, plan.RouteProtocol)
	if err != nil {
		return nil, err
	}
	learned, err := c.routesOf(family, table, plan.LearnedProtocol)
	return append(own, learned...), err
}

// routes lists the routes of a family with our first protocol in the given table; with any, those of all protocols.
func (c *conn) routes(family int, table uint8, anyProto bool) ([]route, error) {
	if anyProto {
		return c.routesOf(family, table, unix.RTPROT_UNSPEC)
	}
	return c.routesOf(family, table, plan.RouteProtocol)
}

// routesOf lists the routes of a family and a protocol (RTPROT_UNSPEC: any) in the given table (0: every table).
func (c *conn) routesOf(family int, table, proto uint8) ([]route, error) {
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family), Table: table, Protocol: proto}}
	msgs, err := c.dump(request(unix.RTM_GETROUTE, 0, msg))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil // the kernel makes a table with its first route; it may have no IPv6
	}
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	out := make([]route, 0, len(msgs))
	for _, m := range msgs {
		if r, ok := parseRoute(m, family); ok && (proto == unix.RTPROT_UNSPEC || r.proto == proto) {
			out = append(out, r)
		}
	}
	return out, nil
}

func parseRoute(b []byte, family int) (r route, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return r, false
	}
	msg := nl.DeserializeRtMsg(b)
	if int(msg.Family) != family || msg.Flags&unix.RTM_F_CLONED != 0 {
		return r, false
	}
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofRtMsg:])
	if err != nil {
		return r, false
	}
	r = route{
		typ: msg.Type, proto: msg.Protocol, scope: msg.Scope, tos: msg.Tos,
		table: uint32(msg.Table), onlink: msg.Flags&unix.RTNH_F_ONLINK != 0,
	}
	dst := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	n := nl.NativeEndian()
	for _, a := range attrs {
		switch a.Attr.Type & attrTypeMask {
		case unix.RTA_DST:
			dst = addrOf(a.Value)
		case unix.RTA_GATEWAY:
			r.via = addrOf(a.Value)
		case unix.RTA_OIF:
			r.index = int(n.Uint32(a.Value))
		case unix.RTA_PRIORITY:
			r.metric = n.Uint32(a.Value)
		case unix.RTA_TABLE:
			r.table = n.Uint32(a.Value)
		case unix.RTA_VIA:
			r.multipath = true
		case unix.RTA_MULTIPATH:
			r.multipath, r.hops = true, parseHops(a.Value)
		case unix.RTA_ENCAP:
			if r.encap = parseEncap(a.Value); !r.encap.IsValid() {
				r.multipath = true
			}
		case unix.RTA_METRICS:
			metrics, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return r, false
			}
			for _, x := range metrics {
				if x.Attr.Type&attrTypeMask == unix.RTAX_MTU {
					r.mtu = int(n.Uint32(x.Value))
				}
			}
		}
	}
	r.dst = netip.PrefixFrom(dst, int(msg.Dst_len))
	return r, true
}

// parseHops reads the ways of a route of several; nil when one of them is in a form that no plan has.
func parseHops(b []byte) []nextHop {
	var out []nextHop
	for len(b) >= unix.SizeofRtNexthop {
		h := nl.DeserializeRtNexthop(b)
		n := int(h.RtNexthop.Len)
		if n < unix.SizeofRtNexthop || n > len(b) {
			return nil
		}
		attrs, err := nl.ParseRouteAttr(b[unix.SizeofRtNexthop:n])
		if err != nil {
			return nil
		}
		hop := nextHop{index: int(h.Ifindex), onlink: h.Flags&unix.RTNH_F_ONLINK != 0}
		for _, a := range attrs {
			switch a.Attr.Type & attrTypeMask {
			case unix.RTA_GATEWAY:
				hop.via = addrOf(a.Value)
			case unix.RTA_ENCAP, unix.RTA_VIA:
				return nil
			}
		}
		if h.Hops != 0 { // a weight of its own
			return nil
		}
		out = append(out, hop)
		b = b[min(len(b), (n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	slices.SortFunc(out, func(a, b nextHop) int { return cmp.Or(a.via.Compare(b.via), cmp.Compare(a.index, b.index)) })
	return out
}

// parseEncap reads the other end of a tunnel from a route's encapsulation (linux/lwtunnel.h); the zero Addr for a
// form that no plan has.
func parseEncap(b []byte) (dst netip.Addr) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return dst
	}
	for _, a := range attrs {
		if a.Attr.Type&attrTypeMask == nl.LWTUNNEL_IP6_DST && len(a.Value) == 16 {
			dst = addrOf(a.Value)
		}
	}
	return dst
}

// keyed tells whether the route stands where a plan's route to the same destination would: the kernel
// tells routes apart by destination, metric and type of service.
func (r *route) keyed() bool {
	if r.dst.Addr().Is6() {
		return r.metric == defaultMetric6
	}
	return r.metric == 0 && r.tos == 0
}

// same tells whether packets take the route as the plan has it. index is that of want.Link, hops are want.NextHops.
func (r *route) same(want *plan.Route, index int, hops ...nextHop) bool {
	if r.typ != routeType(want.Type) || r.multipath != (len(hops) > 0) || r.mtu != want.MTU {
		return false
	}
	if want.Type != plan.RouteUnicast {
		return true
	}
	if len(hops) > 0 {
		return slices.Equal(r.hops, hops)
	}
	return r.index == index && r.via == want.Via && r.onlink == want.OnLink && r.encap == want.Encap
}

func routeType(t plan.RouteType) uint8 {
	if t == plan.RouteBlackhole {
		return unix.RTN_BLACKHOLE
	}
	return unix.RTN_UNICAST
}

// routeRequest spells a plan's route for the kernel; flags are those of RTM_NEWROUTE.
func routeRequest(flags uint16, r *plan.Route, index int, proto uint8, hops ...nextHop) *nl.NetlinkRequest {
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len = uint8(familyOf(r.Dst.Addr())), uint8(r.Dst.Bits())
	msg.Protocol, msg.Type = proto, routeType(r.Type)
	req := request(unix.RTM_NEWROUTE, flags, msg)
	if r.Dst.Bits() > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_DST, r.Dst.Addr().AsSlice()))
	}
	if r.MTU > 0 {
		m := nl.NewRtAttr(unix.RTA_METRICS, nil)
		m.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(uint32(r.MTU)))
		req.AddData(m)
	}
	if r.Type != plan.RouteUnicast {
		return req
	}
	if len(hops) > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_MULTIPATH, hopsOf(hops)))
		return req
	}
	if r.Encap.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_ENCAP_TYPE, nl.Uint16Attr(nl.LWTUNNEL_ENCAP_IP6)))
		encap := nl.NewRtAttr(unix.RTA_ENCAP|unix.NLA_F_NESTED, nil)
		encap.AddRtAttr(nl.LWTUNNEL_IP6_DST, r.Encap.AsSlice())
		req.AddData(encap)
	}
	if r.Via.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.Via.AsSlice()))
		if r.OnLink {
			msg.Flags |= unix.RTNH_F_ONLINK
		}
	} else if r.Dst.Addr().Is4() {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	if index > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	}
	return req
}

func hopsOf(hops []nextHop) []byte {
	var b []byte
	for _, h := range hops {
		n := &nl.RtNexthop{
			RtNexthop: unix.RtNexthop{Ifindex: int32(h.index)},
			Children:  []nl.NetlinkRequestData{nl.NewRtAttr(unix.RTA_GATEWAY, h.via.AsSlice())},
		}
		if h.onlink {
			n.Flags = unix.RTNH_F_ONLINK
		}
		b = append(b, n.Serialize()...)
	}
	return b
}

// delRoute removes exactly the route that was read.
func delRoute(r *route) *nl.NetlinkRequest {
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: uint8(familyOf(r.dst.Addr())), Dst_len: uint8(r.dst.Bits()),
		Protocol: r.proto, Type: r.typ, Scope: r.scope, Tos: r.tos,
	}}
	req := request(unix.RTM_DELROUTE, 0, msg, nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(r.table)))
	if r.dst.Bits() > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_DST, r.dst.Addr().AsSlice()))
	}
	if r.metric > 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(r.metric)))
	}
	if r.multipath {
		return req
	}
	if r.via.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, r.via.AsSlice()))
	}
	if r.index > 0 && r.typ == unix.RTN_UNICAST {
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(r.index))))
	}
	return req
}
