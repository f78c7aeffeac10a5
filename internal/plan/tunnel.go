package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/path"
)

// VTEPMAC is the MAC of a node's VXLAN device: it follows from the node's name, the VNI and the family
// of the outer headers, so that a device made anew after a reboot is still the one that the peers know.
// Locally administered, unicast.
func VTEPMAC(node string, vni int, outer model.Family) string {
	return deriveMAC("vtep", node, strconv.Itoa(vni), outer.String())
}

// tunnelPaths are the paths that need a device of their own.
var tunnelPaths = []model.Path{model.PathVXLAN, model.PathIPIP}

// path is what a link of a plan carries; "" for links that are no tunnels.
func (l *Link) path() model.Path {
	switch l.Kind {
	case LinkVXLAN:
		return model.PathVXLAN
	case LinkIPIP:
		return model.PathIPIP
	}
	return ""
}

// local is the outer source of a tunnel device; zero for other links.
func (l *Link) local() netip.Addr {
	switch {
	case l.VXLAN != nil:
		return l.VXLAN.Local
	case l.IPIP != nil:
		return l.IPIP.Local
	}
	return netip.Addr{}
}

// tunnels adds the tunnel devices: those that the pools ask for, also while no peer needs one yet, so that
// a node that joins later in another segment finds the receiver ready; and those of the last plan on which
// a peer may still send, or this node does. Peers say that they send by vxlan, not in which family, so while
// one pool is tunnelled the other's device stays too.
func (b *builder) tunnels() {
	b.vteps, b.wanted = map[vtep]netip.Addr{}, map[string]bool{}
	for _, p := range tunnelPaths {
		devices := map[model.Family]string{}
		add := func(outer model.Family, l Link) {
			devices[outer] = l.Name
			b.plan.Links = append(b.plan.Links, l)
		}
		pools := slices.DeleteFunc(slices.Clone(b.blocks.pools), func(q model.Pool) bool { return q.Path != p || !path.Tunnelled(&q) })
		if len(pools) > 0 {
			for _, outer := range b.outers(p, pools) {
				if l, ok := b.device(outer, &pools[0]); ok {
					b.wanted[l.Name] = true
					add(outer, l)
				}
			}
		}
		if len(pools) > 0 || b.draining(p) || b.sending(p) || b.retiring(p) {
			for _, l := range b.kept(p) {
				if outer := model.FamilyOf(l.local()); devices[outer] == "" {
					add(outer, l)
				}
			}
		}
		b.deviceAddresses(devices)
	}
	for _, l := range b.plan.Links {
		if l.VXLAN != nil {
			b.vteps[vtep{l.Name, l.MAC}] = l.VXLAN.Local
		}
		// Loose: while a mode changes, a peer's packets may come by the tunnel that answers do not take.
		b.plan.Sysctls = append(b.plan.Sysctls, Sysctl{"net/ipv4/conf/" + l.Name + "/rp_filter", "2"})
		if b.hasFamily(model.IPv6) {
			b.plan.Sysctls = append(b.plan.Sysctls, Sysctl{"net/ipv6/conf/" + l.Name + "/accept_ra", "0"})
		}
	}
}

// kept are the devices of the last plan for a path that are still this node's.
func (b *builder) kept(p model.Path) []Link {
	var out []Link
	for _, l := range b.in.Keep {
		local := l.local()
		if l.path() == p && local.IsValid() && strings.HasPrefix(l.Alias, AliasPrefix) && b.self.Address(model.FamilyOf(local)) == local {
			out = append(out, l)
		}
	}
	return out
}

