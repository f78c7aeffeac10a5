package kube

import (
	"fmt"
	"strings"
	"testing"

	cnpv1 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heddle-net/heddle/internal/policy"
)

// cnp is a ClusterNetworkPolicy with what more its spec has, indented by two.
func cnp(spec string) string {
	return "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: cnp}\nspec:\n" + strings.Trim(spec, "\n") + "\n"
}

const adminHead = "  tier: Admin\n  priority: 20\n  subject: {namespaces: {}}\n"

const ofAll = `
ClusterNetworkPolicy cnp, tier kube-admin, order 20`

// The examples of the API's own pages, one of each shape.
func TestClusterNetworkPolicyMeansWhatItsSpecificationSays(t *testing.T) {
	for name, c := range map[string]struct{ spec, want string }{
		"deny what comes into some namespaces": {`
  tier: Admin
  priority: 0
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: sensitive}}}
  ingress:
  - {name: all, action: Deny, from: [{pods: {namespaceSelector: {matchLabels: {}}, podSelector: {matchLabels: {}}}}]}`, `
ClusterNetworkPolicy cnp, tier kube-admin, order 0, ingress
of POD && has(projectcalico.org/namespace) && pcns.kubernetes.io/metadata.name == "sensitive"
in 0 deny from {POD && has(projectcalico.org/namespace)}
`},
		"pass to what namespaces decide, by ports of all kinds": {adminHead + `
  egress:
  - action: Pass
    to:
    - pods:
        namespaceSelector: {matchLabels: {team: bar}}
        podSelector: {matchLabels: {app: svc}}
    protocols:
    - tcp: {destinationPort: {number: 8080}}
    - destinationNamedPort: web
    - udp: {destinationPort: {number: 53}}
    - tcp: {destinationPort: {range: {start: 1, end: 65535}}}
    - sctp: {destinationPort: {number: 9}}`, ofAll + `, egress
of POD && has(projectcalico.org/namespace)
out 0 pass protocol 6 to {POD && has(projectcalico.org/namespace) && pcns.team == "bar" && app == "svc"} ports 8080 1-65535
out 0 pass to {POD && has(projectcalico.org/namespace) && pcns.team == "bar" && app == "svc"} ports web
out 0 pass protocol 17 to {POD && has(projectcalico.org/namespace) && pcns.team == "bar" && app == "svc"} ports 53
out 0 pass protocol 132 to {POD && has(projectcalico.org/namespace) && pcns.team == "bar" && app == "svc"} ports 9
`},
		"a baseline that namespaces can lift": {`
  tier: Baseline
  priority: 1000
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}
  ingress:
  - {action: Deny, from: [{namespaces: {}}]}`, `
ClusterNetworkPolicy cnp, tier kube-baseline, order 1000, ingress
of POD && has(projectcalico.org/namespace) && app == "db"
in 0 deny from {POD && has(projectcalico.org/namespace)}
`},
		"no namespace selector is every namespace": {`
  tier: Baseline
  priority: 1
  subject: {pods: {podSelector: {matchLabels: {app: db}}}}
  ingress: []`, `
ClusterNetworkPolicy cnp, tier kube-baseline, order 1
of POD && has(projectcalico.org/namespace) && app == "db"
`},
		"rules in their order, peers apart": {adminHead + `
  egress:
  - {action: Accept, to: [{networks: [10.0.0.0/8, 'fd00::/8', 192.168.1.1/16]}, {namespaces: {matchLabels: {a: b}}}]}
  - {action: Deny, to: [{networks: [0.0.0.0/0]}, {networks: ['::/0']}]}
  ingress:
  - {action: Accept, from: [{namespaces: {matchExpressions: [{key: a, operator: NotIn, values: [b]}]}}]}`, ofAll + `, ingress, egress
of POD && has(projectcalico.org/namespace)
in 0 allow from {POD && has(projectcalico.org/namespace) && pcns.a != "b"}
out 0 allow to [10.0.0.0/8 fd00::/8 192.168.0.0/16]
out 0 allow to {POD && has(projectcalico.org/namespace) && pcns.a == "b"}
out 1 deny to [0.0.0.0/0]
out 1 deny to [::/0]
`},
	} {
		t.Run(name, func(t *testing.T) {
			wantMeaning(t, cnp(c.spec), c.want)
			if err := Check(resource(t, cnp(c.spec))); err != nil {
				t.Error(err)
			}
		})
	}
}

