package calico_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/model"
)

// refused asks for one error, word by word.
func refused(t *testing.T, text, want string) {
	t.Helper()
	o, err := calico.Object(resource(t, text))
	if _, ok := errors.AsType[*model.FieldError](err); !ok || err.Error() != want || o != nil {
		t.Errorf("%s\n got %v (%v)\nwant %s", text, err, o, want)
	}
}

func TestRulesThatCannotBeHonouredAreRefusedByField(t *testing.T) {
	const ports = "want protocol TCP, UDP or SCTP beside it"
	const protocol = "want TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6 or 1..255"
	const port = "want a port in 1..65535, a range such as 1000:2000, or a port's name"
	const network = "want a network address with its prefix length, such as 10.0.0.0/8 or fd00::/8; names of domains cannot be enforced"
	const noGlobal = "want no global(): only the namespaceSelector of a rule may say it"
	const alone = "want no nets, selectors or service accounts beside it"
	for _, c := range []struct{ rule, want string }{
		{"action: allow", `action "allow": want Allow, Deny, Pass or Log`},
		{"protocol: TCP", "action (empty): want Allow, Deny, Pass or Log"},
		{"action: Allow, http: {methods: [GET]}", `http "{\"methods\":[\"GET\"]}": want nothing: Heddle does not look into HTTP`},
		{"action: Allow, http: {}", `http "{}": want nothing: Heddle does not look into HTTP`},
		{"action: Allow, protocol: tcp", `protocol "tcp": ` + protocol},
		{"action: Allow, protocol: 0", `protocol "0": ` + protocol},
		{"action: Allow, protocol: 256", `protocol "256": ` + protocol},
		{"action: Allow, protocol: -1", `protocol "-1": ` + protocol},
		{"action: Allow, protocol: 6.5", `protocol "6.5": ` + protocol},
		{"action: Allow, notProtocol: {}", `notProtocol "({})": ` + protocol},
		{"action: Allow, notProtocol: ''", `notProtocol (empty): ` + protocol},
		{"action: Allow, ipVersion: 5", "ipVersion 5: want 4 or 6"},
		{"action: Allow, ipVersion: 6, protocol: ICMP", "ipVersion 6: want 4 with ICMP"},
		{"action: Allow, ipVersion: 6, notProtocol: 1", "ipVersion 6: want 4 with ICMP"},
		{"action: Allow, ipVersion: 4, protocol: ICMPv6", "ipVersion 4: want 6 with ICMPv6"},
		{"action: Allow, ipVersion: 4, notProtocol: 58", "ipVersion 4: want 6 with ICMPv6"},
		{"action: Allow, icmp: {type: 8}", "icmp given: want protocol ICMP or ICMPv6 beside it"},
		{"action: Allow, protocol: TCP, icmp: {}", "icmp given: want protocol ICMP or ICMPv6 beside it"},
		{"action: Allow, notICMP: {type: 8}", "notICMP given: want protocol ICMP or ICMPv6 beside it"},
		{"action: Allow, protocol: ICMP, icmp: {code: 1}", "icmp.type (empty): want the type that the code is of"},
		{"action: Allow, protocol: ICMP, icmp: {type: 255}", "icmp.type 255: want 0..254"},
		{"action: Allow, protocol: ICMP, icmp: {type: -1}", "icmp.type -1: want 0..254"},
		{"action: Allow, protocol: ICMP, notICMP: {type: 1, code: 256}", "notICMP.code 256: want 0..255"},
		{"action: Allow, protocol: ICMP, notICMP: {type: 1, code: -1}", "notICMP.code -1: want 0..255"},

		{"action: Allow, destination: {ports: [80]}", "destination.ports given: " + ports},
		{"action: Allow, destination: {ports: [http]}", "destination.ports given: " + ports},
		{"action: Allow, protocol: UDPLite, source: {notPorts: [80]}", "source.notPorts given: " + ports},
		{"action: Allow, protocol: ICMP, source: {ports: [http]}", "source.ports given: " + ports},
		{"action: Allow, protocol: TCP, destination: {ports: [80, 0]}", `destination.ports[1] "0": ` + port},
		{"action: Allow, protocol: TCP, destination: {ports: [65536]}", `destination.ports[0] "65536": ` + port},
		{"action: Allow, protocol: TCP, destination: {ports: ['0:5']}", `destination.ports[0] "0:5": ` + port},
		{"action: Allow, protocol: TCP, destination: {ports: ['5:4']}", `destination.ports[0] "5:4": ` + port},
		{"action: Allow, protocol: TCP, destination: {ports: ['1:65536']}", `destination.ports[0] "1:65536": ` + port},
		{"action: Allow, protocol: TCP, destination: {ports: ['1:']}", `destination.ports[0] "1:": ` + port},
		{"action: Allow, protocol: TCP, destination: {ports: [':1']}", `destination.ports[0] ":1": ` + port},
		{"action: Allow, protocol: TCP, destination: {ports: ['1:2:3']}", `destination.ports[0] "1:2:3": ` + port},
		{"action: Allow, protocol: TCP, destination: {ports: ['1-2']}", `destination.ports[0] "1-2": ` + port},
		{"action: Allow, protocol: TCP, destination: {ports: [HTTP]}", `destination.ports[0] "HTTP": ` + port},
		{"action: Allow, protocol: TCP, destination: {ports: [a-name-too-long-by-one]}", `destination.ports[0] "a-name-too-long-by-one": ` + port},
		{"action: Allow, protocol: TCP, destination: {notPorts: [null]}", `destination.notPorts[0] "(null)": ` + port},
		{"action: Allow, protocol: TCP, destination: {notPorts: ['']}", `destination.notPorts[0] (empty): ` + port},

		{"action: Allow, source: {nets: [example.com]}", `source.nets[0] "example.com": ` + network},
		{"action: Allow, source: {nets: [10.0.0.1]}", `source.nets[0] "10.0.0.1": ` + network},
		{"action: Allow, source: {nets: [10.0.0.1/8]}", `source.nets[0] "10.0.0.1/8": ` + network},
		{"action: Allow, source: {nets: [10.0.0.0/33]}", `source.nets[0] "10.0.0.0/33": ` + network},
		{"action: Allow, source: {notNets: ['::ffff:10.0.0.0/104']}", `source.notNets[0] "::ffff:10.0.0.0/104": ` + network},
		{"action: Allow, source: {nets: [10.0.0.0/8, 'fd00::/8']}", `source.nets[1] "fd00::/8": want IPv4 only, as the rule's ipVersion or its other networks`},
		{"action: Allow, source: {nets: ['fd00::/8']}, destination: {notNets: [10.0.0.0/8]}", `destination.notNets[0] "10.0.0.0/8": want IPv6 only, as the rule's ipVersion or its other networks`},
		{"action: Allow, ipVersion: 4, destination: {nets: ['fd00::/8']}", `destination.nets[0] "fd00::/8": want IPv4 only, as the rule's ipVersion or its other networks`},

		{"action: Allow, source: {selector: a ~ b}", `source.selector "a ~ b": want an operator: ==, !=, in, not in, contains, starts with or ends with instead of "~" at position 3`},
		{"action: Allow, source: {selector: 'has(a) &&'}", `source.selector "has(a) &&": want a label's key, has(…), all(), global(), ! or ( instead of the end at position 10`},
		{"action: Allow, destination: {notSelector: '('}", `destination.notSelector "(": want a label's key, has(…), all(), global(), ! or ( instead of the end at position 2`},
		{"action: Allow, destination: {namespaceSelector: ')'}", `destination.namespaceSelector ")": want a label's key, has(…), all(), global(), ! or ( instead of ")" at position 1`},
		{"action: Allow, destination: {serviceAccounts: {selector: a}}", `destination.serviceAccounts.selector "a": want an operator: ==, !=, in, not in, contains, starts with or ends with instead of the end at position 2`},
		{"action: Allow, destination: {serviceAccounts: {names: [a, 'B']}}", `destination.serviceAccounts.names[1] "B": want a service account's name`},
		{"action: Allow, source: {selector: '!global()'}", `source.selector "!global()": ` + noGlobal},
		{"action: Allow, source: {notSelector: global()}", `source.notSelector "global()": ` + noGlobal},
		{"action: Allow, source: {serviceAccounts: {selector: global()}}", `source.serviceAccounts.selector "global()": ` + noGlobal},
		{"action: Allow, source: {namespaceSelector: global() || has(a)}", `source.namespaceSelector "global() || has(a)": want global() alone, or selectors without it`},

		{"action: Allow, source: {services: {}}", "source.services.name (empty): want a service's name"},
		{"action: Allow, destination: {services: {name: a, namespace: b}}", `destination.services "a": want services in an ingress rule's source or an egress rule's destination only`},
		{"action: Allow, source: {services: {name: a, namespace: b}, nets: [10.0.0.0/8]}", `source.services "a": ` + alone},
		{"action: Allow, source: {services: {name: a, namespace: b}, notNets: [10.0.0.0/8]}", `source.services "a": ` + alone},
		{"action: Allow, source: {services: {name: a, namespace: b}, selector: all()}", `source.services "a": ` + alone},
		{"action: Allow, source: {services: {name: a, namespace: b}, notSelector: all()}", `source.services "a": ` + alone},
		{"action: Allow, source: {services: {name: a, namespace: b}, namespaceSelector: all()}", `source.services "a": ` + alone},
		{"action: Allow, source: {services: {name: a, namespace: b}, serviceAccounts: {}}", `source.services "a": ` + alone},
	} {
		refused(t, "kind: GlobalNetworkPolicy\nmetadata: {name: a}\nspec: {ingress: [{action: Allow}, {"+c.rule+"}]}", "GlobalNetworkPolicy a: spec.ingress[1]."+c.want)
	}
	const egress = "spec: {egress: [{action: Allow, protocol: TCP, "
	long := strings.Repeat("é", 100)
	refused(t, "kind: GlobalNetworkPolicy\nmetadata: {name: a}\nspec: {ingress: [{action: "+long+"}]}", `GlobalNetworkPolicy a: spec.ingress[0].action "`+long[:120]+`…": want Allow, Deny, Pass or Log`)
	refused(t, "kind: GlobalNetworkPolicy\nmetadata: {name: a}\nspec: {ingress: [{action: a"+long+"}]}", `GlobalNetworkPolicy a: spec.ingress[0].action "a`+long[:118]+`…": want Allow, Deny, Pass or Log`)
	refused(t, "kind: NetworkPolicy\nmetadata: {name: a, namespace: b}\n"+egress+"source: {services: {name: a}}}]}", `NetworkPolicy b/a: spec.egress[0].source.services "a": want services in an ingress rule's source or an egress rule's destination only`)
	refused(t, "kind: NetworkPolicy\nmetadata: {name: a, namespace: b}\n"+egress+"destination: {services: {name: a}, ports: [80]}}]}", `NetworkPolicy b/a: spec.egress[0].destination.services "a": want no ports or notPorts beside it: a service has its own`)
	refused(t, "kind: NetworkPolicy\nmetadata: {name: a, namespace: b}\n"+egress+"destination: {services: {name: a}, notPorts: [80]}}]}", `NetworkPolicy b/a: spec.egress[0].destination.services "a": want no ports or notPorts beside it: a service has its own`)
	refused(t, "kind: GlobalNetworkPolicy\nmetadata: {name: a}\n"+egress+"destination: {services: {name: a}}}]}", `GlobalNetworkPolicy a: spec.egress[0].destination.services.namespace (empty): want the service's namespace`)
}

