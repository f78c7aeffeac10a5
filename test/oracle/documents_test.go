package oracle_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/oracle"
)

// The oracle is only worth something if it reads the objects as their authors' documents do. Here are
// examples of those documents, with what the documents say becomes of packets.

// question is a packet, and what should become of it: who goes to whom, "tcp/80", and "allow" or "deny"
// with the policy and rule that decide, such as "deny NetworkPolicy default/x tier" or "allow NetworkPolicy a/b 0".
type question struct{ from, to, port, want string }

// cluster has workloads by the name namespace/pod and labels, in this order: the first is 10.0.0.2.
func cluster(t *testing.T, pods []string, text string) (*oracle.World, func(string) netip.Addr) {
	t.Helper()
	w := &oracle.World{Node: "n1", Nodes: []oracle.Node{
		{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.1")}},
		{Name: "n2", Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.2")}},
	}}
	addrs := map[string]netip.Addr{}
	for i, p := range pods {
		fields := strings.Fields(p)
		namespace, name, _ := strings.Cut(fields[0], "/")
		labels := map[string]string{}
		for _, l := range fields[1:] {
			k, v, _ := strings.Cut(l, "=")
			labels[k] = v
		}
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 2)})
		addrs[fields[0]] = a
		w.Endpoints = append(w.Endpoints, model.Endpoint{
			Node: fmt.Sprintf("n%d", 1+i%2), Link: fmt.Sprintf("veth%d", i), Namespace: namespace, Name: name,
			Labels: labels, Addresses: []netip.Addr{a},
		})
	}
	if err := w.Add([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return w, func(name string) netip.Addr {
		if a, ok := addrs[name]; ok {
			return a
		}
		return netip.MustParseAddr(name)
	}
}

// ask checks both directions: the one that denies is the answer, or egress and ingress both allow.
func ask(t *testing.T, pods []string, text string, questions []question) {
	t.Helper()
	w, addr := cluster(t, pods, text)
	o := oracle.New(w)
	for _, q := range questions {
		name, number, _ := strings.Cut(q.port, "/")
		protocol := map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1}[name]
		var port uint16
		if protocol == 1 {
			var kind, code uint16
			if _, err := fmt.Sscanf(number, "%d.%d", &kind, &code); err != nil {
				t.Fatal(err)
			}
			port = kind<<8 | code
		} else if _, err := fmt.Sscan(number, &port); err != nil {
			t.Fatal(err)
		}
		egress, ingress := o.Verdict(addr(q.from), addr(q.to), protocol, 40000, port)
		got := "allow"
		for _, v := range []oracle.Verdict{egress, ingress} {
			if !v.Allow {
				got = "deny"
			}
		}
		if got != q.want {
			t.Errorf("%s -> %s %s: %s, want %s\n out: %+v\n in: %+v", q.from, q.to, q.port, got, q.want, egress, ingress)
		}
	}
	// What is an example for the oracle is one for the table, too.
	if err := (&kase{States: []*oracle.World{w}}).safeCheck(); err != nil {
		t.Error(err)
	}
}

var kubernetesPods = []string{
	"default/db role=db", "default/front role=frontend", "default/other", "mine/any", "elsewhere/client role=client",
	"elsewhere/front role=frontend",
}

// kubernetes.io/docs/concepts/services-networking/network-policies, the resource and its sections.
func TestKubernetesExamplePolicy(t *testing.T) {
	ask(t, kubernetesPods, `
apiVersion: v1
kind: Namespace
metadata: {name: mine, labels: {project: myproject}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: test-network-policy, namespace: default}
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
    - namespaceSelector: {matchLabels: {project: myproject}}
    - podSelector: {matchLabels: {role: frontend}}
    ports:
    - {protocol: TCP, port: 6379}
  egress:
  - to:
    - ipBlock: {cidr: 10.0.0.0/24}
    ports:
    - {protocol: TCP, port: 5978}
`, []question{
		{"default/front", "default/db", "tcp/6379", "allow"},
		{"default/front", "default/db", "udp/6379", "deny"},
		{"default/front", "default/db", "tcp/6380", "deny"},
		{"default/other", "default/db", "tcp/6379", "deny"},
		{"mine/any", "default/db", "tcp/6379", "allow"},
		{"elsewhere/client", "default/db", "tcp/6379", "deny"},
		{"elsewhere/front", "default/db", "tcp/6379", "deny"}, // the pod selector keeps to its namespace
		{"172.17.0.9", "default/db", "tcp/6379", "allow"},
		{"172.17.1.9", "default/db", "tcp/6379", "deny"},
		{"172.18.0.9", "default/db", "tcp/6379", "deny"},
		{"default/db", "default/other", "tcp/5978", "allow"},
		{"default/db", "default/other", "tcp/80", "deny"},
		{"default/db", "10.0.1.1", "tcp/5978", "deny"},
		{"192.168.0.1", "default/db", "tcp/1", "allow"}, // the node that it runs on
		{"192.168.0.2", "default/db", "tcp/6379", "deny"},
		{"default/db", "192.168.0.1", "udp/53", "allow"},
		{"default/db", "192.168.0.2", "udp/53", "deny"},
		{"default/db", "default/db", "tcp/1", "allow"},
		{"default/other", "default/front", "tcp/1", "allow"}, // nothing selects them
	})
}

