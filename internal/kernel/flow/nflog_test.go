package flow

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

// listen runs Listen until the test ends, or stop is called.
func (s space) listen(seen func(kernel.Packet), missed func(int)) (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.driver().Listen(ctx, seen, missed) }()
	var stopped atomic.Bool
	stop = func() {
		if stopped.Swap(true) {
			return
		}
		cancel()
		select {
		case err := <-done:
			if err != nil {
				s.t.Errorf("listen: %v, want nil after its context ended", err)
			}
		case <-time.After(10 * time.Second):
			s.t.Error("listen does not end with its context")
		}
	}
	s.t.Cleanup(stop)
	for end := time.Now().Add(10 * time.Second); !s.heard(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatal("nobody listens after 10 s")
		}
	}
	return stop
}

// heard tells whether somebody listens to the group.
func (s space) heard() (yes bool) {
	s.t.Helper()
	s.do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_log")
		for line := range strings.Lines(string(text)) {
			yes = yes || strings.HasPrefix(strings.TrimSpace(line), "104 ")
		}
		return err
	})
	return yes
}

// logRules log and drop in every hook of a host, UDP to ports that name the hook.
const logRules = `
table inet hear {
	chain forward {
		type filter hook forward priority 1
		udp dport 1001 log prefix "heddle deny forward" group 104 drop
		udp dport 1011 log prefix "heddle allow forward" group 104
		udp dport 1021 log prefix "somebody else" group 104
		icmp type echo-request log prefix "heddle deny forward" group 104
		icmpv6 type echo-request log prefix "heddle deny forward" group 104
	}
	chain input {
		type filter hook input priority 1
		udp dport 1002 log prefix "heddle deny input" group 104 drop
	}
	chain output {
		type filter hook output priority 1
		udp dport 1003 log prefix "heddle deny output" group 104 drop
	}
	chain prerouting {
		type filter hook prerouting priority raw
		udp dport 1004 log prefix "heddle deny prerouting" group 104 drop
	}
}`

