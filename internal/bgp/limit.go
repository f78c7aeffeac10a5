package bgp

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"

	"github.com/heddle-net/heddle/internal/peering"
)

// gobgp can hold a neighbour to a number of prefixes, but counts all that it has with every message: when five
// thousand come in as many messages, that takes longer than all the rest. So they are counted here.

// updateEvent: a neighbour told of routes, in one message.
func (s *Server) updateEvent(paths []*apiutil.Path, _ time.Time) {
	s.change()
	if len(paths) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[paths[0].PeerAddress]
	if n == nil || !n.added || s.over || s.bgp == nil {
		return
	}
	most := maxPrefixes(&n.Neighbor)
	for _, p := range paths {
		x, ok := prefixOf(p.Nlri)
		if !ok {
			continue
		}
		of := &n.heard[b2i(x.Addr().Is6())]
		if p.Withdrawal {
			delete(*of, x)
			continue
		}
		if *of == nil {
			*of = map[netip.Prefix]struct{}{}
		}
		if (*of)[x] = struct{}{}; len(*of) > most {
			s.overrun(n, fmt.Sprintf("it told of more than %d prefixes of one family", most))
			return
		}
	}
}

// overrun ends a session whose neighbour tells too much. Its connection is closed first: gobgp comes to nothing
// else while a flood lasts.
func (s *Server) overrun(n *session, cause string) {
	s.shut(map[netip.Addr]bool{n.Address: true})
	n.overruns++
	if n.state == peering.Established {
		n.flaps++
	}
	s.hold(n, cause, backoff(holdLimit, n.overruns))
}
