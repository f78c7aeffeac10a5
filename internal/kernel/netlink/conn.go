package netlink

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// batchSize bounds the requests of one send: their error answers, a few hundred bytes of kernel
	// memory each, must fit the receive buffer even where it cannot be enlarged (212,992 bytes).
	batchSize = 128
	// dumpTries bounds how often a dump that the kernel calls inconsistent is read again.
	dumpTries = 10
	// recvSize is above what the kernel puts in one datagram of a dump (32 KiB).
	recvSize = 64 << 10
	// recvTimeout guards against waiting forever; answers are normally there when send returns.
	recvTimeout = 30 * time.Second
)

// conn is a route netlink socket of one namespace, for requests. The library's own sockets send one
// request at a time and wait for each; this one sends many in one system call and reads one answer,
// which is what makes a thousand routes cheap. It is not safe for concurrent use.
type conn struct {
	fd  int
	pid uint32 // port id: the kernel puts it into notifications of what this socket changed
	seq uint32
	buf []byte
}

// dial opens a conn in the namespace of the calling thread.
func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a route netlink socket: %w", err)
	}
	c := &conn{fd: fd}
	if err := c.setup(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up a route netlink socket: %w", err)
	}
	return c, nil
}

// dialIn opens a conn in the namespace ns.
func dialIn(ns int) (c *conn, err error) {
	err = Do(ns, func() error {
		c, err = dial()
		return err
	})
	return c, err
}

func (c *conn) setup() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	sa, err := unix.Getsockname(c.fd)
	if err != nil {
		return err
	}
	c.pid = sa.(*unix.SockaddrNetlink).Pid
	// The kernel's reasons in words, without our own request in the answer; dumps that honour filters.
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, opt, 1); err != nil {
			return err
		}
	}
	tv := unix.NsecToTimeval(recvTimeout.Nanoseconds())
	return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

func (c *conn) close() { unix.Close(c.fd) }

func request(proto uint16, flags uint16, data ...nl.NetlinkRequestData) *nl.NetlinkRequest {
	return &nl.NetlinkRequest{
		NlMsghdr: unix.NlMsghdr{Type: proto, Flags: unix.NLM_F_REQUEST | flags},
		Data:     data,
	}
}

// run sends the requests in order and returns one error each, nil where the kernel did it. Requests
// are independent of each other: one that fails does not stop the next.
func (c *conn) run(reqs []*nl.NetlinkRequest) []error {
	errs := make([]error, len(reqs))
	for at := 0; at < len(reqs); at += batchSize {
		end := min(at+batchSize, len(reqs))
		if err := c.batch(reqs[at:end], errs[at:end]); err != nil {
			for i := at; i < len(reqs); i++ {
				if errs[i] == nil {
					errs[i] = err
				}
			}
			return errs
		}
	}
	return errs
}

// do runs one request.
func (c *conn) do(req *nl.NetlinkRequest) error { return c.run([]*nl.NetlinkRequest{req})[0] }

// made runs one request that makes a link, and returns what was made: no question is needed that would wait for the
// kernel's lock once more. nil for a kernel that does not tell (before Linux 6.2).
func (c *conn) made(req *nl.NetlinkRequest) (echo []byte, err error) {
	c.seq++
	req.Seq, req.Flags = c.seq, req.Flags|unix.NLM_F_ACK|unix.NLM_F_ECHO
	if err := c.send(req.Serialize()); err != nil {
		return nil, err
	}
	for {
		msgs, err := c.recv(true)
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			switch {
			case m.Header.Seq != c.seq:
			case m.Header.Type == unix.NLMSG_ERROR:
				return echo, ackError(m)
			case m.Header.Type == unix.RTM_NEWLINK && echo == nil:
				echo = m.Data
			}
		}
	}
}

// index and flags are what the kernel says of a link without a lock, unlike its answers to netlink messages.
func (c *conn) index(name string) (int, error) {
	v, err := c.ioctl(unix.SIOCGIFINDEX, name)
	if err != nil {
		return 0, err
	}
	return int(v.Uint32()), nil
}

func (c *conn) flags(name string) (uint16, error) {
	v, err := c.ioctl(unix.SIOCGIFFLAGS, name)
	if err != nil {
		return 0, err
	}
	return v.Uint16(), nil
}

func (c *conn) ioctl(what uint, name string) (*unix.Ifreq, error) {
	v, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(c.fd, what, v)
	}
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	return v, nil
}

