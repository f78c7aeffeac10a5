// Package peering decides with whom a node speaks BGP (RFC 4271), what it tells them and what it believes them.
// Its plan is a value like the node plan, which holds it; internal/bgp is the hand that speaks.
//
// The package is pure: no I/O, no clock. Names follow Calico's BGPConfiguration, BGPPeer and BGPFilter, from
// which internal/dialect/calico makes a Config.
package peering

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// Defaults.
const (
	DefaultASN  uint32 = 64512 // RFC 6996: the first for private use
	DefaultPort uint16 = 179
	// DefaultMeshLimit is the number of speaking nodes above which the full mesh gives way to elected route
	// reflectors: n nodes keep n(n-1)/2 sessions.
	DefaultMeshLimit = 100
	// DefaultMaxPrefixes is how many prefixes a neighbour may announce, per family.
	DefaultMaxPrefixes = 20000
	// DefaultRestartTime is how long a restarting neighbour's routes stay (RFC 4724).
	DefaultRestartTime = 120 * time.Second
)

// Config is what people wrote about BGP. Lists are sorted by name.
type Config struct {
	Settings Settings `json:"settings"`
	Peers    []Peer   `json:"peers,omitempty"`
	Filters  []Filter `json:"filters,omitempty"`
	// Wanted says that something was written that asks for BGP; without it, and without a pool of path bgp, no
	// node speaks.
	Wanted bool `json:"wanted,omitempty"`
}

// Settings are those of all nodes (Calico's BGPConfiguration "default", overlaid by "node.NAME").
type Settings struct {
	ASN  uint32 `json:"asn"`
	Mesh bool   `json:"mesh"` // node-to-node mesh
	// MeshLimit is the number of nodes above which elected route reflectors replace the mesh; 0: never.
	MeshLimit       int           `json:"meshLimit"`
	MeshPassword    Secret        `json:"-"`
	MeshPasswordRef string        `json:"meshPasswordRef,omitempty"` // see Session.PasswordRef
	MeshLocked      string        `json:"-"`                         // see Session.Locked
	MeshRestartTime time.Duration `json:"meshRestartTime"`
	ListenPort      uint16        `json:"listenPort"`
	// Service ranges that every node announces.
	ClusterIPs      []netip.Prefix `json:"clusterIPs,omitempty"`
	ExternalIPs     []netip.Prefix `json:"externalIPs,omitempty"`
	LoadBalancerIPs []netip.Prefix `json:"loadBalancerIPs,omitempty"`
	// Advertisements add communities to what is announced inside a range.
	Advertisements []Advertisement `json:"advertisements,omitempty"`
	// PerNode overlays single settings of one node, by its name.
	PerNode map[string]NodeSettings `json:"perNode,omitempty"`
}

// NodeSettings are what "node.NAME" may say otherwise than "default".
type NodeSettings struct {
	ListenPort uint16 `json:"listenPort,omitempty"`
}

// Advertisement adds communities to announcements that equal CIDR or lie inside it.
type Advertisement struct {
	CIDR        netip.Prefix `json:"cidr"`
	Communities []Community  `json:"communities"`
}

// Secret is a password. It prints as stars, and is left out of JSON.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString keeps it out of %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText keeps it out of JSON.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Community is a standard one, A:B of 16 bits each (RFC 1997), or a large one, A:B:C of 32 bits (RFC 8092).
type Community struct {
	Large   bool
	A, B, C uint32
}

// LLGRStale marks routes of a neighbour that is away for longer than its restart time (RFC 9494 section 4.5).
var LLGRStale = Community{A: 65535, B: 6}

func (c Community) String() string {
	if c.Large {
		return fmt.Sprintf("%d:%d:%d", c.A, c.B, c.C)
	}
	return fmt.Sprintf("%d:%d", c.A, c.B)
}

// MarshalText implements encoding.TextMarshaler.
func (c Community) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: AA:NN or AA:BB:CC in decimal.
func (c *Community) UnmarshalText(b []byte) error {
	bad := func() error {
		return &model.FieldError{Noun: "community", Field: "value", Value: fmt.Sprintf("%.64q", b), Want: "AA:NN of 0..65535 (RFC 1997) or AA:BB:CC of 0..4294967295 (RFC 8092)"}
	}
	parts := strings.Split(string(b), ":")
	if len(parts) != 2 && len(parts) != 3 {
		return bad()
	}
	bits := 16
	if len(parts) == 3 {
		bits = 32
	}
	var n [3]uint32
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, bits)
		if err != nil || p[0] == '+' {
			return bad()
		}
		n[i] = uint32(v)
	}
	*c = Community{Large: len(parts) == 3, A: n[0], B: n[1], C: n[2]}
	return nil
}

// Peer is what a BGPPeer says: which nodes speak to which neighbours, and how.
type Peer struct {
	Name string `json:"name"`
	// Node or NodeSelector say which nodes; both empty: all.
	Node         string `json:"node,omitempty"`
	NodeSelector string `json:"nodeSelector,omitempty"`
	// Address or PeerSelector say with whom; the selector picks nodes of this network.
	Address      netip.Addr `json:"address,omitzero"`
	Port         uint16     `json:"port,omitempty"` // 0: 179
	PeerSelector string     `json:"peerSelector,omitempty"`
	// AnySource leaves the choice of the own address to the kernel; else it is the node's, unless Source is set.
	AnySource bool `json:"anySource,omitempty"`
	// OneSided: nodes that PeerSelector picks are told by another Peer to speak to those that this one is for.
	OneSided bool `json:"oneSided,omitempty"`
	Session
}

