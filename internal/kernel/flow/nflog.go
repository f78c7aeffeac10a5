package flow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

// Group is the NFLOG group to which the policy chains log.
const Group = 104

// Of linux/netfilter/nfnetlink_log.h.
const (
	logPacket = unix.NFNL_SUBSYS_ULOG << 8   // NFULNL_MSG_PACKET
	logConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG

	cfgCommand   = 1 // NFULA_CFG_CMD
	cfgMode      = 2
	cfgTimeout   = 4
	cfgThreshold = 5
	cfgFlags     = 6

	commandBind = 1 // NFULNL_CFG_CMD_BIND
	modePacket  = 2 // NFULNL_COPY_PACKET
	flagNumber  = 1 // NFULNL_CFG_F_SEQ

	logHeader   = 1 // NFULA_PACKET_HDR
	logIn       = 4
	logOut      = 5
	logPortIn   = 6
	logPortOut  = 7
	logPayload  = 9
	logPrefix   = 10
	logSequence = 12
)

const (
	// copyBytes of each packet are enough for an IPv6 header, a handful of extension headers, and ports.
	copyBytes = 256
	// delay and together bound how long packets wait in the kernel to be handed over in one datagram.
	delay    = 5 // hundredths of a second
	together = 32
	// logBuffer holds some thousand packets while the listener is busy, in bytes.
	logBuffer = 2 << 20
)

// Listen hears the packets of group 104 that carry a prefix of the policy chains, as kernel.Packets describes. The
// group is its own: a second listener is refused. What it hears of bridge ports it names by the port, not by the
// bridge. Packets that are not IP are not told.
func (d *Driver) Listen(ctx context.Context, seen func(kernel.Packet), missed func(int)) error {
	c, err := dial(ctx, d.ns, unix.NETLINK_NETFILTER)
	if err != nil {
		return listenError(ctx, err)
	}
	defer c.close()
	if err := c.nl.SetReadBuffer(logBuffer); err != nil {
		return listenError(ctx, err)
	}
	if err := c.bind(Group); err != nil {
		return listenError(ctx, err)
	}
	links := &linkNames{ctx: ctx, ns: d.ns}
	defer links.close()
	if err := c.nl.SetReadDeadline(time.Time{}); err != nil {
		return listenError(ctx, err)
	}

	var lost counter
	for {
		b, err := c.receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			if n := lost.overflow(); n > 0 {
				missed(n)
			}
			continue
		case err != nil:
			return listenError(ctx, err)
		}
		for m := range messages(b) {
			if m.kind != logPacket {
				continue
			}
			l := parseLog(m.data)
			if l.numbered {
				if n := lost.next(l.sequence); n > 0 {
					missed(n)
				}
			}
			if p, ok := l.packet(); ok {
				p.In, p.Out = links.name(l.in), links.name(l.out)
				seen(p)
			}
		}
	}
}

// listenError wraps what ended Listen; nil when that is ctx.
func listenError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("needs CAP_NET_ADMIN, and no other listener: %w", err)
	}
	return fmt.Errorf("listen to NFLOG group %d: %w", Group, err)
}

// bind makes the socket the listener of a group, with numbered packets.
func (c *conn) bind(group uint16) error {
	mode := binary.BigEndian.AppendUint32(nil, copyBytes)
	mode = append(mode, modePacket, 0)
	var answer error
	err := c.ask(logConfig, unix.NLM_F_ACK, 1, func(_ int, b []byte) []byte {
		b = append(b, unix.AF_UNSPEC, unix.NFNETLINK_V0)
		b = binary.BigEndian.AppendUint16(b, group)
		b = attribute(b, cfgCommand, []byte{commandBind})
		b = attribute(b, cfgMode, mode)
		b = attribute(b, cfgTimeout, binary.BigEndian.AppendUint32(nil, delay))
		b = attribute(b, cfgThreshold, binary.BigEndian.AppendUint32(nil, together))
		return attribute(b, cfgFlags, binary.BigEndian.AppendUint16(nil, flagNumber))
	}, func(_ int, _ []byte, err error) { answer = err })
	return errors.Join(err, answer)
}

// counter finds out how many packets the kernel dropped: by their numbers, which it counts on meanwhile.
// That an overflow happened is known before the next packet tells how much was lost.
type counter struct {
	want uint32 // the next packet's number; they begin at 0
	told int    // of the next gap
}

// overflow returns how many are certainly lost.
func (c *counter) overflow() int {
	if c.told > 0 {
		return 0
	}
	c.told = 1
	return 1
}

// next takes a packet's number and returns how many more were lost before it.
func (c *counter) next(number uint32) int {
	gap := int(number - c.want)
	c.want = number + 1
	if gap == 0 {
		return 0
	}
	gap -= c.told
	c.told = 0
	return max(gap, 0)
}
