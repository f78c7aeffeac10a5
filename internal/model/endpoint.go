package model

import (
	"fmt"
	"net/netip"
)

// Endpoint is a workload as its node tells the others of it: what policies elsewhere need to know.
type Endpoint struct {
	Node string `json:"node"`
	// Link is the host end of its veth: with Node, unique.
	Link      string       `json:"link"`
	Namespace string       `json:"namespace,omitempty"`
	Name      string       `json:"name,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	// Labels are those that the runtime gave at ADD. What people say of a workload by its name, in a Pod
	// resource, adds to them and wins.
	Labels map[string]string `json:"labels,omitempty"`
}

// Kind implements Object.
func (e *Endpoint) Kind() Kind { return KindEndpoint }

// Key implements Object: node:link.
func (e *Endpoint) Key() string { return e.Node + ":" + e.Link }

// Validate implements Object.
func (e *Endpoint) Validate() error {
	if !ValidName(e.Node) {
		return &FieldError{"endpoint", "node", quoteShort(e.Node), "a node's name"}
	}
	noun := fmt.Sprintf("endpoint on node %q", e.Node)
	if !ValidIfName(e.Link) {
		return &FieldError{noun, "link", quoteShort(e.Link), "an interface's name"}
	}
	for _, a := range e.Addresses {
		if !usable(a) {
			return &FieldError{fmt.Sprintf("endpoint %q", e.Key()), "addresses", a.String(), "unicast addresses"}
		}
	}
	return nil
}
