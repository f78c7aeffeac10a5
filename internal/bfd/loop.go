package bfd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// again is how long after a failure to open a socket it is tried anew, and how old the socket of a session
	// gets that is not up: the way to the neighbor, and so the source address, may have changed.
	again = 2 * time.Second
	// batch is how many packets of a socket are read before the others get their turn.
	batch = 256
	// flood is how many packets a second one socket takes in; a machine that is sent more than that has no
	// session to lose.
	flood = 100_000
)

// Run implements Detector. It works in the network namespace of the thread that calls it: all sockets, also
// those of later sessions, are opened there. A caller that wants another namespace than the process's locks its
// thread and enters it first. When ctx ends, each neighbor is told once that the session is AdminDown, which by
// RFC 5882 ends nothing that runs over it.
func (w *Watch) Run(ctx context.Context, told func(Event)) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("bfd: eventfd: %w", err)
	}
	w.mu.Lock()
	if w.wake >= 0 {
		w.mu.Unlock()
		_ = unix.Close(wake)
		return errors.New("bfd: already running")
	}
	w.wake = wake
	w.mu.Unlock()
	poke := context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.poke()
	})
	defer poke()
	say := newTeller(told)
	defer say.close()
	defer w.close()

	var in receiver
	var fds []unix.PollFd
	for ctx.Err() == nil {
		wait := w.turn(&in, say, &fds)
		if _, err := unix.Ppoll(fds, &wait, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("bfd: poll: %w", err)
		}
	}
	return nil
}

// turn does all that can be done now; then nothing is due for the time returned, if no packet comes to fds.
func (w *Watch) turn(in *receiver, say *teller, fds *[]unix.PollFd) unix.Timespec {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b [8]byte
	_, _ = unix.Read(w.wake, b[:]) // empty: a packet or the clock ended the wait
	now := time.Now()
	wait := again
	w.openEars(now)
	for _, t := range w.sessions {
		w.open(t, now)
	}
	*fds = append((*fds)[:0], unix.PollFd{Fd: int32(w.wake), Events: unix.POLLIN})
	for k, e := range w.ears {
		if e.fd < 0 {
			continue
		}
		if !w.listenTo(k, e, in, say, now) {
			wait = 0
		}
		if rest := e.intake.rest(now); rest > 0 {
			wait = min(wait, rest)
			continue
		}
		*fds = append(*fds, unix.PollFd{Fd: int32(e.fd), Events: unix.POLLIN})
	}
	w.leaving = slices.DeleteFunc(w.leaving, func(t *talk) bool {
		gone := !now.Before(t.until)
		if gone {
			t.hangUp()
		}
		return gone
	})
	now = time.Now()
	for _, t := range w.sessions {
		w.do(t, t.tick(now, rand.Float64()), now, say)
		wait = min(wait, untilNext(t, now))
	}
	for _, t := range w.leaving {
		w.do(t, t.tick(now, rand.Float64()), now, say)
		wait = min(wait, untilNext(t, now))
	}
	return unix.NsecToTimespec(int64(max(wait, 0)))
}

func untilNext(t *talk, now time.Time) time.Duration {
	at := t.next()
	if at.IsZero() {
		return again
	}
	return at.Sub(now)
}

// openEars makes the open sockets those that the sessions need.
func (w *Watch) openEars(now time.Time) {
	need := map[kind]bool{}
	for _, t := range w.sessions {
		need[t.at.kind] = true
	}
	for k, e := range w.ears {
		if !need[k] {
			if e.fd >= 0 {
				_ = unix.Close(e.fd)
			}
			delete(w.ears, k)
		}
	}
	for k := range need {
		e := w.ears[k]
		if e == nil {
			e = &ear{fd: -1, intake: budget{limit: flood}}
			w.ears[k] = e
		}
		if e.fd >= 0 || now.Sub(e.tried) < again {
			continue
		}
		e.tried = now
		first := e.err == nil
		if e.fd, e.err = listen(k); e.err != nil && first {
			w.log.Warn("bfd hears nothing", "error", e.err)
		}
	}
}

