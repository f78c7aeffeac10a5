package flow

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

// v4 is an IPv4 packet with an option word, from 10.0.0.1 to 10.0.0.2.
func v4(protocol uint8, fragment uint16, rest ...byte) []byte {
	b := []byte{0x46, 0, 0, 0, 0, 1, byte(fragment >> 8), byte(fragment), 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 0}
	b = append(b, rest...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// v6 is an IPv6 packet from fd00::1 to fd00::2.
func v6(next uint8, rest ...byte) []byte {
	b := make([]byte, 40, 40+len(rest))
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	src, dst := netip.MustParseAddr("fd00::1").As16(), netip.MustParseAddr("fd00::2").As16()
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
	return append(b, rest...)
}

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func TestPacketsAreReadThroughTheirHeaders(t *testing.T) {
	ports := []byte{0x04, 0xd2, 0, 80, 0, 0, 0, 0}
	hop := func(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
	long := func(next byte) []byte { return append([]byte{next, 1}, make([]byte, 14)...) }
	fragment := func(next byte, offset uint16) []byte {
		return []byte{next, 0, byte(offset >> 8), byte(offset), 0, 0, 0, 7}
	}
	auth := func(next byte) []byte { return append([]byte{next, 4}, make([]byte, 22)...) }
	many := func(n int) (b []byte) {
		for range n - 1 {
			b = append(b, hop(unix.IPPROTO_DSTOPTS)...)
		}
		return append(b, hop(unix.IPPROTO_TCP)...)
	}
	for _, c := range []struct {
		name     string
		packet   []byte
		protocol uint8
		src, dst uint16
	}{
		{"TCP", v4(unix.IPPROTO_TCP, 0, ports...), unix.IPPROTO_TCP, 1234, 80},
		{"UDP", v4(unix.IPPROTO_UDP, 0x4000, ports...), unix.IPPROTO_UDP, 1234, 80},
		{"SCTP", v4(unix.IPPROTO_SCTP, 0, ports...), unix.IPPROTO_SCTP, 1234, 80},
		{"UDP-Lite", v4(unix.IPPROTO_UDPLITE, 0, ports...), unix.IPPROTO_UDPLITE, 1234, 80},
		{"first fragment", v4(unix.IPPROTO_UDP, 0x2000, ports...), unix.IPPROTO_UDP, 1234, 80},
		{"later fragment", v4(unix.IPPROTO_UDP, 0x2001, ports...), unix.IPPROTO_UDP, 0, 0},
		{"ICMP", v4(unix.IPPROTO_ICMP, 0, 3, 4, 0, 0), unix.IPPROTO_ICMP, 0, 3<<8 | 4},
		{"GRE", v4(unix.IPPROTO_GRE, 0, ports...), unix.IPPROTO_GRE, 0, 0},
		{"TCP cut off", v4(unix.IPPROTO_TCP, 0, ports[:3]...), unix.IPPROTO_TCP, 0, 0},
		{"ICMP cut off", v4(unix.IPPROTO_ICMP, 0, 8), unix.IPPROTO_ICMP, 0, 0},
		{"IPv6 TCP", v6(unix.IPPROTO_TCP, ports...), unix.IPPROTO_TCP, 1234, 80},
		{"ICMPv6", v6(unix.IPPROTO_ICMPV6, 128, 1), unix.IPPROTO_ICMPV6, 0, 128<<8 | 1},
		{"hop-by-hop", v6(0, join(hop(unix.IPPROTO_TCP), ports)...), unix.IPPROTO_TCP, 1234, 80},
		{
			"all of them",
			v6(0, join(hop(unix.IPPROTO_DSTOPTS), long(unix.IPPROTO_ROUTING), long(unix.IPPROTO_FRAGMENT),
				fragment(unix.IPPROTO_AH, 1), auth(unix.IPPROTO_UDP), ports)...),
			unix.IPPROTO_UDP, 1234, 80,
		},
		{"IPv6 later fragment", v6(unix.IPPROTO_FRAGMENT, join(fragment(unix.IPPROTO_UDP, 8), ports)...), unix.IPPROTO_UDP, 0, 0},
		{"IPv6 fragment cut off", v6(unix.IPPROTO_FRAGMENT, unix.IPPROTO_UDP, 0), unix.IPPROTO_FRAGMENT, 0, 0},
		{"extension cut off", v6(0, hop(unix.IPPROTO_TCP)[:5]...), unix.IPPROTO_TCP, 0, 0},
		{"extension missing", v6(unix.IPPROTO_ROUTING), unix.IPPROTO_ROUTING, 0, 0},
		{"encrypted", v6(unix.IPPROTO_ESP, ports...), unix.IPPROTO_ESP, 0, 0},
		{"nothing follows", v6(unix.IPPROTO_NONE, ports...), unix.IPPROTO_NONE, 0, 0},
		{"as many as are followed", v6(unix.IPPROTO_DSTOPTS, join(many(maxExtensions), ports)...), unix.IPPROTO_TCP, 0, 0},
		{"one less", v6(unix.IPPROTO_DSTOPTS, join(many(maxExtensions-1), ports)...), unix.IPPROTO_TCP, 1234, 80},
	} {
		src, dst := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		if c.packet[0]>>4 == 6 {
			src, dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
		}
		want := kernel.Packet{
			Protocol: c.protocol, Length: len(c.packet),
			Src: netip.AddrPortFrom(src, c.src), Dst: netip.AddrPortFrom(dst, c.dst),
		}
		var got kernel.Packet
		if !parseIP(c.packet, &got) || got != want {
			t.Errorf("%s: %+v, want %+v", c.name, got, want)
		}
	}
	for name, b := range map[string][]byte{
		"nothing": {}, "half an IPv4 header": v4(6, 0)[:19], "options cut off": v4(6, 0)[:22], "a short header": append([]byte{0x44}, v4(6, 0)[1:]...),
		"half an IPv6 header": v6(6)[:39], "ARP": {0, 1, 8, 0, 6, 4, 0, 1}, "version 5": append([]byte{0x55}, v4(6, 0)[1:]...),
	} {
		var p kernel.Packet
		if parseIP(b, &p) {
			t.Errorf("%s was read as %+v", name, p)
		}
	}
}

func TestPrefixesOfOthersAreNotOurs(t *testing.T) {
	for _, c := range []struct {
		text   string
		denied bool
		hook   string
		ok     bool
	}{
		{"heddle deny forward", true, "forward", true},
		{"heddle allow input", false, "input", true},
		{"heddle deny output ", true, "output", true},
		{"heddle deny prerouting", true, "prerouting", true},
		{"heddle deny", false, "", false},
		{"heddle drop forward", false, "", false},
		{"heddle deny postrouting", false, "", false},
		{"weft deny forward", false, "", false},
		{"heddle deny forward now", false, "", false},
		{"", false, "", false},
	} {
		denied, hook, ok := parsePrefix(c.text)
		if denied != c.denied || hook != c.hook || ok != c.ok {
			t.Errorf("%q: %v %q %v", c.text, denied, hook, ok)
		}
	}
}

func TestBridgedFramesAreNotTakenForIP(t *testing.T) {
	for ether, want := range map[uint16]bool{unix.ETH_P_IP: true, unix.ETH_P_ARP: false, 0x88cc: false} { // LLDP
		l := parseLog(logMessage(unix.AF_BRIDGE, ether, "heddle deny prerouting", v4(unix.IPPROTO_TCP, 0, 1, 2, 3, 4)))
		if p, ok := l.packet(); ok != want {
			t.Errorf("EtherType %#x: %+v", ether, p)
		}
	}
}

// logMessage is a message as the kernel writes it.
func logMessage(family uint8, ether uint16, prefix string, payload []byte) []byte {
	b := []byte{family, 0, 0, 104}
	b = attribute(b, logHeader, append(binary.BigEndian.AppendUint16(nil, ether), 2, 0))
	b = attribute(b, logPrefix, append([]byte(prefix), 0))
	b = attribute(b, logIn, []byte{0, 0, 0, 4})
	b = attribute(b, logPortIn, []byte{0, 0, 0, 5})
	b = attribute(b, logSequence, []byte{0, 0, 1, 0})
	return attribute(b, logPayload, payload)
}

func FuzzPacket(f *testing.F) {
	f.Add(logMessage(unix.AF_INET, unix.ETH_P_IP, "heddle deny forward", v4(unix.IPPROTO_TCP, 0, 1, 2, 3, 4)))
	f.Add(logMessage(unix.AF_INET6, unix.ETH_P_IPV6, "heddle allow input", v6(0, unix.IPPROTO_UDP, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4)))
	f.Add(logMessage(unix.AF_INET6, unix.ETH_P_IPV6, "heddle deny output", v6(unix.IPPROTO_FRAGMENT, unix.IPPROTO_AH, 0, 0, 0, 0, 0, 0, 0, 58, 1, 128, 0)))
	f.Add(logMessage(unix.AF_BRIDGE, unix.ETH_P_ARP, "heddle deny prerouting", []byte{0, 1, 8, 0, 6, 4, 0, 1}))
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	f.Add(entryMessage(direction(6, a, b, 999, 80), direction(6, b, a, 80, 999)))
	f.Add(entryMessage(direction(1, a, b, 0, 8<<8), direction(1, b, a, 0, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := parseLog(b)
		if p, ok := l.packet(); ok {
			if !p.Src.IsValid() || !p.Dst.IsValid() || p.Hook == "" || p.Src.Addr().Is4() != p.Dst.Addr().Is4() {
				t.Errorf("told as a packet: %+v", p)
			}
		}
		var e entry
		if parseEntry(b, &e) { // the same shape of message
			if f := e.flow(); !f.Src.IsValid() || !f.Dst.IsValid() {
				t.Errorf("told as a flow: %+v", f)
			}
			e.appendKey(nil)
		}
		for m := range messages(b) {
			_ = errnoOf(m.data)
		}
	})
}
