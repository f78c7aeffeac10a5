// Package path chooses how a node reaches another one: over which path, by which of the peer's
// addresses, with how many bytes to a packet, and why.
//
// It decides from values only. It never probes, and it never remembers: what was chosen before shows
// only in what the peers publish.
package path

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Bytes that encapsulation adds to a packet: the outer header, and for VXLAN UDP 8, VXLAN 8, inner Ethernet 14
// (RFC 7348 section 5). IP in IP has only the outer header (RFC 2003); IPv6 in IPv6 goes without the option that
// limits further encapsulation (RFC 2473 section 4.1.1).
const (
	header4 = 20
	header6 = 40
	vxlan   = 8 + 8 + 14
)

// Choice says how a peer's blocks of one family are reached.
type Choice struct {
	Path   model.Path
	Outer  model.Family // of the headers on the wire that carry it: of Via
	Via    netip.Addr   // the peer's address in use
	Link   string       // direct: the uplink; vxlan, ipip: the tunnel device
	MTU    int          // bytes a pod's packet may have
	Reason string       // one clause, for people
	// Waiting says what the path that the pool asks for waits for, where this is another one; "" otherwise.
	Waiting string
}

// Overhead is how many bytes a tunnel with outer headers of the family takes from the uplink's MTU.
func Overhead(p model.Path, outer model.Family) int {
	n := header4
	if outer == model.IPv6 {
		n = header6
	}
	if p == model.PathVXLAN {
		n += vxlan
	}
	return n
}

// Device names a pool's tunnel device. VXLAN's is Flannel's: flannel.1 carries IPv4 outside, flannel-v6.1 IPv6.
// That of IP in IP is the one that Linux makes by itself, and Calico uses: tunl0. Its IPv6 twin ip6tnl0 can only
// receive, so there is tunl6 instead.
func Device(p *model.Pool, outer model.Family) string {
	if p.Path == model.PathIPIP {
		if outer == model.IPv4 {
			return "tunl0"
		}
		return "tunl6"
	}
	if outer == model.IPv4 {
		return fmt.Sprintf("flannel.%d", p.VXLAN.VNI)
	}
	return fmt.Sprintf("flannel-v6.%d", p.VXLAN.VNI)
}

// TunnelMTU is what a pool's tunnel device carries over an uplink: the configured size where one is set and
// fits, else what the uplink leaves.
func TunnelMTU(uplink int, p *model.Pool, outer model.Family) int {
	mtu := uplink - Overhead(p.Path, outer)
	if p.Path == model.PathVXLAN && p.VXLAN.MTU > 0 && p.VXLAN.MTU < mtu {
		return p.VXLAN.MTU
	}
	return mtu
}

// Tunnelled reports whether a pool's traffic may be encapsulated.
func Tunnelled(p *model.Pool) bool {
	return (p.Path == model.PathVXLAN || p.Path == model.PathIPIP) && p.Encap != model.EncapNever
}

// Outer lists the families that can carry a tunnel between two nodes, the inner family first. IP in IP has the
// inner family outside.
func Outer(p model.Path, self, peer *model.Node, inner model.Family) []model.Family {
	var fs []model.Family
	for _, f := range []model.Family{inner, other(inner)} {
		if p == model.PathIPIP && f != inner {
			continue
		}
		if self.Address(f).IsValid() && peer.Address(f).IsValid() {
			fs = append(fs, f)
		}
	}
	return fs
}

// Choose decides how self reaches the blocks of family fam that peer owns in pool. A problem comes with
// no choice (Path ""): the blocks are out of reach for now.
func Choose(self *model.Node, host model.Host, peer *model.Node, pool *model.Pool, fam model.Family) (Choice, *model.Problem) {
	if pool.Path == model.PathNone {
		return Choice{Path: model.PathNone, Reason: fmt.Sprintf("pool %q carries no packets", pool.Name)}, nil
	}
	direct, segment := directTo(host, peer, fam)
	if !Tunnelled(pool) {
		if direct == nil {
			return Choice{}, notOnLink(host, peer, pool, fam)
		}
		direct.Reason = segment
		return *direct, nil
	}
	if pool.Encap == model.EncapCrossSubnet && direct != nil {
		direct.Reason = segment
		return *direct, nil
	}
	tunnel, waiting := tunnelTo(self, host, peer, pool, fam)
	switch {
	case tunnel != nil && pool.Encap == model.EncapCrossSubnet:
		tunnel.Reason = fmt.Sprintf("another segment, %s over %s", pool.Path, tunnel.Outer)
		return *tunnel, nil
	case tunnel != nil:
		tunnel.Reason = fmt.Sprintf("pool %q asks for %s always, over %s", pool.Name, pool.Path, tunnel.Outer)
		return *tunnel, nil
	case direct != nil:
		direct.Reason, direct.Waiting = fmt.Sprintf("%s, %s", segment, waiting), waiting
		return *direct, nil
	}
	return Choice{Waiting: waiting}, &model.Problem{
		Code: "peer-path-not-ready", Severity: model.Warning, Subject: fmt.Sprintf("node %q", peer.Name),
		Detail: fmt.Sprintf("%s blocks of pool %q are out of reach: %s", fam, pool.Name, waiting),
		Next:   "on that node: heddle status",
	}
}

