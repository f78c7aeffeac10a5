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
	if err := (&kase{States: []state{{World: w}}}).safeCheck(); err != nil {
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
