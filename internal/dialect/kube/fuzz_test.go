package kube

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

// FuzzObject asks that no bytes do harm, that every refusal is one sentence that names the object, and that what
// is accepted makes sense.
func FuzzObject(f *testing.F) {
	for _, text := range []string{
		netpol("  podSelector: {matchLabels: {a: b}}\n  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 1, endPort: 2}, {port: a}]}]\n  egress: [{}]"),
		netpol("  podSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]}\n  ingress: [{from: [{podSelector: {}, namespaceSelector: {}}]}]"),
		cnp(adminHead + "  egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 2}}}}, {destinationNamedPort: a}]}]"),
		cnp(adminHead + "  ingress: [{action: Pass, from: [{pods: {podSelector: {}}}, {nodes: {}}]}]"),
		"{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {b: c}}}",
		"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{ports: [{name: a, containerPort: 1}], resources: {limits: {cpu: 1e3}}}]}}",
		"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}], ports: [{port: 1}]}",
	} {
		r := resource(f, text)
		f.Add(r.Type, r.Namespace, r.Name, []byte(r.Body))
	}
	f.Fuzz(func(t *testing.T, kind, namespace, name string, body []byte) {
		r := &model.Resource{APIVersion: kinds[kind].apiVersion, Type: kind, Namespace: namespace, Name: name, Body: body}
		before := slices.Clone(body)
		o, err := Object(r)
		checked := Check(r)
		if string(body) != string(before) {
			t.Fatal("the body changed")
		}
		if err != nil {
			if o != nil || checked == nil {
				t.Fatalf("refused (%v), but got %v, Check %v", err, o, checked)
			}
			if !strings.HasPrefix(err.Error(), r.String()+": ") {
				t.Fatalf("%q does not name %q", err, r)
			}
			var bad *model.FieldError
			if errors.As(err, &bad) && (bad.Field == "" || bad.Want == "" || len(bad.Value) > 1000) {
				t.Fatalf("%+v", bad)
			}
			return
		}
		if !json.Valid(body) {
			t.Fatal("accepted what is not JSON")
		}
		if again, err := Object(r); err != nil || show(again) != show(o) {
			t.Fatalf("read again: %v, %v", again, err)
		}
		p, ok := o.(*policy.Policy)
		if !ok {
			return
		}
		if p.Ref.Name != name || p.Ref.Namespace != namespace {
			t.Fatalf("%s is called %s", r, p.Ref)
		}
		for _, rule := range slices.Concat(p.Ingress, p.Egress) {
			for _, side := range []policy.Side{rule.Source, rule.Dest} {
				for _, n := range slices.Concat(side.Nets, side.NotNets) {
					if !n.IsValid() || n != n.Masked() || n.Addr().Is4In6() {
						t.Fatalf("network %v", n)
					}
				}
				for _, port := range side.Ports {
					if port.Name == "" && (port.First == 0 || port.Last < port.First) {
						t.Fatalf("port %+v", port)
					}
				}
			}
		}
	})
}
