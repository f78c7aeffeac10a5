package bfd

import (
	"fmt"
	"time"

	"github.com/heddle-net/heddle/internal/peering"
)

// slow is the least interval at which a session sends that is not up (RFC 5880 section 6.8.3).
const slow = time.Second

// session is one side of a conversation: the variables of RFC 5880 section 6.8.1 and what they do. It is pure:
// it is told the time and what came, and says what is to be sent.
type session struct {
	mine, yours uint32 // discriminators; yours is 0 while the neighbor's is not known
	state       State
	remote      State
	diag        Diag
	timers      peering.BFD // as configured

	// minTx and minRx are announced. While a poll is under way for a change that would make either side wait too
	// short, the values before it stay in use (section 6.8.3).
	minTx, minRx     time.Duration
	usedTx, usedRx   time.Duration
	polling, another bool // another: values changed again, and the answer may be to the poll before

	remoteMinTx, remoteMinRx time.Duration
	remoteMultiplier         uint8
	remoteDemand             bool

	heard  time.Time // the last valid packet; zero: none within a detection time
	sent   time.Time // the last packet that was not an answer to a poll; zero: none
	jitter float64   // 0..1, drawn for the interval under way

	cause string // of the last change of state
	admin bool   // the neighbor is AdminDown
}

// step is what follows from an event.
type step struct {
	send    []Packet
	changed bool // the state
}

func newSession(mine uint32, timers peering.BFD) *session {
	s := &session{
		mine: mine, state: Down, remote: Down, timers: timers,
		minRx: timers.Receive, usedRx: timers.Receive,
		cause: "no packet from the neighbor yet",
	}
	s.slowDown()
	s.forget()
	return s
}

// forget is how a session begins, and what remains of a neighbor that is silent for a detection time.
func (s *session) forget() {
	s.yours, s.heard = 0, time.Time{}
	s.remoteMinTx, s.remoteMinRx, s.remoteMultiplier, s.remoteDemand = 0, time.Microsecond, 0, false
}

// slowDown is what leaving Up means for what is sent: at once, as the session is not up any more.
func (s *session) slowDown() {
	s.minTx = max(s.timers.Transmit, slow)
	s.usedTx, s.usedRx = s.minTx, s.minRx
	s.polling, s.another = false, false
}

// enter changes the state.
func (s *session) enter(to State, why Diag, cause string) {
	s.state, s.diag, s.cause = to, why, cause
	if to != Up {
		s.slowDown()
		return
	}
	if s.minTx != s.timers.Transmit {
		s.minTx = s.timers.Transmit
		s.usedTx = s.minTx
		s.poll()
	}
}

func (s *session) poll() {
	s.another = s.polling
	s.polling = true
}

// retime changes the timers of a session that goes on.
func (s *session) retime(timers peering.BFD) {
	s.timers = timers
	tx := timers.Transmit
	if s.state != Up {
		tx = max(tx, slow)
	}
	if tx == s.minTx && timers.Receive == s.minRx {
		return // the multiplier alone is in every packet
	}
	s.minTx, s.minRx = tx, timers.Receive
	if s.state != Up {
		s.usedTx, s.usedRx = s.minTx, s.minRx
	} else {
		s.usedTx, s.usedRx = min(s.usedTx, s.minTx), max(s.usedRx, s.minRx)
	}
	s.poll()
}

// disable takes the session out of service; it says so from then on.
func (s *session) disable() {
	s.enter(AdminDown, diagAdminDown, "taken out of service here")
	s.sent = time.Time{}
}

// receive is RFC 5880 section 6.8.6 from where the session is known.
func (s *session) receive(p Packet, now time.Time) step {
	if s.state == AdminDown {
		return step{}
	}
	s.yours, s.remote, s.heard = p.Mine, p.State, now
	s.remoteMinTx, s.remoteMinRx, s.remoteMultiplier, s.remoteDemand = p.MinTx, p.MinRx, p.Multiplier, p.Demand
	if p.Final && s.polling {
		if s.polling = s.another; !s.polling {
			s.usedTx, s.usedRx = s.minTx, s.minRx
		}
		s.another = false
	}
	before := s.state
	s.admin = p.State == AdminDown
	switch {
	case p.State == AdminDown:
		if s.state != Down {
			s.enter(Down, diagSignaled, "neighbor took its session out of service")
		} else {
			s.cause = "neighbor has its session out of service"
		}
	case s.state == Down && p.State == Down:
		s.enter(Init, diagNone, "neighbor is heard")
	case s.state == Down && p.State == Init, s.state == Init && (p.State == Init || p.State == Up):
		s.enter(Up, diagNone, "neighbor answers")
	case s.state == Up && p.State == Down:
		cause := "neighbor signaled session down"
		if p.Diag != diagNone {
			cause += ": " + p.Diag.String()
		}
		s.enter(Down, diagSignaled, cause)
	}
	out := step{changed: s.state != before}
	switch {
	case p.Poll:
		answer := s.packet()
		answer.Poll, answer.Final = false, true
		out.send = []Packet{answer}
	case out.changed: // told at once, so that the other side need not wait for a slow interval
		out.send = []Packet{s.packet()}
		s.sent = now
	}
	return out
}

// tick does what is due: the neighbor's silence, then the next packet. jitter is 0..1, drawn anew each time.
func (s *session) tick(now time.Time, jitter float64) step {
	var out step
	if at := s.expires(); !at.IsZero() && !now.Before(at) {
		if s.state == Init || s.state == Up {
			s.enter(Down, diagExpired, fmt.Sprintf("no packet for %s", s.detection()))
			out.changed = true
		}
		s.forget()
	}
	if at := s.due(); out.changed || !at.IsZero() && !now.Before(at) {
		out.send = []Packet{s.packet()}
		s.sent, s.jitter = now, jitter
	}
	return out
}

// next is when tick has something to do; zero: not before the next packet comes.
func (s *session) next() time.Time {
	at, expires := s.due(), s.expires()
	if at.IsZero() || !expires.IsZero() && expires.Before(at) {
		return expires
	}
	return at
}

// detection is the detection time (section 6.8.4).
func (s *session) detection() time.Duration {
	return time.Duration(s.remoteMultiplier) * max(s.usedRx, s.remoteMinTx)
}

func (s *session) expires() time.Time {
	if s.heard.IsZero() {
		return time.Time{}
	}
	return s.heard.Add(s.detection())
}

// due is when the next packet goes out by itself (section 6.8.7); zero: none does.
func (s *session) due() time.Time {
	quiet := s.remoteDemand && s.state == Up && s.remote == Up && !s.polling
	if s.remoteMinRx == 0 || quiet {
		return time.Time{}
	}
	if s.sent.IsZero() {
		return time.Unix(0, 0) // at once
	}
	every := max(s.usedTx, s.remoteMinRx)
	most := 1.0 // of the interval; with a multiplier of 1 a packet on the last moment would be late
	if s.timers.Multiplier == 1 {
		most = 0.9
	}
	return s.sent.Add(time.Duration(float64(every) * (0.75 + (most-0.75)*s.jitter)))
}

// packet is what the session says now.
func (s *session) packet() Packet {
	return Packet{
		State: s.state, Diag: s.diag, Poll: s.polling, Multiplier: s.timers.Multiplier,
		Mine: s.mine, Yours: s.yours, MinTx: s.minTx, MinRx: s.minRx,
	}
}