// Accept with something that is not understood matches nothing, Deny and Pass deny everything, whatever else
// the rule says; and a person is told.
func TestRuleThatIsNotUnderstoodFailsClosed(t *testing.T) {
	for _, c := range []struct{ rule, refusal string }{
		{"to: [{}]", `spec.egress[1].to[0] {}: want namespaces, pods or networks, one of them`},
		{"to: [{services: {name: x}}]", `unknown field spec.egress[1].to[0].services {"name":"x"}: want one of domainNames, namespaces, networks, nodes, pods`},
		{"to: [{networks: [10.0.0.0/8]}, {services: {}}]", `unknown field spec.egress[1].to[1].services {}: want one of `},
		{"to: [{networks: [10.0.0.0/8], not: true}]", `unknown field spec.egress[1].to[0].not true: want one of `},
		{"to: [{namespaces: {matchNames: [a]}}]", `unknown field spec.egress[1].to[0].namespaces.matchNames ["a"]: want one of `},
		{"to: [{networks: [10.0.0.0/8]}], unless: true", `unknown field spec.egress[1].unless true: want one of action, name, protocols, to`},
		{"to: [{nodes: {}}]", `spec.egress[1].to[0].nodes {}: want namespaces, pods or networks, one of them: labels of nodes are not known here`},
		{"to: [{nodes: {}}, {networks: [10.0.0.0/8]}]", `spec.egress[1].to[0].nodes {}: want `},
		{"to: [{namespaces: {}}], protocols: [{}, {udp: {destinationPort: {number: 1}}}]", `spec.egress[1].protocols[0] {}: want `},
		{"to: [{domainNames: [example.org]}]", `spec.egress[1].to[0].domainNames ["example.org"]: want namespaces, pods or networks, one of them: names are not resolved here`},
		{"to: [{networks: [10.0.0.0/8], namespaces: {}}]", `spec.egress[1].to[0] {"namespaces":{},"networks":["10.0.0.0/8"]}: want namespaces, pods or networks, one of them`},
		{"to: [{networks: [10.0.0.0/8]}], protocols: [{}]", `spec.egress[1].protocols[0] {}: want tcp, udp or sctp with a destinationPort of number or range, or destinationNamedPort; one of them`},
		{"to: [{networks: [10.0.0.0/8]}], protocols: [{icmp: {type: 7}}]", `unknown field spec.egress[1].protocols[0].icmp {"type":7}: want one of `},
		{"to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {}}]", `spec.egress[1].protocols[0] {"tcp":{}}: want tcp, `},
		{"to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {destinationPort: {}}}]", `spec.egress[1].protocols[0] {"tcp":{"destinationPort":{}}}: want tcp, `},
		{"to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}]", `spec.egress[1].protocols[0] `},
		{"to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}]", `spec.egress[1].protocols[0] `},
	} {
		for action, want := range map[string]string{"Accept": "", "Deny": "out 1 deny\n", "Pass": "out 1 deny\n"} {
			object := cnp(adminHead + "  egress:\n  - {action: Pass, to: [{namespaces: {}}]}\n  - {action: " + action + ", " + c.rule + "}")
			got := strings.SplitAfterN(meaning(t, object), "\n", 4)
			if got[3] != want || got[2] != "out 0 pass to {POD && has(projectcalico.org/namespace)}\n" {
				t.Errorf("%s, %s: got %q, want %q", action, c.rule, got[2:], want)
			}
			if err := Check(resource(t, object)); err == nil || !strings.HasPrefix(err.Error(), "ClusterNetworkPolicy cnp: "+c.refusal) {
				t.Errorf("%s: Check says\n  %v\nwant\n  %s", c.rule, err, c.refusal)
			}
		}
	}
	wantMeaning(t, cnp(adminHead+"  ingress: [{action: Deny, from: [{networks: [10.0.0.0/8]}]}, {action: Accept, from: [{namespaces: {}}, {nodes: {}}]}, {action: Pass, from: [{namespaces: {}, later: 1}]}]"), ofAll+`, ingress
of POD && has(projectcalico.org/namespace)
in 0 deny
in 2 deny
`)
}

// Who reads the object by itself sees which rules are not understood.
func TestDecodeShowsUnknownRuleAsPeerWithoutFields(t *testing.T) {
	o, err := Decode(resource(t, cnp(adminHead+"  egress:\n  - {action: Deny, to: [{networks: [10.0.0.0/8]}, {services: {}}]}\n  - {action: Deny, to: [{networks: [10.0.0.0/8]}]}")))
	if err != nil {
		t.Fatal(err)
	}
	rules := o.(*cnpv1.ClusterNetworkPolicy).Spec.Egress
	if len(rules[0].To) != 1 || cnpPeerFields(rules[0].To[0]) != 0 || len(rules[1].To) != 1 || cnpPeerFields(rules[1].To[0]) != 1 {
		t.Errorf("got %+v", rules)
	}
}

