package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

const (
	// linkGroup marks a workload's veth from its very creation, when the kernel does not take an alias
	// yet: a crash right after it must not leave a link that nobody owns. The number is that of the routes.
	linkGroup = plan.RouteProtocol
	// maxAlias is IFALIASZ less its end.
	maxAlias = 255

	filterSkipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h
	attrTypeMask    = 0x3fff // NLA_TYPE_MASK, linux/netlink.h
	portForwarding  = 3      // BR_STATE_FORWARDING, linux/if_bridge.h
	operUp          = 6      // IF_OPER_UP, RFC 2863
)

// link is what the kernel says of a device, as far as a plan can differ from it.
type link struct {
	index     int
	name      string
	kind      string // "" for hardware
	alias     string
	mac       string
	mtu       int
	group     uint32
	flags     uint32
	operState uint8
	parent    int // IFLA_LINK: a veth's peer
	master    int // 0: none
	hairpin   bool
	portState uint8
	genMode   int // of IPv6 link-local addresses; -1 where there is no IPv6
	loopback  bool
	nfCall    nfCall
	vxlan     vxlan
	inIP      inIP
}

// inIP are the attributes of a tunnel device of IP in IP that make it another one.
type inIP struct {
	remote   netip.Addr // of the other end; invalid: any
	external bool       // routes say it
}

// Kinds of the kernel's tunnel devices of IP in IP, by family.
const (
	kindIPIP                 = plan.LinkIPIP
	kindIP6TNL plan.LinkKind = "ip6tnl"
)

// kernelKind is the kernel's name for what a link of a plan is.
func kernelKind(w *plan.Link) plan.LinkKind {
	if w.IPIP != nil && w.IPIP.Local.Is6() {
		return kindIP6TNL
	}
	return w.Kind
}

// tunnel tells whether the link is one that a plan may have, and so routes into it are the plan's.
func (l *link) tunnel() bool {
	return l.kind == string(plan.LinkVXLAN) || l.kind == string(kindIPIP) || l.kind == string(kindIP6TNL)
}

// vxlan are the attributes that make a VXLAN device another one.
type vxlan struct {
	vni, port     int
	uplink        int // index
	local         netip.Addr
	gbp, learning bool
}

// nfCall is for which families a bridge hands what it carries to the packet filter.
type nfCall struct {
	known  bool // the kernel can do it
	v4, v6 bool
}

func (l *link) up() bool { return l.flags&unix.IFF_UP != 0 }

// ours tells whether the link carries one of Heddle's marks.
func (l *link) ours() bool {
	return strings.HasPrefix(l.alias, plan.AliasPrefix) || l.kind == string(plan.LinkVeth) && l.group == linkGroup
}

// workloads tells whether the link is the host end of a workload's veth.
func (l *link) workloads() bool { return l.kind == string(plan.LinkVeth) && l.ours() }

// links are the devices of a namespace by name and by index.
type links struct {
	byName  map[string]*link
	byIndex map[int]*link
	order   []*link // by index
}

func (c *conn) links() (*links, error) {
	msgs, err := c.dump(request(unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(filterSkipStats))))
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	ls := &links{byName: make(map[string]*link, len(msgs)), byIndex: make(map[int]*link, len(msgs))}
	for _, m := range msgs {
		l, err := parseLink(m)
		if err != nil {
			return nil, fmt.Errorf("list links: %w", err)
		}
		ls.byName[l.name], ls.byIndex[l.index] = l, l
		ls.order = append(ls.order, l)
	}
	return ls, nil
}

// link finds a device by name; nil without an error when there is none.
func (c *conn) link(name string) (*link, error) {
	m, err := c.get(request(unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)),
		nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(filterSkipStats))))
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	return parseLink(m)
}

func parseLink(b []byte) (*link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return nil, errors.New("link message is too short")
	}
	msg := nl.DeserializeIfInfomsg(b)
	l := &link{index: int(msg.Index), flags: msg.Flags, genMode: -1, loopback: msg.Flags&unix.IFF_LOOPBACK != 0}
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return nil, err
	}
	n := nl.NativeEndian()
	for _, a := range attrs {
		v := a.Value
		switch a.Attr.Type & attrTypeMask {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(v)
		case unix.IFLA_ADDRESS:
			l.mac = net.HardwareAddr(v).String()
		case unix.IFLA_MTU:
			l.mtu = int(n.Uint32(v))
		case unix.IFLA_LINK:
			l.parent = int(n.Uint32(v))
		case unix.IFLA_MASTER:
			l.master = int(n.Uint32(v))
		case unix.IFLA_OPERSTATE:
			l.operState = v[0]
		case unix.IFLA_IFALIAS:
			l.alias = unix.ByteSliceToString(v)
		case unix.IFLA_GROUP:
			l.group = n.Uint32(v)
		case unix.IFLA_LINKINFO:
			if err := l.parseInfo(v); err != nil {
				return nil, err
			}
		case unix.IFLA_AF_SPEC:
			l.parseFamilies(v)
		}
	}
	return l, nil
}

