package bgp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/heddle-net/heddle/internal/peering"
)

// liar is a neighbour that speaks BGP as it likes. It waits for connections.
type liar struct {
	t     *testing.T
	n     int
	calls atomic.Int32 // connections that came
}

// newLiar is the nth node, of AS 65000+n; say is called once for every session that stands.
func newLiar(t *testing.T, n int, say func(c net.Conn)) *liar {
	t.Helper()
	needRoot(t)
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at(n), 179)))
	if err != nil {
		t.Fatal(err)
	}
	x := &liar{t: t, n: n}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			x.calls.Add(1)
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			if x.open(c) {
				say(c)
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return x
}

// greet says the first words of the opening of a session: OPEN, and then KEEPALIVE.
func (x *liar) greet(c net.Conn, words int) bool {
	as := uint16(65000 + x.n)
	m, err := bgp.NewBGPOpenMessage(as, 90, at(x.n), []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability([]bgp.ParameterCapabilityInterface{
		bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC), bgp.NewCapFourOctetASNumber(uint32(as)),
		bgp.NewCapGracefulRestart(false, false, 120, []*bgp.CapGracefulRestartTuple{bgp.NewCapGracefulRestartTuple(bgp.RF_IPv4_UC, true)}),
	})})
	if err != nil {
		x.t.Error(err)
		return false
	}
	for _, m := range []*bgp.BGPMessage{m, bgp.NewBGPKeepAliveMessage()}[:words] {
		b, _ := m.Serialize()
		if _, err := c.Write(b); err != nil {
			return false
		}
	}
	return true
}

// open takes part in the opening of a session.
func (x *liar) open(c net.Conn) bool {
	if !x.greet(c, 2) {
		return false
	}
	for range 2 { // OPEN, KEEPALIVE
		head := make([]byte, 19)
		if _, err := io.ReadFull(c, head); err != nil {
			return false
		}
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(head[16:]))-19); err != nil {
			return false
		}
	}
	return true
}

// update is an UPDATE message as bytes. hop is the next hop.
func (x *liar) update(hop netip.Addr, prefixes ...netip.Prefix) []byte {
	next, _ := bgp.NewPathAttributeNextHop(hop)
	var nlri []bgp.PathNLRI
	for _, p := range prefixes {
		n, _ := bgp.NewIPAddrPrefix(p)
		nlri = append(nlri, bgp.PathNLRI{NLRI: n})
	}
	path := bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{uint32(65000 + x.n)})})
	b, err := bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(0), path, next}, nlri).Serialize()
	if err != nil {
		x.t.Error(err)
	}
	return b
}

// victim is a speaker with an honest neighbour, node 2, and the liar, node 9. check fails when the honest one was
// disturbed.
func victim(t *testing.T, change func(*peering.Neighbor)) (x *node, check func()) {
	t.Helper()
	x = newNode(t, 1, "10.244.1.0/26").knows(at(2), func(n *peering.Neighbor) { n.Node = "n2" })
	x.plan.Own = []netip.Prefix{prefix("10.99.0.1/32"), prefix("10.244.1.0/26")}
	x.speak()
	newNode(t, 2, "10.244.2.0/26").knows(at(1), nil).speak()
	until(t, "the honest neighbor is there", func() bool { return x.best("10.244.2.0/26") == "10.99.0.2" })
	since := x.status(at(2)).Since
	x.knows(at(9), func(n *peering.Neighbor) {
		n.RemoteASN = 65009
		if change != nil {
			change(n)
		}
	})
	x.apply()
	return x, func() {
		t.Helper()
		if s := x.status(at(2)); x.best("10.244.2.0/26") != "10.99.0.2" || s.Flaps != 0 || s.Since != since {
			t.Errorf("the honest neighbor was disturbed: %v, %+v", x.to("10.244.2.0/26"), s)
		}
	}
}

func TestLiesAreNotBelieved(t *testing.T) {
	lies := []string{"0.0.0.0/0", "10.99.0.1/32", "10.99.0.0/16", "10.244.1.0/26", "10.244.1.7/32", "127.0.0.0/8", "224.0.0.0/4", "169.254.0.0/16"}
	var liar *liar
	liar = newLiar(t, 9, func(c net.Conn) {
		for _, p := range append(lies, "192.0.2.0/24") {
			_, _ = c.Write(liar.update(at(9), prefix(p)))
		}
		_, _ = c.Write(liar.update(at(1), prefix("203.0.113.0/24"))) // by us
		_, _ = io.Copy(io.Discard, c)
	})
	x, check := victim(t, nil)
	until(t, "what is no lie is believed", func() bool { return x.best("192.0.2.0/24") == "10.99.0.9" })
	until(t, "all is there", func() bool { return len(x.to("203.0.113.0/24")) == 1 })
	for _, p := range append(lies, "203.0.113.0/24") {
		for _, r := range x.to(p) {
			if r.Best || !r.Rejected || r.Reason == "" {
				t.Errorf("%s is believed: %+v", p, r)
			}
		}
	}
	check()
}

