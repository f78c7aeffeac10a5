package filter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Frames, byte by byte.

const (
	macRouter = "02:00:00:00:01:01" // node's end of both workloads' wires
	macAll    = "ff:ff:ff:ff:ff:ff"
)

func mac(s string) []byte {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func eth(to, from string, kind uint16, rest []byte) []byte {
	return bytes.Join([][]byte{mac(to), mac(from), be16(kind), rest}, nil)
}

// ip is a packet of the family of its addresses; hops is its TTL or hop limit.
func ip(from, to string, proto, hops byte, rest []byte) []byte {
	a, b := addr(from), addr(to)
	if a.Is6() {
		h := bytes.Join([][]byte{{0x60, 0, 0, 0}, be16(uint16(len(rest))), {proto, hops}, a.AsSlice(), b.AsSlice()}, nil)
		return append(h, rest...)
	}
	h := bytes.Join([][]byte{{0x45, 0}, be16(uint16(20 + len(rest))), {0, 1, 0, 0, hops, proto, 0, 0}, a.AsSlice(), b.AsSlice()}, nil)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, rest...)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// packet is an Ethernet frame with an IP packet.
func packet(toMAC, fromMAC, from, to string, proto, hops byte, rest []byte) []byte {
	kind := uint16(unix.ETH_P_IP)
	if addr(from).Is6() {
		kind = unix.ETH_P_IPV6
	}
	return eth(toMAC, fromMAC, kind, ip(from, to, proto, hops, rest))
}

// udp has no checksum, which IPv6 allows nobody but those who look at frames.
func udp(from, to uint16, rest []byte) []byte {
	return bytes.Join([][]byte{be16(from), be16(to), be16(uint16(8 + len(rest))), {0, 0}, rest}, nil)
}

func icmpMessage(kind, code byte, rest []byte) []byte {
	m := append([]byte{kind, code, 0, 0}, rest...)
	binary.BigEndian.PutUint16(m[2:], checksum(m[:len(m)&^1]))
	return m
}

func arp(op uint16, senderMAC, sender, targetMAC, targetIP string) []byte {
	return bytes.Join([][]byte{{0, 1, 8, 0, 6, 4}, be16(op), mac(senderMAC), addr(sender).AsSlice(), mac(targetMAC), addr(targetIP).AsSlice()}, nil)
}

// advertisement is a neighbour advertisement for an address.
func advertisement(of, at string) []byte {
	return icmpMessage(136, 0, bytes.Join([][]byte{{0x20, 0, 0, 0}, addr(of).AsSlice(), {2, 1}, mac(at)}, nil))
}

// raw opens a packet socket on a device of the namespace.
func (s space) raw(dev string) int {
	s.t.Helper()
	var fd int
	must(s.t, s.inside(func() (err error) {
		link, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		proto := binary.NativeEndian.Uint16(be16(unix.ETH_P_ALL))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto)); err != nil {
			return err
		}
		tv := unix.NsecToTimeval((5 * time.Millisecond).Nanoseconds())
		return errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: link.Index}))
	}))
	s.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// eye looks at what arrives at a device.
type eye struct {
	t  testing.TB
	fd int
}

func (e eye) sees(mark []byte, within time.Duration) bool {
	e.t.Helper()
	buf := make([]byte, 2000)
	for end := time.Now().Add(within); time.Now().Before(end); {
		n, from, err := unix.Recvfrom(e.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		must(e.t, err)
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype != unix.PACKET_OUTGOING && bytes.Contains(buf[:n], mark) {
			return true
		}
	}
	return false
}

func sendFrame(fd int, b []byte) error {
	_, err := unix.Write(fd, b)
	return err
}
