// Package bfd detects within a second that a BGP neighbour is gone: Bidirectional Forwarding Detection in
// asynchronous mode over one hop (RFC 5880, RFC 5881) and over several (RFC 5883), IPv4 and IPv6. Demand mode,
// echo and authentication are not spoken.
package bfd

import (
	"context"
	"net/netip"

	"github.com/heddle-net/heddle/internal/peering"
)

// State is that of a session (RFC 5880 section 6.8.1).
type State uint8

// The states, numbered as on the wire.
const (
	AdminDown State = 0
	Down      State = 1
	Init      State = 2
	Up        State = 3
)

func (s State) String() string {
	return [...]string{"AdminDown", "Down", "Init", "Up"}[s&3]
}

// Session says with whom to speak.
type Session struct {
	Peer     netip.Addr
	Local    netip.Addr // zero: the kernel's choice
	Multihop bool       // RFC 5883
	Timers   peering.BFD
}

// Event is a change of a session's state.
type Event struct {
	Peer  netip.Addr
	State State
	// Cause is the reason in words: "no packet for 300ms", "neighbor signaled session down".
	Cause string
	// Admin says that the neighbor took its session out of service. State is then Down, but that is no reason
	// to end what runs over the session (RFC 5882 section 3.2).
	Admin bool
}

// Detector watches neighbours.
type Detector interface {
	// Run serves until ctx ends, and calls told for every change of a session's state, one after the other. The
	// end of a session by Set is no such change. Run waits for told to return before it does so itself.
	Run(ctx context.Context, told func(Event)) error
	// Set makes the sessions equal to the list, before Run or while it runs. Those that do not differ are not
	// touched; of those that differ only in their timers the timers change while they stay up. A list with an
	// invalid session gives a model.FieldError and changes nothing.
	Set(sessions []Session) error
	// State is that of a peer, with the cause of its last change; AdminDown if there is no session.
	State(peer netip.Addr) (State, string)
}
