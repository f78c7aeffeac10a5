package filter

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/policy"
)

// churn makes differences as a compiler does: with each, a gets another identity, b another row towards it,
// made anew with its ports and ranges, and what they were goes. What is allowed and denied stays the same:
// port 1000 and 3000 to 3999 are allowed, port 2000 and 4000 to 4999 are not, whatever the default.
type churn struct {
	id  policy.ID
	row policy.Row
	num uint32
}

func (c *churn) entries() (map[policy.L4Key]policy.Decision, policy.Decision) {
	other := allow
	if c.num%2 == 0 {
		other = deny
	}
	udp := func(r policy.PortRange) policy.L4Key {
		return policy.L4Key{Row: c.row, Protocol: 17, Src: policy.AllPorts, Dst: r}
	}
	return map[policy.L4Key]policy.Decision{udp(port(1000)): allow, udp(port(2000)): deny, udp(ports(3000, 3999)): allow, udp(ports(4000, 4999)): deny}, other
}

func (c *churn) next() *policy.Delta {
	d := &policy.Delta{
		Rows: policy.Change[policy.RowKey, policy.Row]{Put: map[policy.RowKey]policy.Row{}, Del: map[policy.RowKey]struct{}{}},
		L4:   policy.Change[policy.L4Key, policy.Decision]{Del: map[policy.L4Key]struct{}{}},
	}
	if c.num > 0 {
		old, _ := c.entries()
		for k := range old {
			d.L4.Del[k] = struct{}{}
		}
		d.Base.Del = map[policy.Row]struct{}{c.row: {}}
		d.Rows.Del[policy.RowKey{Local: in(b4), ID: c.id}] = struct{}{}
	}
	c.num++
	c.id, c.row = policy.ID(c.num%7+1), policy.Row(c.num%9+10)
	d.Identities.Put = map[netip.Addr]policy.ID{addr(a4): c.id}
	d.Rows.Put[policy.RowKey{Local: in(b4), ID: c.id}] = c.row
	entries, other := c.entries()
	d.L4.Put = entries
	d.Base.Put = map[policy.Row]policy.Decision{c.row: other}
	return d
}

// TestUpdatesAreAtomic: while differences follow one another, each packet of a is the first of its flow.
func TestUpdatesAreAtomic(t *testing.T) {
	w := newWorld(t, false)
	d := w.node.driver(true)
	apply(t, d, &policy.Table{Locals: map[policy.Local]policy.Row{in(b4): 1}, Base: map[policy.Row]policy.Decision{1: deny}, Sources: sources()})
	c := &churn{}
	must(t, d.Update(t.Context(), c.next()))

	var got [4]atomic.Int64
	dports := [4]uint16{1000, 3500, 2000, 4500}
	for i, dport := range dports {
		var s net.PacketConn
		must(t, w.b.inside(func() (err error) {
			s, err = net.ListenPacket("udp4", net.JoinHostPort(b4, itoa(dport)))
			if err != nil {
				return err
			}
			raw, err := s.(*net.UDPConn).SyscallConn()
			if err != nil {
				return err
			}
			return raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
			})
		}))
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 100)
			for {
				if _, _, err := s.ReadFrom(buf); err != nil {
					return
				}
				got[i].Add(1)
			}
		}()
		t.Cleanup(func() { _ = s.Close(); <-done })
	}

	ctx, stop := context.WithCancel(t.Context())
	updated := make(chan error, 1)
	var updates atomic.Int64
	go func() {
		for ctx.Err() == nil {
			if err := d.Update(context.Background(), c.next()); err != nil {
				updated <- err
				return
			}
			updates.Add(1)
			time.Sleep(200 * time.Microsecond)
		}
		updated <- nil
	}()
	send := w.a.raw("eth0")
	const each = 20_000
	for i := range each {
		for _, dport := range dports {
			frame := packet(macRouter, macA, a4, b4, 17, 64, udp(uint16(10_000+i), dport, binary.BigEndian.AppendUint32(nil, uint32(i))))
			must(t, sendFrame(send, frame))
		}
		if i%20 == 0 {
			time.Sleep(time.Millisecond)
			// On a busy machine the queue between two interfaces runs over: that is no loss by policy.
			for end := time.Now().Add(20 * time.Millisecond); got[0].Load() < int64(i-100) && time.Now().Before(end); {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
	stop()
	must(t, <-updated)
	eventually(t, "what is allowed has arrived", func() bool { return got[0].Load() == each && got[1].Load() == each })
	if got[2].Load() != 0 || got[3].Load() != 0 {
		t.Errorf("%d and %d packets passed that are denied", got[2].Load(), got[3].Load())
	}
	t.Logf("%d packets, %d updates; of what is allowed %d and %d arrived", each*len(dports), updates.Load(), got[0].Load(), got[1].Load())
	if updates.Load() < 100 {
		t.Error("hardly any updates")
	}
}

func itoa(n uint16) string { return wordOf("inet_service", be16(n)) }
