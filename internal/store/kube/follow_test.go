//go:build kube

package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/kube"
	"github.com/heddle-net/heddle/internal/store/storetest"
)

// pool is the network of these tests.
func pool() model.Pool {
	p := *storetest.Pool()
	p.Path, p.Encap, p.VXLAN = model.PathVXLAN, model.EncapAlways, model.VXLAN{VNI: 1, Port: 8472}
	return p
}

func logOf(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func pod(namespace, name, node, ip string, labels map[string]string) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "default", Containers: []corev1.Container{{
			Name: "c", Image: "i", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	if ip != "" {
		p.Status.PodIPs, p.Status.PodIP = []corev1.PodIP{{IP: ip}}, ip
	}
	return p
}

func (l *lab) make(t testing.TB, gvr schema.GroupVersionResource, o any) {
	t.Helper()
	if err := l.create(gvr, o); err != nil {
		t.Fatal(err)
	}
}

func netpol(namespace, name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
	}
}

// has is whether the store knows an object; what is not known for another reason ends the test.
func has(t testing.TB, s store.Store, kind model.Kind, key string) bool {
	t.Helper()
	_, err := s.Get(context.Background(), kind, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

func (l *lab) comes(t testing.TB, s store.Store, kind model.Kind, key string) {
	t.Helper()
	until(t, key, func() bool { return has(t, s, kind, key) })
}

func (l *lab) goes(t testing.TB, s store.Store, kind model.Kind, key string) {
	t.Helper()
	until(t, key+" to go", func() bool { return !has(t, s, kind, key) })
}

// TestPodsAndPoliciesAreTold as they come, change and go.
func TestPodsAndPoliciesAreTold(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	l.make(t, namespaces, map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "dev", "labels": map[string]any{"team": "a"}}})
	l.make(t, pods, pod("dev", "before", "node-1", "10.128.1.2", nil))
	s := l.open(t, kube.Options{Node: "node-1", Pools: []model.Pool{pool()}, Log: logOf(t)})
	ctx := context.Background()
	items, rev, err := s.List(ctx, model.KindEndpoint, model.KindResource)
	if err != nil {
		t.Fatal(err)
	}
	if len(items) == 0 || items[0].Object.Key() != "node-1:dev:before" {
		t.Fatalf("what was there before: %v", items)
	}
	events, err := s.Watch(ctx, rev, model.KindEndpoint, model.KindResource)
	if err != nil {
		t.Fatal(err)
	}
	next := func(kind store.EventType, key string) store.Event {
		t.Helper()
		e := storetest.Next(t, events)
		if e.Type != kind || e.Key != key {
			t.Fatalf("event %+v, want %d of %s", e, kind, key)
		}
		return e
	}
	l.make(t, pods, pod("dev", "web", "node-1", "", map[string]string{"app": "web"}))
	e := next(store.EventPut, "node-1:dev:web").Object.(*model.Endpoint)
	made := l.get(t, pods, "dev", "web")
	if len(e.Addresses) != 0 || e.Labels["app"] != "web" || e.UID != string(made.GetUID()) || len(e.Ports) != 1 {
		t.Errorf("a pod without an address is told as %+v", e)
	}
	l.patch(t, pods, "dev", "web", `{"status":{"podIP":"10.128.1.3","podIPs":[{"ip":"10.128.1.3"}]}}`, "status")
	if e := next(store.EventPut, "node-1:dev:web").Object.(*model.Endpoint); len(e.Addresses) != 1 {
		t.Errorf("its address: %+v", e)
	}
	// Neither a pod of the host's network, nor one without a node, nor what no policy looks at.
	host := pod("dev", "host", "node-1", "10.1.0.1", nil)
	host.Spec.HostNetwork = true
	l.make(t, pods, host)
	l.make(t, pods, pod("dev", "pending", "", "", nil))
	l.patch(t, pods, "dev", "web", `{"metadata":{"annotations":{"x":"y"}}}`)
	l.make(t, networkPolicies, netpol("dev", "deny"))
	next(store.EventPut, "NetworkPolicy.networking.k8s.io:dev:deny")
	l.patch(t, networkPolicies, "dev", "deny", `{"metadata":{"annotations":{"x":"y"}}}`)
	l.patch(t, networkPolicies, "dev", "deny", `{"spec":{"policyTypes":["Ingress","Egress"]}}`)
	next(store.EventPut, "NetworkPolicy.networking.k8s.io:dev:deny")
	l.patch(t, namespaces, "", "dev", `{"metadata":{"labels":{"team":"b"}}}`)
	next(store.EventPut, "Namespace::dev")
	// A pod that is over, and one that is deleted.
	l.patch(t, pods, "dev", "before", `{"status":{"phase":"Succeeded"}}`, "status")
	next(store.EventDelete, "node-1:dev:before")
	l.remove(t, pods, "dev", "web")
	next(store.EventDelete, "node-1:dev:web")
	l.remove(t, networkPolicies, "dev", "deny")
	next(store.EventDelete, "NetworkPolicy.networking.k8s.io:dev:deny")
	for kind, o := range map[model.Kind]model.Object{
		model.KindEndpoint: &model.Endpoint{Node: "node-1", Namespace: "dev", Name: "x"}, model.KindResource: storetest.Resource(1),
		model.KindHeartbeat: &model.Heartbeat{Node: "node-1", TTL: 1},
	} {
		if _, err := s.Put(ctx, o, 0); !errors.Is(err, store.ErrUnsupported) {
			t.Errorf("put of %s: %v", kind, err)
		}
		if err := s.Delete(ctx, kind, o.Key(), store.AnyRevision); !errors.Is(err, store.ErrUnsupported) {
			t.Errorf("delete of %s: %v", kind, err)
		}
	}
	if got := fmt.Sprint(s.NodeAddresses("node-1")); got != "[10.1.0.0]" {
		t.Errorf("addresses of the node: %s", got)
	}
}

// definition is a CRD that takes anything.
func definition(group, version, plural, kind string, namespaced bool) map[string]any {
	scope := "Cluster"
	if namespaced {
		scope = "Namespaced"
	}
	return map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{
			"name": plural + "." + group,
			// Kubernetes' own groups ask for it.
			"annotations": map[string]any{"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/network-policy-api/pull/300"},
		},
		"spec": map[string]any{
			"group": group, "scope": scope, "names": map[string]any{"plural": plural, "kind": kind, "listKind": kind + "List", "singular": fmt.Sprintf("%sx", plural)},
			"versions": []any{map[string]any{
				"name": version, "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
			}},
		},
	}
}

