package kube

import (
	"bytes"
	"encoding/json"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// body is what is kept of an object of a built-in kind.
type body struct {
	APIVersion  string `json:"apiVersion"`
	Kind        string `json:"kind"`
	Metadata    header `json:"metadata"`
	Spec        any    `json:"spec,omitempty"`
	AddressType string `json:"addressType,omitempty"` // the rest is of EndpointSlice
	Endpoints   any    `json:"endpoints,omitempty"`
	Ports       any    `json:"ports,omitempty"`
}

type header struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	// Annotations are those for Heddle, of settings alone.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// reduceBuiltIn makes a resource of a namespace, a policy of Kubernetes, a service account or an endpoint slice.
func (t *texts) reduceBuiltIn(o runtime.Object) *thin {
	var b body
	switch o := o.(type) {
	case *corev1.Namespace:
		b = body{APIVersion: "v1", Kind: "Namespace"}
		b.Metadata = kept(o)
	case *corev1.ServiceAccount:
		b = body{APIVersion: "v1", Kind: "ServiceAccount"}
		b.Metadata = kept(o)
	case *networkingv1.NetworkPolicy:
		b = body{APIVersion: networkV1.String(), Kind: "NetworkPolicy", Spec: &o.Spec}
		b.Metadata = kept(o)
	case *discoveryv1.EndpointSlice:
		b = body{APIVersion: discoveryV1.String(), Kind: "EndpointSlice", AddressType: string(o.AddressType), Ports: o.Ports}
		b.Metadata = kept(o)
		// Whether an endpoint is ready, and where it is, changes all the time and decides nothing.
		type endpoint struct {
			Addresses []string `json:"addresses"`
		}
		var list []endpoint
		for _, e := range o.Endpoints {
			list = append(list, endpoint{e.Addresses})
		}
		b.Endpoints = list
	default:
		return &thin{}
	}
	m := o.(metav1.Object)
	text, err := json.Marshal(b)
	return t.resource(m, b.APIVersion, b.Kind, text, err)
}

// annotationPrefix begins the annotations that are for Heddle.
const annotationPrefix = "heddle.net/"

func kept(m metav1.Object) header {
	return header{Name: m.GetName(), Namespace: m.GetNamespace(), Labels: m.GetLabels()}
}

// reduceCustom makes a resource of an object of any other kind, or a setting: of its metadata name, namespace and
// labels stay, and of the rest all but the status.
func (t *texts) reduceCustom(apiVersion, kind string, setting bool) func(runtime.Object) *thin {
	return func(o runtime.Object) *thin {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			return &thin{}
		}
		b := map[string]any{}
		for key, v := range u.Object {
			if key != "status" {
				b[key] = v
			}
		}
		m := kept(u)
		for key, v := range u.GetAnnotations() {
			if setting && strings.HasPrefix(key, annotationPrefix) {
				if m.Annotations == nil {
					m.Annotations = map[string]string{}
				}
				m.Annotations[key] = v
			}
		}
		b["apiVersion"], b["kind"], b["metadata"] = apiVersion, kind, m
		text, err := json.Marshal(b)
		out := t.resource(u, apiVersion, kind, text, err)
		if r, ok := out.object.(*model.Resource); ok && setting {
			out.object = &model.Setting{Resource: *r}
		}
		return out
	}
}

func (t *texts) resource(m metav1.Object, apiVersion, kind string, text []byte, err error) *thin {
	r := &model.Resource{APIVersion: apiVersion, Type: kind, Namespace: t.one(m.GetNamespace()), Name: m.GetName(), Body: bytes.Clone(text)}
	out := &thin{namespace: m.GetNamespace(), name: m.GetName(), version: m.GetResourceVersion(), key: r.Key()}
	if err == nil {
		_, err = store.Encode(r)
	}
	if err != nil {
		out.wrong = err
		return out
	}
	out.object = r
	return out
}

// namesServices tells whether a resource is a policy of Calico whose rules may name services.
func namesServices(r *model.Resource) bool {
	return calicoGroup(r.Group()) && bytes.Contains(r.Body, []byte(`"services"`))
}
