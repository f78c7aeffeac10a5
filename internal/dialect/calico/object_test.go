package calico_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/policy"
)

// describe spells a policy, a line for its head and one for each rule.
func describe(p *policy.Policy) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: tier %s order %v", p.Ref, p.Tier, p.Order)
	for _, w := range []struct {
		is   bool
		word string
	}{
		{p.AppliesIngress, "ingress"},
		{p.AppliesEgress, "egress"},
		{p.Staged, "staged"},
		{p.Deletion, "deletion"},
		{p.HostMode == policy.HostForward, "forward"},
		{p.HostMode == policy.HostPreDNAT, "prednat"},
		{p.HostMode == policy.HostUntracked, "untracked"},
	} {
		if w.is {
			b.WriteString(" " + w.word)
		}
	}
	fmt.Fprintf(&b, " of %s\n", p.Subject)
	for _, r := range p.Ingress {
		b.WriteString("in " + describeRule(r))
	}
	for _, r := range p.Egress {
		b.WriteString("out " + describeRule(r))
	}
	return b.String()
}

func describeRule(r policy.Rule) string {
	words := []string{fmt.Sprint(r.Index), []string{"", "allow", "deny", "pass", "log"}[r.Action]}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if r.Family != 0 {
		add("ipv%d", r.Family)
	}
	if r.Protocol != policy.AnyProtocol {
		add("protocol %d", r.Protocol)
	}
	if r.NotProtocol != policy.AnyProtocol {
		add("not-protocol %d", r.NotProtocol)
	}
	if r.ICMP != nil {
		add("icmp %d/%d", r.ICMP.Type, r.ICMP.Code)
	}
	if r.NotICMP != nil {
		add("not-icmp %d/%d", r.NotICMP.Type, r.NotICMP.Code)
	}
	for _, s := range []struct {
		name string
		side policy.Side
	}{{"from", r.Source}, {"to", r.Dest}} {
		if s.side.Nets != nil {
			add("%s nets %v", s.name, s.side.Nets)
		}
		if s.side.NotNets != nil {
			add("%s not-nets %v", s.name, s.side.NotNets)
		}
		if s.side.Selector != nil {
			add("%s <%s>", s.name, s.side.Selector)
		}
		if s.side.NotSelector != nil {
			add("%s not <%s>", s.name, s.side.NotSelector)
		}
		if s.side.Service != nil {
			add("%s service %s/%s", s.name, s.side.Service.Namespace, s.side.Service.Name)
		}
		if s.side.Ports != nil {
			add("%s ports %v", s.name, s.side.Ports)
		}
		if s.side.NotPorts != nil {
			add("%s not-ports %v", s.name, s.side.NotPorts)
		}
		if s.side.OwnNode {
			add("%s own node", s.name)
		}
	}
	return strings.Join(words, " ") + "\n"
}

