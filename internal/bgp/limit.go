package bgp

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"

	"github.com/heddle-net/heddle/internal/peering"
)

// gobgp can hold a neighbour to a number of prefixes, but counts all that it has with every message: when five
// thousand come in as many messages, that takes longer than all the rest. So they are counted here.

// limits are how much neighbours may tell, and what they told. Their lock is held for moments only: a flood is ended
// whoever is reading the table that it fills.
type limits struct {
	mu sync.Mutex
	of map[netip.Addr]*tally
}

// tally is of one session.
type tally struct {
	most  int // prefixes of one family
	line  line
	since time.Time
	heard [2]map[netip.Prefix]struct{} // IPv4, IPv6
	over  bool
}

// set is called for a neighbour that gobgp is to be given, and when its limit changes.
func (l *limits) set(n *peering.Neighbor, at line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.of[n.Address]
	if t == nil {
		t = &tally{since: time.Now()}
		l.of[n.Address] = t
	}
	t.most, t.line = maxPrefixes(n), at
}

func (l *limits) forget(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.of, a)
}

// established begins a session's count.
func (l *limits) established(a netip.Addr, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.of[a]; t != nil && !at.Before(t.since) {
		t.since, t.heard, t.over = at, [2]map[netip.Prefix]struct{}{}, false
	}
}

// count takes what one message told, and reports whether it was the one that told too much.
func (l *limits) count(neighbor netip.Addr, paths []*apiutil.Path, at time.Time) (t tally, exceeded bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.of[neighbor]
	if of == nil || of.over || at.Before(of.since) {
		return tally{}, false
	}
	for _, p := range paths {
		x, ok := prefixOf(p.Nlri)
		if !ok {
			continue
		}
		heard := &of.heard[b2i(x.Addr().Is6())]
		if p.Withdrawal {
			delete(*heard, x)
			continue
		}
		if *heard == nil {
			*heard = map[netip.Prefix]struct{}{}
		}
		if (*heard)[x] = struct{}{}; len(*heard) > of.most {
			of.over, of.heard = true, [2]map[netip.Prefix]struct{}{}
			return *of, true
		}
	}
	return tally{}, false
}

// updateEvent: a neighbour told of routes, in one message.
func (s *Server) updateEvent(paths []*apiutil.Path, at time.Time) {
	s.change()
	if len(paths) == 0 {
		return
	}
	a := paths[0].PeerAddress
	t, exceeded := s.limits.count(a, paths, at)
	if !exceeded {
		return
	}
	// First of all, as gobgp comes to nothing else while the flood lasts.
	closeLines(map[netip.Addr]line{a: t.line})
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[a]
	if n == nil || !n.added || s.over || s.bgp == nil {
		return
	}
	n.overruns++
	if n.state == peering.Established {
		n.flaps++
	}
	s.hold(n, fmt.Sprintf("it told of more than %d prefixes of one family", t.most), backoff(holdLimit, n.overruns))
}
