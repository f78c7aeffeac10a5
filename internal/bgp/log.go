package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// listener is what gobgp logs to. It knows no other way to say why a connection failed, so what it says is read;
// the rest goes on to our log, without passwords.
type listener struct {
	log     slog.Handler
	mu      sync.Mutex
	secrets map[string]bool
	told    map[netip.Addr]note
	closed  bool
}

// note is what was last said about a neighbour.
type note struct {
	text string
	at   time.Time
}

func newListener(log *slog.Logger) *listener {
	return &listener{log: log.Handler(), secrets: map[string]bool{}, told: map[netip.Addr]note{}}
}

// hide keeps passwords out of the log from now on.
func (l *listener) hide(secrets map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.Copy(l.secrets, secrets)
}

// close ends it: a server that is being stopped complains about that.
func (l *listener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

func (l *listener) note(n netip.Addr, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(n, note{text, time.Now()})
}

// put notes what is said, unless something that says more was said not long ago: the tries after a failure often
// only tell that a connection ended. The listener is locked.
func (l *listener) put(n netip.Addr, say note) {
	last := l.told[n]
	if recent := say.at.Sub(last.at); last.text != "" && (vague(say.text) && !vague(last.text) && recent < 15*time.Second ||
		strings.HasPrefix(last.text, malformedCause) && strings.HasPrefix(say.text, endedHere) && recent < time.Second) {
		return
	}
	l.told[n] = say
}

func (l *listener) noted(n netip.Addr) note {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told[n]
}

func (l *listener) forget(n netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.told, n)
}

// handler is the listener with what a logger carries along.
type handler struct {
	*listener
	attrs []slog.Attr
}

// Enabled takes all: failures to connect are told on the level of debugging.
func (h *handler) Enabled(context.Context, slog.Level) bool { return true }

func (h *handler) WithAttrs(a []slog.Attr) slog.Handler {
	return &handler{h.listener, slices.Concat(h.attrs, a)}
}

func (h *handler) WithGroup(string) slog.Handler { return h }

// heard are the messages of gobgp that say why a session failed, by their text.
var heard = map[string]func(attrs map[string]string) string{
	"failed to connect": func(a map[string]string) string { return dialCause(a["Error"]) },
	"sent notification": func(a map[string]string) string {
		if a["Code"] == "6" && a["Subcode"] == "3" {
			return "" // taken out by this package, which knows better why
		}
		return endedHere + notification(a["Code"], a["Subcode"], a["Communicated-Reason"])
	},
	"received notification": func(a map[string]string) string {
		return "the neighbor ended it: " + notification(a["Code"], a["Subcode"], a["Communicated-Reason"])
	},
	"outgoing connection IO error": func(map[string]string) string {
		return closedCause
	},
	"failed to set md5": func(a map[string]string) string { return "the password could not be set: " + a["Err"] },
	"Session will be reset due to malformed BGP update message": malformed,
	"Session will be reset due to malformed BGP message":        malformed,
	"Session will be reset due to malformed BGP Header":         malformed,
}

// oneTooMany is told of every connection beside one that stands. A neighbour on gobgp that once lost to one of ours
// goes on to try, every other second.
const oneTooMany = "Closed an accepted connection"

const malformedCause = "the neighbor sent a message that makes no sense: "

func malformed(a map[string]string) string { return malformedCause + a["Error"] }

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	cause := heard[r.Message]
	if cause == nil && r.Level < slog.LevelInfo {
		return nil
	}
	attrs := map[string]string{}
	take := func(a slog.Attr) bool { attrs[a.Key] = text(a.Value); return true }
	for _, a := range h.attrs {
		take(a)
	}
	r.Attrs(take)
	neighbor, _ := netip.ParseAddr(attrs["Key"])
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	if cause != nil && neighbor.IsValid() {
		if said := cause(attrs); said != "" {
			h.put(neighbor, note{h.clean(said), r.Time})
		}
	}
	// What is news to people this package tells itself; gobgp's own words are for those who debug it.
	level := r.Level
	if level < slog.LevelWarn || r.Message == oneTooMany {
		level = slog.LevelDebug
	}
	if !h.log.Enabled(ctx, level) {
		return nil
	}
	out := slog.NewRecord(r.Time, level, "gobgp: "+h.clean(r.Message), r.PC)
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		out.AddAttrs(slog.String(strings.ToLower(k), h.clean(attrs[k])))
	}
	return h.log.Handle(ctx, out)
}

// clean takes passwords out of a text. The listener is locked.
func (l *listener) clean(s string) string {
	for secret := range l.secrets {
		s = strings.ReplaceAll(s, secret, "***")
	}
	return s
}

// text is a value as it is logged: not much of what neighbours sent.
func text(v slog.Value) string {
	s := v.Resolve().String()
	if v.Kind() == slog.KindAny {
		s = fmt.Sprintf("%v", v.Any())
	}
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}