// outers lists the families of outer headers that this node needs devices for. VXLAN: that of the pool where the
// node has such an address, and the other one for peers that have only that. IP in IP has one device for each
// family of which there are pools, whatever their path: a node says that it accepts ipip, not in which family.
func (b *builder) outers(p model.Path, pools []model.Pool) []model.Family {
	lacking := map[model.Family]bool{}
	for i := range b.in.Cluster.Nodes {
		n := &b.in.Cluster.Nodes[i]
		lacking[model.IPv4] = lacking[model.IPv4] || !n.Address4.IsValid()
		lacking[model.IPv6] = lacking[model.IPv6] || !n.Address6.IsValid()
	}
	var need []model.Family
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if !b.self.Address(f).IsValid() {
			continue
		}
		if p == model.PathIPIP && b.hasFamily(f) ||
			p == model.PathVXLAN && slices.ContainsFunc(pools, func(p model.Pool) bool { return p.Family() == f || lacking[p.Family()] }) {
			need = append(need, f)
		}
	}
	return need
}

func (b *builder) device(outer model.Family, pool *model.Pool) (Link, bool) {
	local := b.self.Address(outer)
	up := b.in.Host.Uplink(local)
	if up == nil {
		return Link{}, false // reported by checkAddresses
	}
	l := Link{Name: path.Device(pool, outer), MTU: path.TunnelMTU(up.MTU, pool, outer), Alias: alias(string(pool.Path))}
	if pool.Path == model.PathIPIP {
		l.Kind, l.IPIP = LinkIPIP, &IPIPDevice{Local: local}
		return l, true
	}
	v := pool.VXLAN
	if v.MTU > l.MTU {
		b.problem("mtu-too-big", model.Warning, "link "+l.Name,
			fmt.Sprintf("the pool asks for an MTU of %d, and %s (%d) leaves %d; %d is used", v.MTU, up.Link, up.MTU, l.MTU, l.MTU),
			fmt.Sprintf("set the pool's vxlan MTU to %d or less, or to 0", l.MTU))
	}
	l.Kind, l.MAC = LinkVXLAN, VTEPMAC(b.self.Name, v.VNI, outer)
	l.VXLAN = &VXLANDevice{
		VNI: v.VNI, Port: v.Port, Local: local, Uplink: up.Link, GBP: v.GBP, Learning: v.Learning,
		NoTxChecksum: b.self.Public(outer) != local,
	}
	return l, true
}

// draining reports whether a peer still sends on a path.
func (b *builder) draining(p model.Path) bool {
	for i := range b.in.Cluster.Nodes {
		n := &b.in.Cluster.Nodes[i]
		if n.Name != b.self.Name && slices.Contains(n.Sends, p) {
			return true
		}
	}
	return false
}

// sending reports whether this node itself still sends on a path.
func (b *builder) sending(p model.Path) bool {
	return slices.ContainsFunc(b.theirs, func(t theirs) bool { return t.choice.Path == p })
}

// retiring reports whether a peer may still begin to send on a path, because the store says that this
// node accepts it. A sender announces a path in the store before its first packet, and looks there once
// more before it sends; so once the store has both that this node does not accept the path, and no
// announcement, nobody will.
func (b *builder) retiring(p model.Path) bool {
	if len(b.kept(p)) == 0 || !slices.Contains(b.in.Published, p) {
		return false
	}
	b.plan.Retiring = append(b.plan.Retiring, p)
	return true
}

// deviceAddresses gives each device the base addresses of the own blocks, as Flannel does: the node's
// own packets into the tunnel then have a source to which the peers know a way back.
func (b *builder) deviceAddresses(devices map[model.Family]string) {
	if len(devices) == 0 {
		return
	}
	for _, blk := range b.blocks.own {
		if blk.IsSingleIP() { // lent of another node's block, to a workload
			continue
		}
		f := model.FamilyOf(blk.Addr())
		name := devices[f]
		if name == "" {
			for _, other := range devices {
				name = other // the only one: carries the other family inside
			}
		}
		b.plan.Addresses = append(b.plan.Addresses, Address{Link: name, Prefix: netip.PrefixFrom(blk.Addr(), f.Bits())})
	}
}
