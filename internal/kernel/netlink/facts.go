package netlink

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// Facts implements kernel.Facts.
type Facts struct {
	mu sync.Mutex
	c  *conn
}

var _ kernel.Facts = (*Facts)(nil)

// NewFacts opens Facts for a namespace.
func NewFacts(opts Options) (*Facts, error) {
	c, err := dialIn(opts.NS)
	if err != nil {
		return nil, err
	}
	return &Facts{c: c}, nil
}

// Close gives the socket back.
func (f *Facts) Close() { f.c.close() }

// virtualKinds are links that lead into this machine or into somebody's tunnel, never to a peer.
var virtualKinds = []string{
	"vxlan", "geneve", "gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan", "ipip", "ip6tnl", "sit", "vti",
	"vti6", "xfrm", "wireguard", "tun", "gtp", "bareudp", "ifb", "nlmon", "vcan", "netkit",
}

// serviceLinks are dummies on which Kubernetes parks service addresses: the same ones on every node.
var serviceLinks = []string{"kube-ipvs0", "nodelocaldns"}

const unfitAddress = unix.IFA_F_TENTATIVE | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY | unix.IFA_F_DADFAILED

// Host implements kernel.Facts: uplinks in the kernel's order of links and addresses.
func (f *Facts) Host(ctx context.Context) (model.Host, error) {
	if err := ctx.Err(); err != nil {
		return model.Host{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	ls, err := f.c.links()
	if err != nil {
		return model.Host{}, err
	}
	as, err := f.c.addresses()
	if err != nil {
		return model.Host{}, err
	}
	var h model.Host
	for _, l := range ls.order {
		if !l.up() || !ls.uplink(l) {
			continue
		}
		for _, a := range as {
			if a.index == l.index && a.usable() {
				h.Uplinks = append(h.Uplinks, model.Uplink{Link: l.name, Prefix: a.prefix, MTU: l.mtu})
			}
		}
	}
	return h, nil
}

func (a *address) usable() bool {
	ip := a.prefix.Addr()
	flags := uint32(unfitAddress)
	if ip.Is4() {
		flags &^= unix.IFA_F_SECONDARY // the same bit as IFA_F_TEMPORARY, and no flaw
	}
	return a.scope == unix.RT_SCOPE_UNIVERSE && a.flags&flags == 0 && ip.IsGlobalUnicast()
}

// uplink tells whether peers can be behind the link. A bridge counts when hardware is one of its ports,
// as on virtual machine hosts; docker0 and cni0 have only veths.
func (ls *links) uplink(l *link) bool {
	switch {
	case l.loopback || l.ours() || slices.Contains(virtualKinds, l.kind) || slices.Contains(serviceLinks, l.name):
		return false
	case l.kind == string(plan.LinkVeth):
		return l.master == 0
	case l.kind == string(plan.LinkBridge):
		return slices.ContainsFunc(ls.order, func(port *link) bool {
			return port.master == l.index && port.kind != string(plan.LinkVeth) && !slices.Contains(virtualKinds, port.kind)
		})
	}
	return true
}

// SourceFor implements kernel.Facts.
func (f *Facts) SourceFor(ctx context.Context, dst netip.Addr) (netip.Addr, error) {
	if err := ctx.Err(); err != nil {
		return netip.Addr{}, err
	}
	if !dst.IsValid() {
		return netip.Addr{}, &model.FieldError{Noun: "source", Field: "destination", Want: "an IP address"}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(familyOf(dst)), Dst_len: uint8(dst.BitLen())}}
	m, err := f.c.get(request(unix.RTM_GETROUTE, 0, msg, nl.NewRtAttr(unix.RTA_DST, dst.AsSlice())))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("route to %s: %w", dst, err)
	}
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofRtMsg:])
	if err != nil {
		return netip.Addr{}, fmt.Errorf("route to %s: %w", dst, err)
	}
	for _, a := range attrs {
		if a.Attr.Type&attrTypeMask == unix.RTA_PREFSRC {
			return addrOf(a.Value), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("route to %s: the kernel names no source address", dst)
}
