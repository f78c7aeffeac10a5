package model

import (
	"fmt"
	"net/netip"
)

// Endpoint is a workload as its node tells the others of it: what policies elsewhere need to know.
type Endpoint struct {
	Node string `json:"node"`
	// Link is the host end of its veth: with Node, unique. Empty where somebody else than the node tells of
	// the workload, as Kubernetes does of its pods: then Namespace and Name are set.
	Link      string `json:"link,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	// UID tells a pod from another of the same name, before or after it.
	UID       string       `json:"uid,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	// Labels are those that the runtime gave at ADD. What people say of a workload by its name, in a Pod
	// resource, adds to them and wins.
	Labels         map[string]string `json:"labels,omitempty"`
	ServiceAccount string            `json:"serviceAccount,omitempty"`
	Ports          []NamedPort       `json:"ports,omitempty"`
	// Wishes are what the workload asks of its addresses, where the store has that from its pod's annotations;
	// nil: nothing.
	Wishes *Wishes `json:"wishes,omitempty"`
}

// NamedPort is a port of a workload that has a name.
type NamedPort struct {
	Name     string `json:"name"`
	Protocol uint8  `json:"protocol"` // IP protocol number
	Port     uint16 `json:"port"`
}

// Kind implements Object.
func (e *Endpoint) Kind() Kind { return KindEndpoint }

// Key implements Object: node:link, or node:namespace:name without a link. No link's name has a colon.
func (e *Endpoint) Key() string {
	if e.Link == "" {
		return e.Node + ":" + e.Namespace + ":" + e.Name
	}
	return e.Node + ":" + e.Link
}

// Validate implements Object.
func (e *Endpoint) Validate() error {
	if !ValidName(e.Node) {
		return &FieldError{"endpoint", "node", quoteShort(e.Node), "a node's name"}
	}
	noun := fmt.Sprintf("endpoint on node %q", e.Node)
	switch {
	case e.Link == "" && !ValidName(e.Namespace):
		return &FieldError{noun, "namespace", quoteShort(e.Namespace), "a lower-case RFC 1123 name, or a link"}
	case e.Link == "" && !ValidName(e.Name):
		return &FieldError{noun, "name", quoteShort(e.Name), "a lower-case RFC 1123 name, or a link"}
	case e.Link != "" && !ValidIfName(e.Link):
		return &FieldError{noun, "link", quoteShort(e.Link), "an interface's name"}
	}
	for _, a := range e.Addresses {
		if !usable(a) {
			return &FieldError{fmt.Sprintf("endpoint %q", e.Key()), "addresses", a.String(), "unicast addresses"}
		}
	}
	return nil
}
