package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

func TestObjectsOfTheWorld(t *testing.T) {
	to := func(addr string, protocol uint8, port uint16) policy.ServiceEndpoint {
		return policy.ServiceEndpoint{Addr: netip.MustParseAddr(addr), Protocol: protocol, Port: port}
	}
	port := func(name string, protocol uint8, port uint16) policy.NamedPort {
		return policy.NamedPort{Name: name, Protocol: protocol, Port: port}
	}
	for name, c := range map[string]struct {
		object string
		want   policy.Object
	}{
		"namespace": {
			"{apiVersion: v1, kind: Namespace, metadata: {name: dev, labels: {team: a}}, spec: {finalizers: [kubernetes]}}",
			&policy.Namespace{Name: "dev", Labels: map[string]string{"team": "a", "kubernetes.io/metadata.name": "dev"}},
		},
		"namespace that claims another's name": {
			"{apiVersion: v1, kind: Namespace, metadata: {name: dev, labels: {kubernetes.io/metadata.name: prod}}}",
			&policy.Namespace{Name: "dev", Labels: map[string]string{"kubernetes.io/metadata.name": "dev"}},
		},
		"service account": {
			"{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: dev, labels: {a: b}}, automountServiceAccountToken: false}",
			&policy.ServiceAccount{Namespace: "dev", Name: "web", Labels: map[string]string{"a": "b"}},
		},
		"pod": {`
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: dev, labels: {app: web}, annotations: {any: thing}, creationTimestamp: "2026-01-02T03:04:05Z"}
spec:
  serviceAccountName: web
  nodeName: n1
  initContainers:
  - {name: once, image: i, ports: [{name: gone, containerPort: 1}]}
  - {name: beside, image: i, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]}
  containers:
  - name: a
    image: i
    resources: {limits: {cpu: 100m, memory: 1Gi}}
    ports: [{name: http, containerPort: 8080}, {containerPort: 8081}, {name: dns, containerPort: 53, protocol: UDP}]
  - {name: b, image: i, ports: [{name: http, containerPort: 65535, protocol: SCTP, hostPort: 80}]}
`, &policy.Pod{
			Namespace: "dev", Name: "web-1", Labels: map[string]string{"app": "web"}, ServiceAccount: "web",
			Ports: []policy.NamedPort{port("metrics", 6, 9090), port("http", 6, 8080), port("dns", 17, 53), port("http", 132, 65535)},
		}},
		"pod with quantities that take forever": {
			"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {overhead: {cpu: 1e-999999999}, containers: [{resources: {limits: {cpu: 1e-999999999}}, ports: [{name: a, containerPort: 1}]}]}}",
			&policy.Pod{Namespace: "default", Name: "p", Ports: []policy.NamedPort{port("a", 6, 1)}},
		},
		"pod with labels only": {
			"{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {a: b}}}",
			&policy.Pod{Namespace: "default", Name: "p", Labels: map[string]string{"a": "b"}},
		},
		"pod with the old name of its service account": {
			"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {serviceAccount: old}}",
			&policy.Pod{Namespace: "default", Name: "p", ServiceAccount: "old"},
		},
		"pod on the host's network": {
			"{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {a: b}}, spec: {hostNetwork: true, serviceAccountName: s, containers: [{name: c, ports: [{name: x, containerPort: 1}]}]}}",
			&policy.Pod{Namespace: "default", Name: "p"},
		},
		"endpoint slice": {`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-abc, namespace: dev, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}}
- {addresses: [10.0.0.2, 10.0.0.3], conditions: {ready: false}, nodeName: n1}
ports:
- {name: http, port: 80}
- {name: dns, port: 53, protocol: UDP}
- {name: again, port: 80, protocol: TCP}
`, &policy.EndpointSlice{Service: policy.ServiceRef{Namespace: "dev", Name: "web"}, Endpoints: []policy.ServiceEndpoint{
			to("10.0.0.1", 6, 80), to("10.0.0.1", 17, 53),
			to("10.0.0.2", 6, 80), to("10.0.0.2", 17, 53),
			to("10.0.0.3", 6, 80), to("10.0.0.3", 17, 53),
		}}},
		"endpoint slice without ports": {
			"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, labels: {kubernetes.io/service-name: web}}, addressType: IPv6, endpoints: [{addresses: ['fd00::1']}]}",
			&policy.EndpointSlice{Service: policy.ServiceRef{Namespace: "default", Name: "web"}, Endpoints: []policy.ServiceEndpoint{to("fd00::1", 0, 0)}},
		},
		"endpoint slice with any port": {
			"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s}, addressType: IPv6, endpoints: [{addresses: ['fd00::1']}], ports: [{name: any}]}",
			&policy.EndpointSlice{Service: policy.ServiceRef{Namespace: "default"}, Endpoints: []policy.ServiceEndpoint{to("fd00::1", 0, 0)}},
		},
		"endpoint slice of host names": {
			"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, labels: {kubernetes.io/service-name: web}}, addressType: FQDN, endpoints: [{addresses: [example.org]}]}",
			&policy.EndpointSlice{Service: policy.ServiceRef{Namespace: "default", Name: "web"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Object(resource(t, c.object))
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, c.want)
			}
		})
	}
}

