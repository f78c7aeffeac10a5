package bgp

import (
	"cmp"
	"context"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/heddle-net/heddle/internal/peering"
)

// gobgp makes a session anew when it is to be told what its neighbour's routes are reflected to, or is not any more. So
// that nothing is lost when a node becomes a route reflector, that is done as if the process had been restarted: the
// connection is closed without a word, the neighbour keeps what it was told (RFC 4724), and this side what it heard.

// keepsake are the routes of a neighbour whose session is being made anew.
type keepsake struct {
	routes []path
	until  time.Time
}

// reflectsAnew reports whether what this node reflects to a neighbour is another thing by the new plan.
func reflectsAnew(old, p *peering.Plan, was, is *peering.Neighbor) bool {
	return was.Client != is.Client || old != nil && old.ClusterID != p.ClusterID && is.Client
}

// pause closes the sessions of which nothing changes but what is reflected to them, and returns what they told. Those
// that do not know of restarts are not among them.
func (s *Server) pause(old, p *peering.Plan, wanted map[netip.Addr]*peering.Neighbor) map[netip.Addr]*keepsake {
	paused, shut := map[netip.Addr]*keepsake{}, map[netip.Addr]bool{}
	for a, n := range s.sessions {
		w := wanted[a]
		if w == nil || !n.added || n.state != peering.Established || !n.restarts || !reflectsAnew(old, p, &n.Neighbor, w) {
			continue
		}
		same := wired(n.Neighbor)
		if same.Client = w.Client; reflect.DeepEqual(same, wired(*w)) {
			paused[a] = &keepsake{until: time.Now().Add(cmp.Or(w.RestartTime, peering.DefaultRestartTime))}
			shut[a] = true
		}
	}
	if len(paused) == 0 {
		return nil
	}
	s.read()
	for i := range s.routes {
		if k := paused[s.routes[i].Neighbor]; k != nil && !s.routes[i].Rejected {
			k.routes = append(k.routes, s.routes[i])
		}
	}
	s.shut(shut)
	s.await(func(a netip.Addr) bool { return shut[a] })
	return paused
}

// await waits until gobgp has seen the end of sessions.
func (s *Server) await(of func(netip.Addr) bool) {
	for end, standing := time.Now().Add(2*time.Second), true; standing && time.Now().Before(end); time.Sleep(time.Millisecond) {
		standing = false
		_ = s.bgp.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
			a, err := netip.ParseAddr(p.State.NeighborAddress)
			standing = standing || p.State.SessionState == api.PeerState_SESSION_STATE_ESTABLISHED && err == nil && of(a)
		})
	}
}

// recall adds what neighbours told whose sessions are being made anew, until they have told all again.
func (s *Server) recall() {
	if len(s.kept) == 0 {
		return
	}
	type key struct {
		prefix   netip.Prefix
		neighbor netip.Addr
	}
	// What is only on its way into the table does not count yet.
	s.routes = slices.DeleteFunc(s.routes, func(r path) bool { return s.kept[r.Neighbor] != nil && r.Rejected && r.Reason == takenIn })
	told, best := map[key]bool{}, map[netip.Prefix]bool{}
	for i := range s.routes {
		r := &s.routes[i]
		told[key{r.Prefix, r.Neighbor}] = true
		best[r.Prefix] = best[r.Prefix] || r.Best
	}
	for a, k := range s.kept {
		n := s.sessions[a]
		if n == nil || !n.added || !time.Now().Before(k.until) || n.state == peering.Established && n.told() {
			delete(s.kept, a)
			continue
		}
		c := s.counts[a]
		for _, r := range k.routes {
			if _, ok, _ := s.plan.Believe(&n.Neighbor, r.Route); told[key{r.Prefix, a}] || !ok {
				continue
			}
			r.Stale, r.Best = true, r.Best && !best[r.Prefix]
			s.routes = append(s.routes, r)
			c.received, c.accepted, c.stale = c.received+1, c.accepted+1, true
		}
		s.counts[a] = c
	}
}