func TestKubernetesAndIsNotOr(t *testing.T) {
	const head = `
apiVersion: v1
kind: Namespace
metadata: {name: elsewhere, labels: {user: alice}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: default}
spec:
  podSelector: {}
  ingress:
  - from:
`
	ask(t, kubernetesPods, head+`
    - namespaceSelector: {matchLabels: {user: alice}}
      podSelector: {matchLabels: {role: client}}
`, []question{
		{"elsewhere/client", "default/db", "tcp/80", "allow"},
		{"elsewhere/front", "default/db", "tcp/80", "deny"},
		{"default/front", "default/db", "tcp/80", "deny"},
	})
	ask(t, kubernetesPods, head+`
    - namespaceSelector: {matchLabels: {user: alice}}
    - podSelector: {matchLabels: {role: frontend}}
`, []question{
		{"elsewhere/client", "default/db", "tcp/80", "allow"},
		{"elsewhere/front", "default/db", "tcp/80", "allow"},
		{"default/front", "default/db", "tcp/80", "allow"},
		{"default/other", "default/db", "tcp/80", "deny"},
	})
}

func TestKubernetesDefaults(t *testing.T) {
	policy := func(spec string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: default}\nspec: " + spec + "\n"
	}
	for spec, want := range map[string][2]string{ // out of default/db, and into it
		"{podSelector: {}, policyTypes: [Ingress]}":                {"allow", "deny"},
		"{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}": {"allow", "allow"},
		"{podSelector: {}, policyTypes: [Egress]}":                 {"deny", "allow"},
		"{podSelector: {}, policyTypes: [Egress], egress: [{}]}":   {"allow", "allow"},
		"{podSelector: {}, policyTypes: [Ingress, Egress]}":        {"deny", "deny"},
		"{podSelector: {}}":                                               {"allow", "deny"},
		"{podSelector: {}, egress: []}":                                   {"allow", "deny"},
		"{podSelector: {}, egress: [{to: [{podSelector: {}}]}]}":          {"deny", "deny"},
		"{podSelector: {}, ingress: [{from: []}]}":                        {"allow", "allow"},
		"{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}":       {"allow", "deny"},
		"{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}": {"allow", "allow"},
		"{podSelector: {matchLabels: {role: web}}}":                       {"allow", "allow"},
	} {
		t.Run(spec, func(t *testing.T) {
			ask(t, kubernetesPods, policy(spec), []question{
				{"default/db", "elsewhere/client", "udp/53", want[0]},
				{"elsewhere/client", "default/db", "udp/53", want[1]},
				{"elsewhere/client", "default/db", "icmp/8.0", want[1]},
			})
		})
	}
}

