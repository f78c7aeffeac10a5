package flow

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

// Of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleOrig   = 1
	ctaTupleReply  = 2
	ctaProtoinfo   = 4
	ctaID          = 12
	ctaTupleMaster = 14
	ctaZone        = 18

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3
	ctaICMPType     = 5
	ctaICMPCode     = 6
	ctaICMPv6Type   = 8
	ctaICMPv6Code   = 9

	ctaProtoinfoTCP      = 1
	ctaProtoinfoTCPState = 1

	// ctStateClose is what a connection is in once a reset has passed (enum tcp_conntrack).
	ctStateClose = 8

	// nfgenSize is the size of struct nfgenmsg: family, version, resource.
	nfgenSize = 4
)

// tuple is one direction of a tracked flow: who sends, as the sender and the first on the way see it.
type tuple struct {
	protocol uint8
	src, dst netip.AddrPort // for ICMP, dst's port is type<<8|code
}

// entry is what Cut needs of a conntrack entry. Its slices are valid as long as the message that it was
// read from.
type entry struct {
	family      uint8
	orig, reply tuple
	tcpState    uint8
	// key is the direction of who began, as the kernel wrote it; master that of the flow by which this one
	// was expected (an FTP data connection's control connection), nil when there is none.
	key, master []byte
	id, zone    []byte
}

// flow is the entry as policy sees it: the answers' source is the destination after NAT.
func (e *entry) flow() kernel.Flow {
	dst := e.orig.dst.Port()
	if hasPorts(e.orig.protocol) {
		dst = e.reply.src.Port()
	}
	return kernel.Flow{
		Protocol: e.orig.protocol,
		Src:      e.orig.src,
		Dst:      netip.AddrPortFrom(e.reply.src.Addr(), dst),
	}
}

// parseEntry reads a message about an entry, and only what is needed. It says whether the entry is a flow
// between two IP addresses.
func parseEntry(data []byte, e *entry) bool {
	*e = entry{}
	if len(data) < nfgenSize {
		return false
	}
	e.family = data[0]
	for kind, value := range attributes(data[nfgenSize:]) {
		switch kind {
		case ctaTupleOrig:
			e.key, e.orig = value, parseTuple(value)
		case ctaTupleReply:
			e.reply = parseTuple(value)
		case ctaTupleMaster:
			e.master = value
		case ctaID:
			e.id = value
		case ctaZone:
			e.zone = value
		case ctaProtoinfo:
			e.tcpState = parseState(value)
		}
	}
	return e.orig.src.IsValid() && e.orig.dst.IsValid() && e.reply.src.IsValid() && e.reply.dst.IsValid()
}

// parseTuple reads a direction. Addresses that are missing or not whole are not valid ones.
func parseTuple(b []byte) tuple {
	var t tuple
	var src, dst netip.Addr
	var sport, dport uint16
	for kind, value := range attributes(b) {
		switch kind {
		case ctaTupleIP:
			for kind, value := range attributes(value) {
				switch kind {
				case ctaIPv4Src, ctaIPv6Src:
					src, _ = netip.AddrFromSlice(value)
				case ctaIPv4Dst, ctaIPv6Dst:
					dst, _ = netip.AddrFromSlice(value)
				}
			}
		case ctaTupleProto:
			for kind, value := range attributes(value) {
				switch {
				case kind == ctaProtoNum && len(value) == 1:
					t.protocol = value[0]
				case kind == ctaProtoSrcPort && len(value) == 2:
					sport = binary.BigEndian.Uint16(value)
				case kind == ctaProtoDstPort && len(value) == 2:
					dport = binary.BigEndian.Uint16(value)
				case (kind == ctaICMPType || kind == ctaICMPv6Type) && len(value) == 1:
					dport |= uint16(value[0]) << 8
				case (kind == ctaICMPCode || kind == ctaICMPv6Code) && len(value) == 1:
					dport |= uint16(value[0])
				}
			}
		}
	}
	if !hasPorts(t.protocol) && !isICMP(t.protocol) { // of GRE, the kernel calls keys ports
		sport, dport = 0, 0
	}
	t.src, t.dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return t
}

// parseState reads in what state a TCP connection is; 0 when it is none.
func parseState(b []byte) uint8 {
	for kind, value := range attributes(b) {
		if kind != ctaProtoinfoTCP {
			continue
		}
		for kind, value := range attributes(value) {
			if kind == ctaProtoinfoTCPState && len(value) == 1 {
				return value[0]
			}
		}
	}
	return 0
}

// hasPorts tells the protocols whose header begins with a source and a destination port.
func hasPorts(protocol uint8) bool {
	switch protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_UDPLITE, unix.IPPROTO_DCCP:
		return true
	}
	return false
}

func isICMP(protocol uint8) bool {
	return protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6
}

// appendKey appends the payload that names the entry in requests about it. The number that the kernel
// gave it is among it, so that another entry between the same ports, made since, is not meant (unless it was made in the
// very same place in memory, of which the number is made).
func (e *entry) appendKey(b []byte) []byte {
	b = append(b, e.family, unix.NFNETLINK_V0, 0, 0)
	b = attribute(b, ctaTupleOrig|unix.NLA_F_NESTED, e.key)
	if e.zone != nil {
		b = attribute(b, ctaZone, e.zone)
	}
	if e.id != nil {
		b = attribute(b, ctaID, e.id)
	}
	return b
}