// batch asks for an acknowledgement of the last request only; the others answer when they fail.
func (c *conn) batch(reqs []*nl.NetlinkRequest, errs []error) error {
	first := c.seq + 1
	var out []byte
	for i, r := range reqs {
		c.seq++
		r.Seq = c.seq
		if i == len(reqs)-1 {
			r.Flags |= unix.NLM_F_ACK
		}
		out = append(out, r.Serialize()...)
		for len(out)%unix.NLMSG_ALIGNTO != 0 {
			out = append(out, 0)
		}
	}
	if err := c.send(out); err != nil {
		return err
	}
	for {
		msgs, err := c.recv(false)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			i := m.Header.Seq - first
			if i >= uint32(len(reqs)) || m.Header.Type != unix.NLMSG_ERROR {
				continue // an answer to an earlier, abandoned request
			}
			errs[i] = ackError(m)
			if i == uint32(len(reqs)-1) {
				return nil
			}
		}
	}
}

// get sends one request and returns the message that answers it.
func (c *conn) get(req *nl.NetlinkRequest) ([]byte, error) {
	c.seq++
	req.Seq = c.seq
	if err := c.send(req.Serialize()); err != nil {
		return nil, err
	}
	for {
		msgs, err := c.recv(true)
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			if m.Header.Seq != c.seq {
				continue
			}
			if m.Header.Type == unix.NLMSG_ERROR {
				return nil, ackError(m)
			}
			return m.Data, nil
		}
	}
}

// dump returns all messages that answer a dump request, and reads again when the kernel says that
// what it dumped changed meanwhile.
func (c *conn) dump(req *nl.NetlinkRequest) ([][]byte, error) {
	req.Flags |= unix.NLM_F_DUMP
	for range dumpTries {
		out, torn, err := c.dumpOnce(req)
		if err != nil || !torn {
			return out, err
		}
	}
	return nil, fmt.Errorf("dump: interrupted by changes %d times in a row: %w", dumpTries, unix.EINTR)
}

func (c *conn) dumpOnce(req *nl.NetlinkRequest) (out [][]byte, torn bool, err error) {
	c.seq++
	req.Seq = c.seq
	if err := c.send(req.Serialize()); err != nil {
		return nil, false, err
	}
	for {
		msgs, err := c.recv(true)
		if err != nil {
			return nil, false, err
		}
		for _, m := range msgs {
			if m.Header.Seq != c.seq {
				continue
			}
			torn = torn || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				if len(m.Data) >= 4 {
					if e := int32(nl.NativeEndian().Uint32(m.Data)); e < 0 {
						return nil, false, syscall.Errno(-e)
					}
				}
				return out, torn, nil
			case unix.NLMSG_ERROR:
				return nil, false, ackError(m)
			}
			out = append(out, m.Data)
		}
	}
}

func (c *conn) send(b []byte) error {
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to the kernel: %w", err)
	}
	return nil
}

// recv reads one datagram. With keep, the messages outlive the next recv.
func (c *conn) recv(keep bool) ([]syscall.NetlinkMessage, error) {
	if c.buf == nil {
		c.buf = make([]byte, recvSize)
	}
	for {
		n, from, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receive from the kernel: %w", err)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != nl.PidKernel {
			continue // other processes may send to us; only the kernel's word counts
		}
		b := c.buf[:n]
		if keep {
			b = append([]byte(nil), b...)
		}
		return syscall.ParseNetlinkMessage(b)
	}
}

// kernelError is an errno with the kernel's explanation, where it gave one.
type kernelError struct {
	errno syscall.Errno
	text  string
}

func (e *kernelError) Error() string {
	if e.text == "" {
		return e.errno.Error()
	}
	return e.errno.Error() + " (" + e.text + ")"
}

func (e *kernelError) Unwrap() error { return e.errno }

// ackError reads an NLMSG_ERROR; nil for an acknowledgement.
func ackError(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return errors.New("answer of the kernel is too short")
	}
	e := int32(nl.NativeEndian().Uint32(m.Data))
	if e == 0 {
		return nil
	}
	ke := &kernelError{errno: syscall.Errno(-e)}
	// With NETLINK_CAP_ACK the request's header follows the errno, then attributes.
	if rest := m.Data[4:]; m.Header.Flags&unix.NLM_F_ACK_TLVS != 0 && len(rest) > unix.SizeofNlMsghdr {
		if attrs, err := nl.ParseRouteAttr(rest[unix.SizeofNlMsghdr:]); err == nil {
			for _, a := range attrs {
				if a.Attr.Type == nl.NLMSGERR_ATTR_MSG {
					ke.text = unix.ByteSliceToString(a.Value)
				}
			}
		}
	}
	return ke
}
