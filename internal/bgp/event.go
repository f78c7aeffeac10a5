package bgp

import (
	"fmt"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/heddle-net/heddle/internal/bfd"
	"github.com/heddle-net/heddle/internal/peering"
)

const (
	// lasting is how long a session must stand to count as one that holds.
	lasting = 30 * time.Second
	// shortOnes is how many sessions in a row may be shorter before the neighbour is held off.
	shortOnes = 3
	holdFlaps = 15 * time.Second // doubled with every further one
	holdLimit = time.Minute      // after too many prefixes; doubled too
	holdBFD   = 5 * time.Second
	holdMax   = 10 * time.Minute
	// confirming is how long the last step of the opening may take. Where both sides connect in the same moment, gobgp
	// may wait on each side for the connection that the other one has given up, until the hold timer ends.
	confirming = 5 * time.Second
)

var states = map[bgp.FSMState]peering.State{
	bgp.BGP_FSM_IDLE: peering.Idle, bgp.BGP_FSM_CONNECT: peering.Connect, bgp.BGP_FSM_ACTIVE: peering.Active,
	bgp.BGP_FSM_OPENSENT: peering.OpenSent, bgp.BGP_FSM_OPENCONFIRM: peering.OpenConfirm, bgp.BGP_FSM_ESTABLISHED: peering.Established,
}

func (s *Server) bestEvent([]*apiutil.Path, time.Time) { s.change() }

// endEvent: a neighbour has told all of a family (RFC 4724 section 2).
func (s *Server) endEvent(p *apiutil.Path, _ time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.sessions[p.PeerAddress]; n != nil {
		delete(n.wanted, uint32(p.Family))
	}
	s.change()
}

// peerEvent: a session changed its state.
func (s *Server) peerEvent(e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
	st := e.Peer.State
	if st.SessionState == bgp.BGP_FSM_ESTABLISHED {
		s.limits.established(st.NeighborAddress, at)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[st.NeighborAddress]
	if n == nil || !n.added || s.over || at.Before(n.since) {
		return
	}
	was, is := n.state, states[st.SessionState]
	if is == "" || was == is && is != peering.Idle {
		return
	}
	if was != is {
		n.state, n.since = is, at
	}
	switch {
	case is == peering.Established:
		n.upAt = at
		n.wanted, n.restarts = ends(st.RemoteCap)
		s.log.Info("BGP session established", "neighbor", n.Address, "name", n.Name, "as", st.PeerASN)
	case is == peering.Idle:
		s.failed(n, was, e, at)
	}
	s.change()
}

// failed notes why a session ended, or did not come up, and holds the neighbour off where it must be.
func (s *Server) failed(n *session, was peering.State, e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
	cause := left(e.Peer.State.DisconnectReason, e.Peer.State.DisconnectMessage)
	if cause == "" {
		return
	}
	if said := s.listener.noted(n.Address); said.text != "" && cause != awayCause && (said.text != closedCause || was != peering.Established) && (at.Sub(said.at) < 2*time.Second || vague(cause) && at.Sub(said.at) < 15*time.Second && was != peering.Established) {
		cause = said.text
	}
	s.listener.note(n.Address, cause)
	n.failure = note{cause, at}
	if was == peering.Established {
		n.flaps++
		s.log.Warn("BGP session ended", "neighbor", n.Address, "name", n.Name, "cause", cause, "lasted", at.Sub(n.upAt).Round(time.Second))
	}
	if was == peering.Established && at.Sub(n.upAt) < lasting {
		n.short++
		if n.short >= shortOnes {
			s.hold(n, fmt.Sprintf("%d sessions in a row lasted less than %s; the last one: %s", n.short, lasting, cause), backoff(holdFlaps, n.short-shortOnes+1))
		}
	}
}

// hold ends what there is of a session, and lets it rest.
func (s *Server) hold(n *session, cause string, pause time.Duration) {
	if err := s.remove(n); err != nil {
		s.log.Error("cannot end a BGP session", "neighbor", n.Address, "error", err)
		return
	}
	n.held = time.Now().Add(pause)
	n.failure = note{fmt.Sprintf("%s; no new try for %s", cause, pause), time.Now()}
	s.listener.note(n.Address, n.failure.text)
	s.log.Warn("BGP neighbor is left alone for a while", "neighbor", n.Address, "name", n.Name, "cause", cause, "pause", pause)
	s.change()
}

func backoff(first time.Duration, times int) time.Duration {
	return min(holdMax, first<<min(times-1, 10))
}

// ends are the families whose end a neighbour will tell, and whether it tells any.
func ends(caps []bgp.ParameterCapabilityInterface) (wanted map[uint32]bool, restarts bool) {
	wanted = map[uint32]bool{}
	multi := false
	for _, c := range caps {
		switch c := c.(type) {
		case *bgp.CapMultiProtocol:
			multi = true
			if c.CapValue == bgp.RF_IPv4_UC || c.CapValue == bgp.RF_IPv6_UC {
				wanted[uint32(c.CapValue)] = true
			}
		case *bgp.CapGracefulRestart:
			restarts = true
		}
	}
	if !multi {
		wanted[uint32(bgp.RF_IPv4_UC)] = true
	}
	return wanted, restarts
}

// detected is told what BFD sees.
func (s *Server) detected(e bfd.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[e.Peer]
	if n == nil || s.over || s.bgp == nil {
		return
	}
	switch {
	case e.State == bfd.Up:
		n.lost = false
		if !n.added { // it need not wait any longer
			n.held = time.Time{}
		}
	case n.BFD != nil && !e.Admin && e.State == bfd.Down && n.state == peering.Established && !n.lost:
		n.lost = true
		n.flaps++
		s.hold(n, "liveness detection (BFD): "+strings.TrimSpace(e.Cause), holdBFD)
	}
	s.change()
}
