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
	of := map[netip.Addr]line{}
	for a := range ours {
		if n := s.sessions[a]; n != nil {
			of[a] = s.line(&n.Neighbor)
		}
	}
	closeLines(of)
}

// line tells the connections with a neighbour from others of this process.
type line struct {
	source netip.Addr // of this end; not set: any
	port   uint16     // the neighbour's, where this end connects
	listen uint16     // ours, where the neighbour does
}

func (s *Server) line(n *peering.Neighbor) line {
	port := n.Port
	if port == 0 {
		port = peering.DefaultPort
	}
	return line{source: n.Source, port: port, listen: s.plan.Port}
}

// closeLines closes connections with neighbours. gobgp does not hand them out, so they are looked for among the open
// files.
func closeLines(of map[netip.Addr]line) {
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
			if isLine(dup, of) {
				_ = unix.Shutdown(dup, unix.SHUT_RDWR)
			}
			_ = unix.Close(dup)
		}
	}
}

func isLine(fd int, of map[netip.Addr]line) bool {
	remote, err := unix.Getpeername(fd)
	if err != nil {
		return false
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	r, l := addrPort(remote), addrPort(local)
	is, ok := of[r.Addr()]
	if !ok || is.source.IsValid() && is.source != l.Addr() {
		return false
	}
	return r.Port() == is.port || l.Port() == is.listen
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
