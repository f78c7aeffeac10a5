package flow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// bufferSize is above what the kernel puts in one datagram of a dump (32 KiB).
	bufferSize = 64 << 10
	// window is how many requests are under way at once. Their answers wait in the receive buffer, where
	// each takes up to 8 KiB, of 212,992 bytes.
	window = 16
	// patience guards against waiting forever; answers are normally there when a request is sent.
	patience = 30 * time.Second

	headerSize = unix.SizeofNlMsghdr
)

// conn is a netlink socket of one namespace, read datagram by datagram and parsed in place: a dump of a hundred
// thousand objects takes no more memory than one of ten. It is not safe for concurrent use.
type conn struct {
	nl      *netlink.Conn
	raw     syscall.RawConn
	ctx     context.Context
	unwatch func() bool
	in, out []byte
	seq     uint32
}

// message is one netlink message; data is valid until the next datagram is read.
type message struct {
	kind, flags uint16
	seq         uint32
	data        []byte
}

// dial opens a socket of a netlink family in a namespace (an open file, or -1). It ends with ctx.
func dial(ctx context.Context, ns, family int) (*conn, error) {
	config := &netlink.Config{}
	if ns >= 0 {
		config.NetNS = ns
	}
	nl, err := netlink.Dial(family, config)
	if err != nil {
		return nil, err
	}
	raw, err := nl.SyscallConn()
	if err == nil {
		// Without it an error repeats the request.
		err = nl.SetOption(netlink.CapAcknowledge, true)
	}
	if err != nil {
		_ = nl.Close()
		return nil, err
	}
	c := &conn{nl: nl, raw: raw, ctx: ctx, in: make([]byte, bufferSize)}
	c.unwatch = context.AfterFunc(ctx, func() { _ = nl.Close() })
	return c, nil
}

func (c *conn) close() {
	c.unwatch()
	_ = c.nl.Close()
}

// fail says of an error of the socket whether it is only that ctx ended.
func (c *conn) fail(err error) error {
	if ended := c.ctx.Err(); ended != nil {
		return ended
	}
	return err
}

// send sends what stands in c.out, and empties it.
func (c *conn) send() error {
	var sent error
	err := c.raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), c.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return !again(sent)
	})
	c.out = c.out[:0]
	return c.fail(errors.Join(err, sent))
}

// receive reads one datagram, which is valid until the next call. It waits as long as the read deadline says.
func (c *conn) receive() ([]byte, error) {
	var n int
	var read error
	err := c.raw.Read(func(fd uintptr) bool {
		n, _, read = unix.Recvfrom(int(fd), c.in, unix.MSG_TRUNC)
		return !again(read)
	})
	if err == nil && read == nil && n > len(c.in) {
		read = fmt.Errorf("netlink datagram of %d bytes: want at most %d", n, len(c.in))
	}
	if err = errors.Join(err, read); err != nil {
		return nil, c.fail(err)
	}
	return c.in[:n], nil
}

// again says of a system call's error that it is to be tried again.
func again(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) }

// begin appends a message's header to c.out and returns where it starts; end writes the length into it.
func (c *conn) begin(kind, flags uint16) int {
	c.seq++
	start := len(c.out)
	c.out = append(c.out, make([]byte, headerSize)...)
	h := c.out[start:]
	binary.NativeEndian.PutUint16(h[4:], kind)
	binary.NativeEndian.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(h[8:], c.seq)
	return start
}

func (c *conn) end(start int) {
	binary.NativeEndian.PutUint32(c.out[start:], uint32(len(c.out)-start))
}

// ask makes n requests, a few at a time. body appends the i-th one's payload; answer hears what the kernel
// says to it: a message's payload, valid during the call only, or the kernel's error, or neither where the
// request was for doing something (flags has NLM_F_ACK). Requests must have exactly one of these answers.
// The error returned is of the socket.
func (c *conn) ask(kind, flags uint16, n int, body func(i int, b []byte) []byte, answer func(i int, data []byte, err error)) error {
	for first := 0; first < n; first += window {
		count := min(window, n-first)
		base := c.seq + 1
		for i := range count {
			start := c.begin(kind, flags)
			c.out = body(first+i, c.out)
			c.end(start)
		}
		if err := c.nl.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return c.fail(err)
		}
		if err := c.send(); err != nil {
			return err
		}
		for open := count; open > 0; {
			b, err := c.receive()
			if err != nil {
				return err
			}
			for m := range messages(b) {
				i := m.seq - base
				if i >= uint32(count) {
					continue // of an earlier request
				}
				open--
				if m.kind == unix.NLMSG_ERROR {
					answer(first+int(i), nil, errnoOf(m.data))
				} else {
					answer(first+int(i), m.data, nil)
				}
			}
		}
	}
	return nil
}

// dump asks for all objects of a kind and calls each with every one's payload, valid during the call only. An
// error of each ends it, and then the socket is of no more use.
func (c *conn) dump(kind uint16, body []byte, each func(data []byte) error) error {
	start := c.begin(kind, unix.NLM_F_DUMP)
	c.out = append(c.out, body...)
	c.end(start)
	if err := c.send(); err != nil {
		return err
	}
	for {
		if err := c.nl.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return c.fail(err)
		}
		b, err := c.receive()
		if err != nil {
			return err
		}
		for m := range messages(b) {
			switch {
			case m.seq != c.seq:
			case m.kind == unix.NLMSG_DONE, m.kind == unix.NLMSG_ERROR:
				return errnoOf(m.data)
			default:
				if err := each(m.data); err != nil {
					return err
				}
			}
		}
	}
}

// errnoOf reads the error that NLMSG_ERROR and NLMSG_DONE begin with; nil for 0.
func errnoOf(data []byte) error {
	if len(data) < 4 {
		return nil
	}
	if n := int32(binary.NativeEndian.Uint32(data)); n < 0 {
		return unix.Errno(-n)
	}
	return nil
}

// messages are those of a datagram, up to the first that is malformed.
func messages(b []byte) iter.Seq[message] {
	return func(yield func(message) bool) {
		for len(b) >= headerSize {
			n := int(binary.NativeEndian.Uint32(b))
			if n < headerSize || n > len(b) {
				return
			}
			m := message{
				kind:  binary.NativeEndian.Uint16(b[4:]),
				flags: binary.NativeEndian.Uint16(b[6:]),
				seq:   binary.NativeEndian.Uint32(b[8:]),
				data:  b[headerSize:n],
			}
			if !yield(m) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// attributes are those in b by type, without the flags in the type's upper bits, up to the first that is
// malformed.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if n < unix.SizeofNlAttr || n > len(b) || !yield(kind, b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// attribute appends one attribute.
func attribute(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	return append(b, make([]byte, align(len(data))-len(data))...)
}

func align(n int) int { return (n + 3) &^ 3 }
