// Package bfd detects within a second that a BGP neighbour is gone: Bidirectional Forwarding Detection in
// asynchronous mode over one hop (RFC 5880, RFC 5881) and over several (RFC 5883).
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
	// Cause is the reason in words: "no packet for 300 ms", "neighbor signaled session down".
	Cause string
}

// Detector watches neighbours.
type Detector interface {
	// Run serves until ctx ends, and calls told for every change of a session's state, one after the other.
	Run(ctx context.Context, told func(Event)) error
	// Set makes the sessions equal to the list. Those that do not differ are not touched.
	Set(sessions []Session) error
	// State is that of a peer, with the cause of its last change.
	State(peer netip.Addr) (State, string)
}
