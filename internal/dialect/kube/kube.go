// Package kube reads what Kubernetes has to say about who may talk to whom: NetworkPolicy (networking.k8s.io/v1)
// and ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2), and the objects that give workloads their labels,
// named ports and services. It holds them to the rules of the API server and turns them into the objects of
// internal/policy.
//
// Selectors become terms over effective labels: those of namespaces get the prefix "pcns.", and all of them ask
// for the label of the orchestrator, which only workloads carry.
//
// The package never does I/O, and knows nothing of the cluster: what an object means does not depend on others.
package kube

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	strictjson "sigs.k8s.io/json"
	cnpv1 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

// MaxBody is how many bytes an object may have as JSON.
const MaxBody = 1 << 20

// kind is what Decode needs to know of a kind.
type kind struct {
	apiVersion string
	namespaced bool
	label      bool // names are labels (RFC 1123), without dots, of at most 63 characters
	empty      func() object
}

// object is one of Kubernetes' types, or Pod.
type object interface {
	metav1.Object
	GetObjectKind() schema.ObjectKind
}

// kinds by their names. None of the names is in two groups.
var kinds = map[string]kind{
	"Namespace":            {"v1", false, true, func() object { return &corev1.Namespace{} }},
	"Pod":                  {"v1", true, false, func() object { return &Pod{} }},
	"ServiceAccount":       {"v1", true, false, func() object { return &corev1.ServiceAccount{} }},
	"EndpointSlice":        {"discovery.k8s.io/v1", true, false, func() object { return &discoveryv1.EndpointSlice{} }},
	"NetworkPolicy":        {"networking.k8s.io/v1", true, false, func() object { return &networkingv1.NetworkPolicy{} }},
	"ClusterNetworkPolicy": {"policy.networking.k8s.io/v1alpha2", false, false, func() object { return &cnpv1.ClusterNetworkPolicy{} }},
}

// Object returns what a resource means: a *policy.Namespace, *policy.Pod, *policy.ServiceAccount,
// *policy.EndpointSlice or *policy.Policy. Errors are *model.FieldError.
//
// A rule of a ClusterNetworkPolicy that is not understood, such as one with a peer of a later version, fails
// closed as its specification has it: Accept matches nothing, Deny and Pass deny everything. Check refuses it.
func Object(r *model.Resource) (policy.Object, error) {
	o, _, err := decode(r)
	if err != nil {
		return nil, err
	}
	a := at{noun: r.String()}
	switch o := o.(type) {
	case *corev1.Namespace:
		return namespace(o), nil
	case *Pod:
		return orNil(pod(a, o))
	case *corev1.ServiceAccount:
		return &policy.ServiceAccount{Namespace: o.Namespace, Name: o.Name, Labels: o.Labels}, nil
	case *discoveryv1.EndpointSlice:
		return orNil(endpointSlice(a, o))
	case *networkingv1.NetworkPolicy:
		return orNil(networkPolicy(a, o))
	case *cnpv1.ClusterNetworkPolicy:
		return orNil(clusterNetworkPolicy(a, o))
	}
	return nil, fmt.Errorf("%s: decoded as %T", a.noun, o)
}

// orNil keeps a nil pointer out of the interface.
func orNil[T policy.Object](o T, err error) (policy.Object, error) {
	if err != nil {
		return nil, err
	}
	return o, nil
}

// Check refuses what Object refuses, and what the API server would refuse or Heddle cannot honour in a
// ClusterNetworkPolicy though Object gives it a meaning. It is for what people write.
func Check(r *model.Resource) error {
	o, unknown, err := decode(r)
	if err != nil {
		return err
	}
	if unknown != nil {
		return unknown
	}
	if p, ok := o.(*cnpv1.ClusterNetworkPolicy); ok {
		if err := checkCNP(at{noun: r.String()}, p); err != nil {
			return err
		}
	}
	_, err = Object(r)
	return err
}

// Decode returns the object as Kubernetes' type: a *corev1.Namespace, *corev1.ServiceAccount,
// *discoveryv1.EndpointSlice, *networkingv1.NetworkPolicy or *v1alpha2.ClusterNetworkPolicy; or a *Pod. Name and
// namespace are filled in, and nothing else. Unknown fields are refused, but for those in rules of a
// ClusterNetworkPolicy: such a rule comes back with one peer that has no field set, as its specification has it
// for what is not understood. Values are checked by Object.
func Decode(r *model.Resource) (any, error) {
	o, _, err := decode(r)
	return o, err
}

// decode reads a resource. unknown is the error for what is not known but has a meaning all the same.
func decode(r *model.Resource) (o object, unknown, err error) {
	a := at{noun: r.String()}
	k, ok := kinds[r.Type]
	switch {
	case !ok:
		return nil, nil, a.field("kind").bad(r.Type, "a kind of Kubernetes that says who may talk to whom")
	case r.APIVersion != k.apiVersion:
		return nil, nil, a.field("apiVersion").bad(r.APIVersion, k.apiVersion)
	case len(r.Body) > MaxBody:
		return nil, nil, a.field("size").bad(len(r.Body), fmt.Sprintf("at most %d bytes of JSON", MaxBody))
	}
	o = k.empty()
	wrong, err := readStrict(a, r.Body, o)
	if err != nil {
		return nil, nil, err
	}
	if p, ok := o.(*cnpv1.ClusterNetworkPolicy); ok {
		if err := presentCNP(a, r.Body); err != nil {
			return nil, nil, err
		}
		wrong, unknown = closeUnknown(a, p, r.Body, wrong)
	}
	wrong = slices.DeleteFunc(wrong, func(w strictjson.FieldError) bool { return r.Type == "Pod" && unreadInPod(w) })
	if len(wrong) > 0 {
		return nil, nil, explainStrict(a, r.Body, o, wrong[0])
	}
	return o, unknown, checkMeta(a, r, k, o)
}

// checkMeta holds the object's name and labels to the API server's rules and to the name that the resource is filed by.
func checkMeta(a at, r *model.Resource, k kind, o object) error {
	meta := a.field("metadata")
	nameRule := validation.IsDNS1123Subdomain
	if k.label {
		nameRule = validation.IsDNS1123Label
	}
	if why := nameRule(r.Name); len(why) > 0 {
		return meta.field("name").bad(r.Name, "a name of RFC 1123: "+why[0])
	}
	gvk := o.GetObjectKind().GroupVersionKind()
	switch why := validation.IsDNS1123Label(r.Namespace); {
	case gvk.Kind != r.Type:
		return a.field("kind").bad(gvk.Kind, r.Type+", as which it is filed")
	case gvk.GroupVersion().String() != r.APIVersion:
		return a.field("apiVersion").bad(gvk.GroupVersion().String(), r.APIVersion+", as which it is filed")
	case o.GetName() != r.Name:
		return meta.field("name").bad(o.GetName(), r.Name+", by which it is filed")
	case !k.namespaced && r.Namespace != "":
		return meta.field("namespace").bad(r.Namespace, "none: a "+r.Type+" is in no namespace")
	case k.namespaced && len(why) > 0:
		return meta.field("namespace").bad(r.Namespace, "a namespace's name: "+why[0])
	case o.GetNamespace() != "" && o.GetNamespace() != r.Namespace:
		return meta.field("namespace").bad(o.GetNamespace(), r.Namespace+", in which it is filed")
	}
	o.SetNamespace(r.Namespace)
	return checkLabels(meta.field("labels"), o.GetLabels())
}
