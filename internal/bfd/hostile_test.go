package bfd

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/peering"
)

// gun opens a socket in a machine from which anything can be sent to an address, with a TTL.
func (l lab) gun(ns string, to Session, ttl int) func([]byte) {
	l.Helper()
	fd := l.socket(ns, to)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, ttl); err != nil {
		l.Fatal(err)
	}
	return func(b []byte) { _, _ = unix.Write(fd, b) }
}

// TestForgedPacketsChangeNothing sends, in floods, what must not disturb a session that is up; and at the end
// one packet that must, as a check of the weapon.
func TestForgedPacketsChangeNothing(t *testing.T) {
	l := newLab(t)
	near, far := l.watch(l.near), l.watch(l.far)
	calm := peering.BFD{Transmit: 500 * ms, Receive: 500 * ms, Multiplier: 10} // a busy machine loses no session
	there, back := sessions(calm)[:1], mirrored(calm)[:1]
	if err := near.Set(there); err != nil {
		t.Fatal(err)
	}
	if err := far.Set(back); err != nil {
		t.Fatal(err)
	}
	l.wait(near, Up, there...)
	l.wait(far, Up, back...)
	near.Watch.mu.Lock()
	mine := near.sessions[there[0].Peer].mine
	near.Watch.mu.Unlock()

	shot := back[0]
	aimed := Packet{State: Down, Multiplier: 3, Mine: 666, Yours: mine, MinTx: time.Second, MinRx: time.Second}
	unaimed := aimed
	unaimed.Yours = 0
	other := aimed
	other.Yours = mine + 1
	locked := aimed.Marshal()
	locked[1] |= bitAuth
	locked[3] = 26
	locked = append(locked, 1, 2)
	elsewhere := shot // another source than the neighbor's
	elsewhere.Local = netip.MustParseAddr("10.66.2.2")
	for name, flood := range map[string]struct {
		fire func([]byte)
		b    []byte
	}{
		"TTL 254":                  {l.gun(l.far, shot, 254), aimed.Marshal()},
		"TTL 64, no discriminator": {l.gun(l.far, shot, 64), unaimed.Marshal()},
		"another discriminator":    {l.gun(l.far, shot, 255), other.Marshal()},
		"authentication":           {l.gun(l.far, shot, 255), locked},
		"nonsense":                 {l.gun(l.far, shot, 255), []byte(strings.Repeat("x", 24))},
		"long nonsense":            {l.gun(l.far, shot, 255), []byte(strings.Repeat(" ", 1400))},
		"another source":           {l.gun(l.far, elsewhere, 255), aimed.Marshal()},
	} {
		for range 20_000 {
			flood.fire(flood.b)
		}
		if state, cause := near.State(there[0].Peer); state != Up {
			t.Fatalf("%s: %s: %s", name, state, cause)
		}
	}
	time.Sleep(200 * ms) // what still waits in the socket
	for _, r := range []*runner{near, far} {
		for _, e := range r.told() {
			if e.State == Down || e.State == AdminDown {
				t.Fatalf("told %+v", e)
			}
		}
	}
	// One that is right is believed. Its socket may still be full, and the session comes up again within less than a
	// millisecond, so what was told counts, and not the state that somebody happens to see.
	fire := l.gun(l.far, shot, 255)
	down := func() bool {
		return slices.ContainsFunc(near.told(), func(e Event) bool { return e.State == Down })
	}
	for end := time.Now().Add(limit); !down(); time.Sleep(20 * ms) {
		if time.Now().After(end) {
			t.Fatalf("a packet that is right ended nothing: %v", near.told())
		}
		fire(aimed.Marshal())
	}
	l.wait(near, Up, there...) // and the neighbor is believed again
}

// TestFlappingNeighborIsBounded is told of no more changes than a neighbor may send packets, however many it
// sends, while the listener is slow.
func TestFlappingNeighborIsBounded(t *testing.T) {
	l := newLab(t)
	near := l.watch(l.near)
	there, back := sessions(fast)[0], mirrored(fast)[0]
	if err := near.Set([]Session{there}); err != nil {
		t.Fatal(err)
	}
	near.Watch.mu.Lock()
	mine := near.sessions[there.Peer].mine
	near.Watch.mu.Unlock()
	p := Packet{State: Down, Multiplier: 3, Mine: 666, Yours: mine, MinTx: time.Second, MinRx: time.Second}
	down := p.Marshal()
	p.State = Init
	up := p.Marshal()
	fire := l.gun(l.far, back, 255)
	l.wait(near, Down, there)
	begin := time.Now()
	for range 30_000 {
		fire(down)
		fire(up)
	}
	time.Sleep(200 * ms)
	took := time.Since(begin)
	n := len(near.told())
	if most := 200 * (int(took/time.Second) + 2); n == 0 || n > most {
		t.Fatalf("%d changes in %s, want 1..%d", n, took, most)
	}
	t.Logf("60,000 packets in %s: %d changes", took, n)
}

// TestSaysWhatIsWrong reads the causes that people see.
func TestSaysWhatIsWrong(t *testing.T) {
	l := newLab(t)
	near := l.watch(l.near)
	there, back := sessions(fast)[0], mirrored(fast)[0]
	late := Session{Peer: there.Peer.Next(), Local: netip.MustParseAddr("10.66.0.77"), Timers: fast}
	v6 := sessions(fast)[1]
	squatter := l.ear(l.near, kind{six: true}) // another program has the port
	if err := near.Set([]Session{there, late, v6}); err != nil {
		t.Fatal(err)
	}
	says := func(s Session, want string) {
		t.Helper()
		for begin := time.Now(); ; time.Sleep(ms) {
			state, cause := near.State(s.Peer)
			if state == Down && strings.Contains(cause, want) {
				return
			}
			if time.Since(begin) > limit {
				t.Fatalf("%s: %s: %q, want %q", s.Peer, state, cause, want)
			}
		}
	}
	says(there, "no packet from the neighbor yet")
	says(there, "connection refused")
	says(late, "source address 10.66.0.77: cannot assign requested address")
	says(v6, "UDP port 3784, IPv6: address already in use")

	p := Packet{State: Down, Multiplier: 3, Mine: 666, MinTx: time.Second, MinRx: time.Second}
	l.gun(l.far, back, 64)(p.Marshal())
	says(there, "TTL 64, want 255")
	b := p.Marshal()
	b[1] |= bitAuth
	b[3] = 26
	l.gun(l.far, back, 255)(append(b, 1, 2))
	says(there, "authentication")

	p.State = AdminDown
	l.gun(l.far, back, 255)(p.Marshal())
	says(there, "neighbor has its session out of service")

	// What was in the way goes away: nobody needs to start anything again.
	_ = unix.Close(squatter)
	far := l.watch(l.far)
	if err := far.Set([]Session{mirrored(fast)[1], {Peer: late.Local, Local: late.Peer, Timers: fast}}); err != nil {
		t.Fatal(err)
	}
	l.in(l.near, "ip", "addr", "add", "10.66.0.77/24", "dev", "cable")
	l.in(l.far, "ip", "addr", "add", late.Peer.String()+"/24", "dev", "cable")
	l.wait(near, Up, late, v6)
	if state, cause := near.State(netip.MustParseAddr("192.0.2.1")); state != AdminDown || cause != "no session" {
		t.Fatalf("unknown peer: %s, %q", state, cause)
	}
}