func (l *link) parseInfo(b []byte) error {
	infos, err := nl.ParseRouteAttr(b)
	if err != nil {
		return err
	}
	slaveKind := ""
	for _, a := range infos {
		switch a.Attr.Type & attrTypeMask {
		case nl.IFLA_INFO_KIND:
			l.kind = unix.ByteSliceToString(a.Value)
		case nl.IFLA_INFO_DATA: // after its kind
			switch l.kind {
			case string(plan.LinkVXLAN):
				l.vxlan = parseVXLAN(a.Value)
			case string(plan.LinkBridge):
				l.nfCall = parseNFCall(a.Value)
			case string(kindIPIP), string(kindIP6TNL):
				l.inIP = parseInIP(a.Value)
			}
		case nl.IFLA_INFO_SLAVE_KIND:
			slaveKind = unix.ByteSliceToString(a.Value)
		case nl.IFLA_INFO_SLAVE_DATA:
			if slaveKind != string(plan.LinkBridge) {
				continue
			}
			if err := l.parsePort(a.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// parsePort reads a bridge port's settings.
func (l *link) parsePort(b []byte) error {
	port, err := nl.ParseRouteAttr(b)
	if err != nil {
		return err
	}
	for _, p := range port {
		switch p.Attr.Type & attrTypeMask {
		case nl.IFLA_BRPORT_STATE:
			l.portState = p.Value[0]
		case nl.IFLA_BRPORT_MODE:
			l.hairpin = p.Value[0] != 0
		}
	}
	return nil
}

func (l *link) parseFamilies(b []byte) {
	fams, err := nl.ParseRouteAttr(b)
	if err != nil {
		return
	}
	for _, f := range fams {
		if f.Attr.Type&attrTypeMask != unix.AF_INET6 {
			continue
		}
		attrs, err := nl.ParseRouteAttr(f.Value)
		if err != nil {
			return
		}
		for _, a := range attrs {
			if a.Attr.Type&attrTypeMask == unix.IFLA_INET6_ADDR_GEN_MODE {
				l.genMode = int(a.Value[0])
			}
		}
	}
}

func parseVXLAN(b []byte) (x vxlan) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return x
	}
	for _, a := range attrs {
		switch a.Attr.Type & attrTypeMask {
		case nl.IFLA_VXLAN_ID:
			x.vni = int(nl.NativeEndian().Uint32(a.Value))
		case nl.IFLA_VXLAN_LINK:
			x.uplink = int(nl.NativeEndian().Uint32(a.Value))
		case nl.IFLA_VXLAN_PORT:
			x.port = int(binary.BigEndian.Uint16(a.Value))
		case nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_LOCAL6:
			x.local = addrOf(a.Value)
		case nl.IFLA_VXLAN_GBP:
			x.gbp = true
		case nl.IFLA_VXLAN_LEARNING:
			x.learning = a.Value[0] != 0
		}
	}
	return x
}

func parseInIP(b []byte) (x inIP) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return x
	}
	for _, a := range attrs {
		switch a.Attr.Type & attrTypeMask {
		case nl.IFLA_IPTUN_REMOTE:
			if r := addrOf(a.Value); r.IsValid() && !r.IsUnspecified() {
				x.remote = r
			}
		case nl.IFLA_IPTUN_COLLECT_METADATA:
			x.external = true
		}
	}
	return x
}

func parseNFCall(b []byte) (n nfCall) {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return n
	}
	for _, a := range attrs {
		switch a.Attr.Type & attrTypeMask {
		case nl.IFLA_BR_NF_CALL_IPTABLES:
			n.known, n.v4 = true, a.Value[0] != 0
		case nl.IFLA_BR_NF_CALL_IP6TABLES:
			n.v6 = a.Value[0] != 0
		}
	}
	return n
}

// addrOf reads 4 or 16 bytes; the zero Addr for anything else.
func addrOf(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// newLink asks for a device. An attribute may be nil.
func newLink(name string, kind plan.LinkKind, data *nl.RtAttr, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	req := request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(string(kind)))
	if data != nil {
		info.AddChild(data)
	}
	req.AddData(info)
	addAttrs(req, attrs)
	return req
}

// setLink changes a device that exists. up also sets it up.
func setLink(index int, up bool, attrs ...*nl.RtAttr) *nl.NetlinkRequest {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	if up {
		msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	}
	req := request(unix.RTM_NEWLINK, 0, msg)
	addAttrs(req, attrs)
	return req
}

// downLink is setLink's other way, and takes our mark away.
func downLink(index int) *nl.NetlinkRequest {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Change = int32(index), unix.IFF_UP
	return request(unix.RTM_NEWLINK, 0, msg, nl.NewRtAttr(unix.IFLA_IFALIAS, nil))
}

func delLink(index int) *nl.NetlinkRequest {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	return request(unix.RTM_DELLINK, 0, msg)
}

func addAttrs(req *nl.NetlinkRequest, attrs []*nl.RtAttr) {
	for _, a := range attrs {
		if a != nil {
			req.AddData(a)
		}
	}
}
