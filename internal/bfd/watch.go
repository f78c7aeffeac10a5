package bfd

import (
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
)

// Timers that are accepted: below, a busy machine would take its own delays for the neighbor's.
const (
	minInterval = 10 * time.Millisecond
	maxInterval = math.MaxUint32 * time.Microsecond
)

// Watch is the Detector: one thread that waits for packets and for what is due. It reads all packets that have
// arrived before it looks at the clock, so that a delay of its own is never taken for a neighbor's silence.
type Watch struct {
	log *slog.Logger

	mu       sync.Mutex
	wake     int // an eventfd that ends the thread's wait; -1: nobody runs
	sessions map[netip.Addr]*talk
	numbers  map[uint32]*talk // by discriminator
	leaving  []*talk          // removed; each says for a while that it is AdminDown
	ears     map[kind]*ear
}

var _ Detector = (*Watch)(nil)

// talk is a session with what it needs of this machine.
type talk struct {
	Session
	*session
	at      endpoint
	fd      int       // -1: not open
	opened  time.Time // when opening was tried last
	until   time.Time // of a session that leaves: when it is gone
	unsent  string    // why nothing can be sent; "" when it can
	refused string    // what is wrong with what arrives; "" when all is well
	intake  budget    // of packets that the session is told of
	chatter budget    // of log lines, and of packets whose fault is put into words
}

// endpoint is the place of a neighbor as packets show it.
type endpoint struct {
	addr netip.Addr // without zone
	zone uint32
	kind kind
}

// ear is an open socket that packets arrive at.
type ear struct {
	fd     int // -1: not open
	tried  time.Time
	err    error
	intake budget
}

func (e *ear) trouble() string {
	if e == nil || e.err == nil {
		return ""
	}
	return e.err.Error()
}

// New makes a detector without sessions; its Run opens sockets.
func New(log *slog.Logger) *Watch {
	return &Watch{
		log: log, wake: -1,
		sessions: map[netip.Addr]*talk{}, numbers: map[uint32]*talk{}, ears: map[kind]*ear{},
	}
}

// Set implements Detector.
func (w *Watch) Set(sessions []Session) error {
	want := make(map[netip.Addr]Session, len(sessions))
	for _, s := range sessions {
		s.Peer, s.Local = s.Peer.Unmap(), s.Local.Unmap()
		if err := s.validate(); err != nil {
			return err
		}
		if _, twice := want[s.Peer]; twice {
			return s.wrong("peer", s.Peer.String(), "every peer once")
		}
		want[s.Peer] = s
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for peer, t := range w.sessions {
		s, ok := want[peer]
		if ok && s.Local == t.Local && s.Multihop == t.Multihop {
			if s.Timers != t.Timers {
				t.Timers = s.Timers
				t.retime(s.Timers)
				t.intake = t.allowance()
			}
			delete(want, peer)
			continue
		}
		w.remove(t)
	}
	for s := range maps.Values(want) {
		w.add(s)
	}
	w.poke()
	return nil
}

func (w *Watch) add(s Session) {
	mine := uint32(0)
	for mine == 0 || w.numbers[mine] != nil {
		var b [4]byte
		_, _ = crand.Read(b[:]) // never fails
		mine = binary.NativeEndian.Uint32(b[:])
	}
	t := &talk{Session: s, session: newSession(mine, s.Timers), fd: -1}
	t.at = endpoint{addr: s.Peer.WithZone(""), kind: kind{s.Peer.Is6(), s.Multihop}}
	t.intake, t.chatter = t.allowance(), budget{limit: 10}
	w.leaving = slices.DeleteFunc(w.leaving, func(old *talk) bool { // its goodbye would be taken for ours
		if old.Peer == s.Peer {
			old.hangUp()
		}
		return old.Peer == s.Peer
	})
	w.sessions[s.Peer], w.numbers[mine] = t, t
}

// remove lets a session say goodbye for as long as the neighbor may take to miss it (RFC 5880 section 6.8.16).
func (w *Watch) remove(t *talk) {
	delete(w.sessions, t.Peer)
	delete(w.numbers, t.mine)
	if t.fd < 0 {
		return
	}
	t.disable()
	t.until = time.Now().Add(time.Duration(t.Timers.Multiplier) * slow)
	w.leaving = append(w.leaving, t)
}

// State implements Detector.
func (w *Watch) State(peer netip.Addr) (State, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.sessions[peer.Unmap()]
	if t == nil {
		return AdminDown, "no session"
	}
	cause := t.cause
	if t.state != Up {
		for _, more := range []string{w.ears[t.at.kind].trouble(), t.unsent, t.refused} {
			if more != "" {
				cause += "; " + more
			}
		}
	}
	return t.state, cause
}

// poke ends the thread's wait. The caller holds mu.
func (w *Watch) poke() {
	if w.wake >= 0 {
		_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // full: it is awake anyway
	}
}

// allowance is how many packets a second the neighbor may send before the rest is not looked at: ample for what
// was agreed, and little work for a neighbor that floods.
func (t *talk) allowance() budget {
	return budget{limit: max(200, int(4*time.Second/t.Timers.Receive))}
}

func (s Session) wrong(field, value, want string) error {
	return &model.FieldError{Noun: fmt.Sprintf("bfd session %s", s.Peer), Field: field, Value: value, Want: want}
}

func (s Session) validate() error {
	if !s.Peer.IsValid() || s.Peer.IsUnspecified() || s.Peer.IsMulticast() {
		return s.wrong("peer", s.Peer.String(), "a unicast address")
	}
	if s.Peer.Is6() && s.Peer.IsLinkLocalUnicast() && s.Peer.Zone() == "" {
		return s.wrong("peer", s.Peer.String(), "a link-local address with its interface, as fe80::1%eth0")
	}
	if s.Local.IsValid() && s.Local.Is6() != s.Peer.Is6() {
		return s.wrong("local", s.Local.String(), "an address of the peer's family")
	}
	for field, d := range map[string]time.Duration{"transmit": s.Timers.Transmit, "receive": s.Timers.Receive} {
		if d < minInterval || d > maxInterval {
			return s.wrong(field, d.String(), fmt.Sprintf("%s..%s", minInterval, maxInterval))
		}
	}
	if s.Timers.Multiplier == 0 {
		return s.wrong("multiplier", "0", "1..255")
	}
	return nil
}

// budget bounds work: so many a second, and no more until the next.
type budget struct {
	limit, used int
	since       time.Time
}

func (b *budget) take(now time.Time) bool {
	if now.Sub(b.since) >= time.Second {
		b.since, b.used = now, 0
	}
	b.used++
	return b.used <= b.limit
}

// rest is how long the budget is used up for.
func (b *budget) rest(now time.Time) time.Duration {
	if b.used < b.limit {
		return 0
	}
	return max(0, b.since.Add(time.Second).Sub(now))
}
