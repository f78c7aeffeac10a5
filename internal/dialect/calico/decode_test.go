package calico_test

import (
	"errors"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/model"
)

// resource makes a resource of a text in YAML. Without apiVersion it is of projectcalico.org/v3.
func resource(t *testing.T, text string) *model.Resource {
	t.Helper()
	if !strings.Contains(text, "apiVersion:") {
		text = "apiVersion: projectcalico.org/v3\n" + text
	}
	body, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var m calico.Meta
	_ = yaml.Unmarshal(body, &m) // wrong types are the test's own
	return &model.Resource{APIVersion: m.APIVersion, Type: m.Kind, Namespace: m.Namespace, Name: m.Name, Body: body}
}

func TestDecodeReturnsTheObjectAsWritten(t *testing.T) {
	r := resource(t, `
kind: GlobalNetworkPolicy
metadata: {name: web, labels: {a: b}, managedFields: [{manager: kubectl, fieldsV1: {}}]}
spec:
  tier: first
  order: 1.5
  namespaceSelector: all()
  applyOnForward: true
  ingress:
  - action: Allow
    protocol: 6
    notProtocol: UDP
    ipVersion: 4
    source: {nets: [10.0.0.0/8], serviceAccounts: {names: [a]}}
    destination: {ports: [80, "443", "1000:2000", http]}
status: {conditions: []}
`)
	o, err := calico.Decode(r)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := o.(*calico.GlobalNetworkPolicy)
	if !ok {
		t.Fatalf("got %T", o)
	}
	rule := p.Spec.Ingress[0]
	if p.Name != "web" || p.Labels["a"] != "b" || p.Spec.Tier != "first" || *p.Spec.Order != 1.5 || !p.Spec.ApplyOnForward || p.Spec.NamespaceSelector != "all()" {
		t.Errorf("got %+v", p)
	}
	if *rule.Protocol != "6" || *rule.NotProtocol != "UDP" || *rule.IPVersion != 4 || rule.Source.Nets[0] != "10.0.0.0/8" {
		t.Errorf("got rule %+v", rule)
	}
	if got := rule.Destination.Ports; len(got) != 4 || got[0] != "80" || got[1] != "443" || got[2] != "1000:2000" || got[3] != "http" {
		t.Errorf("got ports %v", got)
	}
}

// The resource says where the object is filed, also where its text does not.
func TestDecodeFillsInTheNamespace(t *testing.T) {
	r := resource(t, "kind: NetworkPolicy\nmetadata: {name: a}")
	r.Namespace = "b"
	o, err := calico.Decode(r)
	if err != nil {
		t.Fatal(err)
	}
	if p := o.(*calico.NetworkPolicy); p.Namespace != "b" {
		t.Errorf("got namespace %q", p.Namespace)
	}
}

func TestDecodeKnowsBothGroups(t *testing.T) {
	for _, kind := range []string{"NetworkPolicy", "StagedNetworkPolicy", "StagedKubernetesNetworkPolicy", "NetworkSet", "GlobalNetworkPolicy", "StagedGlobalNetworkPolicy", "GlobalNetworkSet", "Tier", "HostEndpoint"} {
		for _, version := range []string{"projectcalico.org/v3", "crd.projectcalico.org/v1"} {
			meta := "{name: a}"
			if kind == "NetworkPolicy" || kind == "NetworkSet" || kind == "StagedNetworkPolicy" || kind == "StagedKubernetesNetworkPolicy" {
				meta = "{name: a, namespace: b}"
			}
			if _, err := calico.Decode(resource(t, "apiVersion: "+version+"\nkind: "+kind+"\nmetadata: "+meta)); err != nil {
				t.Errorf("%s %s: %v", version, kind, err)
			}
		}
	}
}

