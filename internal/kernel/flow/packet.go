package flow

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

// logged is one message of NFLOG. Its slices are valid as long as the message.
type logged struct {
	family   uint8
	ether    uint16 // EtherType, 0 where unknown
	in, out  uint32 // interfaces by index, 0 where unknown
	prefix   []byte
	payload  []byte
	numbered bool
	sequence uint32
}

// parseLog reads a message of NFLOG; of a malformed one what comes before the fault.
func parseLog(data []byte) logged {
	var l logged
	if len(data) < nfgenSize {
		return l
	}
	l.family = data[0]
	var portIn, portOut uint32
	for kind, value := range attributes(data[nfgenSize:]) {
		switch {
		case kind == logPrefix:
			l.prefix, _, _ = bytes.Cut(value, []byte{0})
		case kind == logPayload:
			l.payload = value
		case kind == logHeader && len(value) >= 2:
			l.ether = binary.BigEndian.Uint16(value)
		case len(value) != 4:
		case kind == logIn:
			l.in = binary.BigEndian.Uint32(value)
		case kind == logOut:
			l.out = binary.BigEndian.Uint32(value)
		case kind == logPortIn:
			portIn = binary.BigEndian.Uint32(value)
		case kind == logPortOut:
			portOut = binary.BigEndian.Uint32(value)
		case kind == logSequence:
			l.numbered, l.sequence = true, binary.BigEndian.Uint32(value)
		}
	}
	if portIn != 0 {
		l.in = portIn
	}
	if portOut != 0 {
		l.out = portOut
	}
	return l
}

// packet makes of a message what the chains meant; ok is false when it is not theirs, or not IP.
func (l *logged) packet() (p kernel.Packet, ok bool) {
	if p.Denied, p.Hook, ok = parsePrefix(string(l.prefix)); !ok {
		return p, false
	}
	// In the bridge family there is anything in a frame.
	if l.family == unix.AF_BRIDGE && l.ether != unix.ETH_P_IP && l.ether != unix.ETH_P_IPV6 {
		return p, false
	}
	return p, parseIP(l.payload, &p)
}

// parsePrefix reads `heddle deny forward`.
func parsePrefix(s string) (denied bool, hook string, ok bool) {
	words := strings.Fields(s)
	if len(words) != 3 || words[0] != "heddle" || words[1] != "deny" && words[1] != "allow" {
		return false, "", false
	}
	switch words[2] {
	case "forward", "input", "output", "prerouting":
		return words[1] == "deny", words[2], true
	}
	return false, "", false
}

const (
	ipv4Size = 20
	ipv6Size = 40
	// maxExtensions bounds how many extension headers are followed; more is nothing that means well.
	maxExtensions = 16
)

// parseIP reads the beginning of an IP packet (RFC 791, RFC 8200) into p: addresses, length, protocol, and ports
// where the packet has them and they are in b. It says whether b has a whole IP header.
func parseIP(b []byte, p *kernel.Packet) bool {
	if len(b) == 0 {
		return false
	}
	var src, dst netip.Addr
	var rest []byte // what follows the headers; nil when that is not the beginning of the protocol's own
	switch b[0] >> 4 {
	case 4:
		size := int(b[0]&15) * 4
		if size < ipv4Size || len(b) < size {
			return false
		}
		p.Length = int(binary.BigEndian.Uint16(b[2:]))
		p.Protocol = b[9]
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		if binary.BigEndian.Uint16(b[6:])&0x1fff == 0 {
			rest = b[size:]
		}
	case 6:
		if len(b) < ipv6Size {
			return false
		}
		p.Length = ipv6Size + int(binary.BigEndian.Uint16(b[4:]))
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		p.Protocol, rest = skipExtensions(b[6], b[ipv6Size:])
	default:
		return false
	}
	var sport, dport uint16
	switch {
	case hasPorts(p.Protocol) && len(rest) >= 4:
		sport, dport = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	case isICMP(p.Protocol) && len(rest) >= 2:
		dport = binary.BigEndian.Uint16(rest) // type, code
	}
	p.Src, p.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return true
}

// skipExtensions follows IPv6 extension headers, beginning with one of the kind next, and returns the protocol behind
// them and what b has of it. Where b ends before, or a fragment is not the first, that is nil; the protocol is then the last known.
func skipExtensions(next uint8, b []byte) (uint8, []byte) {
	for range maxExtensions {
		var size int
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS, unix.IPPROTO_MH,
			139, 140: // HIP, Shim6
			if len(b) < 2 {
				return next, nil
			}
			size = 8 * (int(b[1]) + 1)
		case unix.IPPROTO_AH:
			if len(b) < 2 {
				return next, nil
			}
			size = 4 * (int(b[1]) + 2) // RFC 4302
		case unix.IPPROTO_FRAGMENT:
			size = 8
			if len(b) < size {
				return next, nil
			}
			if binary.BigEndian.Uint16(b[2:])&^7 != 0 {
				return b[0], nil
			}
		default:
			return next, b
		}
		if next = b[0]; len(b) < size {
			return next, nil
		}
		b = b[size:]
	}
	return next, nil
}
