package bgp

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/heddle-net/heddle/internal/peering"
)

// count is how many prefixes a neighbour told of, how many of those are believed, and whether any are of a life
// that it is restarting from.
type count struct {
	received, accepted int
	stale              bool
}

// Routes implements Speaker.
func (s *Server) Routes() []peering.Route {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read()
	out := make([]peering.Route, len(s.routes))
	for i := range s.routes {
		out[i] = s.routes[i].Route
	}
	return out
}

// read takes the routes from gobgp again, if they changed.
func (s *Server) read() {
	if s.bgp == nil || s.plan == nil || !s.dirty.Swap(false) {
		return
	}
	type key struct {
		prefix   netip.Prefix
		neighbor netip.Addr
	}
	taken := map[key]path{}
	local := map[netip.Prefix]bool{}
	for _, f := range families {
		_ = s.bgp.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: wire(f)}, func(nlri bgp.NLRI, paths []*apiutil.Path) {
			x, ok := prefixOf(nlri)
			if !ok {
				return
			}
			for _, p := range paths {
				if !p.PeerAddress.IsValid() {
					local[x] = true
					continue
				}
				taken[key{x, p.PeerAddress}] = route(x, p, s.plan.ASN)
			}
		})
	}
	s.routes, s.counts = nil, map[netip.Addr]count{}
	for _, a := range s.addresses() {
		n := s.sessions[a]
		if !n.added {
			continue
		}
		var c count
		for _, f := range families {
			_ = s.bgp.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_ADJ_IN, Name: a.String(), Family: wire(f)}, func(nlri bgp.NLRI, paths []*apiutil.Path) {
				x, ok := prefixOf(nlri)
				if !ok || len(paths) == 0 {
					return
				}
				c.received++
				c.stale = c.stale || paths[0].Stale
				if r, ok := taken[key{x, a}]; ok {
					c.accepted++
					r.Stale = paths[0].Stale
					s.routes = append(s.routes, r)
					return
				}
				r := route(x, paths[0], s.plan.ASN)
				r.Best, r.Rejected = false, true
				if r.Reason = looped(&r, s.plan, &n.Neighbor); r.Reason == "" {
					_, ok, why := s.plan.Believe(&n.Neighbor, r.Route)
					if r.Reason = why; ok {
						r.Reason = takenIn
					}
				}
				s.routes = append(s.routes, r)
			})
		}
		s.counts[a] = c
	}
	s.recall()
	lastResort(s.routes)
	sortRoutes(s.routes)
	explain(s.routes, local)
}

func prefixOf(nlri bgp.NLRI) (netip.Prefix, bool) {
	p, ok := nlri.(*bgp.IPAddrPrefix)
	if !ok {
		return netip.Prefix{}, false
	}
	return p.Prefix.Masked(), true
}

// lastResort takes from what is best the long-lived routes of prefixes that somebody who is there tells too: gobgp
// counts both where nothing else tells them apart.
func lastResort(routes []path) {
	better := map[netip.Prefix]bool{}
	for i := range routes {
		if r := &routes[i]; r.Best && !r.LongLived {
			better[r.Prefix] = true
		}
	}
	for i := range routes {
		if r := &routes[i]; r.LongLived && better[r.Prefix] {
			r.Best = false
		}
	}
}

// Reasons, and what is added to those of routes that are kept for a neighbor.
const (
	takenIn    = "being taken in" // believed, and not yet in gobgp's table
	restarting = "its neighbor is restarting"
	longLived  = "kept for one that is away for longer than its restart time"
)

// explain says of every route that is believed why it won or lost. The routes are sorted.
func explain(routes []path, local map[netip.Prefix]bool) {
	for i := 0; i < len(routes); {
		end := i + 1
		for end < len(routes) && routes[end].Prefix == routes[i].Prefix {
			end++
		}
		group := routes[i:end]
		i = end
		believed := slices.IndexFunc(group, func(p path) bool { return p.Rejected })
		if believed < 0 {
			believed = len(group)
		}
		group = group[:believed]
		best := slices.IndexFunc(group, func(p path) bool { return !p.Best })
		if best < 0 {
			best = len(group)
		}
		for k := range group {
			p := &group[k]
			switch {
			case p.Best && best > 1:
				p.Reason = fmt.Sprintf("one of %d of equal cost", best)
			case p.Best && len(group) > 1:
				p.Reason = fmt.Sprintf("%s than %s's", compare(p, &group[1]), group[1].Neighbor)
			case p.Best:
				p.Reason = "the only one"
			case local[p.Prefix]:
				p.Reason = "this node announces it itself"
			case best == 0:
				p.Reason = "not chosen"
			default:
				p.Reason = fmt.Sprintf("%s has %s", group[0].Neighbor, compare(&group[0], p))
			}
			switch {
			case p.LongLived:
				p.Reason += "; " + longLived
			case p.Stale:
				p.Reason += "; " + restarting
			}
		}
	}
}

// Status implements Speaker.
func (s *Server) Status() []peering.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read()
	var sent map[netip.Addr]int
	if s.plan != nil {
		sent = s.sent()
	}
	out := []peering.Status{}
	for _, a := range s.addresses() {
		n, c := s.sessions[a], s.counts[a]
		st := peering.Status{
			Neighbor: n.Neighbor, State: n.state, Since: n.since, Failure: n.failure.text, FailureAt: n.failure.at, Flaps: n.flaps,
			Received: c.received, Accepted: c.accepted, Restarting: c.stale,
		}
		if n.state == peering.Established {
			st.Sent = sent[a]
		} else if said := s.listener.noted(a); said.at.After(n.failure.at) {
			st.Failure, st.FailureAt = said.text, said.at
		}
		if as := n.says.Load(); st.Failure == wrongAS && as != 0 && as != n.RemoteASN {
			st.Failure = fmt.Sprintf("it says AS %d, AS %d was expected", as, n.RemoteASN)
		}
		if n.Password != "" && n.state != peering.Established && st.Failure == timeoutCause {
			st.Failure += "; or the passwords of the two sides differ"
		}
		if n.BFD != nil && s.bfd != nil {
			state, cause := s.bfd.State(a)
			st.BFD = state.String()
			if cause != "" {
				st.BFD += ": " + cause
			}
		}
		out = append(out, st)
	}
	return out
}

// sent counts what neighbours are told of. Those that are told alike are counted once, but for what each told
// itself.
func (s *Server) sent() map[netip.Addr]int {
	type tally struct {
		all  int
		from map[netip.Addr]int
	}
	byRules := map[string]*tally{}
	out := map[netip.Addr]int{}
	for a, n := range s.sessions {
		if n.state != peering.Established || s.rules == nil {
			continue
		}
		id := fmt.Sprint(n.Client, s.rules.judgeOut[a])
		t := byRules[id]
		if t == nil {
			t = &tally{from: map[netip.Addr]int{}}
			byRules[id] = t
			other := n.Neighbor
			for _, own := range s.plan.Announced {
				if _, ok, _ := s.plan.Tell(&other, peering.Route{Prefix: own.Prefix, Communities: own.Communities}, true); ok {
					t.all++
				}
			}
			other.Address = netip.Addr{} // that told of nothing
			var last netip.Prefix
			for i := range s.routes {
				r := &s.routes[i]
				if !r.Best || r.Prefix == last {
					continue
				}
				last = r.Prefix
				if _, ok, _ := s.plan.Tell(&other, r.Route, false); ok {
					t.all++
					t.from[r.Neighbor]++
				}
			}
		}
		out[a] = t.all - t.from[a]
	}
	return out
}
