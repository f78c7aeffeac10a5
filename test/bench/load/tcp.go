package load

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is what one call writes to a stream, in bytes.
const chunk = 128 << 10

// serveStream reads from n connections until all have ended. Elapsed is from the first byte to the last.
func serveStream(a netip.AddrPort, n int) (r Result, err error) {
	l, err := listen(unix.SOCK_STREAM, a)
	if err != nil {
		return r, err
	}
	ready()
	if err := l.timeout(quiet); err != nil {
		return r, err
	}
	poll := make([]unix.PollFd, n)
	for i := range poll {
		c, err := l.accept()
		if err != nil {
			return r, err
		}
		if err := unix.SetNonblock(int(c), n > 1); err != nil {
			return r, err
		}
		poll[i] = unix.PollFd{Fd: int32(c), Events: unix.POLLIN}
	}
	buf := make([]byte, 2*chunk)
	var begin, end int64
	for open := n; open > 0; {
		if n > 1 {
			if _, err := unix.Poll(poll, quiet); err != nil && !errors.Is(err, unix.EINTR) {
				return r, err
			}
		}
		for i := range poll {
			if poll[i].Fd < 0 || n > 1 && poll[i].Revents == 0 {
				continue
			}
			k, err := sock(poll[i].Fd).read(buf)
			if timedOut(err) {
				continue
			}
			if err != nil {
				return r, err
			}
			end = now()
			if begin == 0 {
				begin = end
			}
			if k == 0 {
				sock(poll[i].Fd).close()
				poll[i].Fd = -1
				open--
			}
			r.Bytes += uint64(k)
		}
	}
	r.Elapsed = time.Duration(end - begin)
	return r, nil
}

// sendStream fills n connections in turn, as fast as they take it.
func sendStream(a netip.AddrPort, n int, length time.Duration) (r Result, err error) {
	poll := make([]unix.PollFd, n)
	for i := range poll {
		c, err := dial(unix.SOCK_STREAM, a)
		if err != nil {
			return r, err
		}
		if err := unix.SetNonblock(int(c), n > 1); err != nil {
			return r, err
		}
		poll[i] = unix.PollFd{Fd: int32(c), Events: unix.POLLOUT}
	}
	buf := make([]byte, chunk)
	begin := now()
	for now()-begin < int64(length) {
		if n > 1 {
			if _, err := unix.Poll(poll, quiet); err != nil && !errors.Is(err, unix.EINTR) {
				return r, err
			}
		}
		for i := range poll {
			if n > 1 && poll[i].Revents == 0 {
				continue
			}
			k, err := sock(poll[i].Fd).write(buf)
			if err != nil && !timedOut(err) {
				return r, err
			}
			r.Bytes += uint64(k)
		}
	}
	r.Elapsed = time.Duration(now() - begin)
	for i := range poll {
		sock(poll[i].Fd).close()
	}
	return r, nil
}

func serveRR(a netip.AddrPort) (r Result, err error) {
	l, err := listen(unix.SOCK_STREAM, a)
	if err != nil {
		return r, err
	}
	ready()
	if err := l.timeout(quiet); err != nil {
		return r, err
	}
	c, err := l.accept()
	if err != nil {
		return r, err
	}
	if err := c.noDelay(); err != nil {
		return r, err
	}
	b := make([]byte, 1)
	for {
		n, err := c.read(b)
		if err != nil || n == 0 {
			return r, err
		}
		if _, err := c.write(b); err != nil {
			return r, err
		}
		r.Count++
	}
}

func sendRR(a netip.AddrPort, length time.Duration) (r Result, err error) {
	c, err := dial(unix.SOCK_STREAM, a)
	if err != nil {
		return r, err
	}
	if err := c.noDelay(); err != nil {
		return r, err
	}
	if err := c.timeout(quiet); err != nil {
		return r, err
	}
	b := make([]byte, 1)
	begin := now()
	for now()-begin < int64(length) {
		if _, err := c.write(b); err != nil {
			return r, err
		}
		if _, err := c.read(b); err != nil {
			return r, err
		}
		r.Count++
	}
	r.Elapsed = time.Duration(now() - begin)
	c.close()
	return r, nil
}

// serveConnect answers one byte on each connection and closes it first, so that the waiting after a
// close is the server's and the client's ports are free again at once. A connection that ends without a
// byte ends the server.
func serveConnect(a netip.AddrPort) (r Result, err error) {
	l, err := listen(unix.SOCK_STREAM, a)
	if err != nil {
		return r, err
	}
	ready()
	if err := l.timeout(quiet); err != nil {
		return r, err
	}
	b := make([]byte, 1)
	for {
		c, err := l.accept()
		if err != nil {
			return r, err
		}
		n, err := c.read(b)
		if err != nil {
			return r, err
		}
		if n == 0 {
			return r, nil
		}
		if _, err := c.write(b); err != nil {
			return r, err
		}
		c.close()
		r.Count++
	}
}

func sendConnect(a netip.AddrPort, length time.Duration) (r Result, err error) {
	b := make([]byte, 1)
	begin := now()
	for now()-begin < int64(length) {
		c, err := dial(unix.SOCK_STREAM, a)
		if err != nil {
			return r, err
		}
		if _, err := c.write(b); err != nil {
			return r, err
		}
		for range 2 { // the byte, and the end
			if _, err := c.read(b); err != nil {
				return r, err
			}
		}
		c.close()
		r.Count++
	}
	r.Elapsed = time.Duration(now() - begin)
	c, err := dial(unix.SOCK_STREAM, a)
	if err != nil {
		return r, err
	}
	c.close()
	return r, nil
}
