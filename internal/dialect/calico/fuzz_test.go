package calico_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/selector"
)

// FuzzObject gives texts in YAML to Object. It refuses with a FieldError, or makes an object that keeps what the
// compiler takes for granted, and the same one each time.
func FuzzObject(f *testing.F) {
	for _, seed := range []string{
		"kind: NetworkPolicy\nmetadata: {namespace: a, name: b}\nspec: {tier: t, order: 1, selector: a == 'b', serviceAccountSelector: all(), types: [Ingress, Egress], ingress: [{action: Allow, protocol: TCP, source: {selector: has(a), notSelector: has(b), namespaceSelector: global(), nets: [10.0.0.0/8]}, destination: {ports: [80, '1:2', http]}}], egress: [{action: Log, destination: {services: {name: a}}}]}",
		"kind: GlobalNetworkPolicy\nmetadata: {name: b}\nspec: {preDNAT: true, applyOnForward: true, ingress: [{action: Deny, ipVersion: 6, protocol: 58, icmp: {type: 1, code: 2}, notICMP: {type: 3}, source: {serviceAccounts: {names: [a], selector: b != 'c'}, notNets: ['fd00::/8']}}]}",
		"kind: StagedNetworkPolicy\nmetadata: {namespace: a, name: b}\nspec: {stagedAction: Delete}",
		"kind: StagedGlobalNetworkPolicy\nmetadata: {name: b}\nspec: {doNotTrack: true, applyOnForward: true}",
		"kind: StagedKubernetesNetworkPolicy\nmetadata: {namespace: a, name: b}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}",
		"kind: Tier\nmetadata: {name: b}\nspec: {order: 1e3, defaultAction: Pass}",
		"kind: NetworkSet\nmetadata: {namespace: a, name: b, labels: {c: d}}\nspec: {nets: [1.2.3.4, 'fd00::1/64']}",
		"kind: GlobalNetworkSet\nmetadata: {name: b}\nspec: {nets: [example.com]}",
		"kind: HostEndpoint\nmetadata: {name: b}\nspec: {node: n, interfaceName: '*', expectedIPs: [10.0.0.1], profiles: [projectcalico-default-allow], ports: [{name: http, protocol: TCP, port: 80}]}",
	} {
		f.Add("apiVersion: projectcalico.org/v3\n" + seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		body, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			return
		}
		var head struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Metadata   struct{ Namespace, Name string }
		}
		_ = json.Unmarshal(body, &head) // Object is to say what is wrong
		r := &model.Resource{APIVersion: head.APIVersion, Type: head.Kind, Namespace: head.Metadata.Namespace, Name: head.Metadata.Name, Body: body}
		o, err := calico.Object(r)
		if err != nil {
			wrong, ok := errors.AsType[*model.FieldError](err)
			if !ok || wrong.Noun == "" || wrong.Field == "" || wrong.Want == "" || o != nil {
				t.Fatalf("refused with %v (%#v)", o, err)
			}
			return
		}
		if again, err := calico.Object(r); err != nil || !reflect.DeepEqual(o, again) {
			t.Fatalf("got %v, and then %v, %v", o, again, err)
		}
		switch o := o.(type) {
		case *policy.Policy:
			checkPolicy(t, o)
		case *policy.Tier:
			if o.Order != o.Order || o.Default != policy.Deny && o.Default != policy.Pass {
				t.Fatalf("got %v", o)
			}
		case *policy.NetworkSet:
			checkNets(t, o.Nets)
		case *policy.HostEndpoint:
			if o.Node == "" || o.Interface == "" && len(o.Expected) == 0 {
				t.Fatalf("got %v", o)
			}
		}
	})
}

func checkPolicy(t *testing.T, p *policy.Policy) {
	if p.Order != p.Order || p.Tier == "" || p.Ref.Name == "" {
		t.Fatalf("got %v", p)
	}
	checkSelector(t, &p.Subject)
	if key := policy.LabelNamespace; p.Ref.Namespace != "" && p.Subject.Matches(selector.Map{key: "other." + p.Ref.Namespace}) {
		t.Fatalf("%s selects in other namespaces", p.Subject)
	}
	for _, r := range append(append([]policy.Rule(nil), p.Ingress...), p.Egress...) {
		if r.Action < policy.Allow || r.Action > policy.Log || r.Protocol == 0 || r.Protocol < -1 || r.Protocol > 255 || r.NotProtocol == 0 ||
			r.NotProtocol < -1 || r.NotProtocol > 255 || r.Family != 0 && r.Family != model.IPv4 && r.Family != model.IPv6 {
			t.Fatalf("got %+v", r)
		}
		if (r.ICMP != nil || r.NotICMP != nil) && r.Protocol != 1 && r.Protocol != 58 {
			t.Fatalf("got ICMP with protocol %d", r.Protocol)
		}
		for _, s := range []policy.Side{r.Source, r.Dest} {
			checkNets(t, append(append([]netip.Prefix(nil), s.Nets...), s.NotNets...))
			checkSelector(t, s.Selector)
			checkSelector(t, s.NotSelector)
			for _, port := range append(append([]policy.Port(nil), s.Ports...), s.NotPorts...) {
				if port.Name == "" && (port.First == 0 || port.Last < port.First) || port.Name != "" && (port.First != 0 || port.Last != 0) {
					t.Fatalf("got port %v", port)
				}
			}
		}
	}
}

func checkNets(t *testing.T, nets []netip.Prefix) {
	for _, n := range nets {
		if !n.IsValid() || n != n.Masked() || n.Addr().Is4In6() {
			t.Fatalf("got network %s", n)
		}
	}
}

func checkSelector(t *testing.T, s *selector.Selector) {
	if s == nil || len(s.String()) > selector.MaxLength/2 {
		return
	}
	if again, err := selector.Parse(s.String()); err != nil || again.String() != s.String() {
		t.Fatalf("%q is read as %q: %v", s, again, err)
	}
}