func TestBadObjectsOfTheWorldAreRefusedByFieldAndValue(t *testing.T) {
	many := make([]string, 400)
	for i := range many {
		many[i] = fmt.Sprintf("{port: %d}", i+1)
	}
	addrs := strings.TrimSuffix(strings.Repeat("10.0.0.1, ", 251), ", ")
	slice := func(rest string) string {
		return "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s}, " + rest + "}"
	}
	for _, c := range []struct{ object, want string }{
		{"{apiVersion: v1, kind: Namespace, metadata: {name: a.b}}", `Namespace a.b: metadata.name "a.b": want a name of RFC 1123: `},
		{"{apiVersion: v1, kind: Namespace, metadata: {name: a, namespace: b}}", `Namespace b/a: metadata.namespace "b": want none: a Namespace is in no namespace`},
		{"{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {'b c': d}}}", `Namespace a: metadata.labels "b c": want a label's key: `},
		{"{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {b: 'd e'}}}", `Namespace a: metadata.labels.b "d e": want a label's value: `},
		{"{apiVersion: v1, kind: Namespace, metadata: {name: a, label: {}}}", `Namespace a: unknown field metadata.label {}: want one of annotations, `},
		{"{apiVersion: v1, kind: Namespace, metadata: {name: a, Labels: {}}}", `Namespace a: unknown field metadata.Labels {}: want one of annotations, `},
		{"{apiVersion: v2, kind: Namespace, metadata: {name: a}}", `Namespace a: apiVersion "v2": want v1`},
		{"{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}", `Deployment a: kind "Deployment": want a kind of Kubernetes that says who may talk to whom`},
		{"{apiVersion: v1, kind: Pod, metadata: {name: A}}", `Pod default/A: metadata.name "A": want a name of RFC 1123: `},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: b.c}}", `Pod b.c/a: metadata.namespace "b.c": want a namespace's name: `},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a, creationTimestamp: yesterday}}", `Pod default/a: metadata.creationTimestamp "yesterday": want a time such as 2006-01-02T15:04:05Z`},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {hostNetwork: 'true'}}", `Pod default/a: spec.hostNetwork "true": want true or false`},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {hostnetwork: true}}", `Pod default/a: unknown field spec.hostnetwork true: want one of `},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {serviceAccountName: X}}", `Pod default/a: spec.serviceAccountName "X": want a name of RFC 1123: `},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{ports: [{containerPort: 65536}]}]}}", `Pod default/a: spec.containers[0].ports[0].containerPort 65536: want a port, 1..65535`},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{}, {ports: [{containerPort: 1, name: A}]}]}}", `Pod default/a: spec.containers[1].ports[0].name "A": want a port's name: `},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {initContainers: [{restartPolicy: Always, ports: [{containerPort: 1, protocol: X}]}]}}", `Pod default/a: spec.initContainers[0].ports[0].protocol "X": want TCP, UDP or SCTP`},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {volumes: 7, containers: [{image: i, port: []}]}}", `Pod default/a: unknown field spec.containers[0].port []: want one of args, command, `},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{image: i, ports: [{name: a, contanerPort: 1}]}]}}", `Pod default/a: unknown field spec.containers[0].ports[0].contanerPort 1: want one of containerPort, hostIP, hostPort, name, protocol`},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: n, containers: {}}}", `Pod default/a: spec.containers {}: want a list`},
		{slice("endpoints: []"), `EndpointSlice default/s: addressType "": want IPv4, IPv6 or FQDN`},
		{slice("addressType: IPv4, endpoints: [{addresses: ['fd00::1']}]"), `EndpointSlice default/s: endpoints[0].addresses[0] "fd00::1": want an IPv4 address`},
		{slice("addressType: IPv6, endpoints: [{addresses: ['fd00::1', '::ffff:10.0.0.1']}]"), `EndpointSlice default/s: endpoints[0].addresses[1] "::ffff:10.0.0.1": want an IPv6 address`},
		{slice("addressType: IPv6, endpoints: [{addresses: ['fe80::1%eth0']}]"), `EndpointSlice default/s: endpoints[0].addresses[0] "fe80::1%eth0": want an IPv6 address`},
		{slice("addressType: IPv4, endpoints: [], ports: [{port: 0}]"), `EndpointSlice default/s: ports[0].port 0: want a port, 1..65535`},
		{slice("addressType: IPv4, endpoints: [], ports: [{port: 1, protocol: ''}]"), `EndpointSlice default/s: ports[0].protocol "": want TCP, UDP or SCTP`},
		{slice("addressType: IPv4, endpoints: [{addresses: [" + addrs + "]}], ports: [" + strings.Join(many, ", ") + "]"), `EndpointSlice default/s: endpoints 100400: want addresses times ports at most 100000`},
	} {
		wantRefusal(t, c.object, c.want)
	}
}

