package netlink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// watchBuffer is the receive buffer for notifications, in bytes: a burst of some ten thousand.
const watchBuffer = 8 << 20

var watchGroups = []uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
	unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
}

// Watch implements kernel.Driver. What this driver's own passes change is not signalled where the
// kernel says who changed it.
func (d *Driver) Watch(ctx context.Context, changed func()) error {
	for {
		err := d.watch(ctx, changed)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			// Notifications were lost, and while the old socket is full more are, silently: take a new one.
			d.log.Warn("kernel notifications were lost; reading everything again")
		default:
			return fmt.Errorf("watch the kernel: %w", err)
		}
	}
}

// watch signals until something fails. Whatever came before the subscription is the first signal.
func (d *Driver) watch(ctx context.Context, changed func()) error {
	f, err := d.subscribe()
	if err != nil {
		return err
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.Close() })()
	w := &watcher{d: d}
	if w.c, err = dialIn(d.ns); err != nil {
		return err
	}
	defer w.c.close()
	if err := w.reload(); err != nil {
		return err
	}
	changed()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, recvSize)
	for {
		n, err := receive(raw, buf)
		if err != nil {
			return err
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return err
		}
		signal := false
		for i := range msgs {
			signal = w.concerns(&msgs[i]) || signal
		}
		if signal {
			changed()
		}
	}
}

func (d *Driver) subscribe() (f *os.File, err error) {
	err = Do(d.ns, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "netlink watch")
		sa := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
		for _, g := range watchGroups {
			sa.Groups |= 1 << (g - 1)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer); err != nil {
			// Without CAP_NET_ADMIN the default must do; what overflows is read again.
			d.log.Debug("small buffer for kernel notifications", "error", err)
		}
		return unix.Bind(fd, sa)
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	return f, nil
}

func receive(raw syscall.RawConn, buf []byte) (n int, err error) {
	rerr := raw.Read(func(fd uintptr) bool {
		for {
			n, _, err = unix.Recvfrom(int(fd), buf, 0)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	return n, errors.Join(rerr, err)
}

// watcher tells notifications that matter from the churn of a busy node. It knows the links, since
// notifications of addresses and neighbours carry only an index, and which of the foreign ones have
// had an address that peers could use: the rest, such as other programs' veths, are nobody's uplink.
type watcher struct {
	d         *Driver
	c         *conn // for questions; passes have their own
	links     *links
	addressed map[int]bool
}

func (w *watcher) reload() (err error) {
	if w.links, err = w.c.links(); err != nil {
		return err
	}
	as, err := w.c.addresses()
	w.addressed = map[int]bool{}
	for i := range as {
		if as[i].prefix.Addr().IsGlobalUnicast() {
			w.addressed[as[i].index] = true
		}
	}
	return err
}

// concerns tells whether a notification may mean that something of ours, or a fact, has changed.
func (w *watcher) concerns(m *syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		// Also our own, so that the links are known; they come to rest by themselves.
		return w.linkEvent(m) && m.Header.Pid != w.d.c.pid
	}
	if m.Header.Pid == w.d.c.pid {
		return false
	}
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return w.routeEvent(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return w.addressEvent(m)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return w.neighborEvent(m)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		_, proto := parseRule(m.Data)
		return proto == plan.RouteProtocol
	case unix.RTM_NEWNETCONF:
		return w.sysctlEvent(m)
	}
	return false
}

// sysctlEvent: the kernel tells of forwarding, rp_filter and proxy_arp (linux/netconf.h), not of other
// settings. Those of workloads' veths are written by every attachment, and left to the regular pass.
func (w *watcher) sysctlEvent(m *syscall.NetlinkMessage) bool {
	const header, ifIndex, all = 4, 1, -1 // struct netconfmsg, NETCONFA_IFINDEX, NETCONFA_IFINDEX_ALL
	if len(m.Data) < header {
		return false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[header:])
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Attr.Type&attrTypeMask != ifIndex || len(a.Value) < 4 {
			continue
		}
		index := int(int32(nl.NativeEndian().Uint32(a.Value)))
		l := w.links.byIndex[index]
		return index == all || l != nil && l.ours() && !l.workloads()
	}
	return false
}

// routeEvent: one of ours was added or removed by somebody; or a foreign route replaced another one,
// of which the kernel says nothing but the new one. A new route to a workload is an attachment's.
func (w *watcher) routeEvent(m *syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofRtMsg {
		return false
	}
	msg := nl.DeserializeRtMsg(m.Data)
	if msg.Flags&unix.RTM_F_CLONED != 0 || msg.Table == unix.RT_TABLE_LOCAL {
		return false
	}
	replaces := m.Header.Type == unix.RTM_NEWROUTE && m.Header.Flags&unix.NLM_F_REPLACE != 0
	if msg.Protocol != plan.RouteProtocol && msg.Protocol != plan.LearnedProtocol {
		return replaces
	}
	r, ok := parseRoute(m.Data, int(msg.Family))
	l := w.links.byIndex[r.index]
	if !ok || l == nil || !l.workloads() {
		return true
	}
	return replaces || m.Header.Type == unix.RTM_DELROUTE && w.stays(l)
}

// stays asks whether a workload's veth is more than on its way out. The kernel tells of every step of a
// removal (down, without its master, without addresses and routes) as if it were a change to repair, and
// no pass can do anything about a veth that is gone. It answers when the step's whole work is done.
func (w *watcher) stays(l *link) bool {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.index)
	_, err := w.c.get(request(unix.RTM_GETLINK, 0, msg))
	return !errors.Is(err, unix.ENODEV)
}