func TestDecodeRefusesWrongForm(t *testing.T) {
	const head = "kind: NetworkPolicy\nmetadata: {name: a, namespace: b}\n"
	for _, c := range []struct{ text, want string }{
		{head + "spec: {ingresss: []}", "NetworkPolicy b/a: spec.ingresss given: want nothing: NetworkPolicy has no such field"},
		{head + "spec: {ingress: [{action: Allow}, {action: Allow, source: {domains: [example.com]}}]}", "NetworkPolicy b/a: spec.ingress[1].source.domains given: want nothing: NetworkPolicy has no such field"},
		{head + "spec: {preDNAT: true}", "NetworkPolicy b/a: spec.preDNAT given: want nothing: NetworkPolicy has no such field"},
		{head + "spec: {namespaceSelector: all()}", "NetworkPolicy b/a: spec.namespaceSelector given: want nothing: NetworkPolicy has no such field"},
		{head + "spec: {stagedAction: Set}", "NetworkPolicy b/a: spec.stagedAction given: want nothing: NetworkPolicy has no such field"},
		{head + "Spec: {}", "NetworkPolicy b/a: Spec given: want nothing: NetworkPolicy has no such field"},
		{head + "spec: {order: first}", "NetworkPolicy b/a: spec.order a JSON string: want a number that a 64-bit float holds"},
		{head + "spec: {types: Ingress}", "NetworkPolicy b/a: spec.types a JSON string: want a list"},
		{head + "spec: {tier: {}}", "NetworkPolicy b/a: spec.tier a JSON object: want text"},
		{head + "spec: {ingress: [1]}", "NetworkPolicy b/a: spec.ingress a JSON number: want an object"},
		{head + "spec: {ingress: [{action: Allow, ipVersion: 4.5}]}", "NetworkPolicy b/a: spec.ingress.ipVersion a JSON number 4.5: want a whole number"},
		{"kind: StagedGlobalNetworkPolicy\nmetadata: {name: a}\nspec: {order: x}", "StagedGlobalNetworkPolicy a: spec.order a JSON string: want a number that a 64-bit float holds"},
		{"kind: StagedGlobalNetworkPolicy\nmetadata: {name: a}\nspec: {http: x}", "StagedGlobalNetworkPolicy a: spec.http given: want nothing: StagedGlobalNetworkPolicy has no such field"},
		{"kind: Tier\nmetadata: {name: a, labels: {x: true}}", "Tier a: metadata.labels a JSON bool: want text"},
		{"kind: Tier\nmetadata: {name: a, label: {}}", "Tier a: metadata.label given: want nothing: Tier has no such field"},
		{"kind: NetworkPolicy\nmetadata: {name: a}", "NetworkPolicy a: metadata.namespace (empty): want a namespace"},
		{"kind: Tier\nmetadata: {name: a, namespace: b}", "Tier b/a: metadata.namespace b: want nothing: a Tier is in no namespace"},
		{"kind: IPPool\nmetadata: {name: a}", "IPPool a: kind projectcalico.org/v3 IPPool: want a kind of policy of projectcalico.org/v3"},
		{"apiVersion: projectcalico.org/v1\nkind: Tier\nmetadata: {name: a}", "Tier a: kind projectcalico.org/v1 Tier: want a kind of policy of projectcalico.org/v3"},
	} {
		_, err := calico.Decode(resource(t, c.text))
		if _, ok := errors.AsType[*model.FieldError](err); !ok || err.Error() != c.want {
			t.Errorf("%s\n got %v\nwant %s", c.text, err, c.want)
		}
	}
}

func TestDecodeRefusesWhatIsNotTheResource(t *testing.T) {
	r := resource(t, "kind: Tier\nmetadata: {name: a}")
	for _, c := range []struct {
		change func(r *model.Resource)
		want   string
	}{
		{func(r *model.Resource) { r.Name = "b" }, "Tier b: metadata.name a: want b"},
		{func(r *model.Resource) { r.Type = "GlobalNetworkSet" }, "GlobalNetworkSet a: kind Tier: want GlobalNetworkSet"},
		{func(r *model.Resource) { r.APIVersion = "crd.projectcalico.org/v1" }, "Tier a: apiVersion projectcalico.org/v3: want crd.projectcalico.org/v1"},
		{func(r *model.Resource) { r.Namespace = "b" }, "Tier b/a: metadata.namespace b: want nothing: a Tier is in no namespace"},
		{func(r *model.Resource) { r.Body = []byte(`{"spec":{"order":1,"order":2}}`) }, "Tier a: spec.order given twice: want it once"},
		{func(r *model.Resource) { r.Body = []byte(`[]`) }, "Tier a: body a JSON array: want an object"},
		{func(r *model.Resource) { r.Body = []byte(`{"spec":{"order":1e400}}`) }, "Tier a: spec.order a JSON number 1e400: want a number that a 64-bit float holds"},
		{func(r *model.Resource) { r.Body = []byte(`{`) }, `Tier "a": body (empty): want a JSON object`},
	} {
		changed := *r
		c.change(&changed)
		_, err := calico.Decode(&changed)
		if err == nil || err.Error() != c.want {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
	}
}
