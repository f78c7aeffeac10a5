package kube

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

// resource files an object given as YAML, in namespace "default" where it is in one and names none.
func resource(t testing.TB, text string) *model.Resource {
	t.Helper()
	body, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	var o struct {
		APIVersion, Kind string
		Metadata         struct{ Name, Namespace string }
	}
	if err := json.Unmarshal(body, &o); err != nil {
		t.Fatal(err)
	}
	r := &model.Resource{APIVersion: o.APIVersion, Type: o.Kind, Namespace: o.Metadata.Namespace, Name: o.Metadata.Name, Body: body}
	if r.Namespace == "" && kinds[r.Type].namespaced {
		r.Namespace = "default"
	}
	return r
}

// text prints a policy, a line for its head and one for each rule.
func text(p *policy.Policy) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, tier %s, order %g", p.Ref, p.Tier, p.Order)
	if p.AppliesIngress {
		b.WriteString(", ingress")
	}
	if p.AppliesEgress {
		b.WriteString(", egress")
	}
	fmt.Fprintf(&b, "\nof %s\n", p.Subject)
	for _, r := range p.Ingress {
		b.WriteString("in " + ruleText(r) + "\n")
	}
	for _, r := range p.Egress {
		b.WriteString("out " + ruleText(r) + "\n")
	}
	return b.String()
}

func ruleText(r policy.Rule) string {
	s := fmt.Sprintf("%d %s", r.Index, map[policy.Action]string{policy.Allow: "allow", policy.Deny: "deny", policy.Pass: "pass", policy.Log: "log"}[r.Action])
	if r.Protocol != policy.AnyProtocol {
		s += fmt.Sprintf(" protocol %d", r.Protocol)
	}
	if r.NotProtocol != policy.AnyProtocol || r.ICMP != nil || r.NotICMP != nil || r.Family != 0 {
		s += " MORE"
	}
	return s + sideText(" from", r.Source) + sideText(" to", r.Dest)
}

func sideText(word string, s policy.Side) string {
	out := ""
	if s.OwnNode {
		out += " own node"
	}
	if s.Selector != nil {
		out += fmt.Sprintf(" {%s}", s.Selector)
	}
	if s.Nets != nil {
		out += fmt.Sprintf(" %v", s.Nets)
	}
	if s.NotNets != nil {
		out += fmt.Sprintf(" except %v", s.NotNets)
	}
	if s.Ports != nil {
		out += " ports"
		for _, p := range s.Ports {
			switch {
			case p.Name != "":
				out += " " + p.Name
			case p.First == p.Last:
				out += fmt.Sprintf(" %d", p.First)
			default:
				out += fmt.Sprintf(" %d-%d", p.First, p.Last)
			}
		}
	}
	if s.NotSelector != nil || s.Service != nil || s.NotPorts != nil {
		out += " MORE"
	}
	if out == "" {
		return ""
	}
	return word + out
}

// meaning is the policy that an object comes to, as text.
func meaning(t *testing.T, object string) string {
	t.Helper()
	o, err := Object(resource(t, object))
	if err != nil {
		t.Fatalf("%v in\n%s", err, object)
	}
	p, ok := o.(*policy.Policy)
	if !ok {
		t.Fatalf("%T, want a policy", o)
	}
	return strings.ReplaceAll(text(p), `projectcalico.org/orchestrator == "k8s"`, "POD")
}

func wantMeaning(t *testing.T, object, want string) {
	t.Helper()
	if got, want := meaning(t, object), strings.TrimLeft(want, "\n"); got != want {
		t.Errorf("of\n%s\ngot:\n%s\nwant:\n%s", object, got, want)
	}
}
