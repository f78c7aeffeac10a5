package netlink

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

const (
	// tokenBucket is the queueing discipline that holds a link to a rate.
	tokenBucket = "tbf"
	atRoot      = 0xffffffff // TC_H_ROOT, linux/pkt_sched.h
	ethernet    = 1          // TC_LINKLAYER_ETHERNET
	// tickShift is the kernel's unit of time in messages about queues, as a shift: 64 ns.
	tickShift = 6
)

// newQueue asks for a token bucket in place of what the kernel put at the link's root.
func newQueue(index int, kind string, q *plan.Queue) *nl.NetlinkRequest {
	qopt := nl.TcTbfQopt{Limit: q.Limit}
	qopt.Rate.Linklayer = ethernet
	qopt.Rate.Rate = uint32(min(q.Rate, 1<<32-1))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_TBF_PARMS, qopt.Serialize())
	if q.Rate >= 1<<32 {
		options.AddRtAttr(nl.TCA_TBF_RATE64, nl.Uint64Attr(q.Rate))
	}
	options.AddRtAttr(nl.TCA_TBF_BURST, nl.Uint32Attr(q.Burst))
	return request(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		&nl.TcMsg{Family: unix.AF_UNSPEC, Ifindex: int32(index), Parent: atRoot},
		nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(kind)), options)
}

// queueError names what the kernel lacks.
func queueError(link string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("bandwidth on %s: the kernel has no token bucket filter (CONFIG_NET_SCH_TBF; modprobe sch_tbf): %w", link, err)
	}
	return fmt.Errorf("bandwidth on %s: %w", link, err)
}

// verifyQueue compares the link's root with a plan that wants a rate.
func verifyQueue(c *conn, index int, want *plan.Queue) error {
	if want == nil {
		return nil
	}
	dump, err := c.dump(request(unix.RTM_GETQDISC, 0, &nl.TcMsg{Family: unix.AF_UNSPEC}))
	if err != nil {
		return fmt.Errorf("bandwidth: %w", err)
	}
	for _, data := range dump {
		if len(data) < nl.SizeofTcMsg {
			continue
		}
		if msg := nl.DeserializeTcMsg(data); int(msg.Ifindex) != index || msg.Parent != atRoot {
			continue
		}
		return sameQueue(data[nl.SizeofTcMsg:], want)
	}
	return fmt.Errorf("bandwidth: no queue at the root, want %s", tokenBucket)
}

// sameQueue compares a queue's attributes with the plan.
func sameQueue(data []byte, want *plan.Queue) error {
	attrs, err := nl.ParseRouteAttr(data)
	if err != nil {
		return fmt.Errorf("bandwidth: %w", err)
	}
	kind, have := "", (*nl.TcTbfQopt)(nil)
	rate := uint64(0)
	for _, a := range attrs {
		switch a.Attr.Type & attrTypeMask {
		case nl.TCA_KIND:
			kind = unix.ByteSliceToString(a.Value)
		case nl.TCA_OPTIONS:
			options, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return fmt.Errorf("bandwidth: %w", err)
			}
			for _, o := range options {
				switch {
				case o.Attr.Type == nl.TCA_TBF_PARMS && len(o.Value) >= nl.SizeofTcTbfQopt:
					have = nl.DeserializeTcTbfQopt(o.Value)
				case o.Attr.Type == nl.TCA_TBF_RATE64 && len(o.Value) >= 8:
					rate = nl.NativeEndian().Uint64(o.Value)
				}
			}
		}
	}
	if kind != tokenBucket || have == nil {
		return fmt.Errorf("bandwidth: the queue at the root is %s, want %s", kind, tokenBucket)
	}
	if rate == 0 {
		rate = uint64(have.Rate.Rate)
	}
	if rate != want.Rate || have.Limit != want.Limit || !sameBurst(have.Buffer, want) {
		return fmt.Errorf("bandwidth: the queue has rate %d, limit %d and bucket %d, want rate %d, limit %d and bucket %d",
			rate, have.Limit, have.Buffer, want.Rate, want.Limit, bucket(want))
	}
	return nil
}

// bucket is a burst as the kernel says it: the time in which it passes at the rate, in ticks, of which a message holds
// the lower 32 bits.
func bucket(q *plan.Queue) uint32 {
	const second = 1_000_000_000
	ns := uint64(q.Burst)/q.Rate*second + uint64(q.Burst)%q.Rate*second/q.Rate
	return uint32(ns >> tickShift)
}

// sameBurst allows for what the kernel rounds.
func sameBurst(have uint32, want *plan.Queue) bool {
	w := bucket(want)
	off := int32(have - w)
	return off <= int32(w>>12)+2 && -off <= int32(w>>12)+2
}