func TestPoliciesMeanWhatCalicoSays(t *testing.T) {
	const np = "kind: NetworkPolicy\nmetadata: {namespace: dev, name: web}\n"
	const gnp = "kind: GlobalNetworkPolicy\nmetadata: {name: base}\n"
	for _, c := range []struct{ name, text, want string }{
		{
			"empty: everything in the namespace is closed for ingress", np,
			`NetworkPolicy.projectcalico.org dev/web: tier default order +Inf ingress of projectcalico.org/namespace == "dev"` + "\n",
		},
		{
			"crd: the same", "apiVersion: crd.projectcalico.org/v1\n" + np,
			`NetworkPolicy.projectcalico.org dev/web: tier default order +Inf ingress of projectcalico.org/namespace == "dev"` + "\n",
		},
		{
			"egress rules only: egress", np + "spec: {egress: [{action: Pass}], order: -2.5, tier: first}",
			`NetworkPolicy.projectcalico.org dev/web: tier first order -2.5 egress of projectcalico.org/namespace == "dev"` + "\nout 0 pass\n",
		},
		{
			"both kinds of rules: both", np + "spec: {selector: role == 'db', ingress: [{action: Log}, {action: Deny}], egress: [{action: Allow}]}",
			`NetworkPolicy.projectcalico.org dev/web: tier default order +Inf ingress egress of role == "db" && projectcalico.org/namespace == "dev"` + "\nin 0 log\nin 1 deny\nout 0 allow\n",
		},
		{
			"types win over rules", np + "spec: {types: [Egress], ingress: [{action: Allow}]}",
			`NetworkPolicy.projectcalico.org dev/web: tier default order +Inf egress of projectcalico.org/namespace == "dev"` + "\nin 0 allow\n",
		},
		{
			"an or in the subject stays in the namespace", np + "spec: {selector: has(a) || has(b), performanceHints: [AssumeNeededOnEveryNode]}",
			`NetworkPolicy.projectcalico.org dev/web: tier default order +Inf ingress of (has(a) || has(b)) && projectcalico.org/namespace == "dev"` + "\n",
		},
		{
			"service accounts of the subject", np + "spec: {serviceAccountSelector: role == 'api' || projectcalico.org/name == 'web'}",
			`NetworkPolicy.projectcalico.org dev/web: tier default order +Inf ingress of projectcalico.org/namespace == "dev" && (pcsa.role == "api" || projectcalico.org/serviceaccount == "web")` + "\n",
		},
		{
			"global: everything, host endpoints too", gnp,
			"GlobalNetworkPolicy base: tier default order +Inf ingress of all()\n",
		},
		{
			"global: namespaces and service accounts of the subject", gnp + "spec: {selector: a == 'b', namespaceSelector: all(), serviceAccountSelector: all()}",
			`GlobalNetworkPolicy base: tier default order +Inf ingress of a == "b" && has(projectcalico.org/serviceaccount) && has(projectcalico.org/namespace)` + "\n",
		},
		{
			"global: namespaces by label and name", gnp + "spec: {namespaceSelector: 'team != \"x\" && projectcalico.org/name in {\"a\", \"b\"}'}",
			`GlobalNetworkPolicy base: tier default order +Inf ingress of pcns.team != "x" && projectcalico.org/namespace in {"a", "b"}` + "\n",
		},
		{
			"forwarded", gnp + "spec: {applyOnForward: true}",
			"GlobalNetworkPolicy base: tier default order +Inf ingress forward of all()\n",
		},
		{
			"before DNAT: no workloads", gnp + "spec: {applyOnForward: true, preDNAT: true, selector: has(host)}",
			"GlobalNetworkPolicy base: tier default order +Inf ingress prednat of has(host) && !has(projectcalico.org/orchestrator)\n",
		},
		{
			"untracked: no workloads", gnp + "spec: {applyOnForward: true, doNotTrack: true, types: [Ingress, Egress]}",
			"GlobalNetworkPolicy base: tier default order +Inf ingress egress untracked of !has(projectcalico.org/orchestrator)\n",
		},
	} {
		check(t, c.name, c.text, c.want)
	}
}

// check gives a policy to Object and compares what it means.
func check(t *testing.T, name, text, want string) {
	t.Helper()
	o, err := calico.Object(resource(t, text))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	p, ok := o.(*policy.Policy)
	if !ok {
		t.Errorf("%s: got a %T", name, o)
		return
	}
	if got := describe(p); got != want {
		t.Errorf("%s:\n got %swant %s", name, got, want)
	}
}

