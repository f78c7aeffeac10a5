package policy

import (
	"net/netip"

	"github.com/heddle-net/heddle/internal/model"
)

// Labels that every workload and network set carries besides its own, as in Calico's model: selectors of
// namespaces and service accounts become terms over them. Own labels with these prefixes do not count.
const (
	LabelNamespace      = "projectcalico.org/namespace"
	LabelOrchestrator   = "projectcalico.org/orchestrator" // "k8s", on workloads only
	LabelServiceAccount = "projectcalico.org/serviceaccount"
	PrefixNamespace     = "pcns." // + a label of the namespace
	PrefixServiceAcct   = "pcsa." // + a label of the service account
)

// Orchestrator is the value of LabelOrchestrator on workloads.
const Orchestrator = "k8s"

// Endpoint is a workload somewhere in the cluster, as policies see it.
type Endpoint struct {
	Key            string // unique: model.Endpoint.Key
	Node           string
	Namespace      string
	Name           string
	Labels         map[string]string // own
	ServiceAccount string
	Ports          []NamedPort
	Addresses      []netip.Addr
}

// Pod is what people wrote about the workload Namespace/Name: it adds to, and wins over, what the
// endpoint says of itself.
type Pod struct {
	Namespace, Name string
	Labels          map[string]string
	ServiceAccount  string // empty: the endpoint's
	Ports           []NamedPort
}

// NamedPort is a port of a workload that has a name.
type NamedPort = model.NamedPort

// NetworkSet is a labelled list of networks.
type NetworkSet struct {
	Ref    Ref
	Labels map[string]string
	Nets   []netip.Prefix
}

// HostEndpoint is a host's interface, or all of them, that policies can select.
type HostEndpoint struct {
	Ref       Ref
	Node      string
	Interface string       // "*" for all
	Expected  []netip.Addr // its addresses: what selectors find; with Interface empty they choose the interface
	Labels    map[string]string
	Ports     []NamedPort
}

// ServiceEndpoint is one address, protocol and port behind a service.
type ServiceEndpoint struct {
	Addr     netip.Addr
	Protocol uint8
	Port     uint16
}