// send sends one UDP packet.
func (s space) send(to netip.AddrPort, n int, payload int) (from netip.AddrPort) {
	s.t.Helper()
	s.do(func() error {
		conn, err := net.Dial("udp", to.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		from = conn.LocalAddr().(*net.UDPAddr).AddrPort()
		for range n {
			// A drop on the way out is told to the sender as EPERM; the other is that nobody takes it.
			if _, err := conn.Write(make([]byte, payload)); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
		return nil
	})
	return from
}

func TestListenHearsWhatTheChainsLog(t *testing.T) {
	l := newLab(t)
	l.host.nft(logRules)
	packets := make(chan kernel.Packet, 100)
	l.host.listen(func(p kernel.Packet) { packets <- p }, func(n int) { t.Errorf("missed %d", n) })
	expect := func(want kernel.Packet) {
		t.Helper()
		select {
		case got := <-packets:
			if got != want {
				t.Errorf("heard %+v\n want %+v", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("not heard: %+v", want)
		}
	}
	for _, v6 := range []bool{false, true} {
		header := map[bool]int{false: 20, true: 40}[v6]
		a, b, gateway := l.a.addr(v6), l.b.addr(v6), netip.MustParseAddr("10.9.1.254")
		if v6 {
			gateway = netip.MustParseAddr("fd09:1::254")
		}
		udp := func(s space, to netip.AddrPort, want kernel.Packet) {
			t.Helper()
			want.Src, want.Dst = s.send(to, 1, 100), to
			want.Protocol, want.Length = unix.IPPROTO_UDP, header+8+100
			expect(want)
		}
		udp(l.a.space, netip.AddrPortFrom(b, 1001), kernel.Packet{Denied: true, Hook: "forward", In: "p1", Out: "p2"})
		udp(l.a.space, netip.AddrPortFrom(b, 1011), kernel.Packet{Hook: "forward", In: "p1", Out: "p2"})
		l.a.send(netip.AddrPortFrom(b, 1021), 1, 0) // is another's
		udp(l.a.space, netip.AddrPortFrom(gateway, 1002), kernel.Packet{Denied: true, Hook: "input", In: "p1"})
		udp(l.host, netip.AddrPortFrom(a, 1003), kernel.Packet{Denied: true, Hook: "output", Out: "p1"})
		udp(l.a.space, netip.AddrPortFrom(b, 1004), kernel.Packet{Denied: true, Hook: "prerouting", In: "p1"})

		s := l.streams(v6, 53)[1]
		s.answers(t, 1, 5*time.Second)
		expect(kernel.Packet{
			Denied: true, Hook: "forward", In: "p1", Out: "p2",
			Protocol: s.flow.Protocol, Src: s.flow.Src, Dst: s.flow.Dst, Length: header + 8,
		})
	}
	if len(packets) > 0 {
		t.Errorf("heard also %+v", <-packets)
	}
}

func TestListenNamesTheBridgePort(t *testing.T) {
	l := newBridgeLab(t)
	l.host.nft(`table bridge hear { chain prerouting { type filter hook prerouting priority 0; log prefix "heddle deny prerouting" group 104 drop; }; }`)
	packets := make(chan kernel.Packet, 100)
	l.host.listen(func(p kernel.Packet) { packets <- p }, func(int) {})
	l.a.run("ip", "neigh", "replace", l.b.v4.String(), "dev", "eth0", "lladdr", "02:00:00:00:00:01")
	l.a.send(netip.MustParseAddrPort("10.9.77.77:9"), 1, 0) // asks by ARP, which is logged as well, but not told
	to := netip.AddrPortFrom(l.b.v4, 1001)
	want := kernel.Packet{
		Denied: true, Hook: "prerouting", In: "p1", Protocol: unix.IPPROTO_UDP,
		Src: l.a.send(to, 1, 100), Dst: to, Length: 128,
	}
	for {
		select {
		case p := <-packets:
			if p == want {
				return
			}
			if p.Protocol != unix.IPPROTO_ICMPV6 || p.In != "p1" && p.In != "p2" { // neighbour discovery
				t.Errorf("heard %+v, want %+v", p, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("not heard: %+v", want)
		}
	}
}

// TestListenCountsWhatItMisses floods a listener that does not keep up.
func TestListenCountsWhatItMisses(t *testing.T) {
	l := newLab(t)
	l.host.nft(logRules)
	var heard, missed atomic.Int64
	gate := make(chan struct{})
	l.host.listen(func(kernel.Packet) {
		heard.Add(1)
		<-gate
	}, func(n int) { missed.Add(int64(n)) })
	const flood = 40000
	to := netip.AddrPortFrom(l.b.v4, 1001)
	l.a.send(to, flood, 64)
	close(gate)
	deadline := time.Now().Add(20 * time.Second)
	sent := int64(flood)
	for heard.Load()+missed.Load() < sent && time.Now().Before(deadline) {
		l.a.send(to, 1, 64) // what was lost at the end shows with the next packet
		sent++
		time.Sleep(200 * time.Millisecond)
	}
	t.Logf("heard %d, missed %d of %d", heard.Load(), missed.Load(), sent)
	if heard.Load()+missed.Load() != sent || missed.Load() == 0 {
		t.Errorf("heard %d, missed %d of %d: want every packet in one of them, and some missed", heard.Load(), missed.Load(), sent)
	}
}

func TestListenRefusesASecondListener(t *testing.T) {
	s := newSpace(t)
	stop := s.listen(func(kernel.Packet) {}, func(int) {})
	err := s.driver().Listen(t.Context(), func(kernel.Packet) {}, func(int) {})
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBUSY) {
		t.Errorf("second listener: %v", err)
	}
	stop()
	short, end := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer end()
	if err := s.driver().Listen(short, func(kernel.Packet) {}, func(int) {}); err != nil {
		t.Errorf("after the first one ended: %v", err)
	}
}

func TestCounterAgreesWithTheKernelsNumbers(t *testing.T) {
	for _, c := range []struct {
		name    string
		numbers []int64 // -1: an overflow
		want    int
	}{
		{"all there", []int64{0, 1, 2}, 0},
		{"one missing", []int64{0, 2}, 1},
		{"the first missing", []int64{3, 4}, 3},
		{"an overflow is told at once", []int64{0, -1}, 1},
		{"and not twice", []int64{0, -1, 1, -1, 2, 8}, 5},
		{"two overflows", []int64{0, -1, 3, -1, 5}, 3},
		{"round the clock", []int64{0, 1<<32 - 1, 0, 1}, 1<<32 - 2},
	} {
		var n counter
		got := 0
		for _, number := range c.numbers {
			if number < 0 {
				got += n.overflow()
			} else {
				got += n.next(uint32(number))
			}
		}
		if got != c.want {
			t.Errorf("%s: %d missed, want %d", c.name, got, c.want)
		}
	}
}

func TestNamesFollowTheKernel(t *testing.T) {
	s := newSpace(t)
	s.run("ip", "link", "add", "one", "type", "bridge")
	links := &linkNames{ctx: t.Context(), ns: s.fd}
	defer links.close()
	index, err := interfaces(t.Context(), s.fd)
	if err != nil {
		t.Fatal(err)
	}
	last := index[len(index)-1]
	for _, c := range []struct {
		index uint32
		want  string
	}{{1, "lo"}, {last, "one"}, {0, ""}, {last + 1000, ""}} {
		if got := links.name(c.index); got != c.want {
			t.Errorf("interface %d: %q, want %q", c.index, got, c.want)
		}
	}
	s.run("ip", "link", "set", "one", "name", "two")
	links.since = links.since.Add(-namesAge - time.Second)
	if got := links.name(last); got != "two" {
		t.Errorf("renamed: %q", got)
	}
	for i := range uint32(namesMax) {
		links.name(1_000_000 + i)
	}
	if n := len(links.names); n > namesMax {
		t.Errorf("%d names kept: want at most %d", n, namesMax)
	}
}
