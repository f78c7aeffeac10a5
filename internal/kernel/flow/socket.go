package flow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Of linux/inet_diag.h: struct inet_diag_req_v2 and struct inet_diag_msg have the socket's identity in them.
const (
	diagRequestSize = 56
	diagIDSize      = 48 // struct inet_diag_sockid
	diagIDOffset    = 8  // in the request
	diagStateOffset = 1  // in the answer
	diagAnswerID    = 4  // in the answer
	diagInterface   = 36 // in the identity
	diagCookie      = 40 // in the identity

	// States of linux/tcp_states.h.
	tcpEstablished = 1
	tcpFinWait1    = 4
	tcpFinWait2    = 5
	tcpCloseWait   = 8
	tcpListen      = 10
)

// end is one end of a TCP connection of the batch, as its own socket sees it.
type end struct {
	entry       int // in the batch
	local, peer netip.AddrPort
	// id is the socket's, by the kernel's own number for it; nil when there is none.
	id    []byte
	state uint8
}

// destroySockets destroys the sockets of the batch's TCP flows, on both ends as far as they are local. It returns the
// entries of which an end sends a reset.
func (c *cut) destroySockets() ([]int, error) {
	ends := map[netip.Addr][]end{}
	for i := range c.batch {
		e := &c.batch[i]
		if e.orig.protocol != unix.IPPROTO_TCP {
			continue
		}
		for _, t := range []tuple{e.orig, e.reply} {
			ends[t.src.Addr()] = append(ends[t.src.Addr()], end{entry: i, local: t.src, peer: t.dst})
		}
	}
	if len(ends) == 0 || !c.canDestroy() {
		return nil, nil
	}
	var reset []int
	var host []end // of nobody known: the host itself, or somewhere else
	for addr, list := range ends {
		ns := c.netns(addr)
		if ns == nil {
			host = append(host, list...)
			continue
		}
		sent, err := c.destroyIn(int(ns.Fd()), true, list)
		_ = ns.Close()
		if err != nil {
			if ended := c.ctx.Err(); ended != nil {
				return nil, ended
			}
			c.note(fmt.Errorf("sockets of workload %s: %w", addr, err))
		}
		reset = append(reset, sent...)
	}
	sent, err := c.destroyIn(c.ns, false, host)
	return append(reset, sent...), err
}

