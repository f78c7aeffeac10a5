// Package plan makes a node plan: everything that a node's kernel should hold, as one plain value.
//
// Build is pure: no I/O, no clock, no globals. The same input gives the same plan to the byte.
// Drivers make the kernel equal to a plan; Shell prints it as commands; Diff compares two.
package plan

import (
	"net/netip"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// Marks by which drivers know what is Heddle's own.
const (
	// RouteProtocol marks routes (RTA_PROTOCOL; see /etc/iproute2/rt_protos): free in the kernel's list.
	RouteProtocol = 0x68
	// LearnedProtocol marks those of them that BGP told of.
	LearnedProtocol = 0x69
	// AliasPrefix begins the alias (IFLA_IFALIAS) of every link that Heddle made.
	AliasPrefix = "heddle:"
	// Table is the nftables table's name, in family inet.
	Table = "heddle"
)

// LinkKind is the kind of a link.
type LinkKind string

// The kinds of links in a plan.
const (
	LinkBridge LinkKind = "bridge"
	LinkVXLAN  LinkKind = "vxlan"
	// LinkIPIP is a tunnel device without a remote address: each route names the other end (RFC 2003; IPv6:
	// RFC 2473).
	LinkIPIP LinkKind = "ipip"
	// LinkVeth is the host end of a workload's veth: made by the attachment, never by a pass. A pass
	// keeps its settings, and reports it when it is missing.
	LinkVeth LinkKind = "veth"
)

// Link is a device. All links of a plan are up.
type Link struct {
	Name  string   `json:"name"`
	Kind  LinkKind `json:"kind"`
	Alias string   `json:"alias"` // AliasPrefix and what it is for
	MTU   int      `json:"mtu"`   // bytes
	MAC   string   `json:"mac,omitempty"`
	// Veth only: the bridge it is a port of, and hairpin mode of that port.
	Master  string `json:"master,omitempty"`
	Hairpin bool   `json:"hairpin,omitempty"`
	// Bridge only: what it carries from port to port passes the packet filter of IPv4 and IPv6 as if it were
	// routed. This is the bridge's own setting; the machine's (net.bridge.bridge-nf-call-*) is left alone.
	NFCall bool `json:"nfCall,omitempty"`
	// VXLAN only.
	VXLAN *VXLANDevice `json:"vxlan,omitempty"`
	// IPIP only.
	IPIP *IPIPDevice `json:"ipip,omitempty"`
}

// IPIPDevice are the attributes of an ipip device. IPv4's is the one that the kernel makes by itself, tunl0. For
// IPv6 it is a device that takes the other end's address from each route (Route.Encap).
type IPIPDevice struct {
	Local netip.Addr `json:"local"` // outer source, by which its family is known
}

// VXLANDevice are the attributes that need the device made anew when they differ.
type VXLANDevice struct {
	VNI      int        `json:"vni"`
	Port     int        `json:"port"`
	Local    netip.Addr `json:"local"` // outer source
	Uplink   string     `json:"uplink"`
	GBP      bool       `json:"gbp,omitempty"`
	Learning bool       `json:"learning,omitempty"`
	// NoTxChecksum makes the kernel finish inner checksums in software, before encapsulation. It is set
	// when a NAT stands between the node and a peer: a NAT that rewrites the outer header of a packet
	// whose inner checksum is still open writes a wrong one. It can change on a living device.
	NoTxChecksum bool `json:"noTxChecksum,omitempty"`
}

// Address is an address on a link of the plan.
type Address struct {
	Link   string       `json:"link"`
	Prefix netip.Prefix `json:"prefix"`
}

// RouteType is the kind of a route.
type RouteType string

// The route types.
const (
	RouteUnicast   RouteType = ""
	RouteBlackhole RouteType = "blackhole"
)

// Route is a route in the main table, marked RouteProtocol or LearnedProtocol. (Dst, family) is its key.
type Route struct {
	Type   RouteType    `json:"type,omitempty"`
	Dst    netip.Prefix `json:"dst"`
	Via    netip.Addr   `json:"via,omitzero"` // zero: scope link
	Link   string       `json:"link,omitempty"`
	OnLink bool         `json:"onlink,omitempty"`
	MTU    int          `json:"mtu,omitempty"` // bytes; 0: the link's
	// Encap is the other end of an IPv6 tunnel, in place of Via: of an on-link gateway the kernel wants to know that
	// no other device leads to it (ip6_route_check_nh_onlink), and one does where a peer is in the same segment.
	Encap netip.Addr `json:"encap,omitzero"`
	// Learned: BGP told of it.
	Learned bool `json:"learned,omitempty"`
	// NextHops are several ways of equal cost, sorted; Via, Link and OnLink are empty then.
	NextHops []NextHop `json:"nextHops,omitempty"`
}

// protocol is the mark that the kernel has of the route.
func (r *Route) protocol() int {
	if r.Learned {
		return LearnedProtocol
	}
	return RouteProtocol
}

// NextHop is one of several ways of a route.
type NextHop struct {
	Via    netip.Addr `json:"via"`
	Link   string     `json:"link"`
	OnLink bool       `json:"onlink,omitempty"`
}

// Neighbor is a permanent ARP or NDP entry.
type Neighbor struct {
	Link string     `json:"link"`
	IP   netip.Addr `json:"ip"`
	MAC  string     `json:"mac"`
}

// FDB is a permanent forwarding entry of a VXLAN device: where the owner of a MAC is.
type FDB struct {
	Link string     `json:"link"`
	MAC  string     `json:"mac"`
	Dst  netip.Addr `json:"dst"`
}

// Rule is a policy routing rule, marked RouteProtocol. None is made in this release.
type Rule struct {
	Priority int          `json:"priority"`
	From     netip.Prefix `json:"from,omitzero"`
	To       netip.Prefix `json:"to,omitzero"`
	Table    int          `json:"table"`
}

// Sysctl is a kernel setting, Key spelled with slashes below /proc/sys: net/ipv4/ip_forward.
type Sysctl struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Filter is what the nftables table holds: a fixed skeleton, and these elements in its sets.
type Filter struct {
	// Pods are all pools' ranges: between them nothing is masqueraded, and chains of others that would
	// drop what is forwarded to and from them get an accept.
	Pods []netip.Prefix `json:"pods"`
	// Masquerade are the pools whose pods are masqueraded when they talk to anything not in Pods, and
	// for which this node hides outsiders that it forwards to a pod elsewhere (as Flannel's --ip-masq
	// does: replies then come back through this node).
	Masquerade []netip.Prefix `json:"masquerade"`
	// Tunnels are the UDP ports at which nodes take tunnelled packets: a pod that sends there would have a node
	// unwrap whatever it likes to say, past every policy.
	Tunnels []uint16 `json:"tunnels,omitempty"`
	// Protocols are the IP protocols that nodes unwrap (4: IPv4, 41: IPv6), for the same reason closed to pods; and
	// open only to Nodes, the addresses that they come from.
	Protocols []uint8        `json:"protocols,omitempty"`
	Nodes     []netip.Prefix `json:"nodes,omitempty"`
	// Local are this node's own blocks: what reaches them from outside Pods keeps its source.
	Local []netip.Prefix `json:"local"`
	// Bridges are links by which workloads come in and loopback addresses may go out: what has one on its way in
	// is dropped.
	Bridges []string `json:"bridges,omitempty"`
	// HostPorts are this node's ports that lead to its workloads.
	HostPorts []HostPort `json:"hostPorts,omitempty"`
}

// Peer says how one remote block is reached, and why: for people, and for `heddle status`.
type Peer struct {
	Node   string       `json:"node"`
	Block  netip.Prefix `json:"block"`
	Path   model.Path   `json:"path"`   // "" when there is none
	Via    netip.Addr   `json:"via"`    // the peer's address in use
	MTU    int          `json:"mtu"`    // bytes a pod's packet may have on this path
	Reason string       `json:"reason"` // one clause: "same segment 192.168.0.0/24"
}

// Plan is a node plan. Every list is sorted by its key and free of duplicates.
type Plan struct {
	Node      string     `json:"node"`
	Links     []Link     `json:"links"`
	Addresses []Address  `json:"addresses"`
	Routes    []Route    `json:"routes"`
	Neighbors []Neighbor `json:"neighbors"`
	FDB       []FDB      `json:"fdb"`
	Rules     []Rule     `json:"rules"`
	Sysctls   []Sysctl   `json:"sysctls"`
	Filter    Filter     `json:"filter"`
	// MTU is what a new workload gets, in bytes: the least of all paths in use.
	MTU   int    `json:"mtu"`
	Peers []Peer `json:"peers"`
	// BGP is what the node's speaker does; nil when it does not speak.
	BGP *peering.Plan `json:"bgp,omitempty"`
	// Origins say of every learned or configured way where it came from and why it won or lost: for people, and
	// for `heddle routes`.
	Origins []Origin `json:"origins,omitempty"`
	// Relearning says that BGP has not told all yet since the agent's start: learned routes that are in the
	// kernel stay.
	Relearning bool `json:"relearning,omitempty"`
	// Retiring are the paths whose tunnel devices are there only until the store, and so every peer, has heard
	// that this node does not accept them any more.
	Retiring []model.Path `json:"retiring,omitempty"`
	// Recalled is Input.Recalled: drivers add what is missing, and leave what leads to other nodes as it is.
	Recalled bool `json:"recalled,omitempty"`
	// Problems are what Build could not honour: a peer out of reach of a fixed mode, and such.
	Problems []model.Problem `json:"problems"`
}

// Origin is one candidate for a way to a destination.
type Origin struct {
	Dst  netip.Prefix `json:"dst"`
	From string       `json:"from"` // "store: node b", "bgp: 192.168.0.1 (rack-1)", "own block"
	Via  netip.Addr   `json:"via,omitzero"`
	Used bool         `json:"used"`
	// Reason is one clause: why it won, or why not.
	Reason string `json:"reason"`
}

// Input is all that Build looks at.
type Input struct {
	Self       string           // this node's name; it must be in Cluster.Nodes
	Cluster    model.Cluster    // sorted; without nodes that are withdrawn
	Host       model.Host       // observed
	Attachment model.Attachment // style of this node's workloads
	Bridge     string           // bridge's name; "cni0" unless configured
	Workloads  []model.Workload // this node's, sorted by key
	// Published are the paths that the store says this node accepts: peers may rely on them.
	Published []model.Path
	// Keep are links of the last applied plan. While the pools ask for no tunnel any more, Build keeps the
	// tunnel devices among them as long as a peer sends on one, or may believe that it can: a mode change
	// loses no packet. Empty after a fresh start with nothing applied.
	Keep []Link
	// Recalled says that Cluster is what this node remembers of it, and its kernel may be newer.
	Recalled bool
	// Policed says that there are policies: what a bridge carries between two workloads of one node has to
	// pass the packet filter too.
	Policed bool
	// BGP is what people wrote about BGP; Learned is what its neighbours say, believed or not, sorted by prefix,
	// the best first. Relearning: see Plan.
	BGP        peering.Config
	Learned    []peering.Route
	Relearning bool
	// Elected is that of the last applied plan's BGP: reflectors that stand for the mesh stay in office.
	Elected bool
	// Silent are the nodes that show no sign of life, sorted: see peering.Input.
	Silent []string
}