func TestRulesMeanWhatCalicoSays(t *testing.T) {
	const np = "kind: NetworkPolicy\nmetadata: {namespace: dev, name: web}\nspec: {types: [Ingress], "
	const gnp = "kind: GlobalNetworkPolicy\nmetadata: {name: base}\nspec: {types: [Ingress], "
	const npHead = `NetworkPolicy.projectcalico.org dev/web: tier default order +Inf ingress of projectcalico.org/namespace == "dev"` + "\n"
	const gnpHead = "GlobalNetworkPolicy base: tier default order +Inf ingress of all()\n"
	for _, c := range []struct{ name, rule, inNamespace, global string }{
		{"nothing", "", "allow", "allow"},
		{"empty ends", "source: {nets: [], ports: [], selector: '', serviceAccounts: {}}, destination: {}", "allow", "allow"},
		{"notes", "metadata: {annotations: {a: b}}", "allow", "allow"},
		{"protocol by name", "protocol: SCTP", "allow protocol 132", "allow protocol 132"},
		{"protocol by number", "protocol: 47, notProtocol: 255", "allow protocol 47 not-protocol 255", "allow protocol 47 not-protocol 255"},
		{"protocol by number in text", "protocol: '6', notProtocol: UDPLite", "allow protocol 6 not-protocol 136", "allow protocol 6 not-protocol 136"},
		{"ICMP", "protocol: ICMP, icmp: {type: 8}, notICMP: {type: 8, code: 3}", "allow protocol 1 icmp 8/-1 not-icmp 8/3", "allow protocol 1 icmp 8/-1 not-icmp 8/3"},
		{"ICMPv6", "protocol: 58, ipVersion: 6, icmp: {type: 0, code: 0}, notICMP: {}", "allow ipv6 protocol 58 icmp 0/0", "allow ipv6 protocol 58 icmp 0/0"},
		{"IP version", "ipVersion: 4, notProtocol: ICMP", "allow ipv4 not-protocol 1", "allow ipv4 not-protocol 1"},
		{
			"ports", "protocol: TCP, source: {ports: ['1:65535']}, destination: {ports: [80, http, '1000:2000', '443'], notPorts: [81, dns-tcp]}",
			"allow protocol 6 from ports [{ 1 65535}] to ports [{ 80 80} {http 0 0} { 1000 2000} { 443 443}] to not-ports [{ 81 81} {dns-tcp 0 0}]", "",
		},
		{"nets give the IP version", "source: {nets: [10.0.0.0/8, 192.168.1.1/32]}", "allow ipv4 from nets [10.0.0.0/8 192.168.1.1/32]", ""},
		{"nets that must not match give it, too", "source: {notNets: [10.0.0.0/8]}", "allow ipv4 from not-nets [10.0.0.0/8]", ""},
		{"nets of the destination give it", "destination: {nets: ['fd00::/8']}", "allow ipv6 to nets [fd00::/8]", ""},
		{"nets that must not match, of the destination", "destination: {notNets: ['fd00::/8']}", "allow ipv6 to not-nets [fd00::/8]", ""},
		{"selector", "source: {selector: role == 'db'}", `allow from <projectcalico.org/namespace == "dev" && role == "db">`, `allow from <role == "db">`},
		{"all in the namespace, or all that are known", "source: {selector: all()}", `allow from <projectcalico.org/namespace == "dev">`, `allow from <all()>`},
		{"an or stays confined", "source: {selector: has(a) || has(b)}", `allow from <projectcalico.org/namespace == "dev" && (has(a) || has(b))>`, `allow from <has(a) || has(b)>`},
		{"not-selector", "source: {notSelector: has(a)}", `allow from <projectcalico.org/namespace == "dev"> from not <has(a)>`, `allow from not <has(a)>`},
		{"both selectors", "destination: {selector: has(b), notSelector: has(a)}", `allow to <projectcalico.org/namespace == "dev" && has(b)> to not <has(a)>`, `allow to <has(b)> to not <has(a)>`},
		{"other namespaces", "source: {namespaceSelector: team == 'x'}", `allow from <pcns.team == "x">`, `allow from <pcns.team == "x">`},
		{"all namespaces", "source: {namespaceSelector: all(), selector: has(a)}", `allow from <has(projectcalico.org/namespace) && has(a)>`, `allow from <has(projectcalico.org/namespace) && has(a)>`},
		{"a namespace by name", "source: {namespaceSelector: projectcalico.org/name == 'x', notSelector: has(a)}", `allow from <projectcalico.org/namespace == "x"> from not <has(a)>`, ""},
		{"what is in no namespace", "source: {namespaceSelector: ' global( )', selector: has(a)}", "allow from <global() && has(a)>", "allow from <global() && has(a)>"},
		{"service accounts by name", "source: {serviceAccounts: {names: [b, a]}}", `allow from <projectcalico.org/namespace == "dev" && projectcalico.org/serviceaccount in {"a", "b"}>`, `allow from <projectcalico.org/serviceaccount in {"a", "b"}>`},
		{
			"service accounts by label, name and namespace", "source: {namespaceSelector: has(x), serviceAccounts: {names: [a], selector: role != 'api'}, selector: has(y)}",
			`allow from <has(pcns.x) && pcsa.role != "api" && projectcalico.org/serviceaccount == "a" && has(y)>`, "",
		},
		{"all service accounts", "source: {serviceAccounts: {selector: all()}}", `allow from <projectcalico.org/namespace == "dev" && has(projectcalico.org/serviceaccount)>`, "allow from <has(projectcalico.org/serviceaccount)>"},
		{"a service with source ports", "protocol: TCP, source: {services: {name: s, namespace: ns}, ports: [80]}", "allow protocol 6 from service ns/s from ports [{ 80 80}]", ""},
	} {
		if c.global == "" {
			c.global = c.inNamespace
		}
		rule := "ingress: [{action: Deny}, {action: Allow"
		if c.rule != "" {
			rule += ", " + c.rule
		}
		rule += "}]}"
		check(t, c.name, np+rule, npHead+"in 0 deny\nin 1 "+c.inNamespace+"\n")
		check(t, c.name, gnp+rule, gnpHead+"in 0 deny\nin 1 "+c.global+"\n")
	}
	check(t, "a service of the own namespace", "kind: NetworkPolicy\nmetadata: {namespace: dev, name: web}\nspec: {egress: [{action: Allow, destination: {services: {name: s}}}]}",
		`NetworkPolicy.projectcalico.org dev/web: tier default order +Inf egress of projectcalico.org/namespace == "dev"`+"\nout 0 allow to service dev/s\n")
}