// The store files an object by what its resource says; a body that says otherwise is not that object.
func TestBodyMustBeWhatItIsFiledAs(t *testing.T) {
	const object = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np, namespace: dev}\n"
	for _, c := range []struct {
		change func(*model.Resource)
		want   string
	}{
		{func(r *model.Resource) { r.Name = "other" }, `NetworkPolicy dev/other: metadata.name "np": want other, by which it is filed`},
		{func(r *model.Resource) { r.Namespace = "prod" }, `NetworkPolicy prod/np: metadata.namespace "dev": want prod, in which it is filed`},
		{func(r *model.Resource) { r.Namespace = "" }, `NetworkPolicy np: metadata.namespace "": want a namespace's name: `},
		{func(r *model.Resource) { r.Type, r.APIVersion = "Pod", "v1" }, `Pod dev/np: kind "NetworkPolicy": want Pod, as which it is filed`},
		{func(r *model.Resource) {
			r.Body = json.RawMessage(strings.Replace(string(r.Body), "/v1", "/v9", 1))
		}, `NetworkPolicy dev/np: apiVersion "networking.k8s.io/v9": want networking.k8s.io/v1, as which it is filed`},
		{func(r *model.Resource) { r.Body = json.RawMessage(`[]`) }, `NetworkPolicy dev/np: object []: want fields with their values`},
		{func(r *model.Resource) { r.Body = json.RawMessage(`null`) }, `NetworkPolicy dev/np: kind "": want NetworkPolicy, as which it is filed`},
		{func(r *model.Resource) { r.Body = nil }, `NetworkPolicy dev/np: `},
		{func(r *model.Resource) { r.Body = json.RawMessage(`{"spec":{},"spec":{"ingress":[{}]}}`) }, `NetworkPolicy dev/np: spec given twice: want each field once`},
		{func(r *model.Resource) {
			r.Type, r.APIVersion = "Pod", "v1"
			r.Body = json.RawMessage(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"np"},"spec":{"hostNetwork":false,"hostNetwork":true}}`)
		}, `Pod dev/np: spec.hostNetwork given twice: want each field once`},
		{func(r *model.Resource) { r.Body = append(r.Body, make([]byte, MaxBody)...) }, `NetworkPolicy dev/np: size `},
	} {
		r := resource(t, object)
		c.change(r)
		if _, err := Object(r); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("got\n  %v\nwant\n  %s", err, c.want)
		}
	}
}

func TestDecodeGivesKubernetesTypes(t *testing.T) {
	for object, want := range map[string]any{
		"{apiVersion: v1, kind: Namespace, metadata: {name: a}}":                            &corev1.Namespace{},
		"{apiVersion: v1, kind: Pod, metadata: {name: a}}":                                  &Pod{},
		"{apiVersion: v1, kind: ServiceAccount, metadata: {name: a}}":                       &corev1.ServiceAccount{},
		"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}}":       &discoveryv1.EndpointSlice{},
		"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}}":      &networkingv1.NetworkPolicy{},
		"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: b, a: 1}}": nil,
	} {
		r := resource(t, object)
		got, err := Decode(r)
		if want == nil {
			if err == nil || got != nil {
				t.Errorf("%s: got %v, %v", object, got, err)
			}
			continue
		}
		if err != nil || reflect.TypeOf(got) != reflect.TypeOf(want) {
			t.Errorf("%s: got %T, %v", object, got, err)
		}
		if o, ok := got.(interface{ GetNamespace() string }); ok && o.GetNamespace() != r.Namespace {
			t.Errorf("%s: in namespace %q", object, o.GetNamespace())
		}
	}
}
