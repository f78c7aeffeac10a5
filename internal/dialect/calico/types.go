package calico

import (
	"encoding/json"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The objects as people write them. projectcalico.org/v3 and crd.projectcalico.org/v1 share their form. Nothing
// here is checked beyond the form: Object does that.

// Meta is what every object has.
type Meta struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	// Status is what Calico's own controllers write; it means nothing here.
	Status json.RawMessage `json:"status,omitempty"`
}

// NetworkPolicy is a policy for the workloads of its namespace. A StagedNetworkPolicy has the same form.
type NetworkPolicy struct {
	Meta `json:",inline"`
	Spec NetworkPolicySpec `json:"spec"`
}

// GlobalNetworkPolicy is a policy for workloads everywhere and host endpoints. A StagedGlobalNetworkPolicy has
// the same form.
type GlobalNetworkPolicy struct {
	Meta `json:",inline"`
	Spec GlobalNetworkPolicySpec `json:"spec"`
}

// StagedNetworkPolicy is a NetworkPolicy that decides nothing yet.
type StagedNetworkPolicy struct {
	Meta `json:",inline"`
	Spec StagedNetworkPolicySpec `json:"spec"`
}

// StagedGlobalNetworkPolicy is a GlobalNetworkPolicy that decides nothing yet.
type StagedGlobalNetworkPolicy struct {
	Meta `json:",inline"`
	Spec StagedGlobalNetworkPolicySpec `json:"spec"`
}

// StagedKubernetesNetworkPolicy is a NetworkPolicy of Kubernetes that decides nothing yet.
type StagedKubernetesNetworkPolicy struct {
	Meta `json:",inline"`
	Spec StagedKubernetesNetworkPolicySpec `json:"spec"`
}

// Tier groups policies.
type Tier struct {
	Meta `json:",inline"`
	Spec TierSpec `json:"spec"`
}

// NetworkSet is a labelled list of networks in a namespace.
type NetworkSet struct {
	Meta `json:",inline"`
	Spec NetworkSetSpec `json:"spec"`
}

// GlobalNetworkSet is a labelled list of networks in no namespace.
type GlobalNetworkSet struct {
	Meta `json:",inline"`
	Spec NetworkSetSpec `json:"spec"`
}

// HostEndpoint is an interface of a host, or all of them.
type HostEndpoint struct {
	Meta `json:",inline"`
	Spec HostEndpointSpec `json:"spec"`
}

// NetworkPolicySpec is what NetworkPolicy and GlobalNetworkPolicy have in common.
type NetworkPolicySpec struct {
	Tier  string   `json:"tier,omitempty"`
	Order *float64 `json:"order,omitempty"` // nil: after all that have one
	// Selector chooses the endpoints; empty is all().
	Selector               string   `json:"selector,omitempty"`
	ServiceAccountSelector string   `json:"serviceAccountSelector,omitempty"`
	Types                  []string `json:"types,omitempty"` // "Ingress", "Egress"
	Ingress                []Rule   `json:"ingress,omitempty"`
	Egress                 []Rule   `json:"egress,omitempty"`
	// PerformanceHints change nothing.
	PerformanceHints []string `json:"performanceHints,omitempty"`
}

// GlobalNetworkPolicySpec is the content of a GlobalNetworkPolicy.
type GlobalNetworkPolicySpec struct {
	NetworkPolicySpec `json:",inline"`
	NamespaceSelector string `json:"namespaceSelector,omitempty"`
	DoNotTrack        bool   `json:"doNotTrack,omitempty"`
	PreDNAT           bool   `json:"preDNAT,omitempty"`
	ApplyOnForward    bool   `json:"applyOnForward,omitempty"`
}

// StagedNetworkPolicySpec is the content of a StagedNetworkPolicy.
type StagedNetworkPolicySpec struct {
	StagedAction      string `json:"stagedAction,omitempty"` // "Set" when empty, "Delete"
	NetworkPolicySpec `json:",inline"`
}

// StagedGlobalNetworkPolicySpec is the content of a StagedGlobalNetworkPolicy.
type StagedGlobalNetworkPolicySpec struct {
	StagedAction            string `json:"stagedAction,omitempty"`
	GlobalNetworkPolicySpec `json:",inline"`
}

// StagedKubernetesNetworkPolicySpec is the content of a StagedKubernetesNetworkPolicy.
type StagedKubernetesNetworkPolicySpec struct {
	StagedAction                   string `json:"stagedAction,omitempty"`
	networkingv1.NetworkPolicySpec `json:",inline"`
}

