package load

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	datagram = 64 // bytes of payload
	// backlog holds what the receiver has not yet read, in bytes of kernel memory: 4 MiB are some
	// thousands of small datagrams.
	backlog = 4 << 20
	// lull ends the server when it lasts, in milliseconds.
	lull = 300
)

// serveUDP counts datagrams from the first one until there are none for a while. Elapsed is from the
// first to the last.
func serveUDP(a netip.AddrPort) (r Result, err error) {
	s, err := listen(unix.SOCK_DGRAM, a)
	if err != nil {
		return r, err
	}
	if err := unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, backlog); err != nil {
		return r, err
	}
	if err := s.timeout(quiet); err != nil {
		return r, err
	}
	ready()
	b := make([]byte, datagram)
	if _, err := s.read(b); err != nil {
		return r, err
	}
	if err := s.timeout(lull); err != nil {
		return r, err
	}
	r.Count = 1
	begin := now()
	end := begin
	for {
		if _, err := s.read(b); timedOut(err) {
			break
		} else if err != nil {
			return r, err
		}
		if r.Count++; r.Count%64 == 0 {
			end = now()
		}
	}
	r.Elapsed = time.Duration(end - begin)
	return r, nil
}

func sendUDP(a netip.AddrPort, length time.Duration) (r Result, err error) {
	s, err := dial(unix.SOCK_DGRAM, a)
	if err != nil {
		return r, err
	}
	b := make([]byte, datagram)
	begin := now()
	for r.Count%64 != 0 || now()-begin < int64(length) {
		if _, err := s.write(b); err != nil {
			return r, err
		}
		r.Count++
	}
	r.Elapsed = time.Duration(now() - begin)
	return r, nil
}
