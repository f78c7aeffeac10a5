package netlink

import (
	"fmt"
	"net"
	"net/netip"

	nll "github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

const sizeofNdmsg = 12

// neighbor is a neighbour entry, or a forwarding entry of a VXLAN device (ip is the outer destination).
type neighbor struct {
	index     int
	ip        netip.Addr
	mac       string
	permanent bool
}

// neighbors lists the entries of one link: families AF_INET and AF_INET6, or AF_BRIDGE for the
// forwarding entries of a VXLAN device.
func (c *conn) neighbors(family, index int) ([]neighbor, error) {
	msgs, err := c.dump(request(unix.RTM_GETNEIGH, 0, &nll.Ndmsg{Family: uint8(family)},
		nl.NewRtAttr(unix.NDA_IFINDEX, nl.Uint32Attr(uint32(index)))))
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	out := make([]neighbor, 0, len(msgs))
	for _, m := range msgs {
		if n, fam, ok := parseNeighbor(m); ok && fam == family && n.index == index {
			out = append(out, n)
		}
	}
	return out, nil
}

func parseNeighbor(b []byte) (n neighbor, family int, ok bool) {
	if len(b) < sizeofNdmsg {
		return n, 0, false
	}
	e := nl.NativeEndian()
	n.index = int(e.Uint32(b[4:]))
	n.permanent = e.Uint16(b[8:])&unix.NUD_PERMANENT != 0
	attrs, err := nl.ParseRouteAttr(b[sizeofNdmsg:])
	if err != nil {
		return n, 0, false
	}
	for _, a := range attrs {
		switch a.Attr.Type & attrTypeMask {
		case unix.NDA_DST:
			n.ip = addrOf(a.Value)
		case unix.NDA_LLADDR:
			n.mac = net.HardwareAddr(a.Value).String()
		}
	}
	return n, int(b[0]), true
}

func newNeighbor(index int, ip netip.Addr, hw net.HardwareAddr) *nl.NetlinkRequest {
	msg := &nll.Ndmsg{Family: uint8(familyOf(ip)), Index: uint32(index), State: unix.NUD_PERMANENT}
	return request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, msg,
		nl.NewRtAttr(unix.NDA_DST, ip.AsSlice()), nl.NewRtAttr(unix.NDA_LLADDR, hw))
}

func delNeighbor(index int, ip netip.Addr) *nl.NetlinkRequest {
	return request(unix.RTM_DELNEIGH, 0, &nll.Ndmsg{Family: uint8(familyOf(ip)), Index: uint32(index)},
		nl.NewRtAttr(unix.NDA_DST, ip.AsSlice()))
}

func fdbRequest(proto, flags uint16, index int, hw net.HardwareAddr, dst netip.Addr) *nl.NetlinkRequest {
	msg := &nll.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(index), State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF}
	return request(proto, flags, msg, nl.NewRtAttr(unix.NDA_LLADDR, hw), nl.NewRtAttr(unix.NDA_DST, dst.AsSlice()))
}

// diffNeighbors compares the permanent entries of our VXLAN devices: key is the address.
func (r *round) diffNeighbors() {
	have := map[plan.Neighbor]bool{} // without those that stay to be removed
	known, keep := map[neighborKey]bool{}, map[neighborKey]bool{}
	for _, l := range r.tunnels {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			ns, err := r.c.neighbors(family, l.index)
			if err != nil {
				r.unread("neighbours of "+l.name, err)
				return
			}
			for _, n := range ns {
				if n.permanent {
					have[plan.Neighbor{Link: l.name, IP: n.ip, MAC: n.mac}] = true
					known[neighborKey{l.name, n.ip}] = true
				}
			}
		}
	}
	for i := range r.p.Neighbors {
		n := &r.p.Neighbors[i]
		l := r.usable[n.Link]
		if l == nil {
			continue
		}
		keep[neighborKey{n.Link, n.IP}] = true
		if have[*n] || r.p.Recalled && known[neighborKey{n.Link, n.IP}] {
			continue
		}
		subject := "neighbor " + n.IP.String() + " on " + n.Link
		hw, err := net.ParseMAC(n.MAC)
		if err != nil {
			r.fail("neighbor-failed", subject, err, "")
			continue
		}
		r.add(op{req: newNeighbor(l.index, n.IP, hw), code: "neighbor-failed", subject: subject, next: "ip neigh show dev " + n.Link})
	}
	for n := range have {
		if !keep[neighborKey{n.Link, n.IP}] {
			r.remove(op{req: delNeighbor(r.links.byName[n.Link].index, n.IP), code: "neighbor-failed", subject: "neighbor " + n.IP.String() + " on " + n.Link, next: "ip neigh show dev " + n.Link})
		}
	}
}

type neighborKey struct {
	link string
	ip   netip.Addr
}

type fdbKey struct {
	link, mac string
}

// diffFDB compares the permanent forwarding entries of our VXLAN devices: key is the MAC.
func (r *round) diffFDB() {
	have, known := map[plan.FDB]bool{}, map[fdbKey]bool{}
	for _, l := range r.tunnels {
		ns, err := r.c.neighbors(unix.AF_BRIDGE, l.index)
		if err != nil {
			r.unread("forwarding entries of "+l.name, err)
			return
		}
		for _, n := range ns {
			if n.permanent && n.ip.IsValid() {
				have[plan.FDB{Link: l.name, MAC: n.mac, Dst: n.ip}] = true
				known[fdbKey{l.name, n.mac}] = true
			}
		}
	}
	want := map[fdbKey]netip.Addr{}
	for i := range r.p.FDB {
		f := &r.p.FDB[i]
		l := r.usable[f.Link]
		if l == nil {
			continue
		}
		want[fdbKey{f.Link, f.MAC}] = f.Dst
		if have[*f] || r.p.Recalled && known[fdbKey{f.Link, f.MAC}] {
			continue
		}
		r.fdbOp(l.index, f, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	}
	for f := range have {
		dst, wanted := want[fdbKey{f.Link, f.MAC}]
		if wanted && (dst == f.Dst || !have[plan.FDB{Link: f.Link, MAC: f.MAC, Dst: dst}]) {
			continue // wanted, or replaced above; what a replace leaves over goes in the next round
		}
		r.fdbOp(r.links.byName[f.Link].index, &f, unix.RTM_DELNEIGH, 0)
	}
}

func (r *round) fdbOp(index int, f *plan.FDB, proto, flags uint16) {
	subject := "fdb " + f.MAC + " on " + f.Link
	hw, err := net.ParseMAC(f.MAC)
	if err != nil {
		r.fail("fdb-failed", subject, err, "")
		return
	}
	o := op{req: fdbRequest(proto, flags, index, hw, f.Dst), code: "fdb-failed", subject: subject, next: "bridge fdb show dev " + f.Link}
	if proto == unix.RTM_DELNEIGH {
		r.remove(o)
	} else {
		r.add(o)
	}
}
