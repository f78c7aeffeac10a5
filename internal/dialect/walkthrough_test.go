package dialect

import (
	"testing"

	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/selector"
)

// The steps of the tutorial on policies, from two namespaces without any to egress that is open again.
func TestTutorialPoliciesAreUnderstood(t *testing.T) {
	found, err := ReadYAML([]byte(`
apiVersion: v1
kind: Namespace
metadata: {name: dev}
---
apiVersion: v1
kind: Pod
metadata: {name: pod1, namespace: dev, labels: {app: myapp}}
spec:
  containers: [{name: web, image: web, ports: [{name: http, containerPort: 80}]}]
---
` + denyAll + `
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-myapp-ingress, namespace: dev}
spec:
  podSelector: {matchLabels: {app: myapp}}
  policyTypes: [Ingress]
  ingress:
  - from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.2/32]}}]
    ports: [{protocol: TCP, port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all-egress, namespace: prod}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{}]
`))
	if err != nil || len(found) != 5 {
		t.Fatalf("%d objects, %v", len(found), err)
	}
	var objects []policy.Object
	for i := range found {
		o, err := Object(&found[i])
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	pod := selector.Map{
		"app": "myapp", policy.LabelNamespace: "dev", policy.LabelOrchestrator: policy.Orchestrator,
		"pcns.kubernetes.io/metadata.name": "dev",
	}
	for i, want := range map[int]struct {
		selects           bool
		ingress, egress   bool
		inRules, outRules int
	}{
		2: {selects: true, ingress: true},
		3: {selects: true, ingress: true, inRules: 1},
		4: {selects: false, egress: true, outRules: 2}, // what it says, and the way to the own node
	} {
		p := objects[i].(*policy.Policy)
		if p.Subject.Matches(pod) != want.selects || p.AppliesIngress != want.ingress || p.AppliesEgress != want.egress ||
			len(p.Ingress) != want.inRules || len(p.Egress) != want.outRules || p.Tier != policy.DefaultTier {
			t.Errorf("%s: %+v", p.Ref, p)
		}
	}
	if got := objects[1].(*policy.Pod); got.Ports[0] != (policy.NamedPort{Name: "http", Protocol: 6, Port: 80}) || got.Labels["app"] != "myapp" {
		t.Errorf("%+v", got)
	}
}