func TestStagedPoliciesStandForAChange(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{
			"kind: StagedNetworkPolicy\nmetadata: {namespace: dev, name: web}\nspec: {tier: t, ingress: [{action: Allow}]}",
			`StagedNetworkPolicy.projectcalico.org dev/web: tier t order +Inf ingress staged of projectcalico.org/namespace == "dev"` + "\nin 0 allow\n",
		},
		{
			"kind: StagedNetworkPolicy\nmetadata: {namespace: dev, name: web}\nspec: {tier: t, stagedAction: Delete}",
			`StagedNetworkPolicy.projectcalico.org dev/web: tier t order +Inf staged deletion of projectcalico.org/namespace == "dev"` + "\n",
		},
		{
			"kind: StagedGlobalNetworkPolicy\nmetadata: {name: base}\nspec: {stagedAction: Set, order: 3, applyOnForward: true}",
			"StagedGlobalNetworkPolicy base: tier default order 3 ingress staged forward of all()\n",
		},
		{
			"kind: StagedGlobalNetworkPolicy\nmetadata: {name: base}\nspec: {stagedAction: Delete}",
			"StagedGlobalNetworkPolicy base: tier default order +Inf staged deletion of all()\n",
		},
	} {
		check(t, c.text, c.text, c.want)
	}
}

