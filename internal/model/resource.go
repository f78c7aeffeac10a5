package model

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// Resource is an object in the words of Kubernetes or Calico, as somebody wrote it: a Namespace, a
// NetworkPolicy, a GlobalNetworkSet. The store files it as it is; what it means is a dialect's business.
type Resource struct {
	APIVersion string `json:"apiVersion"` // "v1", "networking.k8s.io/v1", "projectcalico.org/v3"
	Type       string `json:"kind"`       // "Namespace", "NetworkPolicy"
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	// Body is the whole object as JSON, apiVersion, kind and metadata included.
	Body json.RawMessage `json:"body"`
}

var resourceKindRE = regexp.MustCompile(`^[A-Z][A-Za-z0-9]{0,62}$`)

// Kind implements Object.
func (r *Resource) Kind() Kind { return KindResource }

// Group is the API group: the part of APIVersion before the slash, "" for "v1".
func (r *Resource) Group() string {
	group, _, ok := strings.Cut(r.APIVersion, "/")
	if !ok {
		return ""
	}
	return group
}

// Setting is a Resource about the network itself (IPPool, BGPPeer, FelixConfiguration) and not about who may
// talk to whom: every node's plan depends on it, so it is filed where plans look.
type Setting struct{ Resource }

// Kind implements Object.
func (s *Setting) Kind() Kind { return KindSetting }

// Key implements Object: Kind.group:namespace:name, such as NetworkPolicy.networking.k8s.io:dev:deny-all.
// Versions of a group share their keys.
func (r *Resource) Key() string {
	kind := r.Type
	if g := r.Group(); g != "" {
		kind += "." + g
	}
	return kind + ":" + r.Namespace + ":" + r.Name
}

// String is what a person calls it: NetworkPolicy dev/deny-all.
func (r *Resource) String() string {
	if r.Namespace != "" {
		return r.Type + " " + r.Namespace + "/" + r.Name
	}
	return r.Type + " " + r.Name
}

// Validate implements Object.
func (r *Resource) Validate() error {
	if !resourceKindRE.MatchString(r.Type) {
		return &FieldError{"resource", "kind", quoteShort(r.Type), "a kind's name such as NetworkPolicy"}
	}
	noun := fmt.Sprintf("%s %q", r.Type, r.Name)
	if g, version, ok := strings.Cut(r.APIVersion, "/"); !ValidName(g) || ok && !ValidName(version) {
		return &FieldError{noun, "apiVersion", quoteShort(r.APIVersion), "a version such as v1 or networking.k8s.io/v1"}
	}
	if !ValidName(r.Name) {
		return &FieldError{noun, "metadata.name", quoteShort(r.Name), "a lower-case RFC 1123 name of at most 253 characters"}
	}
	if r.Namespace != "" && !ValidName(r.Namespace) {
		return &FieldError{noun, "metadata.namespace", quoteShort(r.Namespace), "a lower-case RFC 1123 name"}
	}
	if !json.Valid(r.Body) {
		return &FieldError{noun, "body", "", "a JSON object"}
	}
	return nil
}
