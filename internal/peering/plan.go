package peering

import (
	"net/netip"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// Plan is all that a node's BGP speaker should do. Lists are sorted by their keys.
type Plan struct {
	ASN      uint32     `json:"asn"`
	RouterID netip.Addr `json:"routerID"` // in the form of an IPv4 address (RFC 4271 section 4.2)
	// ClusterID makes the node a route reflector (RFC 4456).
	ClusterID netip.Addr   `json:"clusterID,omitzero"`
	Listen    []netip.Addr `json:"listen"` // own addresses
	Port      uint16       `json:"port"`
	Neighbors []Neighbor   `json:"neighbors"`
	// Announced are the node's own prefixes.
	Announced []Announcement `json:"announced"`
	Filters   []Filter       `json:"filters,omitempty"`
	// Believed are the ranges from which any node of the network may announce prefixes: the pools'.
	Believed []netip.Prefix `json:"believed"`
	// Own are ranges that no neighbour is believed about, unless a filter accepts them: this node's addresses and
	// blocks.
	Own []netip.Prefix `json:"own"`
	// Lent are parts of own blocks that other nodes have: about these they are believed.
	Lent []netip.Prefix `json:"lent,omitempty"`
	// Elected says that chosen nodes reflect routes in the mesh's stead.
	Elected bool `json:"elected,omitempty"`
	// Mode says in words how nodes of the network speak to each other: "full mesh of 5 nodes".
	Mode string `json:"mode"`
}

// Neighbor is one session. Address and Source family decide what it runs over; it carries both families.
type Neighbor struct {
	Address netip.Addr `json:"address"` // the key
	Port    uint16     `json:"port"`
	Name    string     `json:"name"`           // of the BGPPeer, or "mesh"
	Node    string     `json:"node,omitempty"` // when it is a node of this network
	Session
	// Client: this node reflects routes to it.
	Client bool `json:"client,omitempty"`
}

// Kind tells whether the neighbour is of the own AS.
func (n *Neighbor) Kind(own uint32) SessionKind {
	local := own
	if n.LocalASN != 0 {
		local = n.LocalASN
	}
	if n.RemoteASN == local {
		return Internal
	}
	return External
}

// Announcement is an own prefix and why it is announced.
type Announcement struct {
	Prefix      netip.Prefix `json:"prefix"`
	Communities []Community  `json:"communities,omitempty"`
	Reason      string       `json:"reason"` // "block of pool \"a\"", "service range"
}

// Route is what one neighbour says of one prefix.
type Route struct {
	Prefix      netip.Prefix `json:"prefix"`
	NextHop     netip.Addr   `json:"nextHop"`
	Neighbor    netip.Addr   `json:"neighbor"`
	ASPath      []uint32     `json:"asPath,omitempty"`
	Preference  uint32       `json:"preference"` // LOCAL_PREF, 100 where none was given
	MED         uint32       `json:"med,omitempty"`
	Communities []Community  `json:"communities,omitempty"`
	// Best: it won, alone or as one of several of equal cost.
	Best bool `json:"best"`
	// Reason says why it won or lost, or why it is not believed.
	Reason string `json:"reason"`
	// Rejected: it is not believed, and never Best.
	Rejected bool `json:"rejected,omitempty"`
	// Stale: its neighbour is restarting (RFC 4724).
	Stale bool `json:"stale,omitempty"`
	// LongLived: whoever told of it first is away for longer than its restart time (RFC 9494). It is the least
	// preferred, and carries the community LLGRStale.
	LongLived bool `json:"longLived,omitempty"`
}

// State is that of a session (RFC 4271 section 8.2.2).
type State string

// The states.
const (
	Idle        State = "Idle"
	Connect     State = "Connect"
	Active      State = "Active"
	OpenSent    State = "OpenSent"
	OpenConfirm State = "OpenConfirm"
	Established State = "Established"
)

// Status is one neighbour as it is now.
type Status struct {
	Neighbor
	State State     `json:"state"`
	Since time.Time `json:"since,omitzero"` // of the state
	// Failure is the cause of the last failure in words, and when it was.
	Failure   string    `json:"failure,omitempty"`
	FailureAt time.Time `json:"failureAt,omitzero"`
	// Prefixes by direction: received, believed, and told.
	Received int `json:"received"`
	Accepted int `json:"accepted"`
	Sent     int `json:"sent"`
	Flaps    int `json:"flaps"` // how often it left Established
	// BFD is the state of liveness detection in words; "" without.
	BFD string `json:"bfd,omitempty"`
	// Restarting: its routes are kept for it (RFC 4724).
	Restarting bool `json:"restarting,omitempty"`
}

// Input is all that Build looks at.
type Input struct {
	Self    *model.Node
	Cluster *model.Cluster // sorted; pools as they count
	Config  Config
	// Addresses are those of this node's workloads: the ones that are borrowed are announced one by one.
	Addresses []netip.Addr
	// Learned is what neighbours say now, believed or not: a session that is not wanted any more stays until
	// others tell what it tells.
	Learned []Route
	// Elected is that of the last plan.
	Elected bool
	// Silent are the names of nodes that show no sign of life: they are elected only where nobody else is.
	Silent []string
}
