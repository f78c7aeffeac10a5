package model

import (
	"cmp"
	"fmt"
	"net/netip"
)

// HostPort is a port of the node that leads to one of the workload (capability portMappings of the CNI
// conventions).
type HostPort struct {
	Protocol string `json:"protocol"` // "tcp", "udp" or "sctp"
	// HostIP is the node's address that it holds for; none: every one, unspecified (0.0.0.0, ::): every one
	// of that family.
	HostIP        netip.Addr `json:"hostIP,omitzero"`
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
}

// HostPortProtocols are those that a HostPort may have.
var HostPortProtocols = []string{"tcp", "udp", "sctp"}

// Of reports whether the port is for the family, too.
func (p HostPort) Of(f Family) bool { return !p.HostIP.IsValid() || FamilyOf(p.HostIP) == f }

// Collides reports whether both ask for the same port of the same address. One for every address and one for a
// single address do not: the single one goes first.
func (p HostPort) Collides(q HostPort) bool {
	if p.Protocol != q.Protocol || p.HostPort != q.HostPort {
		return false
	}
	if p.every() && q.every() {
		return !p.HostIP.IsValid() || !q.HostIP.IsValid() || p.HostIP == q.HostIP
	}
	return p.HostIP == q.HostIP
}

func (p HostPort) every() bool { return !p.HostIP.IsValid() || p.HostIP.IsUnspecified() }

// Compare orders by protocol, port and address.
func (p HostPort) Compare(q HostPort) int {
	return cmp.Or(cmp.Compare(p.Protocol, q.Protocol), cmp.Compare(p.HostPort, q.HostPort), p.HostIP.Compare(q.HostIP),
		cmp.Compare(p.ContainerPort, q.ContainerPort))
}

// String is the port of the node: "8080/tcp", "192.168.0.4:53/udp".
func (p HostPort) String() string {
	if p.HostIP.IsValid() {
		return netip.AddrPortFrom(p.HostIP, p.HostPort).String() + "/" + p.Protocol
	}
	return fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
}

// Bandwidth limits what a workload gets (ingress) and sends (egress): rates in bits per second, bursts in
// bits (capability bandwidth of the CNI conventions). A rate of 0 is no limit; a burst of 0 beside a rate leaves the
// burst to Heddle.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}
