package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
)

// uplink is every machine's one interface.
const uplink = "eth0"

// fabric wires a topology: in the router's namespace one bridge per segment, which holds the subnets'
// gateway addresses, and a veth from there into every machine. No link ever exists in the host's own
// namespace.
type fabric struct {
	router *netlink.Handle
	pids   func(machine string) int
}

// routerSysctls make the router's namespace forward.
func routerSysctls() map[string]string {
	return map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
}

// nodeSysctls are a fresh host's settings: a namespace may inherit the real host's, which would hide
// that the agent does not set what it needs.
func nodeSysctls() map[string]string {
	return map[string]string{"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0"}
}

func (f *fabric) wire(ctx context.Context, t *Topology) error {
	h, err := handleOf(f.pids(routerName))
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	defer h.Close()
	f.router = h
	if err := linkUp(h, "lo"); err != nil {
		return err
	}
	for i := range t.Segments {
		if err := f.addSegment(&t.Segments[i]); err != nil {
			return fmt.Errorf("segment %q: %w", t.Segments[i].Name, err)
		}
	}
	for _, m := range t.machines() {
		if err := f.addMachine(m, t.segment(m.Segment)); err != nil {
			return fmt.Errorf("machine %q: %w", m.Name, err)
		}
	}
	if rules := natRules(t); rules != "" {
		if err := f.nft(ctx, rules); err != nil {
			return fmt.Errorf("nat: %w", err)
		}
	}
	return nil
}

// machines lists nodes and hosts alike.
func (t *Topology) machines() []HostAt {
	var all []HostAt
	for _, n := range t.Nodes {
		all = append(all, n.HostAt)
	}
	return append(all, t.Hosts...)
}

func bridgeName(segment string) string { return "br-" + segment }

func (f *fabric) addSegment(s *Segment) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = bridgeName(s.Name), s.mtu()
	// Snooping would hold back the first neighbour solicitations.
	snoop := false
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}
	if err := f.router.LinkAdd(br); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	if err := readyLinkLocal(f.router, br.Name); err != nil {
		return err
	}
	for _, p := range s.Subnets {
		if err := addAddr(f.router, br, netip.PrefixFrom(gateway(p), p.Bits())); err != nil {
			return err
		}
	}
	return f.router.LinkSetUp(br)
}

func (f *fabric) addMachine(m HostAt, s *Segment) error {
	pid := f.pids(m.Name)
	inside, err := handleOf(pid)
	if err != nil {
		return err
	}
	defer inside.Close()
	br, err := f.router.LinkByName(bridgeName(s.Name))
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = "to-"+m.Name, s.mtu(), br.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsPid(pid)}
	if err := f.router.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := f.router.LinkSetUp(veth); err != nil {
		return err
	}
	if err := linkUp(inside, "lo"); err != nil {
		return err
	}
	eth, err := inside.LinkByName(uplink)
	if err != nil {
		return err
	}
	if err := inside.LinkSetMTU(eth, s.mtu()); err != nil {
		return err
	}
	if err := readyLinkLocal(inside, uplink); err != nil {
		return err
	}
	for _, a := range m.Addresses {
		if err := addAddr(inside, eth, netip.PrefixFrom(a, s.subnetOf(a).Bits())); err != nil {
			return err
		}
	}
	if err := inside.LinkSetUp(eth); err != nil {
		return err
	}
	for _, a := range m.Addresses {
		if err := addDefault(inside, eth, gateway(s.subnetOf(a))); err != nil {
			return err
		}
	}
	return nil
}

// readyLinkLocal gives a link that is still down the link-local address that the kernel would derive
// from its MAC (RFC 4291, appendix A), but one that is usable at once: a router has no other source
// for neighbour solicitations, and nothing is forwarded while the kernel looks for duplicates.
func readyLinkLocal(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.LinkSetIP6AddrGenMode(l, nl.IN6_ADDR_GEN_MODE_NONE); err != nil {
		return fmt.Errorf("link %s: address mode: %w", name, err)
	}
	m := l.Attrs().HardwareAddr
	if len(m) != 6 {
		return fmt.Errorf("link %s: MAC %s: want six bytes", name, m)
	}
	ll := netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
	return addAddr(h, l, netip.PrefixFrom(ll, 64))
}

func handleOf(pid int) (*netlink.Handle, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("namespace of process %d: %w", pid, err)
	}
	defer func() { _ = ns.Close() }()
	return netlink.NewHandleAt(ns)
}

func linkUp(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return h.LinkSetUp(l)
}

func addAddr(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = ifaNoDAD
	}
	if err := h.AddrAdd(l, a); err != nil {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return nil
}

// ifaNoDAD is IFA_F_NODAD (linux/if_addr.h): the address is usable at once.
const ifaNoDAD = 0x02

func addDefault(h *netlink.Handle, l netlink.Link, via netip.Addr) error {
	zero := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if via.Is6() {
		zero = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: zero, Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("default route by %s: %w", via, err)
	}
	return nil
}

// natRules is the nft script of all NAT segments: one to one both ways, and no way in for whoever
// uses the inner address; empty when the topology has none.
func natRules(t *Topology) string {
	var pre, post, fwd strings.Builder
	for i := range t.Nodes {
		n := &t.Nodes[i]
		for _, pub := range n.Public {
			inner := pick(n.Addresses, model.FamilyOf(pub))
			family := "ip"
			if pub.Is6() {
				family = "ip6"
			}
			fmt.Fprintf(&pre, "    %s daddr %s dnat %s to %s\n", family, pub, family, inner)
			fmt.Fprintf(&post, "    oifname != \"%s\" %s saddr %s snat %s to %s\n", bridgeName(n.Segment), family, inner, family, pub)
		}
	}
	if pre.Len() == 0 {
		return ""
	}
	for _, s := range t.Segments {
		if s.NAT {
			fmt.Fprintf(&fwd, "    oifname \"%s\" ct status dnat accept\n", bridgeName(s.Name))
			fmt.Fprintf(&fwd, "    oifname \"%s\" ct state established,related accept\n", bridgeName(s.Name))
			fmt.Fprintf(&fwd, "    oifname \"%s\" drop\n", bridgeName(s.Name))
		}
	}
	return fmt.Sprintf(`table inet lab {
  chain in {
    type nat hook prerouting priority dstnat;
%s  }
  chain out {
    type nat hook postrouting priority srcnat;
%s  }
  chain through {
    type filter hook forward priority filter;
%s  }
}
`, &pre, &post, &fwd)
}

// nft loads a script with the nft tool in the router's namespace.
func (f *fabric) nft(ctx context.Context, script string) error {
	cmd := enter(ctx, f.pids(routerName), "", "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	var errText bytes.Buffer
	cmd.Stderr = &errText
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, strings.TrimSpace(errText.String()))
	}
	return nil
}
