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

// Bytes that VXLAN adds to a packet: outer IP, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 section 5).
const (
	overhead4 = 20 + 8 + 8 + 14
	overhead6 = 40 + 8 + 8 + 14
)

// Choice says how a peer's blocks of one family are reached.
type Choice struct {
	Path   model.Path
	Outer  model.Family // of the headers on the wire that carry it: of Via
	Via    netip.Addr   // the peer's address in use
	Link   string       // direct: the uplink; vxlan: the tunnel device
	MTU    int          // bytes a pod's packet may have
	Reason string       // one clause, for people
}

// Overhead is how many bytes VXLAN with outer headers of the family takes from the uplink's MTU.
func Overhead(outer model.Family) int {
	if outer == model.IPv4 {
		return overhead4
	}
	return overhead6
}

// Device names the VXLAN device as Flannel does: flannel.1 carries IPv4 outside, flannel-v6.1 IPv6.
func Device(vni int, outer model.Family) string {
	if outer == model.IPv4 {
		return fmt.Sprintf("flannel.%d", vni)
	}
	return fmt.Sprintf("flannel-v6.%d", vni)
}

// TunnelMTU is what a VXLAN device carries over an uplink: the configured size where one is set and
// fits, else what the uplink leaves.
func TunnelMTU(uplink, configured int, outer model.Family) int {
	mtu := uplink - Overhead(outer)
	if configured > 0 && configured < mtu {
		return configured
	}
	return mtu
}

// Outer lists the families that can carry a tunnel between two nodes, the inner family first.
func Outer(self, peer *model.Node, inner model.Family) []model.Family {
	var fs []model.Family
	for _, f := range []model.Family{inner, other(inner)} {
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
	tunnelled := pool.Path == model.PathVXLAN && pool.Encap != model.EncapNever
	if !tunnelled {
		if direct == nil {
			return Choice{}, notOnLink(host, peer, fam)
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
		tunnel.Reason = fmt.Sprintf("another segment, vxlan over %s", tunnel.Outer)
		return *tunnel, nil
	case tunnel != nil:
		tunnel.Reason = fmt.Sprintf("pool %q asks for vxlan always, over %s", pool.Name, tunnel.Outer)
		return *tunnel, nil
	case direct != nil:
		direct.Reason = fmt.Sprintf("%s, %s", segment, waiting)
		return *direct, nil
	}
	return Choice{}, &model.Problem{
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

// tunnelTo is the VXLAN way, or what it waits for.
func tunnelTo(self *model.Node, host model.Host, peer *model.Node, pool *model.Pool, fam model.Family) (*Choice, string) {
	outers := Outer(self, peer, fam)
	if len(outers) == 0 {
		return nil, "the two nodes have no address of one family"
	}
	if !peer.AcceptsPath(model.PathVXLAN) {
		return nil, fmt.Sprintf("waiting for %s to accept vxlan", peer.Name)
	}
	for _, outer := range outers {
		up := host.Uplink(self.Address(outer))
		if up == nil || peer.VTEP(outer) == "" {
			continue
		}
		if own := host.Uplink(peer.Address(outer)); own != nil {
			return nil, fmt.Sprintf("%s says that its address is %s, which is this node's own on %s", peer.Name, own.Prefix.Addr(), own.Link)
		}
		via := peer.Public(outer)
		if host.OnLink(peer.Address(outer)) != nil {
			via = peer.Address(outer)
		}
		return &Choice{
			Path: model.PathVXLAN, Outer: outer, Via: via, Link: Device(pool.VXLAN.VNI, outer),
			MTU: TunnelMTU(up.MTU, pool.VXLAN.MTU, outer),
		}, ""
	}
	for _, outer := range outers {
		if host.Uplink(self.Address(outer)) != nil {
			return nil, fmt.Sprintf("waiting for %s to publish its vxlan device", peer.Name)
		}
	}
	return nil, "this node's own address is on none of its uplinks"
}

func notOnLink(host model.Host, peer *model.Node, fam model.Family) *model.Problem {
	p := &model.Problem{
		Code: "peer-not-on-link", Severity: model.Failure,
		Subject: fmt.Sprintf("node %q", peer.Name),
		Next:    "use the vxlan backend, with DirectRouting (CrossSubnet) to keep plain routes inside a segment",
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