func (w *watcher) linkEvent(m *syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return false
	}
	msg := nl.DeserializeIfInfomsg(m.Data)
	old := w.links.byIndex[int(msg.Index)]
	if msg.Family == unix.AF_BRIDGE {
		return old != nil && old.ours() && portEvent(m, old)
	}
	if msg.Family != unix.AF_UNSPEC {
		return false // the kernel's IPv6 view of the same event
	}
	l, err := parseLink(m.Data)
	if err != nil {
		return true
	}
	if m.Header.Type == unix.RTM_DELLINK {
		delete(w.links.byIndex, l.index)
		delete(w.addressed, l.index)
		if old == nil {
			old = l
		}
		return old.ours() && !old.workloads() // a workload's: see stays
	}
	w.links.byIndex[l.index] = l
	switch {
	case l.workloads():
		// Made by an attachment: down, or changed in what a plan says, is drift; being made is not.
		return old != nil && old.ours() && old.alias != "" &&
			(l.mtu != old.mtu || l.alias != old.alias || l.master != old.master || l.up() != old.up() || old.hairpin && !l.hairpin) && w.stays(l)
	case l.ours() || old != nil && old.ours():
		return old == nil || !sameLink(old, l)
	}
	// Coming and going of the others shows in their addresses.
	return old != nil && w.addressed[l.index] && (w.uplink(l) || w.uplink(old)) &&
		(l.name != old.name || l.mtu != old.mtu || l.up() != old.up() || l.master != old.master)
}

// portEvent: a port of ours lost its hairpin mode. The same message tells of state changes of ports, which
// do not matter, and of an attachment that switches hairpin on. A port that leaves is a link without its master.
func portEvent(m *syscall.NetlinkMessage, port *link) bool {
	if m.Header.Type == unix.RTM_DELLINK {
		return false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return true
	}
	had := port.hairpin
	for _, a := range attrs {
		if a.Attr.Type&attrTypeMask == unix.IFLA_PROTINFO {
			if err := port.parsePort(a.Value); err != nil {
				return true
			}
		}
	}
	return had && !port.hairpin
}

// sameLink compares what a plan says of a link.
func sameLink(a, b *link) bool {
	return a.name == b.name && a.kind == b.kind && a.alias == b.alias && a.mac == b.mac && a.mtu == b.mtu &&
		a.up() == b.up() && a.master == b.master && a.parent == b.parent && a.vxlan == b.vxlan && a.nfCall == b.nfCall
}

// uplink is links.uplink by what is known here; a bridge always counts, since its ports are not.
func (w *watcher) uplink(l *link) bool {
	return l.kind == string(plan.LinkBridge) && !l.ours() || w.links.uplink(l)
}

func (w *watcher) addressEvent(m *syscall.NetlinkMessage) bool {
	a, ok := parseAddress(m.Data)
	if !ok {
		return false
	}
	l, global := w.links.byIndex[a.index], a.prefix.Addr().IsGlobalUnicast()
	switch {
	case l == nil:
		return global // newer than what is known: look
	case l.workloads():
		return m.Header.Type == unix.RTM_DELADDR && w.stays(l)
	case l.ours():
		return m.Header.Type == unix.RTM_DELADDR || global
	}
	w.addressed[a.index] = w.addressed[a.index] || global
	return global && w.uplink(l)
}

// neighborEvent: only permanent entries of VXLAN devices are ours, and only they are noisy to lose.
func (w *watcher) neighborEvent(m *syscall.NetlinkMessage) bool {
	n, _, ok := parseNeighbor(m.Data)
	if !ok {
		return false
	}
	l := w.links.byIndex[n.index]
	return l != nil && l.ours() && l.kind == string(plan.LinkVXLAN)
}
