package model

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"
)

// Path is a way to reach another node (DESIGN: paths).
type Path string

// The paths of this release.
const (
	PathDirect Path = "direct" // a plain route by the peer's address, which must be on-link
	PathVXLAN  Path = "vxlan"  // UDP encapsulation by a kernel VXLAN device
	PathIPIP   Path = "ipip"   // IP protocol 4 (RFC 2003); IPv6 in IPv6 (RFC 2473)
	PathBGP    Path = "bgp"    // a plain route that BGP told of
	PathNone   Path = "none"   // addresses only: somebody else carries the packets (Flannel's alloc)
)

// Node is one machine of the network, as it registers itself.
type Node struct {
	// Name is unique in the network: an RFC 1123 name of at most 253 characters.
	Name string `json:"name"`
	// ID is a random text made at the node's first start and kept on its disk; it tells a node
	// that came back from another one with the same name.
	ID string `json:"id,omitempty"`
	// Address4 and Address6 are the addresses that other nodes send to. At least one is set.
	Address4 netip.Addr `json:"address4,omitzero"`
	Address6 netip.Addr `json:"address6,omitzero"`
	// Public4 and Public6 are the addresses by which nodes outside this node's segment reach it, when
	// a NAT stands between (Flannel's --public-ip).
	Public4 netip.Addr `json:"public4,omitzero"`
	Public6 netip.Addr `json:"public6,omitzero"`
	// Uplinks are the devices that hold the node's addresses: what its plan depends on, so that any
	// node can print the plan of any other.
	Uplinks []Uplink `json:"uplinks,omitempty"`
	// VTEP4 and VTEP6 are the MACs of the node's VXLAN devices with IPv4 and IPv6 outer headers:
	// published only while the device is in the kernel. Text form aa:bb:cc:dd:ee:ff.
	VTEP4 string `json:"vtep4,omitempty"`
	VTEP6 string `json:"vtep6,omitempty"`
	// Accepts are the paths on which this node is ready to receive, Sends those it sends on. A
	// sender changes to a path only when the receiver accepts it, and a receiver withdraws one only
	// when nobody sends on it: that makes a mode change make-before-break.
	Accepts []Path `json:"accepts,omitempty"`
	Sends   []Path `json:"sends,omitempty"`
	// Lacks are paths that the node's kernel turned out not to have.
	Lacks []Path `json:"lacks,omitempty"`
	// Labels are what selectors of pools and BGP peers see: of the Node object, or configured.
	Labels map[string]string `json:"labels,omitempty"`
	// ASN is the node's autonomous system where it has one of its own; ClusterID makes it a route reflector
	// of that cluster (RFC 4456), in the form of an IPv4 address.
	ASN       uint32     `json:"asn,omitempty"`
	ClusterID netip.Addr `json:"clusterID,omitzero"`
	// Version is the agent's version, for people.
	Version string `json:"version,omitempty"`
}

var nameRE = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// ValidName reports whether s is an RFC 1123 subdomain name, as nodes and pools have.
func ValidName(s string) bool { return nameRE.MatchString(s) }

// Kind implements Object.
func (n *Node) Kind() Kind { return KindNode }

// Key implements Object.
func (n *Node) Key() string { return n.Name }

// Address returns the node's address of a family; the zero Addr when it has none.
func (n *Node) Address(f Family) netip.Addr {
	if f == IPv4 {
		return n.Address4
	}
	return n.Address6
}

// Public returns the address by which nodes outside the segment reach the node: Public4 or Public6
// where set, otherwise Address.
func (n *Node) Public(f Family) netip.Addr {
	p := n.Public4
	if f == IPv6 {
		p = n.Public6
	}
	if p.IsValid() {
		return p
	}
	return n.Address(f)
}

// VTEP returns the MAC of the VXLAN device whose outer headers are of family f; "" for none.
func (n *Node) VTEP(f Family) string {
	if f == IPv4 {
		return n.VTEP4
	}
	return n.VTEP6
}

// AcceptsPath reports whether the node receives on p. Plain routes need no device, so every node does.
func (n *Node) AcceptsPath(p Path) bool {
	return p == PathDirect || p == PathBGP || slices.Contains(n.Accepts, p)
}

// LacksPath reports whether the node's kernel cannot do p.
func (n *Node) LacksPath(p Path) bool { return slices.Contains(n.Lacks, p) }

// Validate implements Object.
func (n *Node) Validate() error {
	noun := fmt.Sprintf("node %q", n.Name)
	if !ValidName(n.Name) {
		return &FieldError{"node", "name", n.Name, "a lower-case RFC 1123 name of at most 253 characters"}
	}
	if !n.Address4.IsValid() && !n.Address6.IsValid() {
		return &FieldError{noun, "address", "", "an IPv4 or IPv6 address that the other nodes can reach"}
	}
	for _, a := range []struct {
		field string
		addr  netip.Addr
		fam   Family
	}{{"address4", n.Address4, IPv4}, {"address6", n.Address6, IPv6}, {"public4", n.Public4, IPv4}, {"public6", n.Public6, IPv6}} {
		if !a.addr.IsValid() {
			continue
		}
		if FamilyOf(a.addr) != a.fam || !usable(a.addr) {
			return &FieldError{noun, a.field, a.addr.String(), "a unicast " + a.fam.String() + " address"}
		}
	}
	if n.ClusterID.IsValid() && !n.ClusterID.Is4() {
		return &FieldError{noun, "clusterID", n.ClusterID.String(), "the form of an IPv4 address (RFC 4456 section 7)"}
	}
	for _, m := range []struct{ field, mac string }{{"vtep4", n.VTEP4}, {"vtep6", n.VTEP6}} {
		if m.mac != "" && !ValidMAC(m.mac) {
			return &FieldError{noun, m.field, m.mac, "a unicast MAC of six lower-case hex pairs"}
		}
	}
	return nil
}

func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a.Zone() == "" && !a.Is4In6()
}

var macRE = regexp.MustCompile(`^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$`)

// ValidMAC reports whether s is a unicast MAC in the text form aa:bb:cc:dd:ee:ff.
func ValidMAC(s string) bool { return macRE.MatchString(s) && s != "00:00:00:00:00:00" }

// Heartbeat is a node's sign of life, kept apart from Node so that it wakes no watcher.
type Heartbeat struct {
	Node    string        `json:"node"`
	Renewed time.Time     `json:"renewed"` // by the node's own clock
	TTL     time.Duration `json:"ttl"`     // nanoseconds; past Renewed+TTL the node counts as lost
}

// Kind implements Object.
func (h *Heartbeat) Kind() Kind { return KindHeartbeat }

// Key implements Object.
func (h *Heartbeat) Key() string { return h.Node }

// Lost tells how long at `now` the node has been lost; zero or negative while it is alive.
func (h *Heartbeat) Lost(now time.Time) time.Duration { return now.Sub(h.Renewed) - h.TTL }

// Validate implements Object.
func (h *Heartbeat) Validate() error {
	if !ValidName(h.Node) {
		return &FieldError{"heartbeat", "node", h.Node, "a node's name"}
	}
	if h.TTL <= 0 {
		return &FieldError{fmt.Sprintf("heartbeat %q", h.Node), "ttl", h.TTL.String(), "a positive duration"}
	}
	return nil
}