func custom(apiVersion, kind, namespace, name string, spec map[string]any) map[string]any {
	meta := map[string]any{"name": name}
	if namespace != "" {
		meta["namespace"] = namespace
	}
	return map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": meta, "spec": spec}
}

// TestKindsComeAndGo: those of other policies, and what their rules refer to.
func TestKindsComeAndGo(t *testing.T) {
	l := newLab(t)
	s := l.open(t, kube.Options{Node: "node-1", Log: logOf(t)})
	ctx := context.Background()
	l.make(t, namespaces, map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "dev"}})
	l.make(t, serviceAccounts, map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": "sa", "namespace": "dev"}})
	l.make(t, endpointSlices, map[string]any{
		"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": map[string]any{"name": "web", "namespace": "dev"},
		"addressType": "IPv4", "endpoints": []any{map[string]any{"addresses": []any{"10.0.0.1"}}},
	})
	_, rev, err := s.List(ctx, model.KindResource)
	if err != nil {
		t.Fatal(err)
	}
	events, err := s.Watch(ctx, rev, model.KindResource)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		cnp := schema.GroupVersionResource{Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies"}
		until(t, "the definition to be taken", func() bool { // an old one may be about to go
			return l.create(definitions, definition(cnp.Group, cnp.Version, cnp.Resource, "ClusterNetworkPolicy", false)) == nil
		})
		until(t, "the kind to be served", func() bool {
			return l.create(cnp, custom(cnp.GroupVersion().String(), "ClusterNetworkPolicy", "", "all", map[string]any{"priority": int64(1)})) == nil
		})
		const key = "ClusterNetworkPolicy.policy.networking.k8s.io::all"
		if e := told(t, events, key); e.Type != store.EventPut {
			t.Fatalf("event %+v", e)
		}
		l.remove(t, definitions, "", cnp.Resource+"."+cnp.Group)
		if e := told(t, events, key); e.Type != store.EventDelete {
			t.Fatalf("event %+v", e)
		}
	}
	const account, slice = "ServiceAccount:dev:sa", "EndpointSlice.discovery.k8s.io:dev:web"
	if has(t, s, model.KindResource, account) || has(t, s, model.KindResource, slice) {
		t.Error("service accounts and endpoint slices are kept though no policy can name them")
	}
	for _, k := range []struct{ plural, kind string }{{"networkpolicies", "NetworkPolicy"}, {"globalnetworksets", "GlobalNetworkSet"}} {
		l.make(t, definitions, definition("crd.projectcalico.org", "v1", k.plural, k.kind, k.kind == "NetworkPolicy"))
	}
	l.comes(t, s, model.KindResource, account)
	calico := schema.GroupVersionResource{Group: "crd.projectcalico.org", Version: "v1", Resource: "networkpolicies"}
	until(t, "the kind to be served", func() bool {
		return l.create(calico, custom("crd.projectcalico.org/v1", "NetworkPolicy", "dev", "default.a", map[string]any{"selector": "all()"})) == nil
	})
	l.comes(t, s, model.KindResource, "NetworkPolicy.crd.projectcalico.org:dev:default.a")
	if has(t, s, model.KindResource, slice) {
		t.Error("endpoint slices are kept though no policy names services")
	}
	l.patch(t, calico, "dev", "default.a", `{"spec":{"egress":[{"action":"Allow","destination":{"services":{"name":"web"}}}]}}`)
	l.comes(t, s, model.KindResource, slice)
	// Who starts now waits for what the policies name.
	items, _, err := l.open(t, kube.Options{Node: "node-1"}).List(ctx, model.KindResource)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, it := range items {
		there[it.Object.Key()] = true
	}
	if !there[account] || !there[slice] {
		t.Errorf("a first list has not what policies name: %v", there)
	}
	l.remove(t, definitions, "", "networkpolicies.crd.projectcalico.org")
	l.goes(t, s, model.KindResource, "NetworkPolicy.crd.projectcalico.org:dev:default.a")
	l.remove(t, definitions, "", "globalnetworksets.crd.projectcalico.org")
	l.goes(t, s, model.KindResource, account)
	l.goes(t, s, model.KindResource, slice)
}

// told waits for the next event of a key.
func told(t *testing.T, events <-chan store.Event, key string) store.Event {
	t.Helper()
	for {
		if e := storetest.Next(t, events); e.Key == key {
			return e
		}
	}
}
