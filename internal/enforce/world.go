package enforce

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/store"
)

// The compiler knows each object by one key: "e/" and an endpoint's, "r/" and a resource's.

// Take gives a batch of the store's news to the compiler.
func (e *Enforcer) Take(b store.Batch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if b.Whole {
		e.forget(b.Items)
	}
	for i, it := range b.Items {
		switch o := it.Object.(type) {
		case *model.Endpoint:
			e.putEndpoint(o)
		case *model.Resource:
			_, broken := e.broken[o.Key()]
			if was := e.resources[o.Key()]; broken || was == nil || was.APIVersion != o.APIVersion || !bytes.Equal(was.Body, o.Body) {
				e.putResource(o)
			}
		}
		b.Items[i].Object = nil // a whole list is large, and all of it that is needed is in the compiler now
	}
	for _, d := range b.Deleted {
		switch d.Kind {
		case model.KindEndpoint:
			switch {
			case !strings.HasPrefix(d.Key, e.Node+":"):
				e.drop("e/" + d.Key)
			case byName(d.Key):
				e.dropPod(d.Key)
			}
		case model.KindResource:
			e.dropResource(d.Key)
		}
	}
	if b.Whole {
		e.known, e.synced = true, true
	}
	e.heard = b.Revision
	poke(e.kick)
	poke(e.changed)
}

// forget drops what a complete list does not hold any more.
func (e *Enforcer) forget(items []store.Item) {
	there := make(map[string]bool, len(items))
	for _, it := range items {
		there[prefixOf(it.Object.Kind())+it.Object.Key()] = true
	}
	var gone []string
	for key := range e.compiler.Keys() {
		if !there[key] && strings.HasPrefix(key, "e/") && (byName(key) || !strings.HasPrefix(key, "e/"+e.Node+":")) {
			gone = append(gone, key)
		}
	}
	for _, key := range gone {
		e.drop(key)
	}
	for key := range maps.Clone(e.pods) {
		if !there["e/"+key] {
			e.dropPod(key)
		}
	}
	for key := range maps.Clone(e.resources) {
		if !there["r/"+key] {
			e.dropResource(key)
		}
	}
}

func prefixOf(k model.Kind) string {
	if k == model.KindEndpoint {
		return "e/"
	}
	return "r/"
}

func endpoint(o *model.Endpoint) *policy.Endpoint {
	return &policy.Endpoint{
		Key: o.Key(), Node: o.Node, Namespace: o.Namespace, Name: o.Name, Labels: o.Labels,
		ServiceAccount: o.ServiceAccount, Ports: o.Ports, Addresses: o.Addresses,
	}
}

// putResource translates what somebody wrote. What cannot be understood is a problem, and what the
// resource said before stays in force.
func (e *Enforcer) putResource(r *model.Resource) {
	key := r.Key()
	o, err := dialect.Object(r)
	was := e.resources[key]
	if err == nil || was == nil {
		e.count(key, -1)
		e.resources[key] = r // else the memory keeps what is in force, for the next life
		e.count(key, 1)
	}
	if err != nil {
		meanwhile := "; it decides nothing"
		if e.compiler.Object("r/"+key) != nil {
			meanwhile = "; what it said before stays in force"
		}
		e.broken[key] = model.Problem{
			Code: "policy-invalid", Severity: model.Failure, Subject: r.String(), Detail: err.Error() + meanwhile,
			Next: "heddle get " + strings.ToLower(r.Type) + " -o yaml; mend it, and heddle apply -f FILE",
		}
		e.Log.Warn("a resource cannot be understood", "resource", r.String(), "error", err)
		return
	}
	delete(e.broken, key)
	e.put("r/"+key, o)
}

func (e *Enforcer) dropResource(key string) {
	e.count(key, -1)
	delete(e.resources, key)
	delete(e.broken, key)
	e.drop("r/" + key)
}

// count keeps the number of policies.
func (e *Enforcer) count(key string, by int) {
	r := e.resources[key]
	if r == nil || !strings.HasSuffix(r.Type, "Policy") {
		return
	}
	e.policies += by
	if e.policies == 0 || e.policies == by {
		e.Changed()
	}
}

func (e *Enforcer) put(key string, o policy.Object) {
	ep, ok := o.(*policy.Endpoint)
	if ok && e.holds(key, ep) {
		return
	}
	e.unname(key)
	e.touch(key)
	e.compiler.Put(key, o)
	if ok {
		e.workloads++
		for _, a := range ep.Addresses {
			e.names[a] = named{ep.Namespace, ep.Name, ep.Key}
		}
	}
}

func (e *Enforcer) drop(key string) {
	e.unname(key)
	e.touch(key)
	e.compiler.Delete(key)
}

// touch notes for world that an object changes.
func (e *Enforcer) touch(key string) {
	if e.touched != nil {
		e.touched[key] = true
	}
}

// named says whose an address is.
type named struct{ namespace, name, key string }

// holds reports whether the compiler holds just this endpoint already.
func (e *Enforcer) holds(key string, ep *policy.Endpoint) bool {
	was, ok := e.compiler.Object(key).(*policy.Endpoint)
	return ok && was.Key == ep.Key && was.Node == ep.Node && was.Namespace == ep.Namespace && was.Name == ep.Name &&
		was.ServiceAccount == ep.ServiceAccount && slices.Equal(was.Addresses, ep.Addresses) &&
		slices.Equal(was.Ports, ep.Ports) && maps.Equal(was.Labels, ep.Labels)
}

// unname forgets whose addresses an endpoint's were, unless another has them by now.
func (e *Enforcer) unname(key string) {
	if !strings.HasPrefix(key, "e/") {
		return
	}
	ep, ok := e.compiler.Object(key).(*policy.Endpoint)
	if !ok {
		return
	}
	e.workloads--
	for _, a := range ep.Addresses {
		if e.names[a].key == ep.Key {
			delete(e.names, a)
		}
	}
}

// Status is the policy part of `heddle status`.
type Status struct {
	Known     bool `json:"known"`
	Policies  int  `json:"policies"`
	Workloads int  `json:"workloads"` // in the cluster
	// Policed are the local ends that some policy selects: addresses and directions.
	Policed int `json:"policed"`
	// Entries are the elements of the kernel's maps.
	Entries int  `json:"entries"`
	Last    Turn `json:"last"`
	// Revision is that of the store's state which the kernel's maps hold, at least.
	Revision store.Revision `json:"revision"`
}

// Status looks at the enforcer's state.
func (e *Enforcer) Status() (Status, []model.Problem) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.compiler.Table()
	problems := slices.Concat(e.issues, e.compiler.Problems())
	for _, key := range slices.Sorted(maps.Keys(e.broken)) {
		problems = append(problems, e.broken[key])
	}
	return Status{
		Known: e.known, Policies: e.policies, Workloads: e.workloads, Policed: len(t.Locals),
		Entries: len(t.Identities) + len(t.Nets) + len(t.Locals) + len(t.Rows) + len(t.L4) + len(t.Base) + len(t.Sources), Last: e.last, Revision: e.inKernel,
	}, problems
}

// name is what a person calls an address.
func (e *Enforcer) name(addr netip.Addr) string {
	n, ok := e.names[addr]
	switch {
	case !ok:
		return addr.String()
	case n.name == "":
		return n.key
	}
	return n.namespace + "/" + n.name
}