func TestPoliciesThatCannotBeHonouredAreRefusedByField(t *testing.T) {
	const noGlobal = "want no global(): only the namespaceSelector of a rule may say it"
	for _, c := range []struct{ kind, spec, want string }{
		{"GlobalNetworkPolicy", "tier: a.b", `tier "a.b": want the name of a tier`},
		{"GlobalNetworkPolicy", "types: [Ingress, ingress]", `types[1] "ingress": want Ingress and Egress, each once at most`},
		{"GlobalNetworkPolicy", "types: [Egress, Egress]", `types[1] "Egress": want Ingress and Egress, each once at most`},
		{"GlobalNetworkPolicy", "performanceHints: [AssumeNeededOnEveryNode, GoFast]", `performanceHints[1] "GoFast": want AssumeNeededOnEveryNode`},
		{"GlobalNetworkPolicy", "selector: global()", `selector "global()": ` + noGlobal},
		{"GlobalNetworkPolicy", "selector: a", `selector "a": want an operator: ==, !=, in, not in, contains, starts with or ends with instead of the end at position 2`},
		{"GlobalNetworkPolicy", "namespaceSelector: has(a) || global()", `namespaceSelector "has(a) || global()": ` + noGlobal},
		{"GlobalNetworkPolicy", "serviceAccountSelector: global()", `serviceAccountSelector "global()": ` + noGlobal},
		{"GlobalNetworkPolicy", "preDNAT: true", "applyOnForward false: want true with preDNAT or doNotTrack, which forwarded packets meet as well"},
		{"GlobalNetworkPolicy", "doNotTrack: true", "applyOnForward false: want true with preDNAT or doNotTrack, which forwarded packets meet as well"},
		{"GlobalNetworkPolicy", "preDNAT: true, doNotTrack: true, applyOnForward: true", "preDNAT true: want false, or doNotTrack: false: a policy works at one place"},
		{"GlobalNetworkPolicy", "preDNAT: true, applyOnForward: true, types: [Ingress, Egress]", `types[1] "Egress": want Ingress only with preDNAT: true`},
		{"GlobalNetworkPolicy", "preDNAT: true, applyOnForward: true, types: [Ingress], egress: [{action: Deny}]", `egress "1 rules": want no rules with preDNAT: true, which is for ingress only`},
		{"StagedGlobalNetworkPolicy", "stagedAction: Learn", `stagedAction "Learn": want Set or Delete`},
		{"StagedGlobalNetworkPolicy", "stagedAction: Ignore", `stagedAction "Ignore": want Set or Delete`},
		{"StagedGlobalNetworkPolicy", "stagedAction: Delete, selector: all()", `stagedAction "Delete": want spec with a tier at most`},
		{"StagedGlobalNetworkPolicy", "stagedAction: Delete, order: 0", `stagedAction "Delete": want spec with a tier at most`},
		{"StagedGlobalNetworkPolicy", "ingress: [{action: x}]", `ingress[0].action "x": want Allow, Deny, Pass or Log`},
		{"StagedNetworkPolicy", "stagedAction: Learn", `stagedAction "Learn": want Set or Delete`},
		{"StagedNetworkPolicy", "stagedAction: Delete, egress: [{action: Deny}]", `stagedAction "Delete": want spec with a tier at most`},
		{"StagedNetworkPolicy", "types: [x]", `types[0] "x": want Ingress and Egress, each once at most`},
		{"StagedKubernetesNetworkPolicy", "stagedAction: Learn", `stagedAction "Learn": want Set or Delete`},
		{"StagedKubernetesNetworkPolicy", "stagedAction: Delete, policyTypes: [Ingress]", `stagedAction "Delete": want no other field in spec`},
	} {
		meta, noun := "{name: a}", c.kind+" a"
		if c.kind == "StagedNetworkPolicy" || c.kind == "StagedKubernetesNetworkPolicy" {
			meta, noun = "{name: a, namespace: b}", c.kind+" b/a"
		}
		refused(t, "kind: "+c.kind+"\nmetadata: "+meta+"\nspec: {"+c.spec+"}", noun+": spec."+c.want)
	}
}

