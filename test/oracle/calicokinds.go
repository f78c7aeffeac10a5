package oracle

import (
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Calico's kinds as its reference documents them (docs.tigera.io/calico/latest/reference/resources). They
// are written down a second time here, apart from internal/dialect/calico, so that a name or a type that is
// wrong there shows.

// CalicoPolicy is a NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy or StagedGlobalNetworkPolicy.
type CalicoPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              CalicoPolicySpec `json:"spec"`
}

// CalicoPolicySpec is what a policy says.
type CalicoPolicySpec struct {
	Tier                   string       `json:"tier,omitempty"`
	Order                  *float64     `json:"order,omitempty"`
	Selector               string       `json:"selector,omitempty"`
	NamespaceSelector      string       `json:"namespaceSelector,omitempty"` // of global ones
	ServiceAccountSelector string       `json:"serviceAccountSelector,omitempty"`
	Types                  []string     `json:"types,omitempty"`
	Ingress                []CalicoRule `json:"ingress,omitempty"`
	Egress                 []CalicoRule `json:"egress,omitempty"`
	DoNotTrack             bool         `json:"doNotTrack,omitempty"`
	PreDNAT                bool         `json:"preDNAT,omitempty"`
	ApplyOnForward         bool         `json:"applyOnForward,omitempty"`
	StagedAction           string       `json:"stagedAction,omitempty"` // of staged ones
}

// CalicoRule is one rule.
type CalicoRule struct {
	Action      string              `json:"action"`
	IPVersion   *int                `json:"ipVersion,omitempty"`
	Protocol    *intstr.IntOrString `json:"protocol,omitempty"`
	NotProtocol *intstr.IntOrString `json:"notProtocol,omitempty"`
	ICMP        *CalicoICMP         `json:"icmp,omitempty"`
	NotICMP     *CalicoICMP         `json:"notICMP,omitempty"`
	Source      CalicoEntity        `json:"source,omitzero"`
	Destination CalicoEntity        `json:"destination,omitzero"`
}

// CalicoICMP is a type, and perhaps a code.
type CalicoICMP struct {
	Type *int `json:"type,omitempty"`
	Code *int `json:"code,omitempty"`
}

// CalicoEntity is one end of a packet.
type CalicoEntity struct {
	Nets              []string               `json:"nets,omitempty"`
	NotNets           []string               `json:"notNets,omitempty"`
	Selector          string                 `json:"selector,omitempty"`
	NotSelector       string                 `json:"notSelector,omitempty"`
	NamespaceSelector string                 `json:"namespaceSelector,omitempty"`
	ServiceAccounts   *CalicoServiceAccounts `json:"serviceAccounts,omitempty"`
	Services          *CalicoService         `json:"services,omitempty"`
	Ports             []intstr.IntOrString   `json:"ports,omitempty"`
	NotPorts          []intstr.IntOrString   `json:"notPorts,omitempty"`
}

// CalicoServiceAccounts selects service accounts by name and by label.
type CalicoServiceAccounts struct {
	Names    []string `json:"names,omitempty"`
	Selector string   `json:"selector,omitempty"`
}

// CalicoService names a service of Kubernetes.
type CalicoService struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
}

// CalicoTier groups policies.
type CalicoTier struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Order         *float64 `json:"order,omitempty"`
		DefaultAction string   `json:"defaultAction,omitempty"`
	} `json:"spec"`
}

// CalicoNetworkSet is a NetworkSet or a GlobalNetworkSet.
type CalicoNetworkSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Nets []string `json:"nets,omitempty"`
	} `json:"spec"`
}

// CalicoHostEndpoint is an interface of a host, or all of them.
type CalicoHostEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Node          string            `json:"node"`
		InterfaceName string            `json:"interfaceName,omitempty"`
		ExpectedIPs   []string          `json:"expectedIPs,omitempty"`
		Ports         []CalicoNamedPort `json:"ports,omitempty"`
	} `json:"spec"`
}

// CalicoNamedPort is a port of a host endpoint that has a name.
type CalicoNamedPort struct {
	Name     string             `json:"name"`
	Protocol intstr.IntOrString `json:"protocol"`
	Port     uint16             `json:"port"`
}

// StagedKubernetesPolicy is a NetworkPolicy of Kubernetes that is not in force yet, as Calico writes it.
type StagedKubernetesPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              StagedKubernetesSpec `json:"spec"`
}

// StagedKubernetesSpec is a NetworkPolicy's spec, and what becomes of it.
type StagedKubernetesSpec struct {
	networkingv1.NetworkPolicySpec `json:",inline"`
	StagedAction                   string `json:"stagedAction,omitempty"`
}
