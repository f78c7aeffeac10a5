package calico_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/model"
)

// What cannot be honoured is refused by the name of its field, word by word.
func TestSettingsThatCannotBeHonouredAreRefusedByField(t *testing.T) {
	const pool, peer, filter, config = "kind: IPPool\nmetadata: {name: p}\nspec: ", "kind: BGPPeer\nmetadata: {name: p}\nspec: ", "kind: BGPFilter\nmetadata: {name: p}\nspec: ", "kind: BGPConfiguration\nspec: "
	annotated := func(kind, spec, key, value string) string {
		return "kind: " + kind + "\nmetadata: {name: default, annotations: {" + key + ": \"" + value + "\"}}\nspec: " + spec
	}
	for _, c := range []struct{ text, want string }{
		{pool + "{}", `spec.cidr (empty): want a network address`},
		{pool + "{cidr: 10.1.0.1/16}", `spec.cidr "10.1.0.1/16": want a network address`},
		{pool + "{cidr: 224.0.0.0/8}", `spec.cidr "224.0.0.0/8": want a range of unicast addresses`},
		{pool + "{cidr: 10.1.0.0/31}", `spec.cidr "10.1.0.0/31": want a range of at least one block, /30 or wider`},
		{pool + "{cidr: 10.1.0.0/28}", `spec.blockSize 26: want 28..30`},
		{pool + "{cidr: 10.1.0.0/16, blockSize: 19}", `spec.blockSize 19: want 20..30`},
		{pool + "{cidr: 10.1.0.0/16, blockSize: 32}", `spec.blockSize 32: want 20..30`},
		{pool + "{cidr: 'fd00::/64', blockSize: 64}", `spec.blockSize 64: want 116..126`},
		{pool + "{cidr: 10.1.0.0/16, ipipMode: always}", `spec.ipipMode "always": want Never or CrossSubnet or Always`},
		{pool + "{cidr: 10.1.0.0/16, ipipMode: Always, vxlanMode: Always}", `spec.ipipMode "Always": want Never beside vxlanMode Always`},
		{pool + "{cidr: 10.1.0.0/16, nodeSelector: 'has('}", `spec.nodeSelector "has(": want a selector: position 5`},
		{pool + "{cidr: 10.1.0.0/16, namespaceSelector: '= x'}", `spec.namespaceSelector "= x": want a selector`},
		{pool + "{cidr: 10.1.0.0/16, allowedUses: [Workload, HostSecondaryInterface]}", `spec.allowedUses[1] "HostSecondaryInterface": want Workload or Tunnel or LoadBalancer`},
		{pool + "{cidr: 10.1.0.0/16, assignmentMode: manual}", `spec.assignmentMode "manual": want Automatic or Manual`},
		{pool + "{cidr: 10.1.0.0/16, ipip: {enabled: true}}", `spec.ipip given: want nothing: IPPool has no such field`},
		{pool + "{cidr: 10.1.0.0/16, natOutgoing: 'yes'}", `spec.natOutgoing a JSON string: want true or false`},
		{pool + "[]", `spec a JSON array: want an object`},

		{"kind: IPReservation\nmetadata: {name: r}\nspec: {reservedCIDRs: [10.0.0.1, x]}", `spec.reservedCIDRs[1] "x": want a network`},
		{"kind: IPAMConfiguration\nmetadata: {name: other}\nspec: {}", `metadata.name "other": want default`},
		{"kind: IPAMConfiguration\nspec: {maxBlocksPerHost: -1}", `spec.maxBlocksPerHost -1: want 0..1000000`},
		{"kind: IPAMConfiguration\nspec: {ipCooldownSeconds: -1}", `spec.ipCooldownSeconds -1: want 0..86400`},
		{"kind: IPAMConfiguration\nspec: {ipCooldownSeconds: 1, minIPReclaimAgeSeconds: 1}", `spec.minIPReclaimAgeSeconds 1: want nothing beside ipCooldownSeconds`},
		{"kind: IPAMConfiguration\nspec: {kubeVirtVMAddressPersistence: Enabled}", `spec.kubeVirtVMAddressPersistence given: want nothing`},

		{config + "{asNumber: 4294967295}", `spec.asNumber "4294967295": want the number of an AS`},
		{config + "{asNumber: [1]}", `spec.asNumber "([1])": want the number of an AS`},
		{config + "{listenPort: 65536}", `spec.listenPort 65536: want 1..65535`},
		{config + "{serviceClusterIPs: [{cidr: 10.96.0.1/12}]}", `spec.serviceClusterIPs[0].cidr "10.96.0.1/12": want a network`},
		{config + "{communities: [{name: a, value: '1'}]}", `spec.communities[0].value "1": want AA:NN`},
		{config + "{communities: [{name: a, value: '1:1'}, {name: a, value: '1:1'}]}", `spec.communities[1].name "a": want a name that no other community has`},
		{config + "{prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: [gold]}]}", `spec.prefixAdvertisements[0].communities[0] "gold": want AA:NN`},
		{config + "{nodeMeshPassword: {}}", `spec.nodeMeshPassword.secretKeyRef (empty): want name and key`},
		{config + "{nodeMeshPassword: {secretKeyRef: {name: ../x, key: k}}}", `spec.nodeMeshPassword.secretKeyRef.name "../x": want`},
		{config + "{nodeMeshPassword: {secretKeyRef: {name: x, key: ..}}}", `spec.nodeMeshPassword.secretKeyRef.key "..": want`},
		{config + "{nodeMeshPassword: {secretKeyRef: {name: x, key: a/b}}}", `spec.nodeMeshPassword.secretKeyRef.key "a/b": want`},
		{config + "{nodeMeshMaxRestartTime: 2h}", `spec.nodeMeshMaxRestartTime "2h": want whole seconds from 0s to 1h8m15s`},
		{config + "{bindMode: None}", `spec.bindMode "None": want NodeIP`},
		{config + "{serviceLoadBalancerAggregation: Disabled}", `spec.serviceLoadBalancerAggregation "Disabled": want Enabled`},
		{config + "{localWorkloadPeeringIPV4: 10.0.0.1}", `spec.localWorkloadPeeringIPV4 given: want nothing`},
		{"kind: BGPConfiguration\nmetadata: {name: other}\nspec: {}", `metadata.name "other": want default or node.NAME`},
		{"kind: BGPConfiguration\nmetadata: {name: node.a}\nspec: {asNumber: 1}", `spec.asNumber given: want nothing: only the BGPConfiguration default may say it`},
		{annotated("BGPConfiguration", "{}", "heddle.net/mesh-limit", "many"), `metadata.annotations.heddle.net/mesh-limit "many": want 0..1000000`},
		{annotated("BGPConfiguration", "{}", "heddle.net/bfd", "true"), `metadata.annotations.heddle.net/bfd "true": want nothing: a BGPConfiguration has no such annotation`},

		{peer + "{}", `spec.peerIP (empty): want the neighbour's address, or a peerSelector`},
		{peer + "{peerIP: 10.0.0.1, peerSelector: all()}", `spec.peerSelector "all()": want nothing beside peerIP`},
		{peer + "{peerSelector: all(), asNumber: 1}", `spec.asNumber "1": want nothing beside peerSelector`},
		{peer + "{node: a, nodeSelector: all(), peerIP: 10.0.0.1}", `spec.nodeSelector "all()": want nothing beside node`},
		{peer + "{node: A, peerIP: 10.0.0.1}", `spec.node "A": want a node's name`},
		{peer + "{peerSelector: 'a =='}", `spec.peerSelector "a ==": want a selector`},
		{peer + "{peerIP: '10.0.0.1:0'}", `spec.peerIP "10.0.0.1:0": want a unicast address`},
		{peer + "{peerIP: 127.0.0.1}", `spec.peerIP "127.0.0.1": want a unicast address`},
		{peer + "{peerIP: 'fe80::1%eth0'}", `spec.peerIP "fe80::1%eth0": want a unicast address`},
		{peer + "{peerIP: 10.0.0.1, reachableBy: 10.0.0.2}", `spec.reachableBy "10.0.0.2": want nothing: a neighbour is reached by the routes that the node has`},
		{peer + "{peerIP: 10.0.0.1, filters: [A]}", `spec.filters[0] "A": want the name of a BGPFilter`},
		{peer + "{peerIP: 10.0.0.1, sourceAddress: 10.0.0.2}", `spec.sourceAddress "10.0.0.2": want UseNodeIP or None`},
		{peer + "{peerIP: 10.0.0.1, nextHopMode: keep}", `spec.nextHopMode "keep": want Auto or Self or Keep`},
		{peer + "{peerIP: 10.0.0.1, nextHopMode: Self, keepOriginalNextHop: true}", `spec.keepOriginalNextHop given: want nothing beside nextHopMode`},
		{peer + "{peerIP: 10.0.0.1, ttlSecurity: 255}", `spec.ttlSecurity 255: want 1..254`},
		{peer + "{peerIP: 10.0.0.1, keepaliveTime: 1ms}", `spec.keepaliveTime "1ms": want whole seconds from 1s`},
		{peer + "{peerIP: 10.0.0.1, maxRestartTime: soon}", `spec.maxRestartTime "soon": want whole seconds`},
		{peer + "{peerIP: 10.0.0.1, numAllowedLocalASNumbers: 11}", `spec.numAllowedLocalASNumbers 11: want 0..10`},
		{peer + "{peerIP: 10.0.0.1, reversePeering: Never}", `spec.reversePeering "Never": want Auto or Manual`},
		{peer + "{peerIP: 10.0.0.1, localWorkloadSelector: all()}", `spec.localWorkloadSelector given: want nothing`},
		{peer + "{peerIP: 10.0.0.1, failureDetectionMode: BFDIfDirectlyConnected}", `spec.failureDetectionMode given: want nothing`},
		{annotated("BGPPeer", "{peerIP: 10.0.0.1}", "heddle.net/bfd", "1ms"), `metadata.annotations.heddle.net/bfd "1ms": want true, or an interval`},
		{annotated("BGPPeer", "{peerIP: 10.0.0.1}", "heddle.net/hold-time", "1s"), `metadata.annotations.heddle.net/hold-time "1s": want whole seconds from 3s`},
		{annotated("BGPPeer", "{peerIP: 10.0.0.1, keepaliveTime: 20s}", "heddle.net/hold-time", "30s"), `spec.keepaliveTime "20s": want at most a third of the hold time 30s`},
		{annotated("BGPPeer", "{peerIP: 10.0.0.1}", "heddle.net/max-prefixes", "0"), `metadata.annotations.heddle.net/max-prefixes "0": want 1..1000000`},
		{annotated("BGPPeer", "{peerIP: 10.0.0.1}", "heddle.net/passive", "maybe"), `metadata.annotations.heddle.net/passive "maybe": want true or false`},
		{annotated("BGPPeer", "{peerIP: 10.0.0.1}", "heddle.net/colour", "red"), `metadata.annotations.heddle.net/colour "red": want nothing`},

		{filter + "{importV4: [{}]}", `spec.importV4[0].action (empty): want Accept or Reject`},
		{filter + "{importV4: [{action: Accept, cidr: 10.0.0.0/8}]}", `spec.importV4[0].matchOperator (empty): want Equal, NotEqual, In or NotIn beside cidr`},
		{filter + "{importV4: [{action: Accept, matchOperator: In}]}", `spec.importV4[0].matchOperator "In": want nothing without cidr`},
		{filter + "{importV4: [{action: Accept, prefixLength: {min: 1}}]}", `spec.importV4[0].prefixLength given: want nothing without cidr`},
		{filter + "{importV4: [{action: Accept, cidr: 'fd00::/8', matchOperator: In}]}", `spec.importV4[0].cidr "fd00::/8": want a range of IPv4`},
		{filter + "{exportV6: [{action: Accept, cidr: 'fd00::/8', matchOperator: in}]}", `spec.exportV6[0].matchOperator "in": want Equal or NotEqual or In or NotIn`},
		{filter + "{importV4: [{action: Accept, cidr: 10.0.0.0/8, matchOperator: In, prefixLength: {max: 33}}]}", `spec.importV4[0].prefixLength.max 33: want 0..32`},
		{filter + "{importV4: [{action: Accept, cidr: 10.0.0.0/8, matchOperator: In, prefixLength: {min: 9, max: 8}}]}", `spec.importV4[0].prefixLength.max 8: want a length not below min`},
		{filter + "{exportV4: [{action: Reject, interface: '*.calico'}]}", `spec.exportV4[0].interface "*.calico": want nothing`},
		{filter + "{exportV4: [{action: Reject, priority: 5}]}", `spec.exportV4[0].priority 5: want nothing`},
		{filter + "{exportV4: [{action: Reject, source: Local}]}", `spec.exportV4[0].source "Local": want RemotePeers`},
		{filter + "{exportV4: [{action: Reject, peerType: ebgp}]}", `spec.exportV4[0].peerType "ebgp": want iBGP or eBGP`},
		{filter + "{exportV4: [{action: Reject, communities: {}}]}", `spec.exportV4[0].communities.values (empty): want at least one community`},
		{filter + "{exportV4: [{action: Reject, communities: {values: ['1:70000']}}]}", `spec.exportV4[0].communities.values[0] "1:70000": want AA:NN`},
		{filter + "{exportV4: [{action: Reject, asPathPrefix: [1, 0]}]}", `spec.exportV4[0].asPathPrefix[1] "0": want the number of an AS`},
		{filter + "{exportV4: [{action: Reject, operations: [{addCommunity: {value: '1:1'}}]}]}", `spec.exportV4[0].operations given: want nothing beside action Reject`},
		{filter + "{exportV4: [{action: Accept, operations: [{}]}]}", `spec.exportV4[0].operations[0] given: want exactly one of`},
		{filter + "{exportV4: [{action: Accept, operations: [{addCommunity: {value: '1:1'}, prependASPath: {prefix: [1]}}]}]}", `spec.exportV4[0].operations[0] given: want exactly one of`},
		{filter + "{exportV4: [{action: Accept, operations: [{prependASPath: {prefix: []}}]}]}", `spec.exportV4[0].operations[0].prependASPath.prefix 0: want 1..10`},
		{filter + "{exportV4: [{action: Accept, operations: [{setPriority: {value: 5}}]}]}", `spec.exportV4[0].operations[0].setPriority {"value":5}: want nothing`},
		{filter + "{exportV4: [{action: Accept, colour: red}]}", `spec.exportV4[0].colour given: want nothing`},

		{"kind: Node\nmetadata: {name: n1}\nspec: {bgp: {routeReflectorClusterID: x}}", `spec.bgp.routeReflectorClusterID "x": want the form of an IPv4 address`},
		{"kind: Node\nmetadata: {name: n1}\nspec: {bgp: {ipv4Address: 'fd00::1'}}", `spec.bgp.ipv4Address "fd00::1": want an address of that family`},
		{"kind: Node\nmetadata: {name: n1}\nspec: {wireguard: {}}", `spec.wireguard given: want nothing`},
		{"kind: FelixConfiguration\nmetadata: {name: node.n1}\nspec: {}", `metadata.name "node.n1": want default`},
		{"kind: FelixConfiguration\nspec: {vxlanVNI: 0}", `spec.vxlanVNI 0: want 1..16777215`},
		{"kind: FelixConfiguration\nspec: {vxlanPort: '1'}", `spec.vxlanPort "1": want 1..65535`},
		{"kind: FelixConfiguration\nspec: {vxlanMTU: 1400, vxlanMTUV6: 1380}", `spec.vxlanMTUV6 1380: want the number of vxlanMTU`},
		{"kind: FelixConfiguration\nspec: {bpfEnabled: true}", `spec.bpfEnabled true: want nothing`},
		{"kind: FelixConfiguration\nspec: {natPortRange: '1:2'}", `spec.natPortRange "1:2": want nothing: it cannot be honoured`},
		{"kind: FelixConfiguration\nspec: {defaultEndpointToHostAction: Drop}", `spec.defaultEndpointToHostAction "Drop": want "Accept", or nothing`},
	} {
		s := setting(t, c.text)
		err := calico.CheckSetting(&s.Resource)
		if _, ok := errors.AsType[*model.FieldError](err); !ok || !strings.HasPrefix(err.Error(), s.String()+": "+c.want) {
			t.Errorf("%s\n got %v\nwant %s: %s…", c.text, err, s.String(), c.want)
		}
	}
}
