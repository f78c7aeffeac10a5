package load

import (
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// quiet is how long a server waits without hearing anything before it gives up, in milliseconds.
const quiet = 5000

// sock is a socket whose calls block the thread.
type sock int

func open(kind int, a netip.AddrPort) (sock, error) {
	domain := unix.AF_INET
	if a.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	return sock(fd), err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// listen opens a socket, bound to a; TCP ones listen.
func listen(kind int, a netip.AddrPort) (sock, error) {
	s, err := open(kind, a)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return 0, err
	}
	if err := unix.Bind(int(s), sockaddr(a)); err != nil {
		return 0, err
	}
	if kind == unix.SOCK_STREAM {
		return s, unix.Listen(int(s), 1024)
	}
	return s, nil
}

func dial(kind int, a netip.AddrPort) (sock, error) {
	s, err := open(kind, a)
	if err != nil {
		return 0, err
	}
	return s, unix.Connect(int(s), sockaddr(a))
}

// timeout makes receiving and accepting end with an error after a time in milliseconds.
func (s sock) timeout(ms int64) error {
	tv := unix.NsecToTimeval(ms * int64(time.Millisecond))
	return unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

func (s sock) noDelay() error {
	return unix.SetsockoptInt(int(s), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

func (s sock) accept() (sock, error) {
	for {
		fd, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(s), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if e == 0 {
			return sock(fd), nil
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}

func (s sock) read(b []byte) (int, error)  { return s.call(unix.SYS_READ, b) }
func (s sock) write(b []byte) (int, error) { return s.call(unix.SYS_WRITE, b) }

func (s sock) call(number uintptr, b []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall(number, uintptr(s), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if e == 0 {
			return int(n), nil
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}

func (s sock) close() { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(s), 0, 0) }

func timedOut(err error) bool { return errors.Is(err, unix.EAGAIN) }

// now is the monotonic clock, in nanoseconds.
func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}