func TestKubernetesRangesAndNames(t *testing.T) {
	ask(t, kubernetesPods, `
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: default}
spec:
  containers:
  - {name: a, ports: [{name: http, containerPort: 80}, {name: http, containerPort: 53, protocol: UDP}]}
  initContainers:
  - {name: once, ports: [{name: http, containerPort: 1000}]}
  - {name: side, restartPolicy: Always, ports: [{name: http, containerPort: 2000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: default}
spec: {containers: [{name: a, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: default}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress:
  - ports: [{port: http}]
  - ports: [{protocol: UDP, port: 32000, endPort: 32768}]
  egress:
  - to: [{podSelector: {}}]
    ports: [{port: http}]
`, []question{
		{"mine/any", "default/db", "tcp/80", "allow"},
		{"mine/any", "default/db", "udp/53", "deny"}, // http is asked for in TCP
		{"mine/any", "default/db", "tcp/8080", "deny"},
		{"mine/any", "default/db", "tcp/1000", "deny"},
		{"mine/any", "default/db", "tcp/2000", "allow"},
		{"mine/any", "default/other", "tcp/8080", "allow"},
		{"mine/any", "default/other", "tcp/80", "deny"},
		{"mine/any", "default/front", "tcp/80", "deny"}, // it calls no port so
		{"mine/any", "default/front", "udp/31999", "deny"},
		{"mine/any", "default/front", "udp/32000", "allow"},
		{"mine/any", "default/front", "udp/32768", "allow"},
		{"mine/any", "default/front", "udp/32769", "deny"},
		{"default/front", "default/other", "tcp/8080", "allow"},
		{"default/front", "default/other", "tcp/80", "deny"},
		{"default/other", "default/db", "tcp/80", "allow"},
	})
}

// network-policy-api.sigs.k8s.io: tiers around NetworkPolicy, priorities, Pass, and peers that nobody knows.
func TestClusterNetworkPolicy(t *testing.T) {
	ask(t, kubernetesPods, `
apiVersion: v1
kind: Namespace
metadata: {name: mine, labels: {kind: monitoring}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: a-later}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{namespaces: {matchLabels: {kind: monitoring}}}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: z-first}
spec:
  tier: Admin
  priority: 9
  subject: {pods: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}, podSelector: {}}}
  ingress:
  - {action: Accept, from: [{namespaces: {matchLabels: {kind: monitoring}}}], protocols: [{tcp: {destinationPort: {number: 9100}}}]}
  - {action: Pass, from: [{namespaces: {matchLabels: {kind: monitoring}}}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 10}}}}]}
  egress:
  - {action: Accept, to: [{}]}
  - {action: Deny, to: [{networks: [8.8.8.0/24]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: base}
spec:
  tier: Baseline
  priority: 0
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{namespaces: {}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: default}
spec: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: 5}, {port: 9100}]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: unknown}
spec:
  tier: Admin
  priority: 1000
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: elsewhere}}}
  egress: [{action: Pass, to: [{namespaces: {matchLabels: {none: such}}}, {}], protocols: [{udp: {destinationPort: {number: 1}}}]}]
`, []question{
		{"mine/any", "default/front", "tcp/9100", "allow"},
		{"mine/any", "default/front", "tcp/9101", "deny"},
		{"mine/any", "default/db", "tcp/5", "allow"},         // passed on to the NetworkPolicy
		{"mine/any", "default/db", "tcp/6", "deny"},          // which decides for good
		{"mine/any", "default/front", "tcp/5", "deny"},       // passed on, and the baseline denies
		{"default/other", "default/db", "tcp/9100", "allow"}, // the NetworkPolicy keeps the baseline away
		{"default/db", "default/other", "tcp/1", "deny"},     // baseline
		{"172.16.0.1", "default/other", "tcp/1", "allow"},    // the baseline denies pods only
		{"default/db", "8.8.8.8", "tcp/1", "deny"},           // an Accept for an unknown peer matches nothing
		{"default/db", "8.8.9.8", "tcp/1", "allow"},
		{"elsewhere/client", "1.1.1.1", "tcp/1", "deny"}, // a Pass for an unknown peer denies everything
	})
}

var calicoPods = []string{"dev/web app=web", "dev/db app=db", "prod/web app=web", "prod/plain"}

