package bfd

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
	"github.com/heddle-net/heddle/test/harness"
)

// patient timers lose no session to a busy machine.
var patient = peering.BFD{Transmit: 100 * ms, Receive: 100 * ms, Multiplier: 50}

// pair runs two detectors with the sessions of a lab between them.
func pair(t *testing.T) (l lab, near, far *runner, there, back []Session) {
	l = newLab(t)
	there, back = sessions(patient), mirrored(patient)
	near, far = &runner{}, &runner{}
	near.Watch, far.Watch = New(slog.New(slog.NewTextHandler(&near.log, nil))), New(slog.New(slog.NewTextHandler(&far.log, nil)))
	for r, list := range map[*runner][]Session{near: there, far: back} {
		if err := r.Set(list); err != nil { // before Run
			t.Fatal(err)
		}
	}
	l.start(near, l.near)
	l.start(far, l.far)
	l.wait(near, Up, there...)
	l.wait(far, Up, back...)
	return l, near, far, there, back
}

// last is what was told of a peer last.
func (r *runner) last(peer netip.Addr) Event {
	var last Event
	for _, e := range r.told() {
		if e.Peer == peer {
			last = e
		}
	}
	return last
}

func TestEndOfServiceIsToldAsSuch(t *testing.T) {
	l, near, far, there, back := pair(t)
	if err := near.Set(there[1:]); err != nil { // one session is taken away
		t.Fatal(err)
	}
	gone := func(s Session) {
		t.Helper()
		harness.Wait(t, limit, "told that the neighbor went out of service", func() bool {
			e := far.last(s.Peer)
			return e.State == Down && e.Admin && strings.Contains(e.Cause, "out of service")
		})
	}
	gone(back[0])
	l.wait(far, Up, back[1:]...)
	if state, cause := near.State(there[0].Peer); state != AdminDown || cause != "no session" {
		t.Fatalf("removed session: %s, %q", state, cause)
	}
	if err := near.Set(there); err != nil { // and back while it says goodbye
		t.Fatal(err)
	}
	l.wait(far, Up, back...)
	told := len(far.told())
	time.Sleep(2 * slow) // the goodbye would go on
	if now := far.told(); len(now) != told {
		t.Fatalf("the session that is back does not stay: %+v", now[told:])
	}

	near.stop() // the whole detector ends
	for _, s := range back {
		gone(s)
	}
	for _, e := range near.told() {
		if e.State != Init && e.State != Up {
			t.Errorf("told of an end of its own: %+v", e)
		}
	}
	l.start(near, l.near) // and begins anew with the sessions that it had
	l.wait(near, Up, there...)
	l.wait(far, Up, back...)
}

func TestTimersChangeWithoutLosingTheSession(t *testing.T) {
	_, near, far, there, back := pair(t)
	for _, r := range []*runner{near, far} {
		for _, s := range append(there, back...) {
			harness.Wait(t, limit, "polls are over", func() bool {
				if state, _ := r.State(s.Peer); state != Up {
					return true
				}
				_, _, polling := r.pace(s.Peer)
				return !polling
			})
		}
	}
	told := len(near.told()) + len(far.told())
	slower := peering.BFD{Transmit: 200 * ms, Receive: 150 * ms, Multiplier: 60}
	for i := range there {
		there[i].Timers = slower
	}
	if err := near.Set(there); err != nil {
		t.Fatal(err)
	}
	for i, s := range there {
		harness.Wait(t, limit, "both sides know", func() bool {
			tx, detection, polling := near.pace(s.Peer)
			farTx, farDetection, _ := far.pace(back[i].Peer)
			// The far side sends every 150 ms, as it is asked to, and may miss 60 packets, one in 200 ms.
			return !polling && tx == 200*ms && detection == 50*150*ms && farTx == 150*ms && farDetection == 60*200*ms
		})
	}
	if again := len(near.told()) + len(far.told()); again != told {
		t.Fatalf("told of %d changes: %+v %+v", again-told, near.told(), far.told())
	}
	before := near.sessions[there[0].Peer]
	if err := near.Set(there); err != nil {
		t.Fatal(err)
	}
	if near.sessions[there[0].Peer] != before {
		t.Fatal("the same list made a new session")
	}
}

