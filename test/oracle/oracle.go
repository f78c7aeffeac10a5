// Package oracle says who may talk to whom in the plainest way: it keeps the objects as people wrote them,
// and for one packet reads them from front to back, as the documents of Kubernetes and of Calico tell it.
// Nothing is translated, put in another form or remembered between two packets beyond what one object says.
//
// It shares no code with internal/policy, internal/selector and internal/dialect: the tests here let both
// judge the same packets of many random clusters, and compare.
package oracle

import (
	"encoding/json"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/model"
)

// World is a cluster as somebody wrote it down and as it runs.
type World struct {
	// Node is the one whose decisions a table holds: where its workloads are is what Endpoints say.
	Node  string `json:"node"`
	Nodes []Node `json:"nodes,omitempty"`
	// Endpoints are what runs.
	Endpoints []model.Endpoint `json:"endpoints,omitempty"`

	Namespaces      []corev1.Namespace              `json:"namespaces,omitempty"`
	Pods            []corev1.Pod                    `json:"pods,omitempty"`
	ServiceAccounts []corev1.ServiceAccount         `json:"serviceAccounts,omitempty"`
	EndpointSlices  []discoveryv1.EndpointSlice     `json:"endpointSlices,omitempty"`
	NetworkPolicies []networkingv1.NetworkPolicy    `json:"networkPolicies,omitempty"`
	ClusterPolicies []v1alpha2.ClusterNetworkPolicy `json:"clusterPolicies,omitempty"`

	Tiers            []CalicoTier             `json:"tiers,omitempty"`
	CalicoPolicies   []CalicoPolicy           `json:"calicoPolicies,omitempty"`
	StagedKubernetes []StagedKubernetesPolicy `json:"stagedKubernetes,omitempty"`
	NetworkSets      []CalicoNetworkSet       `json:"networkSets,omitempty"`
	HostEndpoints    []CalicoHostEndpoint     `json:"hostEndpoints,omitempty"`
}

// Node is a machine, with the addresses that are its own, and its interfaces.
type Node struct {
	Name      string                  `json:"name"`
	Addresses []netip.Addr            `json:"addresses"`
	Links     map[string][]netip.Addr `json:"links,omitempty"`
}

// node finds a node by name; nil when there is none.
func (w *World) node(name string) *Node {
	for i := range w.Nodes {
		if w.Nodes[i].Name == name {
			return &w.Nodes[i]
		}
	}
	return nil
}

// objects are all that has an apiVersion and a kind, in the order in which people would apply them.
func (w *World) objects() []object {
	var all []object
	each(&all, w.Namespaces)
	each(&all, w.ServiceAccounts)
	each(&all, w.Pods)
	each(&all, w.EndpointSlices)
	each(&all, w.Tiers)
	each(&all, w.NetworkSets)
	each(&all, w.HostEndpoints)
	each(&all, w.NetworkPolicies)
	each(&all, w.ClusterPolicies)
	each(&all, w.CalicoPolicies)
	each(&all, w.StagedKubernetes)
	return all
}

// object is a typed original.
type object struct {
	typed any
	json  []byte
	head  metav1.PartialObjectMetadata
}

func each[T any](all *[]object, list []T) {
	for i := range list {
		o := object{typed: &list[i]}
		o.json = tidyJSON(&list[i])
		if err := json.Unmarshal(o.json, &o.head); err != nil {
			panic(fmt.Sprintf("an object of ours is not one of Kubernetes: %v", err))
		}
		*all = append(*all, o)
	}
}

// tidyJSON is the object as a person would have written it: without the status, and without a time of
// creation that nobody gave.
func tidyJSON(typed any) []byte {
	text, err := json.Marshal(typed)
	if err != nil {
		panic(fmt.Sprintf("write %T: %v", typed, err))
	}
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		panic(fmt.Sprintf("read %T: %v", typed, err))
	}
	delete(tree, "status")
	if meta, ok := tree["metadata"].(map[string]any); ok {
		delete(meta, "creationTimestamp")
	}
	if text, err = json.Marshal(tree); err != nil {
		panic(fmt.Sprintf("write %T: %v", typed, err))
	}
	return text
}

// Resources are the objects as a store files them.
func (w *World) Resources() []model.Resource {
	var all []model.Resource
	for _, o := range w.objects() {
		all = append(all, model.Resource{
			APIVersion: o.head.APIVersion, Type: o.head.Kind,
			Namespace: o.head.Namespace, Name: o.head.Name, Body: o.json,
		})
	}
	return all
}

// YAML are the objects as a file for `heddle apply -f`. Workloads and nodes are not in it: they are what runs.
func (w *World) YAML() []byte {
	var all []byte
	for _, o := range w.objects() {
		text, err := yaml.JSONToYAML(o.json)
		if err != nil {
			panic(fmt.Sprintf("write %s %s as YAML: %v", o.head.Kind, o.head.Name, err))
		}
		all = append(append(all, "---\n"...), text...)
	}
	return all
}

// Copy is a world that shares nothing with this one.
func (w *World) Copy() *World {
	text, err := json.Marshal(w)
	if err != nil {
		panic(fmt.Sprintf("write a world: %v", err))
	}
	c := &World{}
	if err := json.Unmarshal(text, c); err != nil {
		panic(fmt.Sprintf("read a world: %v", err))
	}
	return c
}