// docs.tigera.io/calico/latest: tiers, orders, Pass, not-forms, global(), services, ICMP.
func TestCalicoTiersAndOrders(t *testing.T) {
	ask(t, calicoPods, `
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 10}
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: soft}
spec: {order: 20, defaultAction: Pass}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: security.pass}
spec:
  tier: security
  selector: app == 'web'
  ingress:
  - {action: Deny, source: {nets: [203.0.113.0/24]}}
  - {action: Pass, protocol: TCP}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: soft.log}
spec: {tier: soft, ingress: [{action: Log}]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: unordered}
spec: {selector: app == 'web', ingress: [{action: Allow}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: early, namespace: dev}
spec: {order: 999, selector: app == 'web', ingress: [{action: Deny, protocol: TCP, destination: {ports: [80, '90:92']}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: dev}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: lost.deny}
spec: {tier: lost, ingress: [{action: Deny}]}
`, []question{
		{"203.0.113.1", "prod/web", "tcp/1", "deny"},
		{"prod/plain", "prod/web", "tcp/1", "allow"}, // passed on, soft passes on, unordered allows
		{"prod/plain", "prod/web", "udp/1", "deny"},  // the end of security
		{"prod/plain", "dev/web", "tcp/80", "deny"},  // order 999 stands before the NetworkPolicy's 1000
		{"prod/plain", "dev/web", "tcp/92", "deny"},
		{"prod/plain", "dev/web", "tcp/93", "allow"},
		{"prod/web", "dev/db", "udp/1", "allow"}, // a policy of a tier that there is not does nothing
	})
}

func TestCalicoRules(t *testing.T) {
	for name, c := range map[string]struct {
		namespaced bool
		rule       string
		questions  []question
	}{
		"a selector knows things, and so does its negation": {false, "{action: Allow, source: {selector: '!has(app)'}}", []question{
			{"prod/plain", "dev/web", "tcp/1", "allow"}, {"prod/web", "dev/web", "tcp/1", "deny"}, {"1.1.1.1", "dev/web", "tcp/1", "deny"},
		}},
		"notSelector negates the match": {false, "{action: Allow, source: {notSelector: has(app)}}", []question{
			{"prod/plain", "dev/web", "tcp/1", "allow"}, {"prod/web", "dev/web", "tcp/1", "deny"}, {"1.1.1.1", "dev/web", "tcp/1", "allow"},
		}},
		"a selector keeps to the policy's namespace": {true, "{action: Allow, source: {selector: all()}}", []question{
			{"dev/db", "dev/web", "tcp/1", "allow"},
			{"prod/web", "dev/web", "tcp/1", "deny"},
			{"9.9.9.9", "dev/web", "tcp/1", "deny"},
			{"7.7.7.7", "dev/web", "tcp/1", "allow"},
			{"192.168.0.2", "dev/web", "tcp/1", "deny"},
		}},
		"unless it names others": {true, "{action: Allow, source: {namespaceSelector: projectcalico.org/name == 'prod', selector: has(app)}}", []question{
			{"dev/db", "dev/web", "tcp/1", "deny"}, {"prod/web", "dev/web", "tcp/1", "allow"}, {"prod/plain", "dev/web", "tcp/1", "deny"},
		}},
		"global() is what is in no namespace": {true, "{action: Allow, source: {namespaceSelector: global(), selector: kind == 'bad'}}", []question{
			{"9.9.9.9", "dev/web", "tcp/1", "allow"}, {"7.7.7.7", "dev/web", "tcp/1", "deny"}, {"prod/web", "dev/web", "tcp/1", "deny"},
		}},
		"all() is what is in one": {false, "{action: Allow, source: {namespaceSelector: all()}}", []question{
			{"9.9.9.9", "dev/web", "tcp/1", "deny"}, {"7.7.7.7", "dev/web", "tcp/1", "allow"}, {"prod/web", "dev/web", "tcp/1", "allow"},
		}},
		"nets and their not-forms": {false, "{action: Allow, source: {nets: [10.0.0.0/24], notNets: [10.0.0.4/31]}}", []question{
			{"dev/db", "dev/web", "tcp/1", "allow"}, {"prod/web", "dev/web", "tcp/1", "deny"}, {"prod/plain", "dev/web", "tcp/1", "deny"},
		}},
		"ports and their not-forms": {false, "{action: Allow, protocol: UDP, destination: {ports: ['10:20'], notPorts: [15]}}", []question{
			{"dev/db", "dev/web", "udp/10", "allow"}, {"dev/db", "dev/web", "udp/15", "deny"}, {"dev/db", "dev/web", "tcp/10", "deny"},
		}},
		"source ports": {false, "{action: Allow, protocol: TCP, source: {ports: [40000]}, destination: {notPorts: [1]}}", []question{
			{"dev/db", "dev/web", "tcp/2", "allow"}, {"dev/db", "dev/web", "tcp/1", "deny"},
		}},
		"ICMP by type and code": {false, "{action: Allow, protocol: ICMP, icmp: {type: 8, code: 0}}", []question{
			{"dev/db", "dev/web", "icmp/8.0", "allow"}, {"dev/db", "dev/web", "icmp/8.1", "deny"}, {"dev/db", "dev/web", "icmp/0.0", "deny"},
		}},
		"ICMP by what it is not": {false, "{action: Allow, protocol: ICMP, notICMP: {type: 8}}", []question{
			{"dev/db", "dev/web", "icmp/8.1", "deny"}, {"dev/db", "dev/web", "icmp/0.0", "allow"}, {"dev/db", "dev/web", "tcp/1", "deny"},
		}},
		"notProtocol": {false, "{action: Allow, notProtocol: TCP}", []question{
			{"dev/db", "dev/web", "tcp/1", "deny"}, {"dev/db", "dev/web", "udp/1", "allow"},
		}},
		"ipVersion": {false, "{action: Allow, ipVersion: 6}", []question{{"dev/db", "dev/web", "tcp/1", "deny"}}},
		"service accounts": {false, "{action: Allow, source: {serviceAccounts: {names: [robot], selector: team == 'x'}}}", []question{
			{"dev/db", "dev/web", "tcp/1", "allow"}, {"prod/plain", "dev/web", "tcp/1", "deny"},
		}},
		"a service by where it leads": {true, "{action: Allow, source: {services: {name: shop}}}", []question{
			{"prod/plain", "dev/web", "tcp/1", "allow"}, {"dev/db", "dev/web", "tcp/1", "deny"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			head := "kind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec:\n  selector: projectcalico.org/namespace == 'dev' && app == 'web'\n"
			if c.namespaced {
				head = "kind: NetworkPolicy\nmetadata: {name: p, namespace: dev}\nspec:\n  selector: app == 'web'\n"
			}
			ask(t, calicoPods, `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: bad, labels: {kind: bad}}
spec: {nets: [9.9.9.0/24]}
---
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata: {name: own, namespace: dev}
spec: {nets: [7.7.7.7]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: dev, labels: {team: x}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: dev}
spec: {serviceAccountName: robot, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: prod}
spec: {serviceAccountName: robot, containers: []}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: shop-1, namespace: dev, labels: {kubernetes.io/service-name: shop}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.5]}]
ports: [{port: 80}]
---
apiVersion: projectcalico.org/v3
`+head+"  ingress:\n  - "+c.rule+"\n", c.questions)
		})
	}
}

func TestCalicoServiceAsDestination(t *testing.T) {
	ask(t, calicoPods, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, namespace: prod, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.5]}]