// As a NetworkPolicy of Kubernetes, staged, and by the name that makes it the change of that one.
func TestStagedKubernetesPolicyIsReadAsKubernetesOwn(t *testing.T) {
	o, err := calico.Object(resource(t, `
kind: StagedKubernetesNetworkPolicy
metadata: {namespace: dev, name: web}
spec: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	p := o.(*policy.Policy)
	db := map[string]string{"role": "db", policy.LabelNamespace: "dev", policy.LabelOrchestrator: policy.Orchestrator}
	if p.Ref != (policy.Ref{Kind: "StagedNetworkPolicy", Namespace: "dev", Name: "web"}) || !p.Staged || p.Deletion ||
		p.Order != policy.KubernetesOrder || !p.AppliesIngress || p.AppliesEgress || len(p.Ingress) == 0 || !p.Subject.Matches(labels(db)) {
		t.Errorf("got %s", describe(p))
	}
	o, err = calico.Object(resource(t, "kind: StagedKubernetesNetworkPolicy\nmetadata: {namespace: dev, name: web}\nspec: {stagedAction: Delete}"))
	if err != nil {
		t.Fatal(err)
	}
	if p := o.(*policy.Policy); !p.Staged || !p.Deletion || p.AppliesIngress || p.AppliesEgress || p.Ref.Kind != "StagedNetworkPolicy" {
		t.Errorf("got %s", describe(p))
	}
}

type labels map[string]string

func (l labels) Label(key string) (string, bool) {
	v, ok := l[key]
	return v, ok
}

func TestTiers(t *testing.T) {
	for _, c := range []struct {
		text string
		want policy.Tier
	}{
		{"kind: Tier\nmetadata: {name: a}", policy.Tier{Name: "a", Order: policy.NoOrder, Default: policy.Deny}},
		{"kind: Tier\nmetadata: {name: a}\nspec: {order: -0.5, defaultAction: Pass}", policy.Tier{Name: "a", Order: -0.5, Default: policy.Pass}},
		{"kind: Tier\nmetadata: {name: a}\nspec: {order: 1.7976931348623157e+308, defaultAction: Deny}", policy.Tier{Name: "a", Order: 1.7976931348623157e+308, Default: policy.Deny}},
		{"kind: Tier\nmetadata: {name: default}\nspec: {order: 1000000}", policy.Tier{Name: "default", Order: 1e6, Default: policy.Deny}},
		{"kind: Tier\nmetadata: {name: kube-admin}\nspec: {order: 1000}", policy.Tier{Name: "kube-admin", Order: 1000, Default: policy.Pass}},
		{"kind: Tier\nmetadata: {name: kube-baseline}\nspec: {order: 10000000, defaultAction: Pass}", policy.Tier{Name: "kube-baseline", Order: 1e7, Default: policy.Pass}},
	} {
		o, err := calico.Object(resource(t, c.text))
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := *o.(*policy.Tier); got != c.want {
			t.Errorf("%s\n got %v\nwant %v", c.text, got, c.want)
		}
	}
}

func TestNetworkSetsAndHostEndpoints(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{
			"kind: NetworkSet\nmetadata: {namespace: dev, name: a, labels: {x: z}}\nspec: {nets: [10.1.2.3, 10.1.2.3/8, 'fd00::1/64', 'fd00::1']}",
			"&{NetworkSet dev/a map[x:z] [10.1.2.3/32 10.0.0.0/8 fd00::/64 fd00::1/128]}",
		},
		{"kind: GlobalNetworkSet\nmetadata: {name: a}", "&{GlobalNetworkSet a map[] []}"},
		{
			"kind: HostEndpoint\nmetadata: {name: a, labels: {x: z}}\nspec: {node: n1, interfaceName: eth0, expectedIPs: [10.0.0.1, 'fd00::1'], ports: [{name: http, protocol: TCP, port: 80}]}",
			"&{HostEndpoint a n1 eth0 [10.0.0.1 fd00::1] map[x:z] [{http 6 80}]}",
		},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, interfaceName: '*', profiles: [projectcalico-default-allow]}", "&{HostEndpoint a n1 * [] map[] []}"},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, expectedIPs: [10.0.0.1]}", "&{HostEndpoint a n1  [10.0.0.1] map[] []}"},
	} {
		o, err := calico.Object(resource(t, c.text))
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := fmt.Sprint(o); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.text, got, c.want)
		}
	}
}
