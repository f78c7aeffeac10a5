// Package policy turns what people wrote about who may talk to whom, and what the cluster is, into one
// decision table: the values that the kernel's maps hold, that `heddle why` reads, and that tests compare
// with a naive evaluation of the original rules.
//
// All languages come down to one rule list (the tiers of Calico's model): per direction, tiers in order;
// in a tier the policies that select the workload, in order; in a policy its rules, in order. Allow and
// Deny decide, Pass goes to the next tier, Log goes on with the next rule. When at least one policy of a
// tier selects the workload for the direction and none of its rules decided, the tier's default does: Deny,
// or Pass. Past the last tier everything is allowed.
//
// The package is pure: no I/O, no clock, no goroutines. It knows no language and no kernel.
package policy

import (
	"math"
	"net/netip"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/selector"
)

// Action is what a rule does with what it matches.
type Action uint8

// The actions.
const (
	Allow Action = iota + 1
	Deny
	Pass // go on with the next tier
	Log  // say so, and go on with the next rule
)

// Direction is seen from the workload or the host that a policy selects.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota + 1
	Egress
)

// Ref names a policy as its author knows it.
type Ref struct {
	Kind      string `json:"kind"`                // "NetworkPolicy", "GlobalNetworkPolicy", "ClusterNetworkPolicy"; Calico's own "NetworkPolicy.projectcalico.org"
	Namespace string `json:"namespace,omitempty"` // empty for global ones
	Name      string `json:"name"`
}

// String is "NetworkPolicy dev/deny-all" or "GlobalNetworkPolicy base".
func (r Ref) String() string {
	if r.Namespace != "" {
		return r.Kind + " " + r.Namespace + "/" + r.Name
	}
	return r.Kind + " " + r.Name
}

// Tier groups policies.
type Tier struct {
	Name    string
	Order   float64 // least first, then by name; NoOrder comes last
	Default Action  // Deny or Pass
}

// NoOrder is the order of a tier or policy that has none: after all that have one.
var NoOrder = math.Inf(1)

// The tiers that are there without being written, with Calico's orders.
const (
	DefaultTier  = "default"       // NetworkPolicy and Calico policies that name no tier; ends in Deny
	AdminTier    = "kube-admin"    // ClusterNetworkPolicy of tier Admin; ends in Pass
	BaselineTier = "kube-baseline" // ClusterNetworkPolicy of tier Baseline; ends in Pass

	AdminOrder    = 1_000
	DefaultOrder  = 1_000_000
	BaselineOrder = 10_000_000
	// KubernetesOrder is the order of every NetworkPolicy of Kubernetes within DefaultTier.
	KubernetesOrder = 1_000
)

// BuiltinTiers are the tiers that are always there; a written one of the same name takes their place.
func BuiltinTiers() []Tier {
	return []Tier{{AdminTier, AdminOrder, Pass}, {DefaultTier, DefaultOrder, Deny}, {BaselineTier, BaselineOrder, Pass}}
}

// HostMode says at which point of a host's packet path a policy for host endpoints works.
type HostMode uint8

// The host modes (Calico: none, applyOnForward, preDNAT, doNotTrack).
const (
	HostNormal    HostMode = iota // what ends or starts on the host
	HostForward                   // that, and what the host forwards for others
	HostPreDNAT                   // before destination NAT; Ingress only
	HostUntracked                 // before connection tracking
)

// Policy is one policy in the common form.
type Policy struct {
	Ref   Ref
	Tier  string
	Order float64 // least first, then by Ref
	// Subject selects workloads and, in Calico's language, host endpoints, by their effective labels.
	Subject selector.Selector
	// Applies says for which directions it selects; Rules of another direction do not count.
	AppliesIngress, AppliesEgress bool
	Ingress, Egress               []Rule
	// Staged policies decide nothing; flows tell what they would have decided. A staged policy with the
	// name of one in force stands for a change of that one.
	Staged bool
	// Deletion marks a staged policy that stands for the removal of the one in force.
	Deletion bool
	HostMode HostMode
}

// Rule is one rule. A criterion that is not set matches everything; all that are set must match.
type Rule struct {
	Action Action
	// Index is the place of the rule in its author's list, from 0. Several Rules share one when a peer list was taken apart.
	Index  int
	Family model.Family // 0: both
	// Protocol and NotProtocol are IP protocol numbers; -1: not set.
	Protocol, NotProtocol int
	ICMP, NotICMP         *ICMP // with Protocol 1 or 58
	Source, Dest          Side
}

// AnyProtocol is the Protocol that matches all.
const AnyProtocol = -1

// ICMP matches a type, and a code unless that is -1.
type ICMP struct {
	Type uint8
	Code int
}

// Side is one end of a packet. For the end that the policy selects, Selector and Nets are additional
// conditions on it.
type Side struct {
	// Nets: the address lies in one of them; nil does not restrict, an empty list that is not nil matches nothing.
	Nets    []netip.Prefix
	NotNets []netip.Prefix // the address lies in none
	// Selector: some workload, host endpoint or network set that has the address matches. nil does not restrict.
	Selector *selector.Selector
	// NotSelector: none that has the address matches.
	NotSelector *selector.Selector
	// OwnNode: the address is one of the node's that the selected workload runs on.
	OwnNode bool
	// Service: the address (for Dest: with protocol and port) is an endpoint of the service.
	Service *ServiceRef
	// Ports: the port is one of them; nil does not restrict. A packet of a protocol without ports matches no
	// list of ports, not even NotPorts. Protocol is that of the Rule.
	Ports    []Port
	NotPorts []Port
}

// Port is a range of ports, or a name that each destination workload resolves for itself: to every port
// that it calls so and that is of the rule's protocol.
type Port struct {
	Name        string
	First, Last uint16
}

// ServiceRef names a Service.
type ServiceRef struct{ Namespace, Name string }
