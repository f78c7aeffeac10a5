package kube

import (
	"strings"
	"testing"
)

// netpol is a NetworkPolicy with a spec that is indented by two.
func netpol(spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np, namespace: dev}\nspec:\n" + strings.Trim(spec, "\n") + "\n"
}

const npHead = "NetworkPolicy dev/np, tier default, order 1000"

// What Kubernetes' own pages on network policies show, one of each shape.
func TestNetworkPolicyMeansWhatKubernetesSays(t *testing.T) {
	for name, c := range map[string]struct{ spec, want string }{
		"deny all ingress": {"  podSelector: {}\n  policyTypes: [Ingress]", `
` + npHead + `, ingress
of POD && projectcalico.org/namespace == "dev"
`},
		"allow all ingress": {"  podSelector: {}\n  ingress:\n  - {}\n  policyTypes: [Ingress]", `
` + npHead + `, ingress
of POD && projectcalico.org/namespace == "dev"
in 0 allow
`},
		"deny all egress": {"  podSelector: {}\n  policyTypes: [Egress]", `
` + npHead + `, egress
of POD && projectcalico.org/namespace == "dev"
out -1 allow to own node
`},
		"allow all egress": {"  podSelector: {}\n  egress:\n  - {}\n  policyTypes: [Egress]", `
` + npHead + `, egress
of POD && projectcalico.org/namespace == "dev"
out 0 allow
out -1 allow to own node
`},
		"deny everything": {"  podSelector: {}\n  policyTypes: [Ingress, Egress]", `
` + npHead + `, ingress, egress
of POD && projectcalico.org/namespace == "dev"
out -1 allow to own node
`},
		"every kind of peer": {`
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
    - namespaceSelector: {matchLabels: {project: shop}}
    - podSelector: {matchLabels: {role: web}}
    ports:
    - {protocol: TCP, port: 6379}
  egress:
  - to:
    - ipBlock: {cidr: 10.0.0.0/24}
    ports:
    - {protocol: TCP, port: 5978}`, `
` + npHead + `, ingress, egress
of POD && projectcalico.org/namespace == "dev" && role == "db"
in 0 allow protocol 6 from [172.17.0.0/16] except [172.17.1.0/24] to ports 6379
in 0 allow protocol 6 from {POD && has(projectcalico.org/namespace) && pcns.project == "shop"} to ports 6379
in 0 allow protocol 6 from {POD && projectcalico.org/namespace == "dev" && role == "web"} to ports 6379
out 0 allow protocol 6 to [10.0.0.0/24] ports 5978
out -1 allow to own node
`},
		"both selectors in one peer, and in two": {`
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {user: alice}}
      podSelector: {matchLabels: {role: client}}
  - from:
    - namespaceSelector: {matchLabels: {user: alice}}
    - podSelector: {matchLabels: {role: client}}`, `
` + npHead + `, ingress
of POD && projectcalico.org/namespace == "dev"
in 0 allow from {POD && has(projectcalico.org/namespace) && pcns.user == "alice" && role == "client"}
in 1 allow from {POD && has(projectcalico.org/namespace) && pcns.user == "alice"}
in 1 allow from {POD && projectcalico.org/namespace == "dev" && role == "client"}
`},
		"empty selectors against absent ones": {`
  ingress:
  - from: [{podSelector: {}}]
  - from: [{namespaceSelector: {}}]
  - from: [{namespaceSelector: {}, podSelector: {}}]
  - from: []
  - from: null`, `
` + npHead + `, ingress
of POD && projectcalico.org/namespace == "dev"
in 0 allow from {POD && projectcalico.org/namespace == "dev"}
in 1 allow from {POD && has(projectcalico.org/namespace)}
in 2 allow from {POD && has(projectcalico.org/namespace)}
in 3 allow
in 4 allow
`},
		"namespaces by name": {`
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector:
        matchExpressions:
        - {key: kubernetes.io/metadata.name, operator: In, values: [front, back]}`, `
` + npHead + `, egress
of POD && projectcalico.org/namespace == "dev" && app == "web"
out 0 allow to {POD && has(projectcalico.org/namespace) && pcns.kubernetes.io/metadata.name in {"back", "front"}}
out -1 allow to own node
`},
		"a range of ports": {`
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 10.0.0.0/24}}]
    ports: [{protocol: TCP, port: 32000, endPort: 32768}]`, `
` + npHead + `, egress
of POD && projectcalico.org/namespace == "dev" && role == "db"
out 0 allow protocol 6 to [10.0.0.0/24] ports 32000-32768
out -1 allow to own node
`},
		"ports by number, name, range and not at all": {`
  ingress:
  - ports:
    - {port: 80}
    - {port: http}
    - {protocol: UDP, port: 53, endPort: 53}
    - {protocol: SCTP}
    - {protocol: SCTP, port: 9}
  - ports: [{}]
  - ports: []`, `
` + npHead + `, ingress
of POD && projectcalico.org/namespace == "dev"
in 0 allow protocol 6 to ports 80 http
in 0 allow protocol 17 to ports 53
in 0 allow protocol 132
in 1 allow protocol 6
in 2 allow
`},
		"ports before and after a whole protocol": {`
  ingress:
  - ports: [{port: 1}, {protocol: TCP}, {port: 65535}]`, `
` + npHead + `, ingress
of POD && projectcalico.org/namespace == "dev"
in 0 allow protocol 6
`},
		"every operator": {`
  podSelector:
    matchExpressions:
    - {key: a, operator: In, values: [z, x]}
    - {key: b, operator: NotIn, values: [x]}
    - {key: c, operator: Exists}
    - {key: d, operator: DoesNotExist}`, `
` + npHead + `, ingress
of POD && projectcalico.org/namespace == "dev" && a in {"x", "z"} && b != "x" && has(c) && !has(d)
`},
		"networks without exceptions become one": {`
  ingress:
  - from:
    - {ipBlock: {cidr: 10.0.0.0/8}}
    - {podSelector: {}}
    - {ipBlock: {cidr: "fd00:1::/32", except: ["fd00:1:2::/48", "fd00:1:3::/48"]}}
    - {ipBlock: {cidr: "fd00::7/128"}}
    - {ipBlock: {cidr: 192.168.7.9/16}}`, `
` + npHead + `, ingress
of POD && projectcalico.org/namespace == "dev"
in 0 allow from {POD && projectcalico.org/namespace == "dev"}
in 0 allow from [fd00:1::/32] except [fd00:1:2::/48 fd00:1:3::/48]
in 0 allow from [10.0.0.0/8 fd00::7/128 192.168.0.0/16]
`},
		"types by default": {"  egress: [{}]", `
` + npHead + `, ingress, egress
of POD && projectcalico.org/namespace == "dev"
out 0 allow
out -1 allow to own node
`},
		"types by default without rules for egress": {"  egress: []", `
` + npHead + `, ingress
of POD && projectcalico.org/namespace == "dev"
`},
		"rules for a direction that is not isolated": {"  policyTypes: [Egress]\n  ingress: [{}]", `
` + npHead + `, egress
of POD && projectcalico.org/namespace == "dev"
out -1 allow to own node
`},
		"the other direction": {"  policyTypes: [Ingress, Ingress]\n  egress: [{}]", `
` + npHead + `, ingress
of POD && projectcalico.org/namespace == "dev"
`},
	} {
		t.Run(name, func(t *testing.T) { wantMeaning(t, netpol(c.spec), c.want) })
	}
}