// destroyIn destroys the sockets of one namespace. bound says that also those are wanted that are bound to
// an interface: a workload could keep a connection by that.
func (c *cut) destroyIn(ns int, bound bool, ends []end) ([]int, error) {
	if len(ends) == 0 {
		return nil, nil
	}
	diag, err := dial(c.ctx, ns, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer diag.close()
	if err := diag.find(c.protocol, ends, 0); err != nil {
		return nil, err
	}
	if bound && !allFound(ends) {
		links, err := interfaces(c.ctx, ns)
		if err != nil {
			return nil, err
		}
		for _, index := range links {
			if err := diag.find(c.protocol, ends, index); err != nil {
				return nil, err
			}
		}
	}
	var found []end
	for _, e := range ends {
		if e.id != nil {
			found = append(found, e)
		}
	}
	var reset []int
	err = diag.ask(unix.SOCK_DESTROY, unix.NLM_F_ACK, len(found),
		func(i int, b []byte) []byte { return appendDiag(b, c.protocol, &found[i]) },
		func(i int, _ []byte, err error) {
			switch {
			case err == nil && resets(found[i].state):
				reset = append(reset, found[i].entry)
			case err == nil, errors.Is(err, unix.ENOENT): // gone since it was found
			default:
				c.note(fmt.Errorf("socket %s to %s: %w", found[i].local, found[i].peer, err))
			}
		})
	return reset, err
}

// find looks for those sockets that were not found yet, bound to the interface (0: to none).
func (c *conn) find(protocol uint8, ends []end, index uint32) error {
	var missing []*end
	for i := range ends {
		if ends[i].id == nil {
			missing = append(missing, &ends[i])
		}
	}
	return c.ask(unix.SOCK_DIAG_BY_FAMILY, 0, len(missing),
		func(i int, b []byte) []byte {
			start := len(b) + diagIDOffset
			b = appendDiag(b, protocol, missing[i])
			binary.NativeEndian.PutUint32(b[start+diagInterface:], index)
			return b
		},
		func(i int, data []byte, err error) {
			// Where no connection matches, the kernel answers with who listens on the port; destroying that is not
			// what was asked for.
			if err != nil || len(data) < diagAnswerID+diagIDSize || data[diagStateOffset] == tcpListen {
				return
			}
			missing[i].state = data[diagStateOffset]
			missing[i].id = append([]byte(nil), data[diagAnswerID:diagAnswerID+diagIDSize]...)
		})
}

// appendDiag appends struct inet_diag_req_v2 for a socket: by its identity where that is known, else by addresses.
func appendDiag(b []byte, protocol uint8, e *end) []byte {
	family := byte(unix.AF_INET6)
	if e.local.Addr().Is4() {
		family = unix.AF_INET
	}
	b = append(b, family, protocol, 0, 0, 0xff, 0xff, 0xff, 0xff)
	if e.id != nil {
		return append(b, e.id...)
	}
	b = binary.BigEndian.AppendUint16(b, e.local.Port())
	b = binary.BigEndian.AppendUint16(b, e.peer.Port())
	for _, a := range []netip.Addr{e.local.Addr(), e.peer.Addr()} {
		raw := a.AsSlice()
		b = append(b, raw...)
		b = append(b, make([]byte, 16-len(raw))...)
	}
	b = append(b, 0, 0, 0, 0)                                        // interface
	return append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // INET_DIAG_NOCOOKIE
}

// resets tells the states in which a socket that is destroyed sends a reset.
func resets(state uint8) bool {
	switch state {
	case tcpEstablished, tcpFinWait1, tcpFinWait2, tcpCloseWait:
		return true
	}
	return false
}

func allFound(ends []end) bool {
	for i := range ends {
		if ends[i].id == nil {
			return false
		}
	}
	return true
}

// interfaces lists the interfaces of a namespace by index.
func interfaces(ctx context.Context, ns int) ([]uint32, error) {
	c, err := dial(ctx, ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer c.close()
	var out []uint32
	err = c.dump(unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(data []byte) error {
		if len(data) >= unix.SizeofIfInfomsg {
			out = append(out, binary.NativeEndian.Uint32(data[4:]))
		}
		return nil
	})
	return out, err
}

// canDestroy tells whether the kernel can destroy sockets; the first time it asks, and warns when not.
func (c *cut) canDestroy() bool {
	if c.destroys != nil {
		return *c.destroys
	}
	diag, err := dial(c.ctx, c.Driver.ns, unix.NETLINK_SOCK_DIAG)
	if err == nil {
		defer diag.close()
		err = diag.probe(c.protocol)
	}
	yes := err == nil
	switch {
	case yes:
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPROTONOSUPPORT):
		c.log.Warn("the kernel cannot destroy sockets: a TCP connection that policy denies now is forgotten, but its ends see no reset",
			"want", "CONFIG_INET_DIAG_DESTROY, and the module tcp_diag", "error", err)
	default: // asked again next time
		c.note(fmt.Errorf("whether sockets can be destroyed: %w", err))
		return false
	}
	c.destroys = &yes
	return yes
}

// probe returns the kernel's reason why it cannot destroy a protocol's sockets, nil when it can.
func (c *conn) probe(protocol uint8) error {
	nobody := end{local: netip.AddrPortFrom(netip.IPv4Unspecified(), 0), peer: netip.AddrPortFrom(netip.IPv4Unspecified(), 0)}
	request := appendDiag(nil, protocol, &nobody)
	// That the kernel does not know the protocol, and that there is no such socket, are the same answer; so it
	// is asked for sockets in no state at all first.
	none := append([]byte(nil), request...)
	binary.NativeEndian.PutUint32(none[4:], 0)
	if err := c.dump(unix.SOCK_DIAG_BY_FAMILY, none, func([]byte) error { return nil }); err != nil {
		return err
	}
	var answer error
	err := c.ask(unix.SOCK_DESTROY, unix.NLM_F_ACK, 1, func(_ int, b []byte) []byte { return append(b, request...) },
		func(_ int, _ []byte, err error) { answer = err })
	if err == nil && !errors.Is(answer, unix.ENOENT) {
		err = answer
	}
	return err
}
