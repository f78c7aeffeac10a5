package netlink

import (
	"errors"
	"fmt"
	"net/netip"

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
	multipath bool
}

// routes lists the routes of a family with our protocol in the given table (0: every table); with
// any, also those of other protocols.
func (c *conn) routes(family int, table uint8, anyProto bool) ([]route, error) {
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family), Table: table}}
	if !anyProto {
		msg.Protocol = plan.RouteProtocol
	}
	msgs, err := c.dump(request(unix.RTM_GETROUTE, 0, msg))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil // the kernel makes a table with its first route; it may have no IPv6
	}
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	out := make([]route, 0, len(msgs))
	for _, m := range msgs {
		if r, ok := parseRoute(m, family); ok && (anyProto || r.proto == plan.RouteProtocol) {
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
		case unix.RTA_MULTIPATH, unix.RTA_VIA:
			r.multipath = true
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

// keyed tells whether the route stands where a plan's route to the same destination would: the kernel
// tells routes apart by destination, metric and type of service.
func (r *route) keyed() bool {
	if r.dst.Addr().Is6() {
		return r.metric == defaultMetric6
	}
	return r.metric == 0 && r.tos == 0
}

// same tells whether packets take the route as the plan has it. index is that of want.Link.
func (r *route) same(want *plan.Route, index int) bool {
	if r.typ != routeType(want.Type) || r.multipath || r.mtu != want.MTU {
		return false
	}
	if want.Type != plan.RouteUnicast {
		return true
	}
	return r.index == index && r.via == want.Via && r.onlink == want.OnLink
}

func routeType(t plan.RouteType) uint8 {
	if t == plan.RouteBlackhole {
		return unix.RTN_BLACKHOLE
	}
	return unix.RTN_UNICAST
}

// routeRequest spells a plan's route for the kernel; flags are those of RTM_NEWROUTE.
func routeRequest(flags uint16, r *plan.Route, index int, proto uint8) *nl.NetlinkRequest {
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