// What Kubernetes refuses in its own policy is told of the staged one.
func TestStagedKubernetesPolicyIsRefusedByItsOwnName(t *testing.T) {
	_, err := calico.Object(resource(t, "kind: StagedKubernetesNetworkPolicy\nmetadata: {name: a, namespace: b}\nspec: {ingress: [{ports: [{port: 70000}]}]}"))
	wrong, ok := errors.AsType[*model.FieldError](err)
	if !ok || wrong.Noun != "StagedKubernetesNetworkPolicy b/a" || wrong.Field != "spec.ingress[0].ports[0].port" {
		t.Errorf("got %v", err)
	}
}

func TestTiersSetsAndHostEndpointsAreRefusedByField(t *testing.T) {
	const network = "want a network such as 10.0.0.0/8, or an address; names of domains cannot be enforced"
	const name = "want a port's name: at most 15 lower-case letters, digits and -, with a letter among them"
	for _, c := range []struct{ text, want string }{
		{"kind: Tier\nmetadata: {name: a.b}", `Tier a.b: metadata.name "a.b": want the name of a tier: at most 63 lower-case letters, digits and -`},
		{"kind: Tier\nmetadata: {name: a}\nspec: {defaultAction: Allow}", `Tier a: spec.defaultAction "Allow": want Deny or Pass`},
		{"kind: Tier\nmetadata: {name: default}", "Tier default: spec.order (empty): want 1000000, which tier default always has"},
		{"kind: Tier\nmetadata: {name: default}\nspec: {order: 7}", "Tier default: spec.order 7: want 1000000, which tier default always has"},
		{"kind: Tier\nmetadata: {name: default}\nspec: {order: 1000000, defaultAction: Pass}", `Tier default: spec.defaultAction "Pass": want Deny, which tier default always has`},
		{"kind: Tier\nmetadata: {name: kube-admin}\nspec: {order: 1000, defaultAction: Deny}", `Tier kube-admin: spec.defaultAction "Deny": want Pass, which tier kube-admin always has`},
		{"kind: Tier\nmetadata: {name: kube-baseline}\nspec: {order: 1000}", "Tier kube-baseline: spec.order 1000: want 10000000, which tier kube-baseline always has"},
		{"kind: NetworkSet\nmetadata: {name: a, namespace: b}\nspec: {nets: [10.0.0.1, example.com]}", `NetworkSet b/a: spec.nets[1] "example.com": ` + network},
		{"kind: GlobalNetworkSet\nmetadata: {name: a}\nspec: {nets: ['::ffff:1.2.3.4']}", `GlobalNetworkSet a: spec.nets[0] "::ffff:1.2.3.4": ` + network},
		{"kind: GlobalNetworkSet\nmetadata: {name: a}\nspec: {nets: ['fe80::1%eth0']}", `GlobalNetworkSet a: spec.nets[0] "fe80::1%eth0": ` + network},
		{"kind: GlobalNetworkSet\nmetadata: {name: a}\nspec: {nets: ['::ffff:1.2.3.4/128']}", `GlobalNetworkSet a: spec.nets[0] "::ffff:1.2.3.4/128": ` + network},
		{"kind: GlobalNetworkSet\nmetadata: {name: a, labels: {projectcalico.org/namespace: b}}", `GlobalNetworkSet a: metadata.labels "projectcalico.org/namespace": want another label: this one is not given by people`},
		{"kind: NetworkSet\nmetadata: {name: a, namespace: b, labels: {projectcalico.org/orchestrator: k8s}}", `NetworkSet b/a: metadata.labels "projectcalico.org/orchestrator": want another label: this one is not given by people`},
		{"kind: HostEndpoint\nmetadata: {name: a, labels: {projectcalico.org/serviceaccount: b}}", `HostEndpoint a: metadata.labels "projectcalico.org/serviceaccount": want another label: this one is not given by people`},
		{"kind: HostEndpoint\nmetadata: {name: a, labels: {pcns.team: b}}", `HostEndpoint a: metadata.labels "pcns.team": want another label: this one is not given by people`},
		{"kind: HostEndpoint\nmetadata: {name: a, labels: {pcsa.team: b}}", `HostEndpoint a: metadata.labels "pcsa.team": want another label: this one is not given by people`},
		{"kind: HostEndpoint\nmetadata: {name: a, labels: {a b: c}}", `HostEndpoint a: metadata.labels "a b": want a label's key: name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`},
		{"kind: GlobalNetworkSet\nmetadata: {name: a, labels: {a: '!'}}", `GlobalNetworkSet a: metadata.labels.a "!": want a label's value: a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')`},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {interfaceName: eth0}", "HostEndpoint a: spec.node (empty): want a node's name"},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1}", "HostEndpoint a: spec.interfaceName (empty): want an interface's name or *, or else expectedIPs to find it by"},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, interfaceName: 'eth*'}", `HostEndpoint a: spec.interfaceName "eth*": want an interface's name, or *`},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, interfaceName: a-name-that-is-too-long}", `HostEndpoint a: spec.interfaceName "a-name-that-is-too-long": want an interface's name, or *`},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, expectedIPs: [10.0.0.0/8]}", `HostEndpoint a: spec.expectedIPs[0] "10.0.0.0/8": want an IPv4 or IPv6 address`},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, interfaceName: eth0, profiles: [projectcalico-default-allow]}", `HostEndpoint a: spec.profiles[0] "projectcalico-default-allow": want no profiles, or projectcalico-default-allow where interfaceName is *: write a policy instead`},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, interfaceName: '*', profiles: [mine]}", `HostEndpoint a: spec.profiles[0] "mine": want no profiles, or projectcalico-default-allow where interfaceName is *: write a policy instead`},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, interfaceName: '*', ports: [{name: http, protocol: ICMP, port: 1}]}", `HostEndpoint a: spec.ports[0].protocol "ICMP": want TCP, UDP or SCTP`},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, interfaceName: '*', ports: [{name: http, port: 1}]}", "HostEndpoint a: spec.ports[0].protocol (empty): want TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6 or 1..255"},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, interfaceName: '*', ports: [{name: http, protocol: TCP, port: 65536}]}", "HostEndpoint a: spec.ports[0].port 65536: want 1..65535"},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, interfaceName: '*', ports: [{name: 80, protocol: TCP, port: 80}]}", "HostEndpoint a: spec.ports.name a JSON number: want text"},
		{"kind: HostEndpoint\nmetadata: {name: a}\nspec: {node: n1, interfaceName: '*', ports: [{name: '80', protocol: TCP, port: 80}]}", `HostEndpoint a: spec.ports[0].name "80": ` + name},
	} {
		refused(t, c.text, c.want)
	}
}
