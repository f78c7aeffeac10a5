package filter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// answerSize is above what the kernel puts in one datagram of a dump (32 KiB). It looks at the size of
	// the reader's buffer, and each datagram of a dump costs it a walk to where the last one ended.
	answerSize = 64 << 10
	// dumpTries bounds how often a dump is read again because the ruleset changed meanwhile.
	dumpTries = 10
)

// errNone is the answer of a kernel without nftables.
var errNone = errors.New("the kernel has no nftables")

// errStale says that the ruleset is not the one that a transaction was made for.
var errStale = errors.New("the ruleset changed meanwhile")

// conn is a netfilter netlink socket. It is not safe for concurrent use. Tables with an owner belong to the
// socket that made them.
type conn struct {
	*netlink.Conn
	raw    syscall.RawConn
	port   uint32 // the kernel puts it into the events of what this socket changed
	seq    uint32
	sndbuf int
	buf    []byte
}

// dial opens a socket in the namespace ns, or in the calling thread's for -1.
func dial(ns int) (*conn, error) {
	cfg := &netlink.Config{}
	if ns >= 0 {
		cfg.NetNS = ns
	}
	nc, err := netlink.Dial(unix.NETLINK_NETFILTER, cfg)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("%w: %w", errNone, err)
	}
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, buf: make([]byte, answerSize)}
	if err := c.setup(); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("set up a netfilter netlink socket: %w", err)
	}
	return c, nil
}

func (c *conn) setup() (err error) {
	// The kernel's reasons in words, without the request in the answer.
	for _, o := range []netlink.ConnOption{netlink.ExtendedAcknowledge, netlink.CapAcknowledge} {
		if err := c.SetOption(o, true); err != nil {
			return err
		}
	}
	if c.raw, err = c.SyscallConn(); err != nil {
		return err
	}
	var name unix.Sockaddr
	if cerr := c.raw.Control(func(fd uintptr) { name, err = unix.Getsockname(int(fd)) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return err
	}
	c.port = name.(*unix.SockaddrNetlink).Pid
	return nil
}

// send sends one datagram, whatever its size.
func (c *conn) send(b []byte) error {
	if need := len(b) + 4096; need > c.sndbuf {
		if err := c.SetWriteBuffer(need); err != nil {
			return err
		}
		c.sndbuf = need
	}
	var err error
	werr := c.raw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return !errors.Is(err, unix.EAGAIN)
	})
	if werr != nil {
		return werr
	}
	if err != nil {
		return fmt.Errorf("send to the kernel: %w", err)
	}
	return nil
}

// receive reads one datagram from the kernel into the socket's buffer, and calls f for each message until
// that says that it was the last.
func (c *conn) receive(f func(unix.NlMsghdr, []byte) bool) (last bool, err error) {
	n, fromKernel := 0, false
	rerr := c.raw.Read(func(fd uintptr) bool {
		var from unix.Sockaddr
		n, from, err = unix.Recvfrom(int(fd), c.buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return false
		}
		sa, ok := from.(*unix.SockaddrNetlink)
		fromKernel = ok && sa.Pid == 0
		return true
	})
	if rerr != nil {
		return false, rerr
	}
	if err != nil {
		return false, fmt.Errorf("receive from the kernel: %w", err)
	}
	if !fromKernel {
		return false, nil // other processes may send to us; only the kernel's word counts
	}
	for b := c.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
		h := unix.NlMsghdr{
			Len: binary.NativeEndian.Uint32(b), Type: binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]), Seq: binary.NativeEndian.Uint32(b[8:]), Pid: binary.NativeEndian.Uint32(b[12:]),
		}
		if h.Len < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
			return false, errors.New("the kernel's answer is cut short")
		}
		if f(h, b[unix.SizeofNlMsghdr:h.Len]) {
			return true, nil
		}
		b = b[min(len(b), int(align(h.Len))):]
	}
	return false, nil
}

func align(n uint32) uint32 { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// dump asks for all objects of a kind and calls f with the attributes of each; begin is called before each
// reading, as a ruleset that changes meanwhile is read again. With settled the caller knows that nobody
// else can have changed what is read.
func (c *conn) dump(kind uint16, family nftables.TableFamily, attrs []byte, settled bool, begin func(), f func(family byte, attrs []byte) error) error {
	for range dumpTries {
		begin()
		torn, err := c.dumpOnce(kind, family, attrs, f)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if err == nil && (!torn || settled) {
			return nil
		}
	}
	return fmt.Errorf("the ruleset changed during each of %d readings: %w", dumpTries, unix.EINTR)
}

func (c *conn) dumpOnce(kind uint16, family nftables.TableFamily, attrs []byte, f func(byte, []byte) error) (torn bool, err error) {
	c.seq++
	m := &message{}
	at := m.header(kind, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, family, c.seq)
	m.b = append(m.b, attrs...)
	m.end(at)
	if err := c.send(m.b); err != nil {
		return false, err
	}
	for {
		last, rerr := c.receive(func(h unix.NlMsghdr, data []byte) bool {
			if h.Seq != c.seq {
				return false
			}
			torn = torn || h.Flags&unix.NLM_F_DUMP_INTR != 0
			switch {
			case h.Type == unix.NLMSG_DONE || h.Type == unix.NLMSG_ERROR:
				if e := ackError(h, data); e != nil && err == nil {
					err = e
				}
				return true
			case len(data) >= 4 && err == nil:
				err = f(data[0], data[4:])
			}
			return false
		})
		if rerr != nil {
			return torn, rerr
		}
		if last {
			return torn, err
		}
	}
}

// commit sends a batch as one transaction and returns the kernel's first objection.
func (c *conn) commit(m *message) error {
	first := c.seq + 1
	last := m.close(first)
	c.seq = last
	if err := c.send(m.b); err != nil {
		return err
	}
	var failed error
	for {
		done, err := c.receive(func(h unix.NlMsghdr, data []byte) bool {
			if h.Seq-first > last-first || h.Type != unix.NLMSG_ERROR {
				return false // an answer to an earlier, abandoned request
			}
			if err := ackError(h, data); err != nil && failed == nil {
				failed = err
			}
			// The header of the batch answers only when the whole is refused.
			return h.Seq == last-1 || h.Seq == first && failed != nil
		})
		if err != nil {
			return err
		}
		if done {
			return failed
		}
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

// ackError reads the end of an answer: NLMSG_ERROR or NLMSG_DONE; nil when all went well.
func ackError(h unix.NlMsghdr, data []byte) error {
	if len(data) < 4 {
		return nil
	}
	n := int32(binary.NativeEndian.Uint32(data))
	if n == 0 {
		return nil
	}
	e := &kernelError{errno: syscall.Errno(-n)}
	if rest := data[4:]; h.Type == unix.NLMSG_ERROR && h.Flags&unix.NLM_F_ACK_TLVS != 0 && len(rest) > unix.SizeofNlMsghdr {
		for kind, value := range attributes(rest[unix.SizeofNlMsghdr:]) {
			if kind == unix.NLMSGERR_ATTR_MSG {
				e.text = unix.ByteSliceToString(value)
			}
		}
	}
	if e.errno == unix.ERESTART {
		return fmt.Errorf("%w: %w", errStale, e)
	}
	return e
}
