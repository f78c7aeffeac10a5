package calico

import (
	"cmp"
	"net/netip"
	"strconv"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/selector"
)

// ippool reads a pool. The settings of VXLAN are those of Felix, and come later.
func (p place) ippool(o *IPPool) (func(*reading), error) {
	spec, at := &o.Spec, p.field("spec")
	cidr, err := at.field("cidr").network(spec.CIDR)
	if err != nil {
		return nil, err
	}
	pool := model.Pool{
		Name: o.Name, CIDR: cidr, BlockSize: spec.BlockSize, Path: model.PathBGP, Encap: model.EncapNever,
		Masquerade: spec.NATOutgoing, Disabled: spec.Disabled, NoBGPExport: spec.DisableBGPExport,
		NodeSelector: spec.NodeSelector, NamespaceSelector: spec.NamespaceSelector,
	}
	least, most, usual := 20, 30, defaultBlock4
	if pool.Family() == model.IPv6 {
		least, most, usual = 116, 126, defaultBlock6
	}
	pool.BlockSize = cmp.Or(pool.BlockSize, usual)
	least = max(least, cidr.Bits())
	if cidr.Bits() > most {
		return nil, at.field("cidr").bad(spec.CIDR, "a range of at least one block, /"+strconv.Itoa(most)+" or wider")
	}
	if _, err := at.field("blockSize").number(&pool.BlockSize, least, most); err != nil {
		return nil, err
	}
	vxlan, err := at.field("vxlanMode").oneOf(spec.VXLANMode, "Never", "CrossSubnet", "Always")
	if err != nil {
		return nil, err
	}
	ipip, err := at.field("ipipMode").oneOf(spec.IPIPMode, "Never", "CrossSubnet", "Always")
	if err != nil {
		return nil, err
	}
	switch {
	case vxlan != "Never" && ipip != "Never":
		return nil, at.field("ipipMode").bad(ipip, "Never beside vxlanMode "+vxlan+": a pool has one encapsulation")
	case vxlan != "Never":
		pool.Path, pool.Encap = model.PathVXLAN, model.Encap(vxlan)
	case ipip != "Never":
		pool.Path, pool.Encap = model.PathIPIP, model.Encap(ipip)
	}
	if err := at.field("nodeSelector").selector(spec.NodeSelector); err != nil {
		return nil, err
	}
	if err := at.field("namespaceSelector").selector(spec.NamespaceSelector); err != nil {
		return nil, err
	}
	for i, use := range spec.AllowedUses {
		u, err := at.field("allowedUses").item(i).oneOf(use, string(model.UseWorkload), string(model.UseTunnel), string(model.UseLoadBalancer))
		if err != nil {
			return nil, err
		}
		pool.Uses = append(pool.Uses, model.PoolUse(u))
	}
	mode, err := at.field("assignmentMode").oneOf(spec.AssignmentMode, "Automatic", "Manual")
	if err != nil {
		return nil, err
	}
	pool.Manual = mode == "Manual"
	check := pool
	check.VXLAN = model.VXLAN{VNI: defaultVNI, Port: defaultPort}
	if err := check.Validate(); err != nil {
		return nil, at.field("cidr").bad(spec.CIDR, "a range of unicast addresses")
	}
	return func(r *reading) { r.Pools = append(r.Pools, pool) }, nil
}

// selector refuses what is none.
func (p place) selector(text string) error {
	if _, err := selector.Parse(text); err != nil {
		return p.bad(text, "a selector: "+err.Error())
	}
	return nil
}

func (p place) ipreservation(o *IPReservation) (func(*reading), error) {
	var list []netip.Prefix
	for i, text := range o.Spec.ReservedCIDRs {
		n, err := p.field("spec.reservedCIDRs").item(i).looseNetwork(text)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return func(r *reading) { r.Reserved = append(r.Reserved, list...) }, nil
}

func (p place) ipam(o *IPAMConfiguration) (func(*reading), error) {
	if err := p.only(o, "default"); err != nil {
		return nil, err
	}
	spec, at := &o.Spec, p.field("spec")
	out := model.IPAM{StrictAffinity: spec.StrictAffinity, MaxBlocksPerHost: spec.MaxBlocksPerHost, AutoAllocate: true, CooldownSeconds: spec.IPCooldownSeconds}
	if spec.AutoAllocateBlocks != nil {
		out.AutoAllocate = *spec.AutoAllocateBlocks
	}
	if _, err := at.field("maxBlocksPerHost").number(&spec.MaxBlocksPerHost, 0, 1_000_000); err != nil {
		return nil, err
	}
	const day = 24 * 3600
	if _, err := at.field("ipCooldownSeconds").number(spec.IPCooldownSeconds, 0, day); err != nil {
		return nil, err
	}
	if spec.MinIPReclaimAgeSeconds != nil {
		at := at.field("minIPReclaimAgeSeconds")
		if spec.IPCooldownSeconds != nil {
			return nil, at.bad(*spec.MinIPReclaimAgeSeconds, "nothing beside ipCooldownSeconds, which is the same")
		}
		if _, err := at.number(spec.MinIPReclaimAgeSeconds, 0, day); err != nil {
			return nil, err
		}
		out.CooldownSeconds = spec.MinIPReclaimAgeSeconds
	}
	return func(r *reading) { r.IPAM = out }, nil
}

func (p place) node(o *Node) (func(*reading), error) {
	var out NodeOverlay
	if b := o.Spec.BGP; b != nil {
		at := p.field("spec.bgp")
		var err error
		if out.ASN, err = at.field("asNumber").asn(b.ASNumber); err != nil {
			return nil, err
		}
		if text := b.RouteReflectorClusterID; text != "" {
			if out.ClusterID, err = netip.ParseAddr(text); err != nil || !out.ClusterID.Is4() {
				return nil, at.field("routeReflectorClusterID").bad(text, "the form of an IPv4 address, such as 244.0.0.1")
			}
		}
		for _, a := range []struct{ field, text string }{{"ipv4Address", b.IPv4Address}, {"ipv6Address", b.IPv6Address}} {
			if a.text == "" {
				continue
			}
			n, err := at.field(a.field).looseNetwork(a.text)
			if err != nil {
				return nil, err
			}
			if n.Addr().Is4() != (a.field == "ipv4Address") {
				return nil, at.field(a.field).bad(a.text, "an address of that family")
			}
		}
	}
	name := o.Name
	return func(r *reading) { r.Nodes[name] = out }, nil
}