func TestBadClusterNetworkPolicyIsRefusedByFieldAndValue(t *testing.T) {
	rule := func(s string) string { return adminHead + "  egress:\n  - {" + s + "}" }
	for _, c := range []struct{ spec, want string }{
		{"  priority: 1\n  subject: {namespaces: {}}", `spec.tier "": want Admin or Baseline`},
		{"  tier: admin\n  priority: 1\n  subject: {namespaces: {}}", `spec.tier "admin": want Admin or Baseline`},
		{"  tier: Admin\n  subject: {namespaces: {}}", `spec.priority (empty): want 0..1000`},
		{"  tier: Admin\n  priority: null\n  subject: {namespaces: {}}", `spec.priority (empty): want 0..1000`},
		{"  tier: Admin\n  priority: -1\n  subject: {namespaces: {}}", `spec.priority -1: want 0..1000`},
		{"  tier: Admin\n  priority: 1001\n  subject: {namespaces: {}}", `spec.priority 1001: want 0..1000`},
		{"  tier: Admin\n  priority: 4294967296\n  subject: {namespaces: {}}", `spec.priority 4294967296: want a whole number of 32 bits`},
		{"  tier: Admin\n  priority: 2147483648\n  subject: {namespaces: {}}", `spec.priority 2147483648: want a whole number of 32 bits`},
		{"  tier: Admin\n  priority: 1.5\n  subject: {namespaces: {}}", `spec.priority 1.5: want a whole number of 32 bits`},
		{"  tier: Admin\n  priority: '1'\n  subject: {namespaces: {}}", `spec.priority "1": want a whole number of 32 bits`},
		{"  tier: Admin\n  priority: 1", `spec.subject {}: want namespaces or pods, one of them`},
		{"  tier: Admin\n  priority: 1\n  subject: {namespaces: {}, pods: {podSelector: {}}}", `spec.subject {"namespaces":{},"pods":{"namespaceSelector":{},"podSelector":{}}}: want namespaces or pods, one of them`},
		{"  tier: Admin\n  priority: 1\n  subject: {nodes: {}}", `unknown field spec.subject.nodes {}: want one of namespaces, pods`},
		{"  tier: Admin\n  priority: 1\n  subject: {pods: {namespaceSelector: {}}}", `spec.subject.pods.podSelector (empty): want a selector; {} for every pod`},
		{"  tier: Admin\n  priority: 1\n  subject: {namespaces: {matchLabels: {a: '*'}}}", `spec.subject.namespaces.matchLabels "*": want a label's value: `},
		{rule("action: Allow, to: [{namespaces: {}}]"), `spec.egress[0].action "Allow": want Accept, Deny or Pass`},
		{rule("to: [{namespaces: {}}]"), `spec.egress[0].action "": want Accept, Deny or Pass`},
		{rule("action: Deny"), `spec.egress[0].to (empty): want at least one peer`},
		{adminHead + "  ingress: [{action: Deny, from: []}]", `spec.ingress[0].from (empty): want at least one peer`},
		{adminHead + "  ingress: [{action: Deny, from: [{namespaces: {}}, {pods: {}}]}]", `spec.ingress[0].from[1].pods.podSelector (empty): want a selector; {} for every pod`},
		{rule("action: Deny, to: [{pods: {namespaceSelector: {}}}]"), `spec.egress[0].to[0].pods.podSelector (empty): want a selector; {} for every pod`},
		{rule("action: Deny, to: [{networks: []}]"), `spec.egress[0].to[0].networks []: want at least one network`},
		{rule("action: Deny, to: [{networks: [10.0.0.0/8, 10.0.0.1]}]"), `spec.egress[0].to[0].networks[1] "10.0.0.1": want a network such as 10.0.0.0/8 or fd00::/8`},
		{rule("action: Deny, to: [{networks: ['::ffff:10.0.0.0/104']}]"), `spec.egress[0].to[0].networks[0] "::ffff:10.0.0.0/104": want a network such as`},
		{rule("action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 65536}}}]"), `spec.egress[0].protocols[0].tcp.destinationPort.number 65536: want a port, 1..65535`},
		{rule("action: Deny, to: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: -1}}}]"), `spec.egress[0].protocols[0].udp.destinationPort.number -1: want a port, 1..65535`},
		{rule("action: Deny, to: [{namespaces: {}}], protocols: [{sctp: {destinationPort: {range: {start: 0, end: 2}}}}]"), `spec.egress[0].protocols[0].sctp.destinationPort.range.start 0: want a port, 1..65535`},
		{rule("action: Deny, to: [{namespaces: {}}], protocols: [{sctp: {destinationPort: {range: {start: 1, end: 65537}}}}]"), `spec.egress[0].protocols[0].sctp.destinationPort.range.end 65537: want a port, 1..65535`},
		{rule("action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 2, end: 2}}}}]"), `spec.egress[0].protocols[0].tcp.destinationPort.range.end 2: want more than start, 2`},
		{"  teir: Admin\n  priority: 1\n  subject: {namespaces: {}}", `unknown field spec.teir "Admin": want one of egress, ingress, priority, subject, tier`},
	} {
		wantRefusal(t, cnp(c.spec), "ClusterNetworkPolicy cnp: "+c.want)
	}
}

