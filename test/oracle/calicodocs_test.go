package oracle_test

import (
	"testing"

	"github.com/heddle-net/heddle/test/oracle"
)

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
