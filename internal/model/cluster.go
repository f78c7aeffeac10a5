package model

import (
	"cmp"
	"net/netip"
	"slices"
)

// Cluster is what the store holds, at one moment: every list is sorted by key, so that equal
// clusters make equal plans.
type Cluster struct {
	Pools  []Pool  `json:"pools"`
	Nodes  []Node  `json:"nodes"`
	Blocks []Block `json:"blocks"`
	// Settings are what people wrote about the network in Calico's words: IPPool, BGPPeer and such.
	Settings []Setting `json:"settings,omitempty"`
}

// Sort puts every list in the order of its keys (blocks: of their addresses).
func (c *Cluster) Sort() {
	slices.SortFunc(c.Pools, func(a, b Pool) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Blocks, func(a, b Block) int { return a.CIDR.Compare(b.CIDR) })
	slices.SortFunc(c.Settings, func(a, b Setting) int { return cmp.Compare(a.Key(), b.Key()) })
}

// Node finds a node by name; nil when there is none.
func (c *Cluster) Node(name string) *Node {
	i, ok := slices.BinarySearchFunc(c.Nodes, name, func(n Node, s string) int { return cmp.Compare(n.Name, s) })
	if !ok {
		return nil
	}
	return &c.Nodes[i]
}

// Pool finds a pool by name; nil when there is none.
func (c *Cluster) Pool(name string) *Pool {
	for i := range c.Pools {
		if c.Pools[i].Name == name {
			return &c.Pools[i]
		}
	}
	return nil
}

// Host is what an agent observed of its own machine: the facts that a plan depends on.
type Host struct {
	Uplinks []Uplink `json:"uplinks"`
}

// Uplink is a device and one of its addresses by which the node reaches its peers.
type Uplink struct {
	Link   string       `json:"link"`
	Prefix netip.Prefix `json:"prefix"` // the node's address with the length of its segment
	MTU    int          `json:"mtu"`    // bytes
}

// Uplink finds the uplink that holds addr; nil when none does.
func (h *Host) Uplink(addr netip.Addr) *Uplink {
	for i := range h.Uplinks {
		if h.Uplinks[i].Prefix.Addr() == addr {
			return &h.Uplinks[i]
		}
	}
	return nil
}

// OnLink finds the uplink in whose segment addr lies; nil when a router is needed.
func (h *Host) OnLink(addr netip.Addr) *Uplink {
	for i := range h.Uplinks {
		if h.Uplinks[i].Prefix.Contains(addr) {
			return &h.Uplinks[i]
		}
	}
	return nil
}

// Severity orders problems.
type Severity string

// The severities.
const (
	Warning Severity = "warning" // something is worse than it could be
	Failure Severity = "error"   // something asked for does not work
)

// Problem is a typed health finding: what is wrong, with what, and what to do next.
type Problem struct {
	Code     string   `json:"code"`     // stable, for machines: "peer-not-on-link"
	Severity Severity `json:"severity"` //
	Subject  string   `json:"subject"`  // `node "b"`, "link flannel.1"
	Detail   string   `json:"detail"`   // one sentence, with the kernel's own reason where there is one
	Next     string   `json:"next"`     // the command to try next
}

func (p Problem) String() string { return p.Subject + ": " + p.Detail }
