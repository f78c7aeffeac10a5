package netlink

import (
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

func attrMTU(mtu int) *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))) }

// attrMAC is nil when the plan leaves the MAC to the kernel.
func attrMAC(mac string) (*nl.RtAttr, error) {
	if mac == "" {
		return nil, nil
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return nil, err
	}
	return nl.NewRtAttr(unix.IFLA_ADDRESS, hw), nil
}

func attrAlias(alias string) *nl.RtAttr {
	return nl.NewRtAttr(unix.IFLA_IFALIAS, nl.NonZeroTerminated(alias[:min(len(alias), maxAlias)]))
}

func attrMaster(index int) *nl.RtAttr {
	return nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(index)))
}

// attrHairpin sets a bridge port's hairpin mode, as `ip link set … type bridge_slave hairpin on` does.
func attrHairpin(on bool) *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated(string(plan.LinkBridge)))
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil).AddRtAttr(nl.IFLA_BRPORT_MODE, boolByte(on))
	return info
}

// attrNFCall sets for both families whether a bridge hands what it carries to the packet filter.
func attrNFCall(on bool) *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(string(plan.LinkBridge)))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, boolByte(on))
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, boolByte(on))
	return info
}

// attrNoLinkLocal keeps the kernel from giving the device an IPv6 link-local address when it comes up.
func attrNoLinkLocal() *nl.RtAttr {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{nl.IN6_ADDR_GEN_MODE_NONE})
	return spec
}

func attrVXLAN(x vxlan) *nl.RtAttr {
	data := nl.NewRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(uint32(x.vni)))
	data.AddRtAttr(nl.IFLA_VXLAN_LINK, nl.Uint32Attr(uint32(x.uplink)))
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, nl.BEUint16Attr(uint16(x.port)))
	data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, boolByte(x.learning))
	switch {
	case x.local.Is4():
		data.AddRtAttr(nl.IFLA_VXLAN_LOCAL, x.local.AsSlice())
	case x.local.Is6():
		data.AddRtAttr(nl.IFLA_VXLAN_LOCAL6, x.local.AsSlice())
	}
	if x.gbp {
		data.AddRtAttr(nl.IFLA_VXLAN_GBP, nil)
	}
	return data
}

// attrIP6TNL is a tunnel of IPv6 in IPv6 whose other end each route names.
func attrIP6TNL() *nl.RtAttr {
	data := nl.NewRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_IPTUN_COLLECT_METADATA, nil)
	data.AddRtAttr(nl.IFLA_IPTUN_PROTO, []byte{unix.IPPROTO_IPV6})
	return data
}

func boolByte(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}
