package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/test/oracle"
)

// outcome is what a packet that asks for an answer gets.
type outcome string

const (
	open    outcome = "open"    // a connection, the same datagram, an echo
	refused outcome = "refused" // the kernel at the other end says that nobody listens
	silent  outcome = "silent"
)

// shot is one packet that asks, of a flow that was never there before.
type shot struct {
	from, to        *place
	src, dst        netip.Addr
	protocol        uint8
	sport, dport    uint16 // of an echo: its identifier, and type<<8|code
	egress, ingress oracle.Verdict
	want, got       outcome
	fd              int
}

func (s *shot) String() string {
	return fmt.Sprintf("%s %s -> %s (%s) sport %d, %s -> %s", s.kind(), s.from.name, s.to.name, s.target(), s.sport, s.src, s.dst)
}

// target is the other end in heddle why's words.
func (s *shot) target() string {
	if s.protocol == unix.IPPROTO_TCP || s.protocol == unix.IPPROTO_UDP {
		return netip.AddrPortFrom(s.dst, s.dport).String() + map[uint8]string{unix.IPPROTO_TCP: "/tcp", unix.IPPROTO_UDP: "/udp"}[s.protocol]
	}
	return s.dst.String()
}

func (s *shot) kind() string {
	name := map[uint8]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"}[s.protocol]
	if name == "" {
		name = "ICMP"
	}
	if s.dst.Is4() {
		return name + "4"
	}
	return name + "6"
}

// send makes the shot's socket and sends its first packet. An answer may come at once.
func (s *shot) send() error {
	domain, kind, protocol := unix.AF_INET6, unix.SOCK_DGRAM, 0
	if s.dst.Is4() {
		domain = unix.AF_INET
	}
	switch s.protocol {
	case unix.IPPROTO_TCP:
		kind = unix.SOCK_STREAM
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		protocol = int(s.protocol)
	}
	var err error
	if s.fd, err = unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	err = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if s.protocol == unix.IPPROTO_TCP {
		err = errors.Join(err, unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	}
	if err != nil {
		return err
	}
	if err := unix.Bind(s.fd, sockaddr(s.src, s.sport)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	port := s.dport
	if protocol != 0 {
		port = 0
	}
	switch err := unix.Connect(s.fd, sockaddr(s.dst, port)); {
	case errors.Is(err, unix.EINPROGRESS), s.protocol == unix.IPPROTO_TCP && errors.Is(err, unix.ECONNREFUSED):
	case err != nil:
		return fmt.Errorf("connect: %w", err)
	}
	if s.protocol == unix.IPPROTO_TCP {
		return nil
	}
	packet := []byte("heddle")
	if protocol != 0 { // identifier and checksum are the kernel's to fill in
		packet = append([]byte{byte(s.dport >> 8), byte(s.dport), 0, 0, 0, 0, 0, 1}, packet...)
	}
	if _, err := unix.Write(s.fd, packet); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
}

// look takes what has come on the socket.
func (s *shot) look() {
	var err error
	if s.protocol == unix.IPPROTO_TCP {
		var code int
		if code, err = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
			err = unix.Errno(code)
		}
	} else {
		_, err = unix.Read(s.fd, make([]byte, 64))
	}
	switch {
	case err == nil:
		s.got = open
	case errors.Is(err, unix.ECONNREFUSED):
		s.got = refused
	case errors.Is(err, unix.EAGAIN):
	default:
		s.got = outcome(err.Error())
	}
}

// patience is how long answers are waited for.
type patience struct {
	// quiet is the least time after the last packet, limit the most, which only an answer that is owed takes.
	quiet, limit time.Duration
	slowest      *atomic.Int64 // answer that came, in nanoseconds: silence is what is quiet for much longer
}

// fire sends all shots at once, from each place on its own thread, and waits for answers.
func fire(shots []*shot, p patience) error {
	of := map[*place][]*shot{}
	for _, s := range shots {
		of[s.from] = append(of[s.from], s)
	}
	var wait sync.WaitGroup
	var mu sync.Mutex
	var all error
	for from, mine := range of {
		wait.Go(func() {
			if err := from.do(func() error { return p.fireHere(mine) }); err != nil {
				mu.Lock()
				defer mu.Unlock()
				all = errors.Join(all, fmt.Errorf("%s: %w", from.name, err))
			}
		})
	}
	wait.Wait()
	return all
}

func (p patience) fireHere(shots []*shot) error {
	for _, s := range shots {
		s.fd, s.got = -1, silent
	}
	defer func() {
		for _, s := range shots {
			_ = unix.Close(s.fd)
		}
	}()
	began := time.Now()
	for _, s := range shots {
		if err := s.send(); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	sent := time.Now()
	for {
		owed := 0
		var waiting []*shot
		var fds []unix.PollFd
		for _, s := range shots {
			if s.got != silent {
				continue
			}
			if s.want != silent {
				owed++
			}
			events := int16(unix.POLLIN)
			if s.protocol == unix.IPPROTO_TCP {
				events = unix.POLLOUT
			}
			waiting, fds = append(waiting, s), append(fds, unix.PollFd{Fd: int32(s.fd), Events: events})
		}
		passed := time.Since(sent)
		if len(waiting) == 0 || passed > p.limit || owed == 0 && passed > max(p.quiet, 4*time.Duration(p.slowest.Load())) {
			return nil
		}
		if n, err := unix.Poll(fds, 20); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		} else if n == 0 {
			continue
		}
		for i, fd := range fds {
			if fd.Revents != 0 {
				waiting[i].look()
			}
		}
		if took := int64(time.Since(began)); owed > 0 && took > p.slowest.Load() {
			p.slowest.Store(took)
		}
	}
}