ports: [{port: 53, protocol: UDP}, {port: 53}]
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: p, namespace: dev}
spec: {selector: all(), egress: [{action: Allow, destination: {services: {name: dns, namespace: prod}}}]}
`, []question{
		{"dev/web", "prod/plain", "udp/53", "allow"},
		{"dev/web", "prod/plain", "tcp/53", "allow"},
		{"dev/web", "prod/plain", "udp/54", "deny"},
		{"dev/web", "prod/plain", "icmp/0.53", "deny"},
		{"dev/web", "prod/web", "udp/53", "deny"},
		{"prod/web", "dev/web", "udp/53", "allow"}, // egress only
	})
}

func TestStagedPoliciesDecideNothingYet(t *testing.T) {
	w, addr := cluster(t, calicoPods, `
apiVersion: projectcalico.org/v3
kind: StagedKubernetesNetworkPolicy
metadata: {name: p, namespace: dev}
spec: {stagedAction: Delete}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: dev}
spec: {podSelector: {}}
---
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: q}
spec: {selector: app == 'db', ingress: [{action: Deny, protocol: UDP}, {action: Allow}]}
`)
	o := oracle.New(w)
	for _, q := range []struct {
		to           string
		protocol     uint8
		now, planned bool
		policy       string
	}{
		{"dev/web", 6, false, true, ""},
		{"dev/db", 6, false, true, "q"},
		{"dev/db", 17, false, false, "q"},
		{"prod/web", 17, true, true, ""},
	} {
		now, staged := o.Judge(oracle.Ingress, addr(q.to), addr("prod/plain"), q.protocol, 1, 1)
		if now.Allow != q.now || staged.Allow != q.planned || staged.Policy.Name != q.policy {
			t.Errorf("to %s by %d: %+v, then %+v; want %+v", q.to, q.protocol, now, staged, q)
		}
	}
}