// open gives a session a socket to send from, and a new one from time to time until it is up.
func (w *Watch) open(t *talk, now time.Time) {
	if t.fd >= 0 && t.state == Up || now.Sub(t.opened) < again {
		return
	}
	t.hangUp()
	t.opened = now
	var err error
	if t.at.zone, err = zone(t.Peer); err == nil {
		t.fd, err = dial(t.Session, t.at.zone)
	}
	t.unsent = ""
	if err != nil {
		t.unsent = err.Error()
	}
}

func (t *talk) hangUp() {
	if t.fd >= 0 {
		_ = unix.Close(t.fd)
		t.fd = -1
	}
}

// listenTo reads what has arrived at a socket, and reports whether that was all.
func (w *Watch) listenTo(k kind, e *ear, in *receiver, say *teller, now time.Time) bool {
	for range batch {
		if e.intake.rest(now) > 0 {
			return true
		}
		b, f, ok := in.read(e.fd)
		if !ok {
			return true
		}
		e.intake.take(now)
		w.hear(k, b, f, say, now)
	}
	return false
}

// hear gives a packet to its session: the one of its discriminator, or of its source while the neighbor does
// not know that yet (RFC 5880 section 6.8.6, RFC 5881 section 3). The source must be right in both cases.
func (w *Watch) hear(k kind, b []byte, f from, say *teller, now time.Time) {
	place := endpoint{f.addr, f.zone, k}
	p, err := Parse(b)
	t := w.numbers[p.Yours]
	if p.Yours == 0 || err != nil {
		t = w.bySource(place)
	}
	if t == nil || t.at != place {
		return
	}
	switch {
	case err != nil:
		if t.chatter.take(now) {
			t.refused = err.Error()
		}
	case !k.multihop && f.ttl != 255: // RFC 5881 section 5
		if t.chatter.take(now) {
			t.refused = fmt.Sprintf("packet arrived with TTL %d, want 255: the neighbor is not on this link, or somebody forges its packets", f.ttl)
		}
	case t.intake.take(now):
		t.refused = ""
		w.do(t, t.receive(p, now), now, say)
	}
}

// bySource finds a session without its discriminator.
func (w *Watch) bySource(e endpoint) *talk {
	if t := w.sessions[e.addr]; t != nil || e.zone == 0 {
		return t
	}
	for _, t := range w.sessions { // link-local
		if t.at == e {
			return t
		}
	}
	return nil
}

// do carries out what a session decided.
func (w *Watch) do(t *talk, s step, now time.Time, say *teller) {
	for _, p := range s.send {
		t.write(p)
	}
	if !s.changed {
		return
	}
	if t.chatter.take(now) {
		w.log.Info("bfd session", "peer", t.Peer, "state", t.state, "cause", t.cause)
	}
	say.add(Event{Peer: t.Peer, State: t.state, Cause: t.cause, Admin: t.admin})
}

func (t *talk) write(p Packet) {
	if t.fd < 0 {
		return
	}
	b := p.Marshal()
	_, err := unix.Write(t.fd, b)
	t.unsent = ""
	if err != nil {
		t.unsent = fmt.Sprintf("cannot send to %s: %v", t.Peer, err)
	}
	if errors.Is(err, unix.ECONNREFUSED) { // that was the answer to the packet before; this one is not out yet
		_, _ = unix.Write(t.fd, b)
	}
}

// close says goodbye and leaves the sessions as they were before Run.
func (w *Watch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.sessions {
		t.disable()
		t.write(t.packet())
		t.hangUp()
		delete(w.numbers, t.mine)
		w.add(t.Session)
	}
	for _, t := range w.leaving {
		t.hangUp()
	}
	for _, e := range w.ears {
		if e.fd >= 0 {
			_ = unix.Close(e.fd)
		}
	}
	w.leaving = nil
	clear(w.ears)
	_ = unix.Close(w.wake)
	w.wake = -1
}
