package bgp

import (
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/peering"
)

// cut ends the TCP connections of all sessions, as the kernel does for a process that dies. gobgp knows no way to
// leave all neighbours at once: it leaves one after the other, and tells those that are left that the routes of
// the others are gone.
func (s *Server) cut() {
	ours := map[netip.Addr]bool{}
	for a, n := range s.sessions {
		if n.added {
			ours[a] = true
		}
	}
	s.shut(ours)
	// gobgp is to see it, before it is told to end.
	s.await(func(netip.Addr) bool { return true })
}

// shut closes the connections with neighbours.
func (s *Server) shut(ours map[netip.Addr]bool) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range fds {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// The copy stays what it is when others close the descriptor and the number goes to another file.
		if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			if s.isSession(dup, ours) {
				_ = unix.Shutdown(dup, unix.SHUT_RDWR)
			}
			_ = unix.Close(dup)
		}
	}
}

// isSession reports whether a descriptor is a connection of this speaker's with a neighbour.
func (s *Server) isSession(fd int, ours map[netip.Addr]bool) bool {
	remote, err := unix.Getpeername(fd)
	if err != nil {
		return false
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	r, l := addrPort(remote), addrPort(local)
	n := s.sessions[r.Addr()]
	if !ours[r.Addr()] || n == nil {
		return false
	}
	if n.Source.IsValid() && n.Source != l.Addr() {
		return false
	}
	port := n.Port
	if port == 0 {
		port = peering.DefaultPort
	}
	return r.Port() == port || l.Port() == s.plan.Port
}

func addrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}