func TestNetworkPolicyWithoutSpecIsolatesItsNamespace(t *testing.T) {
	wantMeaning(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np}\n", `
NetworkPolicy default/np, tier default, order 1000, ingress
of POD && projectcalico.org/namespace == "default"
`)
}

func TestBadNetworkPolicyIsRefusedByFieldAndValue(t *testing.T) {
	for _, c := range []struct{ spec, want string }{
		{"  podSelectors: {}", `unknown field spec.podSelectors {}: want one of egress, ingress, podSelector, policyTypes`},
		{"  podSelector: {matchLabel: {a: b}}", `unknown field spec.podSelector.matchLabel {"a":"b"}: want one of matchExpressions, matchLabels`},
		{"  podSelector: {matchLabels: {a: 1}}", `spec.podSelector.matchLabels.a 1: want text; numbers and true or false need quotes`},
		{"  podSelector: {matchLabels: {'a b': c}}", `spec.podSelector.matchLabels "a b": want a label's key: `},
		{"  podSelector: {matchLabels: {a: -x}}", `spec.podSelector.matchLabels "-x": want a label's value: `},
		{"  podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}", `spec.podSelector.matchExpressions[0].operator "Is": want In, NotIn, Exists or DoesNotExist`},
		{"  podSelector: {matchExpressions: [{key: a, operator: In}]}", `spec.podSelector.matchExpressions[0].values (empty): want at least one value for operator In`},
		{"  podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}", `spec.podSelector.matchExpressions[0].values "[b]": want no values for operator Exists`},
		{"  policyTypes: [ingress]", `spec.policyTypes[0] "ingress": want Ingress or Egress`},
		{"  policyTypes: [Ingress, Egress, Ingress]", `spec.policyTypes ["Ingress","Egress","Ingress"]: want at most Ingress and Egress`},
		{"  ingress: {}", `spec.ingress {}: want a list`},
		{"  ingress: [from]", `spec.ingress[0] "from": want fields with their values`},
		{"  ingress: [{to: []}]", `unknown field spec.ingress[0].to []: want one of from, ports`},
		{"  ingress: [{from: [{}]}]", `spec.ingress[0].from[0] {}: want podSelector, namespaceSelector, both, or ipBlock`},
		{"  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]", `spec.ingress[0].from[0] {"podSelector":{},"ipBlock":{"cidr":"10.0.0.0/8"}}: want ipBlock or selectors, not both`},
		{"  ingress: [{}, {from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0}}]}]", `spec.ingress[1].from[1].ipBlock.cidr "10.0.0.0": want a network such as 10.0.0.0/8 or fd00::/8`},
		{"  ingress: [{from: [{ipBlock: {}}]}]", `spec.ingress[0].from[0].ipBlock.cidr "": want a network such as 10.0.0.0/8 or fd00::/8`},
		{"  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]", `spec.ingress[0].from[0].ipBlock.cidr "10.0.0.0/33": want a network such as`},
		{"  ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]", `spec.ingress[0].from[0].ipBlock.cidr "010.0.0.0/8": want a network such as`},
		{"  ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}]", `spec.ingress[0].from[0].ipBlock.cidr "::ffff:10.0.0.0/104": want a network such as`},
		{"  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]", `spec.ingress[0].from[0].ipBlock.except[0] "10.0.0.0/8": want a part of cidr 10.0.0.0/8`},
		{"  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}]}]", `spec.ingress[0].from[0].ipBlock.except[1] "11.0.0.0/16": want a part of cidr 10.0.0.0/8`},
		{"  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/16']}}]}]", `spec.ingress[0].from[0].ipBlock.except[0] "fd00::/16": want a part of cidr 10.0.0.0/8`},
		{"  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1]}}]}]", `spec.ingress[0].from[0].ipBlock.except[0] 10.1: want text; numbers and true or false need quotes`},
		{"  egress: [{to: [{namespaceSelector: {matchLabels: {a/b/c: d}}}]}]", `spec.egress[0].to[0].namespaceSelector.matchLabels "a/b/c": want a label's key: `},
		{"  ingress: [{ports: [{protocol: tcp}]}]", `spec.ingress[0].ports[0].protocol "tcp": want TCP, UDP or SCTP`},
		{"  ingress: [{ports: [{protocol: ''}]}]", `spec.ingress[0].ports[0].protocol "": want TCP, UDP or SCTP`},
		{"  ingress: [{ports: [{protocol: ICMP}]}]", `spec.ingress[0].ports[0].protocol "ICMP": want TCP, UDP or SCTP`},
		{"  ingress: [{ports: [{port: 0}]}]", `spec.ingress[0].ports[0].port 0: want a port, 1..65535`},
		{"  ingress: [{ports: [{port: 65536}]}]", `spec.ingress[0].ports[0].port 65536: want a port, 1..65535`},
		{"  ingress: [{ports: [{port: -1}]}]", `spec.ingress[0].ports[0].port -1: want a port, 1..65535`},
		{"  ingress: [{ports: [{port: 4294967376}]}]", `spec.ingress[0].ports[0].port 4294967376: want a whole number of 32 bits or text`},
		{"  ingress: [{ports: [{port: 80.5}]}]", `spec.ingress[0].ports[0].port 80.5: want a whole number of 32 bits or text`},
		{"  ingress: [{ports: [{port: '80'}]}]", `spec.ingress[0].ports[0].port "80": want a port's number, or its name: must contain at least one letter`},
		{"  ingress: [{ports: [{port: abcdefghijklmnop}]}]", `spec.ingress[0].ports[0].port "abcdefghijklmnop": want a port's number, or its name: must be no more than 15 characters`},
		{"  ingress: [{ports: [{port: 80, endPort: 79}]}]", `spec.ingress[0].ports[0].endPort 79: want at least port, 80`},
		{"  ingress: [{ports: [{port: 80, endPort: 65616}]}]", `spec.ingress[0].ports[0].endPort 65616: want a port, 1..65535`},
		{"  ingress: [{ports: [{endPort: 80}]}]", `spec.ingress[0].ports[0].endPort 80: want a numeric port with it`},
		{"  ingress: [{ports: [{port: http, endPort: 80}]}]", `spec.ingress[0].ports[0].endPort 80: want a numeric port with it`},
		{"  policyTypes: [Ingress]\n  egress: [{ports: [{port: 0}]}]", `spec.egress[0].ports[0].port 0: want a port, 1..65535`},
	} {
		wantRefusal(t, netpol(c.spec), "NetworkPolicy dev/np: "+c.want)
	}
}

// wantRefusal asks for an error that starts so; where the words are the API server's own, not to the end.
func wantRefusal(t *testing.T, object, want string) {
	t.Helper()
	r := resource(t, object)
	o, err := Object(r)
	if err == nil || !strings.HasPrefix(err.Error(), want) || o != nil {
		t.Errorf("of\n%s\ngot %v, error\n  %v\nwant\n  %s", object, o, err, want)
	}
	if err2 := Check(r); err2 == nil {
		t.Errorf("Check takes what Object refuses:\n%s", object)
	}
}