// NextHop says which next hop a session announces.
type NextHop string

// The next-hop modes.
const (
	NextHopAuto NextHop = "Auto" // self to eBGP neighbours, as it is to iBGP ones (RFC 4271 section 5.1.3)
	NextHopSelf NextHop = "Self"
	NextHopKeep NextHop = "Keep"
)

// BFD are the timers of a session's liveness detection (RFC 5880 section 6.8).
type BFD struct {
	Transmit   time.Duration `json:"transmit"`
	Receive    time.Duration `json:"receive"`
	Multiplier uint8         `json:"multiplier"`
}

// Session is how one neighbour is spoken to.
type Session struct {
	RemoteASN uint32 `json:"remoteASN"` // 0: the network's own
	LocalASN  uint32 `json:"localASN,omitempty"`
	// Source is the session's own address; in a plan, zero stands for the one by which the kernel reaches the
	// neighbour.
	Source   netip.Addr `json:"source,omitzero"`
	Password Secret     `json:"-"` // RFC 2385
	// PasswordRef names the password as people do, NAME/KEY of a Kubernetes Secret. Without the password the
	// neighbour is not spoken to.
	PasswordRef string `json:"passwordRef,omitempty"`
	// Locked says why there is no password; see Unlock.
	Locked string `json:"-"`
	// TTLSecurity is the number of hops that packets may have come (RFC 5082); 0: not checked. Multihop lets an
	// eBGP neighbour be that many hops away; 0: it must be on-link.
	TTLSecurity uint8         `json:"ttlSecurity,omitempty"`
	Multihop    uint8         `json:"multihop,omitempty"`
	HoldTime    time.Duration `json:"holdTime,omitempty"`  // 0: 90 s
	KeepAlive   time.Duration `json:"keepAlive,omitempty"` // 0: a third of the hold time
	// RestartTime is that of graceful restart (RFC 4724), LongLived that of long-lived graceful restart
	// (RFC 9494); 0: the default, and none.
	RestartTime time.Duration `json:"restartTime,omitempty"`
	LongLived   time.Duration `json:"longLived,omitempty"`
	NextHop     NextHop       `json:"nextHop,omitempty"` // "": Auto
	// AllowOwnAS is how often the own AS may be in a path that is believed.
	AllowOwnAS  int      `json:"allowOwnAS,omitempty"`
	MaxPrefixes int      `json:"maxPrefixes,omitempty"` // per family; 0: DefaultMaxPrefixes
	Filters     []string `json:"filters,omitempty"`     // names, in order
	BFD         *BFD     `json:"bfd,omitempty"`
	// Passive waits for the neighbour to connect.
	Passive bool `json:"passive,omitempty"`
}

// Direction of a filter rule: what is believed, or what is told.
type Direction string

// The directions.
const (
	Import Direction = "import"
	Export Direction = "export"
)

// Match says how a route's prefix is held against a rule's CIDR.
type Match string

// The operators (Calico's BGPFilter).
const (
	MatchEqual    Match = "Equal"
	MatchNotEqual Match = "NotEqual"
	MatchIn       Match = "In"
	MatchNotIn    Match = "NotIn"
)

// Filter is what a BGPFilter says. The first rule of a direction and family that matches decides; a route that
// none matches passes on to the next filter, and at the end to what the session's kind does by itself.
type Filter struct {
	Name  string `json:"name"`
	Rules []Rule `json:"rules"`
}

// Rule is one of a filter's.
type Rule struct {
	Direction Direction    `json:"direction"`
	Family    model.Family `json:"family"`
	// CIDR and Match; zero: every prefix. MinLength and MaxLength bound the prefix's length, as a part of what
	// Match compares or negates; nil: no bound.
	CIDR      netip.Prefix `json:"cidr,omitzero"`
	Match     Match        `json:"match,omitempty"`
	MinLength *int         `json:"minLength,omitempty"`
	MaxLength *int         `json:"maxLength,omitempty"`
	// Learned restricts an export rule to routes that other neighbours told of (Calico's source RemotePeers).
	Learned     bool        `json:"learned,omitempty"`
	Communities []Community `json:"communities,omitempty"` // all must be there
	ASPath      []uint32    `json:"asPath,omitempty"`      // the path begins with these
	Kind        SessionKind `json:"kind,omitempty"`        // "": both
	Accept      bool        `json:"accept"`
	// Operations are done to a route that is accepted, in order.
	Operations []Operation `json:"operations,omitempty"`
}

// SessionKind tells neighbours of the own AS from others.
type SessionKind string

// The kinds.
const (
	Internal SessionKind = "iBGP"
	External SessionKind = "eBGP"
)

// Operation changes an accepted route: exactly one field is set.
type Operation struct {
	AddCommunity *Community `json:"addCommunity,omitempty"`
	PrependAS    []uint32   `json:"prependAS,omitempty"`
	Preference   *uint32    `json:"preference,omitempty"` // LOCAL_PREF
}
