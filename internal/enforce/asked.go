package enforce

import (
	"maps"
	"net/netip"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

// metadataName is the label by which Kubernetes names every namespace.
const metadataName = "kubernetes.io/metadata.name"

// Wishes are what a workload's pod asks of its addresses, as the store told; nil: nothing.
func (e *Enforcer) Wishes(w *model.Workload) *model.Wishes {
	e.mu.Lock()
	defer e.mu.Unlock()
	o := e.pods[e.podKey(w)]
	if o == nil || w.UID != "" && o.UID != "" && o.UID != w.UID {
		return nil
	}
	return o.Wishes
}

// NamespaceLabels are the labels of a namespace, its name among them; nil for no namespace.
func (e *Enforcer) NamespaceLabels(name string) map[string]string {
	if name == "" {
		return nil
	}
	key := (&model.Resource{APIVersion: "v1", Type: "Namespace", Name: name}).Key()
	e.mu.Lock()
	defer e.mu.Unlock()
	labels := map[string]string{}
	if n, ok := e.compiler.Object("r/" + key).(*policy.Namespace); ok {
		maps.Copy(labels, n.Labels)
	}
	labels[metadataName] = name
	return labels
}

// InUse tells whether anybody in the cluster is known to have an address.
func (e *Enforcer) InUse(a netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, is := e.names[a]
	return is
}