func TestAMillionPrefixesEndTheSessionAndNothingElse(t *testing.T) {
	told := make(chan int, 16)
	var liar *liar
	liar = newLiar(t, 9, func(c net.Conn) {
		go func() { _, _ = io.Copy(io.Discard, c) }()
		n := 0
		defer func() { told <- n }()
		for n < 1_000_000 {
			var some []netip.Prefix
			for range 200 {
				some = append(some, netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(n >> 16), byte(n >> 8), byte(n)}), 32))
				n++
			}
			if _, err := c.Write(liar.update(at(9), some...)); err != nil {
				return
			}
		}
	})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	x, check := victim(t, nil)
	until(t, "the session is ended for it", func() bool {
		s := x.status(at(9))
		return s.State == peering.Idle && strings.Contains(s.Failure, "more than 20000 prefixes") && strings.Contains(s.Failure, "no new try for 1m")
	})
	sent := <-told
	until(t, "its routes are gone", func() bool { return len(x.Routes()) == 1 })
	check()
	calls := liar.calls.Load()
	stays(t, "it is left alone", 3*time.Second, func() bool { return liar.calls.Load() == calls })
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) >> 20
	t.Logf("it got rid of %d prefixes; the heap holds %d MiB more, and the process has %d MiB from the system, %d MiB before", sent, grown, after.Sys>>20, before.Sys>>20)
	if grown > 64 {
		t.Errorf("the heap grew by %d MiB", grown)
	}
	if after.Sys > before.Sys+256<<20 {
		t.Errorf("the process took %d MiB more from the system: the flood was ended too late", (after.Sys-before.Sys)>>20)
	}
	check()
}

func TestBrokenMessagesEndTheirSessionOnly(t *testing.T) {
	message := func(kind byte, body []byte) []byte {
		b := append(bytes.Repeat([]byte{0xff}, 16), 0, 0, kind)
		b = append(b, body...)
		binary.BigEndian.PutUint16(b[16:], uint16(len(b)))
		return b
	}
	broken := map[string][]byte{
		"no marker":                 append(make([]byte, 16), 0, 19, 4),
		"a length too big":          append(bytes.Repeat([]byte{0xff}, 16), 0xff, 0xff, 2),
		"a length too small":        append(bytes.Repeat([]byte{0xff}, 16), 0, 3, 2),
		"no such type":              message(77, nil),
		"an empty update":           message(2, nil),
		"attributes beyond the end": message(2, []byte{0, 0, 0xff, 0xff, 1, 2, 3}),
		"a prefix too long":         message(2, []byte{0, 0, 0, 0, 77, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}),
	}
	for name, b := range broken {
		t.Run(name, func(t *testing.T) {
			newLiar(t, 9, func(c net.Conn) {
				_, _ = c.Write(b)
				_, _ = io.Copy(io.Discard, c)
			})
			x, check := victim(t, nil)
			until(t, "the status says what was wrong", func() bool {
				s := x.status(at(9))
				return s.Flaps > 0 && s.Failure != "" && !vague(s.Failure)
			})
			t.Log(x.status(at(9)).Failure)
			check()
		})
	}
}

func TestAFlappingNeighborIsLeftAlone(t *testing.T) {
	liar := newLiar(t, 9, func(net.Conn) { time.Sleep(200 * time.Millisecond) })
	x, check := victim(t, nil)
	until(t, "it is held off, and the status says why", func() bool {
		s := x.status(at(9))
		return s.State == peering.Idle && strings.Contains(s.Failure, fmt.Sprintf("%d sessions in a row lasted less than", shortOnes)) && strings.Contains(s.Failure, "no new try for 15s")
	})
	calls := liar.calls.Load()
	stays(t, "nobody calls it", 3*time.Second, func() bool { return liar.calls.Load() == calls })
	check()
	until(t, "it is called again after the pause", func() bool { return liar.calls.Load() > calls })
	check()
}

// TestHalfOpenSessionIsTriedAgain: a neighbor that opens a session and never confirms it, as one that waits for another
// connection that has crossed this one, does not keep the session down for the length of the hold timer.
func TestHalfOpenSessionIsTriedAgain(t *testing.T) {
	t.Parallel()
	needRoot(t)
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at(62), 179)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		silent := &liar{t: t, n: 62}
		for calls := 0; ; calls++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
			if calls == 0 {
				silent.greet(c, 1) // OPEN, and no KEEPALIVE
			} else {
				silent.open(c)
			}
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	x := newNode(t, 61).knows(at(62), func(n *peering.Neighbor) { n.RemoteASN = 65062 }).speak()
	until(t, "the session is given up, and why", func() bool { return strings.Contains(x.status(at(62)).Failure, crossedCause) })
	x.untilUp(at(62))
	x.stop() // before the listener waits for its end
}