// Rule is one rule. All that is set must match.
type Rule struct {
	Action      string          `json:"action"` // "Allow", "Deny", "Pass", "Log"
	IPVersion   *int            `json:"ipVersion,omitempty"`
	Protocol    *Protocol       `json:"protocol,omitempty"`
	NotProtocol *Protocol       `json:"notProtocol,omitempty"`
	ICMP        *ICMP           `json:"icmp,omitempty"`
	NotICMP     *ICMP           `json:"notICMP,omitempty"`
	Source      EntityRule      `json:"source,omitzero"`
	Destination EntityRule      `json:"destination,omitzero"`
	HTTP        json.RawMessage `json:"http,omitempty"` // refused
	// Metadata changes nothing.
	Metadata *RuleMetadata `json:"metadata,omitempty"`
}

// RuleMetadata is what people note with a rule.
type RuleMetadata struct {
	Annotations map[string]string `json:"annotations,omitempty"`
}

// ICMP is a type, and a code of it.
type ICMP struct {
	Type *int `json:"type,omitempty"` // 0..254
	Code *int `json:"code,omitempty"` // 0..255
}

// EntityRule is one end of a packet.
type EntityRule struct {
	Nets              []string             `json:"nets,omitempty"`
	NotNets           []string             `json:"notNets,omitempty"`
	Selector          string               `json:"selector,omitempty"`
	NotSelector       string               `json:"notSelector,omitempty"`
	NamespaceSelector string               `json:"namespaceSelector,omitempty"`
	ServiceAccounts   *ServiceAccountMatch `json:"serviceAccounts,omitempty"`
	Services          *ServiceMatch        `json:"services,omitempty"`
	Ports             []Port               `json:"ports,omitempty"`
	NotPorts          []Port               `json:"notPorts,omitempty"`
}

// ServiceAccountMatch chooses by name and by labels of the account; both must match.
type ServiceAccountMatch struct {
	Names    []string `json:"names,omitempty"`
	Selector string   `json:"selector,omitempty"`
}

// ServiceMatch names a service.
type ServiceMatch struct {
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"` // empty: the policy's
}

// TierSpec is the content of a Tier.
type TierSpec struct {
	Order         *float64 `json:"order,omitempty"`         // nil: after all that have one
	DefaultAction string   `json:"defaultAction,omitempty"` // "Deny" when empty, "Pass"
}

// NetworkSetSpec is the content of a network set.
type NetworkSetSpec struct {
	Nets []string `json:"nets,omitempty"` // networks or addresses; bits behind the prefix do not count
}

// HostEndpointSpec is the content of a HostEndpoint.
type HostEndpointSpec struct {
	Node          string         `json:"node,omitempty"`
	InterfaceName string         `json:"interfaceName,omitempty"` // "*": all; empty: the one that has an expected address
	ExpectedIPs   []string       `json:"expectedIPs,omitempty"`
	Profiles      []string       `json:"profiles,omitempty"`
	Ports         []EndpointPort `json:"ports,omitempty"`
}

// EndpointPort names a port of a host endpoint.
type EndpointPort struct {
	Name     string   `json:"name"`
	Protocol Protocol `json:"protocol"`
	Port     int      `json:"port"`
}

// Port is "80", "http", "1000:2000", or the number 80: as it was written, a number in its digits.
type Port string

// Protocol is "TCP", "6", or the number 6: as it was written, a number in its digits.
type Protocol string

// UnmarshalJSON takes everything, for what is wrong is told by its path.
func (p *Port) UnmarshalJSON(b []byte) error {
	*p = Port(numberOrText(b))
	return nil
}

// UnmarshalJSON takes everything, for what is wrong is told by its path.
func (p *Protocol) UnmarshalJSON(b []byte) error {
	*p = Protocol(numberOrText(b))
	return nil
}

// numberOrText is the text or the number; anything else stands in parentheses, which makes it neither a name nor
// a number.
func numberOrText(b []byte) string {
	var s string
	switch {
	case len(b) > 0 && (b[0] == '-' || '0' <= b[0] && b[0] <= '9'):
		return string(b)
	case len(b) > 0 && b[0] == '"' && json.Unmarshal(b, &s) == nil:
		return s
	}
	return "(" + string(b) + ")"
}
