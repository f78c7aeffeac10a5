package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// control is the precedence of routing protocols (RFC 4594 section 3.1: CS6), as DSCP byte.
const control = 0xc0

// kind is one of the four sockets that packets arrive at.
type kind struct {
	six, multihop bool
}

func (k kind) port() int {
	if k.multihop {
		return multihopPort
	}
	return singleHopPort
}

func (k kind) String() string {
	family := "IPv4"
	if k.six {
		family = "IPv6"
	}
	return fmt.Sprintf("UDP port %d, %s", k.port(), family)
}

// from is where a packet came from.
type from struct {
	addr netip.Addr // without zone
	zone uint32     // the interface of a link-local address
	ttl  int        // as it arrived; -1: the kernel did not say
}

// socket opens a UDP socket of the calling thread's namespace that never blocks.
func socket(six bool) (int, error) {
	family := unix.AF_INET
	if six {
		family = unix.AF_INET6
	}
	return unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
}

// listen opens the socket that packets of a kind arrive at, on all addresses.
func listen(k kind) (int, error) {
	fd, err := socket(k.six)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", k, err)
	}
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: k.port()}
	if k.six {
		addr = &unix.SockaddrInet6{Port: k.port()}
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1))
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
	}
	// Room for a while of flood, as far as the kernel lets us.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
	if err == nil {
		err = unix.Bind(fd, addr)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", k, err)
	}
	return fd, nil
}

// dial opens the socket that a session sends from: a port of its own in 49152..65535, a TTL of 255
// (RFC 5881 sections 4 and 5). zone is the interface of a link-local peer.
func dial(s Session, zone uint32) (int, error) {
	six := s.Peer.Is6()
	fd, err := socket(six)
	if err != nil {
		return -1, err
	}
	if six {
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, control))
	} else {
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 255),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, control))
	}
	if err == nil {
		err = bindPort(fd, s.Local, six, zone)
	}
	if err == nil {
		k := kind{six, s.Multihop}
		if err = unix.Connect(fd, sockaddr(s.Peer, six, zone, k.port())); err != nil {
			err = fmt.Errorf("no way to %s: %w", s.Peer, err)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// bindPort tries ports until one is free.
func bindPort(fd int, local netip.Addr, six bool, zone uint32) error {
	var err error
	for range 64 {
		err = unix.Bind(fd, sockaddr(local, six, zone, 49152+rand.IntN(65536-49152)))
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	switch {
	case err != nil && local.IsValid():
		return fmt.Errorf("source address %s: %w", local, err)
	case err != nil:
		return fmt.Errorf("source port: %w", err)
	}
	return nil
}

// sockaddr is an address for the kernel; the zero one is any.
func sockaddr(a netip.Addr, six bool, zone uint32, port int) unix.Sockaddr {
	if !six {
		sa := &unix.SockaddrInet4{Port: port}
		if a.IsValid() {
			sa.Addr = a.As4()
		}
		return sa
	}
	sa := &unix.SockaddrInet6{Port: port}
	if a.IsValid() {
		sa.Addr = a.As16()
		if a.IsLinkLocalUnicast() {
			sa.ZoneId = zone
		}
	}
	return sa
}

// zone is the number of the interface that a link-local address names; 0 for every other address.
func zone(a netip.Addr) (uint32, error) {
	if a.Zone() == "" {
		return 0, nil
	}
	dev, err := net.InterfaceByName(a.Zone())
	if err != nil {
		return 0, fmt.Errorf("interface %q of %s: %w", a.Zone(), a, err)
	}
	return uint32(dev.Index), nil
}

// receiver reads packets without waiting, into memory of its own.
type receiver struct {
	data, control [128]byte
}

// read returns a packet's bytes, which hold until the next call; ok is false when none waits.
func (r *receiver) read(fd int) (b []byte, f from, ok bool) {
	n, oob, flags, sa, err := unix.Recvmsg(fd, r.data[:], r.control[:], unix.MSG_DONTWAIT)
	if err != nil {
		return nil, f, false
	}
	f.ttl = ttl(r.control[:oob])
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		f.addr = netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		f.addr = netip.AddrFrom16(sa.Addr)
		if f.addr.IsLinkLocalUnicast() {
			f.zone = sa.ZoneId
		}
	}
	if flags&unix.MSG_TRUNC != 0 {
		return nil, f, true // longer than any control packet
	}
	return r.data[:n], f, true
}

// ttl finds the TTL or hop limit among a packet's control messages.
func ttl(oob []byte) int {
	for len(oob) >= unix.CmsgLen(4) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		v4 := h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL
		v6 := h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_HOPLIMIT
		if (v4 || v6) && len(data) >= 4 {
			return int(binary.NativeEndian.Uint32(data))
		}
		oob = rest
	}
	return -1
}
