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

// tunnels adds the VXLAN devices: those that the pools ask for, also while no peer needs one yet, so that
// a node that joins later in another segment finds the receiver ready; and those of the last plan on which
// a peer may still send. Peers say that they send by vxlan, not in which family, so while one pool is
// tunnelled the other's device stays too.
func (b *builder) tunnels() {
	b.vteps = map[vtep]netip.Addr{}
	devices := map[model.Family]string{}
	pools := slices.DeleteFunc(slices.Clone(b.blocks.pools), func(p model.Pool) bool { return !tunnelled(&p) })
	if len(pools) > 0 {
		for _, outer := range b.outers(pools) {
			if l, ok := b.device(outer, pools[0].VXLAN); ok {
				devices[outer] = l.Name
				b.plan.Links = append(b.plan.Links, l)
			}
		}
	}
	if len(pools) > 0 || b.draining() || b.retiring() {
		for _, l := range b.in.Keep {
			if l.Kind != LinkVXLAN || l.VXLAN == nil || !strings.HasPrefix(l.Alias, AliasPrefix) {
				continue
			}
			outer := model.FamilyOf(l.VXLAN.Local)
			if devices[outer] == "" && b.self.Address(outer) == l.VXLAN.Local {
				devices[outer] = l.Name
				b.plan.Links = append(b.plan.Links, l)
			}
		}
	}
	for _, l := range b.plan.Links {
		b.vteps[vtep{l.Name, l.MAC}] = l.VXLAN.Local
		// Loose: while a mode changes, a peer's packets may come by the tunnel that answers do not take.
		b.plan.Sysctls = append(b.plan.Sysctls, Sysctl{"net/ipv4/conf/" + l.Name + "/rp_filter", "2"})
		if b.hasFamily(model.IPv6) {
			b.plan.Sysctls = append(b.plan.Sysctls, Sysctl{"net/ipv6/conf/" + l.Name + "/accept_ra", "0"})
		}
	}
	b.deviceAddresses(devices)
}

// outers lists the families of outer headers that this node needs devices for: that of the pool where the
// node has such an address, and the other one for peers that have only that.
func (b *builder) outers(pools []model.Pool) []model.Family {
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
		if slices.ContainsFunc(pools, func(p model.Pool) bool { return p.Family() == f || lacking[p.Family()] }) {
			need = append(need, f)
		}
	}
	return need
}

func (b *builder) device(outer model.Family, v model.VXLAN) (Link, bool) {
	local := b.self.Address(outer)
	up := b.in.Host.Uplink(local)
	if up == nil {
		return Link{}, false // reported by checkAddresses
	}
	name := path.Device(v.VNI, outer)
	mtu := path.TunnelMTU(up.MTU, v.MTU, outer)
	if v.MTU > mtu {
		b.problem("mtu-too-big", model.Warning, "link "+name,
			fmt.Sprintf("the pool asks for an MTU of %d, and %s (%d) leaves %d; %d is used", v.MTU, up.Link, up.MTU, mtu, mtu),
			fmt.Sprintf("set the pool's vxlan MTU to %d or less, or to 0", mtu))
	}
	return Link{
		Name: name, Kind: LinkVXLAN, Alias: alias("vxlan"), MTU: mtu, MAC: VTEPMAC(b.self.Name, v.VNI, outer),
		VXLAN: &VXLANDevice{
			VNI: v.VNI, Port: v.Port, Local: local, Uplink: up.Link, GBP: v.GBP, Learning: v.Learning,
			NoTxChecksum: b.self.Public(outer) != local,
		},
	}, true
}

// draining reports whether a peer still sends on a tunnel.
func (b *builder) draining() bool {
	for i := range b.in.Cluster.Nodes {
		n := &b.in.Cluster.Nodes[i]
		if n.Name != b.self.Name && slices.Contains(n.Sends, model.PathVXLAN) {
			return true
		}
	}
	return false
}

// retiring reports whether a peer may still begin to send on a tunnel, because the store says that this
// node accepts it. A sender announces a path in the store before its first packet, and looks there once
// more before it sends; so once the store has both that this node does not accept the path, and no
// announcement, nobody will.
func (b *builder) retiring() bool {
	b.plan.Retiring = len(b.in.Keep) > 0 && slices.Contains(b.in.Published, model.PathVXLAN)
	return b.plan.Retiring
}

// deviceAddresses gives each device the base addresses of the own blocks, as Flannel does: the node's
// own packets into the tunnel then have a source to which the peers know a way back.
func (b *builder) deviceAddresses(devices map[model.Family]string) {
	if len(devices) == 0 {
		return
	}
	for _, blk := range b.blocks.own {
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
