package bfd

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/peering"
)

const ms = time.Millisecond

var (
	fast  = peering.BFD{Transmit: 100 * ms, Receive: 100 * ms, Multiplier: 3}
	start = time.Unix(1_000_000, 0)
)

// heard is a packet of a neighbor that knows us as 1.
func heard(state State) Packet {
	return Packet{State: state, Multiplier: 3, Mine: 2, Yours: 1, MinTx: 100 * ms, MinRx: 100 * ms}
}

// in is a session that got into a state by packets.
func in(t *testing.T, state State) *session {
	t.Helper()
	s := newSession(1, fast)
	s.tick(start, 1)
	switch state {
	case AdminDown:
		s.disable()
	case Init:
		s.receive(heard(Down), start)
	case Up:
		s.receive(heard(Down), start)
		s.receive(heard(Up), start)
	}
	if s.state != state {
		t.Fatalf("state %s, want %s", s.state, state)
	}
	return s
}

// TestStateTable is the state machine of RFC 5880 section 6.2 and the text of section 6.8.6.
func TestStateTable(t *testing.T) {
	for _, c := range []struct {
		from, hears, to State
		diag            Diag
	}{
		{Down, AdminDown, Down, diagNone},
		{Down, Down, Init, diagNone},
		{Down, Init, Up, diagNone},
		{Down, Up, Down, diagNone},
		{Init, AdminDown, Down, diagSignaled},
		{Init, Down, Init, diagNone},
		{Init, Init, Up, diagNone},
		{Init, Up, Up, diagNone},
		{Up, AdminDown, Down, diagSignaled},
		{Up, Down, Down, diagSignaled},
		{Up, Init, Up, diagNone},
		{Up, Up, Up, diagNone},
		{AdminDown, AdminDown, AdminDown, diagAdminDown},
		{AdminDown, Down, AdminDown, diagAdminDown},
		{AdminDown, Init, AdminDown, diagAdminDown},
		{AdminDown, Up, AdminDown, diagAdminDown},
	} {
		s := in(t, c.from)
		out := s.receive(heard(c.hears), start)
		if s.state != c.to || s.diag != c.diag || out.changed != (c.from != c.to) {
			t.Errorf("%s hears %s: %s (%s), changed %t, want %s (%s)", c.from, c.hears, s.state, s.diag, out.changed, c.to, c.diag)
		}
		if out.changed != (len(out.send) == 1 && out.send[0].State == c.to) {
			t.Errorf("%s hears %s: sends %+v", c.from, c.hears, out.send)
		}
		if c.from != AdminDown && s.admin != (c.hears == AdminDown) {
			t.Errorf("%s hears %s: admin %t", c.from, c.hears, s.admin)
		}
	}
}

func TestSilenceEndsASessionAfterTheDetectionTime(t *testing.T) {
	for _, state := range []State{Init, Up} {
		s := in(t, state)
		p := heard(Up)
		p.MinTx, p.Multiplier = 250*ms, 4 // the neighbor sends every 250 ms: four of them
		s.receive(p, start)
		s.state = state
		if s.tick(start.Add(999*ms), 0); s.state != state {
			t.Fatalf("%s: %s before the detection time", state, s.state)
		}
		out := s.tick(start.Add(1000*ms), 0)
		if s.state != Down || s.diag != diagExpired || s.cause != "no packet for 1s" || !out.changed {
			t.Fatalf("%s: %s, %s, %q", state, s.state, s.diag, s.cause)
		}
		if len(out.send) != 1 || out.send[0].Yours != 0 || out.send[0].State != Down {
			t.Fatalf("%s: sends %+v", state, out.send)
		}
	}
	s := in(t, Up) // what it asked for counts where the neighbor could send faster
	p := heard(Up)
	p.MinTx = 10 * ms
	s.receive(p, start)
	if s.detection() != 300*ms {
		t.Fatalf("detection time %s, want 300ms", s.detection())
	}
}

func TestSendsSlowlyUntilUpAndWithJitter(t *testing.T) {
	s := newSession(1, fast)
	if out := s.tick(start, 0); len(out.send) != 1 || out.send[0].MinTx != time.Second || out.send[0].MinRx != 100*ms {
		t.Fatalf("first packet: %+v", out.send)
	}
	gap := func(s *session) time.Duration { return s.next().Sub(s.sent) }
	if gap(s) != 750*ms {
		t.Fatalf("not up: next after %s, want 750ms", gap(s))
	}
	s = in(t, Up)
	if s.jitter = 0; gap(s) != 75*ms {
		t.Fatalf("next after %s, want 75ms", gap(s))
	}
	if s.jitter = 1; gap(s) != 100*ms {
		t.Fatalf("next after %s, want 100ms", gap(s))
	}
	s.timers.Multiplier, s.jitter = 1, 1
	if gap(s) != 90*ms {
		t.Fatalf("multiplier 1: next after %s, want at most 90ms", gap(s))
	}
	p := heard(Up)
	p.MinRx = 2 * time.Second
	s.timers.Multiplier = 3
	if s.receive(p, start); gap(s) > 300*ms { // the detection time comes first
		t.Fatalf("next after %s", gap(s))
	}
	if got := s.due().Sub(s.sent); got != 2*time.Second {
		t.Fatalf("neighbor wants one in 2s, gets one after %s", got)
	}
	p.MinRx = 0
	if s.receive(p, start); !s.due().IsZero() {
		t.Fatal("sends to a neighbor that wants none")
	}
	p.MinRx, p.Demand, p.Final = 100*ms, true, true
	if s.receive(p, start); !s.due().IsZero() {
		t.Fatal("sends to a neighbor in demand mode")
	}
}