func TestLinkLocalNeighbors(t *testing.T) {
	l := newLab(t)
	addr := netip.MustParseAddr
	harness.Run(t, "ip", "-n", l.near, "addr", "add", "fe80::a/64", "dev", "cable", "nodad")
	harness.Run(t, "ip", "-n", l.far, "addr", "add", "fe80::b/64", "dev", "cable", "nodad")
	near, far := l.watch(l.near), l.watch(l.far)
	there := Session{Peer: addr("fe80::b%cable"), Local: addr("fe80::a"), Timers: fast}
	back := Session{Peer: addr("fe80::a%cable"), Local: addr("fe80::b"), Timers: fast}
	if err := errors.Join(near.Set([]Session{there}), far.Set([]Session{back})); err != nil {
		t.Fatal(err)
	}
	l.wait(near, Up, there)
	l.wait(far, Up, back)
}

func TestSetRefusesWhatItCannotDo(t *testing.T) {
	good := sessions(fast)[0]
	w := New(slog.New(slog.DiscardHandler))
	if err := w.Set([]Session{good}); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Session){
		"bfd session invalid IP: peer invalid IP: want a unicast address":                                  func(s *Session) { s.Peer = netip.Addr{} },
		"bfd session 0.0.0.0: peer 0.0.0.0: want a unicast address":                                        func(s *Session) { s.Peer = netip.IPv4Unspecified() },
		"bfd session fe80::1: peer fe80::1: want a link-local address with its interface, as fe80::1%eth0": func(s *Session) { s.Peer = netip.MustParseAddr("fe80::1") },
		"bfd session 10.66.0.2: local ::1: want an address of the peer's family":                           func(s *Session) { s.Local = netip.IPv6Loopback() },
		"bfd session 10.66.0.2: transmit 9.999ms: want 10ms..1h11m34.967295s":                              func(s *Session) { s.Timers.Transmit = 10*ms - time.Microsecond },
		"bfd session 10.66.0.2: receive 2h0m0s: want 10ms..1h11m34.967295s":                                func(s *Session) { s.Timers.Receive = 2 * time.Hour },
		"bfd session 10.66.0.2: multiplier 0: want 1..255":                                                 func(s *Session) { s.Timers.Multiplier = 0 },
		"bfd session 10.66.0.3: peer 10.66.0.3: want every peer once":                                      func(s *Session) { s.Peer = s.Peer.Next() },
	} {
		bad, other := good, good
		change(&bad)
		other.Peer = other.Peer.Next()
		err := w.Set([]Session{other, bad})
		if field := (*model.FieldError)(nil); !errors.As(err, &field) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if state, _ := w.State(good.Peer); state != Down || len(w.sessions) != 1 {
			t.Fatalf("%s: the list changed", want)
		}
	}
}

// TestEverySessionHasAPortOfItsOwn looks at the sources of packets as RFC 5881 section 4 wants them.
func TestEverySessionHasAPortOfItsOwn(t *testing.T) {
	_, near, _, there, _ := pair(t)
	near.Watch.mu.Lock()
	defer near.Watch.mu.Unlock()
	used := map[int]bool{}
	for _, s := range there {
		sa, err := unix.Getsockname(near.sessions[s.Peer].fd)
		if err != nil {
			t.Fatal(err)
		}
		port := 0
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			port = sa.Port
		case *unix.SockaddrInet6:
			port = sa.Port
		}
		if port < 49152 || used[port] {
			t.Errorf("session with %s sends from port %d; others: %v", s.Peer, port, used)
		}
		used[port] = true
	}
}