// What the API server refuses and what still has a meaning: people are told.
func TestCheckHoldsToTheLimitsOfTheAPIServer(t *testing.T) {
	times := func(n int, s string) string { return strings.TrimSuffix(strings.Repeat(s+", ", n), ", ") }
	networks := make([]string, 26)
	for i := range networks {
		networks[i] = fmt.Sprintf("10.%d.0.0/16", i)
	}
	deny := "{action: Deny, to: [{namespaces: {}}]}"
	for _, c := range []struct{ spec, want string }{
		{"  egress: [" + times(26, deny) + "]", `spec.egress [26]: want at most 25 items`},
		{"  ingress: [" + times(26, "{action: Deny, from: [{namespaces: {}}]}") + "]", `spec.ingress [26]: want at most 25 items`},
		{"  egress: [{action: Deny, to: [" + times(26, "{namespaces: {}}") + "]}]", `spec.egress[0].to [26]: want at most 25 items`},
		{"  egress: [{action: Deny, to: [{networks: [" + strings.Join(networks, ", ") + "]}]}]", `spec.egress[0].to[0].networks [26]: want at most 25 items`},
		{"  egress: [{action: Deny, to: [{networks: [10.0.0.0/8, 10.0.0.0/8]}]}]", `spec.egress[0].to[0].networks[1] "10.0.0.0/8": want each network once`},
		{"  egress: [{action: Deny, to: [{namespaces: {}}], protocols: [" + times(26, "{destinationNamedPort: a}") + "]}]", `spec.egress[0].protocols [26]: want at most 25 items`},
		{"  egress: [{action: Deny, to: [{namespaces: {}}], protocols: []}]", `spec.egress[0].protocols []: want at least one, or no such field`},
		{"  egress: [{action: Deny, to: [{namespaces: {}}], name: " + strings.Repeat("é", 101) + "}]", `spec.egress[0].name "` + strings.Repeat("é", 63) + `…: want at most 100 characters`},
		{"  egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: web}]}]", `spec.egress[0].protocols[0].destinationNamedPort "web": want no named port in a rule with networks, which have none`},
	} {
		r := resource(t, cnp(adminHead+c.spec))
		if _, err := Object(r); err != nil {
			t.Errorf("Object refuses what has a meaning: %v", err)
		}
		if err := Check(r); err == nil || err.Error() != "ClusterNetworkPolicy cnp: "+c.want {
			t.Errorf("got\n  %v\nwant\n  %s", err, c.want)
		}
	}
	for _, spec := range []string{
		"  egress: [" + times(25, deny) + "]",
		"  egress: [{action: Deny, name: " + strings.Repeat("é", 100) + ", to: [{networks: [" + strings.Join(networks[:25], ", ") + "]}]}]",
	} {
		if err := Check(resource(t, cnp(adminHead+spec))); err != nil {
			t.Error(err)
		}
	}
}

func TestEveryPriorityIsAnOrderOfItsOwn(t *testing.T) {
	last := -1.0
	for n := range maxPriority + 1 {
		o, err := Object(resource(t, cnp(fmt.Sprintf("  tier: Admin\n  priority: %d\n  subject: {namespaces: {}}", n))))
		if err != nil {
			t.Fatal(err)
		}
		if got := o.(*policy.Policy).Order; got <= last {
			t.Fatalf("priority %d: order %g after %g", n, got, last)
		} else {
			last = got
		}
	}
}