func TestPollAndFinal(t *testing.T) {
	s := in(t, Up)
	out := s.tick(start.Add(100*ms), 1)
	if len(out.send) != 1 || !out.send[0].Poll || out.send[0].MinTx != 100*ms {
		t.Fatalf("going up with another interval starts no poll: %+v", out.send)
	}
	p := heard(Up)
	p.Poll = true
	if out = s.receive(p, start); len(out.send) != 1 || !out.send[0].Final || out.send[0].Poll {
		t.Fatalf("a poll is answered by %+v", out.send)
	}
	p.Poll, p.Final = false, true
	s.receive(p, start)
	if out = s.tick(start.Add(200*ms), 1); out.send[0].Poll {
		t.Fatal("polls on after the answer")
	}

	// Slower sending and faster receiving begin when the neighbor has said that it knows.
	s.retime(peering.BFD{Transmit: 200 * ms, Receive: 50 * ms, Multiplier: 3})
	if got := s.packet(); !got.Poll || got.MinTx != 200*ms || got.MinRx != 50*ms || s.usedTx != 100*ms || s.usedRx != 100*ms {
		t.Fatalf("announces %+v, uses %s and %s", got, s.usedTx, s.usedRx)
	}
	s.retime(peering.BFD{Transmit: 300 * ms, Receive: 50 * ms, Multiplier: 3})
	s.receive(p, start) // may be the answer to the first
	if !s.polling || s.usedTx != 100*ms {
		t.Fatal("the answer to one poll ends the next")
	}
	if s.receive(p, start); s.polling || s.usedTx != 300*ms || s.usedRx != 50*ms {
		t.Fatalf("after the answer: polling %t, uses %s and %s", s.polling, s.usedTx, s.usedRx)
	}
	// Faster sending and slower receiving begin at once.
	s.retime(peering.BFD{Transmit: 100 * ms, Receive: 500 * ms, Multiplier: 3})
	if !s.polling || s.usedTx != 100*ms || s.usedRx != 500*ms {
		t.Fatalf("polling %t, uses %s and %s", s.polling, s.usedTx, s.usedRx)
	}
}

// TestTwoSessionsComeUpAndStay lets two sessions with any timers and any past speak over a line with a delay,
// which loses what it likes for a while and nothing later.
func TestTwoSessionsComeUpAndStay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) *session {
			i := rapid.IntRange(10, 1500)
			return newSession(rapid.Uint32Min(1).Draw(t, name), peering.BFD{
				Transmit: time.Duration(i.Draw(t, "tx")) * ms, Receive: time.Duration(i.Draw(t, "rx")) * ms,
				Multiplier: uint8(rapid.IntRange(2, 5).Draw(t, "multiplier")),
			})
		}
		ends := [2]*session{draw("a"), draw("b")}
		for _, s := range ends { // any past
			for range rapid.IntRange(0, 3).Draw(t, "past") {
				p := drawPacket(t)
				p.MinTx, p.MinRx = p.MinTx%(500*ms), p.MinRx%(500*ms)+1
				p.Multiplier = p.Multiplier%10 + 1
				s.receive(p, start)
			}
		}
		type flight struct {
			at time.Time
			to int
			p  Packet
		}
		delay := time.Duration(rapid.IntRange(0, 4).Draw(t, "delay")) * ms
		calm := start.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "trouble")) * ms)
		up := calm.Add(20 * time.Second) // a past, too, is forgotten by then
		chance := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		var line []flight
		put := func(from int, now time.Time, out step) {
			for _, p := range out.send {
				s := ends[from]
				if p.Poll && p.Final {
					t.Fatalf("poll and final: %+v", p)
				}
				if p.State != Up && p.MinTx < time.Second {
					t.Fatalf("%s and sends every %s", p.State, p.MinTx)
				}
				if p.Mine != s.mine || p.Multiplier != s.timers.Multiplier {
					t.Fatalf("sends %+v", p)
				}
				if now.Before(calm) && chance.IntN(2) == 0 {
					continue
				}
				line = append(line, flight{now.Add(delay), 1 - from, p})
			}
		}
		for now := start; now.Before(up.Add(10 * time.Second)); {
			for len(line) > 0 && !line[0].at.After(now) {
				f := line[0]
				line = line[1:]
				put(f.to, now, ends[f.to].receive(f.p, now))
			}
			for i, s := range ends {
				if at := s.next(); at.IsZero() || at.After(now) {
					continue
				}
				put(i, now, s.tick(now, chance.Float64()))
				if (s.state == Up || s.state == Init) && now.Sub(s.heard) >= s.detection() {
					t.Fatalf("%s after %s of silence", s.state, now.Sub(s.heard))
				}
			}
			if now.After(up) {
				for _, s := range ends {
					if s.state != Up {
						t.Fatalf("%+v after %s: %s: %s", s.timers, now.Sub(calm), s.state, s.cause)
					}
				}
			}
			before := now
			now = now.Add(10 * ms)
			if len(line) > 0 && line[0].at.Before(now) {
				now = line[0].at
			}
			for _, s := range ends {
				if at := s.next(); !at.IsZero() && at.Before(now) {
					now = at
				}
			}
			if now.Before(before) {
				now = before
			}
		}
		for i, s := range ends {
			if o := ends[1-i]; s.polling || s.usedTx != s.timers.Transmit || s.yours != o.mine || s.remoteMinTx != o.timers.Transmit {
				t.Fatalf("not agreed: %+v", s)
			}
		}
	})
}