// TestFollowsTheWayToTheNeighbor changes the address from which the kernel speaks to a silent neighbor.
func TestFollowsTheWayToTheNeighbor(t *testing.T) {
	l := newLab(t)
	near, far := l.watch(l.near), l.watch(l.far)
	there, back := sessions(patient)[0], mirrored(patient)[0]
	back.Peer = netip.MustParseAddr("10.66.0.5")
	if err := errors.Join(near.Set([]Session{there}), far.Set([]Session{back})); err != nil {
		t.Fatal(err)
	}
	harness.Wait(t, limit, "sends from the first address", func() bool {
		near.Watch.mu.Lock()
		defer near.Watch.mu.Unlock()
		return !near.sessions[there.Peer].sent.IsZero()
	})
	harness.Run(t, "ip", "-n", l.near, "addr", "del", "10.66.0.1/24", "dev", "cable")
	harness.Run(t, "ip", "-n", l.near, "addr", "add", "10.66.0.5/24", "dev", "cable")
	l.wait(near, Up, there)
	l.wait(far, Up, back)
}

// TestARefusalCostsNoPacket sends to a neighbor that begins to listen after it has refused a packet: the kernel
// tells of the refusal when the next is sent, and drops that.
func TestARefusalCostsNoPacket(t *testing.T) {
	l := newLab(t)
	s := sessions(fast)[0]
	c := &talk{Session: s, session: newSession(1, fast), fd: l.socket(l.near, s)}
	c.write(c.packet())
	refused := []unix.PollFd{{Fd: int32(c.fd)}} // POLLERR
	harness.Wait(t, limit, "a refusal", func() bool {
		n, _ := unix.Poll(refused, 100)
		return n == 1
	})
	ear := l.ear(l.far, kind{})
	defer func() { _ = unix.Close(ear) }()
	c.write(c.packet())
	var in receiver
	harness.Wait(t, limit, "the packet", func() bool {
		_, _, ok := in.read(ear)
		return ok
	})
}

func TestRunsOnce(t *testing.T) {
	w := New(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx, func(Event) {}) }()
	harness.Wait(t, limit, "runs", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.wake >= 0
	})
	if err := w.Run(ctx, func(Event) {}); err == nil {
		t.Error("runs twice")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestSlowListenerHearsTheEndOfTheStory(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	begun, goOn := make(chan bool), make(chan bool)
	var told []Event
	done := make(chan bool)
	ends := 0
	s := newTeller(func(e Event) {
		if told = append(told, e); len(told) == 1 {
			begun <- true
			<-goOn
		}
		if e.Cause == "end" {
			if ends++; ends == 2 {
				close(done)
			}
		}
	})
	s.add(Event{Peer: a})
	<-begun
	s.add(Event{Peer: b, State: Up})
	for range 10 * backlog {
		s.add(Event{Peer: a, State: Up})
		s.add(Event{Peer: a, State: Down})
	}
	s.add(Event{Peer: a, State: Down, Cause: "end"})
	s.add(Event{Peer: b, State: Down, Cause: "end"})
	goOn <- true
	<-done
	s.close()
	if len(told) > backlog+2 || told[1].Peer != b {
		t.Errorf("%d events, the second of %s", len(told), told[1].Peer)
	}
	var last Event
	for _, e := range told {
		if e.Peer == a {
			last = e
		}
	}
	if last.Cause != "end" {
		t.Errorf("the last of a is %+v", last)
	}
}

func TestBudget(t *testing.T) {
	b := budget{limit: 2}
	for i, want := range []bool{true, true, false, false} {
		if got := b.take(start.Add(time.Duration(i) * 200 * ms)); got != want {
			t.Fatalf("take %d: %t", i, got)
		}
	}
	if rest := b.rest(start.Add(700 * ms)); rest != 300*ms {
		t.Fatalf("rests %s, want 300ms", rest)
	}
	if !b.take(start.Add(time.Second)) || b.rest(start.Add(time.Second)) != 0 {
		t.Fatal("a new second brings nothing")
	}
}
