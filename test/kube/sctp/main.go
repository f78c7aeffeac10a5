// Command sctp opens SCTP associations, and answers who opens them, on kernels that have no SCTP sockets: it
// stands in for agnhost in the pods of policy tests. An association is open as far as a network can tell once
// an INIT was answered by an INIT ACK (RFC 9260, sections 3.3.2 and 3.3.3); no data follow.
//
//	sctp serve PORT...            answers on these ports
//	sctp connect TIMEOUT HOST:PORT   prints nothing if there is an answer, or TIMEOUT as agnhost does
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	typeInit    = 1
	typeInitAck = 2
	header      = 12 // ports, verification tag, checksum
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// packet is an SCTP packet with one chunk, INIT or INIT ACK.
type packet struct {
	source, destination uint16
	verification        uint32 // 0 in an INIT, else the tag that the other side chose
	kind                byte
	tag                 uint32 // what this side chose
}

func (p packet) bytes() []byte {
	length := 20 // of the chunk
	if p.kind == typeInitAck {
		length += 8 // with a state cookie
	}
	b := make([]byte, header+length)
	binary.BigEndian.PutUint16(b, p.source)
	binary.BigEndian.PutUint16(b[2:], p.destination)
	binary.BigEndian.PutUint32(b[4:], p.verification)
	c := b[header:]
	c[0] = p.kind
	binary.BigEndian.PutUint16(c[2:], uint16(length))
	binary.BigEndian.PutUint32(c[4:], p.tag)
	binary.BigEndian.PutUint32(c[8:], 1<<16) // window
	binary.BigEndian.PutUint16(c[12:], 1)    // streams out and in
	binary.BigEndian.PutUint16(c[14:], 1)
	binary.BigEndian.PutUint32(c[16:], p.tag) // first number of a chunk of data
	if p.kind == typeInitAck {
		binary.BigEndian.PutUint16(c[20:], 7)
		binary.BigEndian.PutUint16(c[22:], 8)
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

// parse reads what bytes writes, and nothing else.
func parse(b []byte) (p packet, ok bool) {
	if len(b) < header+20 {
		return p, false
	}
	b = slices.Clone(b)
	sum := binary.LittleEndian.Uint32(b[8:])
	clear(b[8:12])
	c := b[header:]
	return packet{
		source: binary.BigEndian.Uint16(b), destination: binary.BigEndian.Uint16(b[2:]),
		verification: binary.BigEndian.Uint32(b[4:]), kind: c[0], tag: binary.BigEndian.Uint32(c[4:]),
	}, crc32.Checksum(b, castagnoli) == sum
}

// socket receives every SCTP packet of a family that reaches this namespace.
type socket struct {
	fd int
	v6 bool
}

func open(v6 bool) (socket, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW, unix.IPPROTO_SCTP)
	return socket{fd, v6}, err
}

// receive waits for a packet; the socket's own timeout is EAGAIN.
func (s socket) receive() (p packet, from unix.Sockaddr, err error) {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(s.fd, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return p, nil, err
		}
		b := buffer[:n]
		if !s.v6 && n > 0 { // with its IP header
			b = b[min(n, int(b[0]&15)*4):]
		}
		if p, ok := parse(b); ok {
			return p, from, nil
		}
	}
}

func serve(ports []uint16) error {
	failed := make(chan error)
	for _, v6 := range []bool{false, true} {
		s, err := open(v6)
		if err != nil {
			return err
		}
		go func() {
			for {
				p, from, err := s.receive()
				if err != nil {
					failed <- err
					return
				}
				if p.kind != typeInit || !slices.Contains(ports, p.destination) {
					continue
				}
				answer := packet{p.destination, p.source, p.tag, typeInitAck, rand.Uint32() | 1}
				if err := unix.Sendto(s.fd, answer.bytes(), 0, from); err != nil {
					fmt.Fprintln(os.Stderr, "answer:", err)
				}
			}
		}()
	}
	return <-failed
}

var errTimeout = errors.New("TIMEOUT")

func connect(to netip.AddrPort, limit time.Duration) error {
	v6 := to.Addr().Is6()
	s, err := open(v6)
	if err != nil {
		return err
	}
	var address unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16()}
	if !v6 {
		address = &unix.SockaddrInet4{Addr: to.Addr().As4()}
	}
	every := unix.NsecToTimeval(int64(500 * time.Millisecond))
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &every); err != nil {
		return err
	}
	first := packet{uint16(32768 + rand.IntN(28000)), to.Port(), 0, typeInit, rand.Uint32() | 1}
	for begin := time.Now(); time.Since(begin) < limit; {
		if err := unix.Sendto(s.fd, first.bytes(), 0, address); err != nil && !errors.Is(err, unix.EPERM) {
			return err // EPERM is how the kernel tells that a filter dropped it
		}
		for time.Since(begin) < limit {
			p, _, err := s.receive()
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				return err
			}
			if p.kind == typeInitAck && p.destination == first.source && p.verification == first.tag {
				return nil
			}
		}
	}
	return errTimeout
}

func run(args []string) error {
	if len(args) > 1 && args[0] == "serve" {
		var ports []uint16
		for _, a := range args[1:] {
			p, err := strconv.ParseUint(a, 10, 16)
			if err != nil {
				return err
			}
			ports = append(ports, uint16(p))
		}
		return serve(ports)
	}
	if len(args) == 3 && args[0] == "connect" {
		limit, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		to, err := netip.ParseAddrPort(args[2])
		if err != nil {
			return err
		}
		return connect(to, limit)
	}
	return errors.New("want serve PORT... or connect TIMEOUT HOST:PORT")
}

func main() {
	err := run(os.Args[1:])
	switch {
	case errors.Is(err, errTimeout):
		fmt.Fprintln(os.Stderr, err)
	case err != nil:
		fmt.Fprintln(os.Stderr, "OTHER:", err)
	default:
		return
	}
	os.Exit(1)
}
