package netlink

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// address is an address on a link, as the kernel has it.
type address struct {
	index  int
	prefix netip.Prefix
	flags  uint32
	scope  uint8
}

func (c *conn) addresses() ([]address, error) {
	msgs, err := c.dump(request(unix.RTM_GETADDR, 0, nl.NewIfAddrmsg(unix.AF_UNSPEC)))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make([]address, 0, len(msgs))
	for _, m := range msgs {
		if a, ok := parseAddress(m); ok {
			out = append(out, a)
		}
	}
	return out, nil
}

// parseAddress reads an RTM_NEWADDR or RTM_DELADDR; false for families other than IP.
func parseAddress(b []byte) (a address, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, false
	}
	msg := nl.DeserializeIfAddrmsg(b)
	if msg.Family != unix.AF_INET && msg.Family != unix.AF_INET6 {
		return a, false
	}
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return a, false
	}
	a = address{index: int(msg.Index), flags: uint32(msg.Flags), scope: msg.Scope}
	var local, peer netip.Addr
	for _, at := range attrs {
		switch at.Attr.Type & attrTypeMask {
		case unix.IFA_LOCAL:
			local = addrOf(at.Value)
		case unix.IFA_ADDRESS:
			peer = addrOf(at.Value)
		case unix.IFA_FLAGS:
			a.flags = nl.NativeEndian().Uint32(at.Value)
		}
	}
	// IPv4 has both, and on a point-to-point link they differ; IPv6 has only the second.
	if !local.IsValid() {
		local = peer
	}
	a.prefix = netip.PrefixFrom(local, int(msg.Prefixlen))
	return a, a.prefix.IsValid()
}

// newAddress asks for an address. IPv6 comes without duplicate detection, which would take a second:
// the addresses are ours by allocation.
func newAddress(index int, p netip.Prefix) *nl.NetlinkRequest {
	req := addressRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, index, p)
	if p.Addr().Is6() {
		req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD)))
	}
	return req
}

func delAddress(index int, p netip.Prefix) *nl.NetlinkRequest {
	return addressRequest(unix.RTM_DELADDR, 0, index, p)
}

func addressRequest(proto, flags uint16, index int, p netip.Prefix) *nl.NetlinkRequest {
	msg := nl.NewIfAddrmsg(familyOf(p.Addr()))
	msg.Prefixlen, msg.Index = uint8(p.Bits()), uint32(index)
	ip := p.Addr().AsSlice()
	return request(proto, flags, msg, nl.NewRtAttr(unix.IFA_LOCAL, ip), nl.NewRtAttr(unix.IFA_ADDRESS, ip))
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