func other(f model.Family) model.Family {
	if f == model.IPv4 {
		return model.IPv6
	}
	return model.IPv4
}

// directTo is the plain route. Linux has no route to an IPv6 range by an IPv4 gateway, and Heddle makes
// none the other way round, so only the inner family's own addresses count.
func directTo(host model.Host, peer *model.Node, fam model.Family) (*Choice, string) {
	addr := peer.Address(fam)
	if !addr.IsValid() {
		return nil, ""
	}
	up := host.OnLink(addr)
	if up == nil || up.Prefix.Addr() == addr {
		return nil, ""
	}
	c := &Choice{Path: model.PathDirect, Outer: fam, Via: addr, Link: up.Link, MTU: up.MTU}
	return c, "same segment " + up.Prefix.Masked().String()
}

// tunnelTo is the way through the pool's tunnel, or what it waits for.
func tunnelTo(self *model.Node, host model.Host, peer *model.Node, pool *model.Pool, fam model.Family) (*Choice, string) {
	outers := Outer(pool.Path, self, peer, fam)
	switch {
	case len(outers) == 0 && pool.Path == model.PathIPIP:
		return nil, fmt.Sprintf("the two nodes have no %s addresses, and ipip carries %s in %s", fam, fam, fam)
	case len(outers) == 0:
		return nil, "the two nodes have no address of one family"
	case self.LacksPath(pool.Path):
		return nil, fmt.Sprintf("the kernel of this node has no %s", pool.Path)
	case peer.LacksPath(pool.Path):
		return nil, fmt.Sprintf("the kernel of %s has no %s", peer.Name, pool.Path)
	case !peer.AcceptsPath(pool.Path):
		return nil, fmt.Sprintf("waiting for %s to accept %s", peer.Name, pool.Path)
	}
	for _, outer := range outers {
		up := host.Uplink(self.Address(outer))
		if up == nil || pool.Path == model.PathVXLAN && peer.VTEP(outer) == "" {
			continue
		}
		if own := host.Uplink(peer.Address(outer)); own != nil {
			return nil, fmt.Sprintf("%s says that its address is %s, which is this node's own on %s", peer.Name, own.Prefix.Addr(), own.Link)
		}
		via := peer.Public(outer)
		if host.OnLink(peer.Address(outer)) != nil {
			via = peer.Address(outer)
		}
		return &Choice{Path: pool.Path, Outer: outer, Via: via, Link: Device(pool, outer), MTU: TunnelMTU(up.MTU, pool, outer)}, ""
	}
	for _, outer := range outers {
		if host.Uplink(self.Address(outer)) != nil {
			return nil, fmt.Sprintf("waiting for %s to publish its vxlan device", peer.Name)
		}
	}
	return nil, "this node's own address is on none of its uplinks"
}

func notOnLink(host model.Host, peer *model.Node, pool *model.Pool, fam model.Family) *model.Problem {
	p := &model.Problem{
		Code: "peer-not-on-link", Severity: model.Failure,
		Subject: fmt.Sprintf("node %q", peer.Name),
		Next:    "use the vxlan backend, with DirectRouting (CrossSubnet) to keep plain routes inside a segment",
	}
	if pool.Path == model.PathIPIP || pool.Path == model.PathVXLAN {
		p.Next = fmt.Sprintf("set pool %q to CrossSubnet, which keeps plain routes inside a segment", pool.Name)
	}
	addr := peer.Address(fam)
	if !addr.IsValid() {
		p.Detail = fmt.Sprintf("it has no %s address, and host-gw (direct) needs one in a segment of this node", fam)
		return p
	}
	if up := host.Uplink(addr); up != nil {
		p.Code = "peer-address-conflict"
		p.Detail = fmt.Sprintf("it says that its address is %s, which is this node's own on %s", addr, up.Link)
		p.Next = "on that node: heddle status"
		return p
	}
	p.Detail = fmt.Sprintf("%s is not in a segment of this node (%s): host-gw (direct) needs the same segment", addr, segments(host, fam))
	return p
}

func segments(host model.Host, fam model.Family) string {
	var s []string
	for _, u := range host.Uplinks {
		if model.FamilyOf(u.Prefix.Addr()) == fam {
			s = append(s, fmt.Sprintf("%s on %s", u.Prefix.Masked(), u.Link))
		}
	}
	if len(s) == 0 {
		return fmt.Sprintf("it has no %s address", fam)
	}
	return strings.Join(s, ", ")
}
