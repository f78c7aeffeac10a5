package calico_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// setting is a setting from YAML without its apiVersion; a name is "default" where none is given.
func setting(t testing.TB, text string) model.Setting {
	t.Helper()
	body, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var o map[string]any
	if err := json.Unmarshal(body, &o); err != nil {
		t.Fatal(err)
	}
	if o["apiVersion"] == nil {
		o["apiVersion"] = calico.Group + "/v3"
	}
	meta, _ := o["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
	}
	if meta["name"] == nil {
		meta["name"] = "default"
	}
	o["metadata"] = meta
	if body, err = json.Marshal(o); err != nil {
		t.Fatal(err)
	}
	return model.Setting{Resource: model.Resource{APIVersion: o["apiVersion"].(string), Type: o["kind"].(string), Name: meta["name"].(string), Body: body}}
}

func settings(t testing.TB, texts ...string) []model.Setting {
	var list []model.Setting
	for _, text := range texts {
		list = append(list, setting(t, text))
	}
	return list
}

// network reads settings that are to be honoured whole.
func network(t *testing.T, texts ...string) calico.Net {
	t.Helper()
	list := settings(t, texts...)
	for i := range list {
		if err := calico.CheckSetting(&list[i].Resource); err != nil {
			t.Error(err)
		}
	}
	n, problems := calico.Network(list)
	if len(problems) > 0 {
		t.Error(problems)
	}
	return n
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestPoolsOfCalicoArePools(t *testing.T) {
	for _, c := range []struct {
		spec string
		want model.Pool
	}{
		{"cidr: 10.1.0.0/16", model.Pool{CIDR: prefixes("10.1.0.0/16")[0], BlockSize: 26, Path: model.PathBGP, Encap: model.EncapNever}},
		{"cidr: fd00:1::/48", model.Pool{CIDR: prefixes("fd00:1::/48")[0], BlockSize: 122, Path: model.PathBGP, Encap: model.EncapNever}},
		{"{cidr: 10.1.0.0/16, ipipMode: Never, vxlanMode: Never, blockSize: 24}", model.Pool{CIDR: prefixes("10.1.0.0/16")[0], BlockSize: 24, Path: model.PathBGP, Encap: model.EncapNever}},
		{"{cidr: 10.1.0.0/16, ipipMode: CrossSubnet, natOutgoing: true}", model.Pool{CIDR: prefixes("10.1.0.0/16")[0], BlockSize: 26, Path: model.PathIPIP, Encap: model.EncapCrossSubnet, Masquerade: true}},
		{"{cidr: 10.1.0.0/16, ipipMode: Always, disabled: true}", model.Pool{CIDR: prefixes("10.1.0.0/16")[0], BlockSize: 26, Path: model.PathIPIP, Encap: model.EncapAlways, Disabled: true}},
		{"{cidr: 10.1.0.0/16, vxlanMode: Always, nodeSelector: rack == 'a', namespaceSelector: all(), disableBGPExport: true}", model.Pool{
			CIDR: prefixes("10.1.0.0/16")[0], BlockSize: 26, Path: model.PathVXLAN, Encap: model.EncapAlways, VXLAN: model.VXLAN{VNI: 4096, Port: 4789},
			NodeSelector: "rack == 'a'", NamespaceSelector: "all()", NoBGPExport: true,
		}},
		{"{cidr: 10.1.0.0/24, allowedUses: [Workload, LoadBalancer], assignmentMode: Manual}", model.Pool{
			CIDR: prefixes("10.1.0.0/24")[0], BlockSize: 26, Path: model.PathBGP, Encap: model.EncapNever, Uses: []model.PoolUse{"Workload", "LoadBalancer"}, Manual: true,
		}},
	} {
		n := network(t, "kind: IPPool\nmetadata: {name: p}\nspec: "+strings.ReplaceAll("\n"+c.spec, "\n", "\n  "))
		c.want.Name, c.want.MaxBlocks = "p", model.DefaultMaxBlocks
		if len(n.Pools) != 1 || !n.Pools[0].Equal(&c.want) || n.Pools[0].Validate() != nil {
			t.Errorf("%s:\n got %+v\nwant %+v", c.spec, n.Pools, c.want)
		}
	}
}

func TestSettingsOfAllTheNetwork(t *testing.T) {
	n := network(t,
		"kind: IPPool\nmetadata: {name: b}\nspec: {cidr: 10.2.0.0/16, vxlanMode: CrossSubnet}",
		"kind: IPPool\nmetadata: {name: a}\nspec: {cidr: 'fd00:2::/64', vxlanMode: Always}",
		"kind: FelixConfiguration\nspec: {vxlanVNI: 5000, vxlanPort: 5789, vxlanMTU: 1400, vxlanMTUV6: 1400, logSeverityScreen: Debug, bpfEnabled: false, bpfLogLevel: '', healthPort: 9099, defaultEndpointToHostAction: Accept}",
		"kind: IPReservation\nmetadata: {name: r}\nspec: {reservedCIDRs: [10.2.0.7, 10.2.0.0/29, 10.2.0.7]}",
		"kind: IPAMConfig\napiVersion: crd.projectcalico.org/v1\nspec: {strictAffinity: true, maxBlocksPerHost: 4, autoAllocateBlocks: false, ipCooldownSeconds: 30}",
		"kind: Node\nmetadata: {name: n1}\nspec: {bgp: {asNumber: 65001, routeReflectorClusterID: 244.0.0.1, ipv4Address: 192.168.0.1/24}}",
	)
	want := model.VXLAN{VNI: 5000, Port: 5789, MTU: 1400}
	if len(n.Pools) != 2 || n.Pools[0].Name != "a" || n.Pools[0].VXLAN != want || n.Pools[1].VXLAN != want || n.Pools[0].MaxBlocks != 4 || model.ValidatePools(n.Pools) != nil {
		t.Errorf("pools %+v", n.Pools)
	}
	if !reflect.DeepEqual(n.Reserved, prefixes("10.2.0.0/29", "10.2.0.7/32")) {
		t.Errorf("reserved %v", n.Reserved)
	}
	if i := n.IPAM; !i.StrictAffinity || i.MaxBlocksPerHost != 4 || i.AutoAllocate || i.CooldownSeconds == nil || *i.CooldownSeconds != 30 {
		t.Errorf("IPAM %+v", i)
	}
	node := model.Node{Name: "n1", ASN: 1}
	n.Overlay(&node)
	other := model.Node{Name: "n2", ASN: 1, ClusterID: netip.MustParseAddr("9.9.9.9")}
	n.Overlay(&other)
	if node.ASN != 65001 || node.ClusterID.String() != "244.0.0.1" || other.ASN != 1 || other.ClusterID.String() != "9.9.9.9" {
		t.Errorf("nodes %+v %+v", node, other)
	}
	if n.BGP.Wanted || !n.BGP.Settings.Mesh || n.BGP.Settings.ASN != 64512 || n.BGP.Settings.MeshLimit != 100 || n.BGP.Settings.ListenPort != 179 {
		t.Errorf("BGP without anything said: %+v", n.BGP)
	}
	n = network(t, "kind: IPAMConfiguration\nspec: {minIPReclaimAgeSeconds: 0}")
	if !n.IPAM.AutoAllocate || n.IPAM.StrictAffinity || n.IPAM.CooldownSeconds == nil || *n.IPAM.CooldownSeconds != 0 {
		t.Errorf("IPAM %+v", n.IPAM)
	}
}

func TestBGPInCalicosWords(t *testing.T) {
	n := network(t, `
kind: BGPConfiguration
metadata: {annotations: {heddle.net/mesh-limit: "50", other.example/x: z}}
spec:
  nodeToNodeMeshEnabled: true
  asNumber: 64600
  listenPort: 1790
  logSeverityScreen: Info
  bindMode: NodeIP
  serviceClusterIPs: [{cidr: 10.96.0.0/12}]
  serviceExternalIPs: [{cidr: 198.51.100.0/24}]
  serviceLoadBalancerIPs: [{cidr: 192.0.2.0/24}, {cidr: "2001:db8::/64"}]
  communities: [{name: gold, value: "64600:1"}]
  prefixAdvertisements: [{cidr: 10.1.0.0/16, communities: [gold, "1:2:3"]}]
  nodeMeshPassword: {secretKeyRef: {name: bgp, key: mesh}}
  nodeMeshMaxRestartTime: 3m`,
		"kind: BGPConfiguration\nmetadata: {name: node.n1}\nspec: {listenPort: 1791}",
		`
kind: BGPPeer
metadata:
  name: rack
  annotations: {heddle.net/bfd: "150ms x5", heddle.net/hold-time: 30s, heddle.net/long-lived-restart-time: 1h, heddle.net/max-prefixes: "500", heddle.net/passive: "true"}
spec:
  nodeSelector: rack == '1'
  peerIP: 192.0.2.1:1179
  asNumber: "1.10"
  localASNumber: 65010
  password: {secretKeyRef: {name: bgp, key: rack}}
  sourceAddress: None
  maxRestartTime: 2m
  keepaliveTime: 10s
  numAllowedLocalASNumbers: 1
  nextHopMode: Self
  filters: [in, out]`,
		"kind: BGPPeer\nmetadata: {name: rr, annotations: {heddle.net/bfd: 'true'}}\nspec: {node: n1, peerSelector: has(rr), ttlSecurity: 1, keepOriginalNextHop: true, reversePeering: Manual}",
		`
kind: BGPFilter
metadata: {name: in}
spec:
  importV4:
  - {action: Accept, matchOperator: In, cidr: 10.0.0.0/8, prefixLength: {min: 16, max: 24}, source: RemotePeers, peerType: eBGP, communities: {values: ["1:2"]}, asPathPrefix: [65000], operations: [{addCommunity: {value: "3:4"}}, {prependASPath: {prefix: [65001, "65002"]}}]}
  - {action: Reject}
  exportV6:
  - {action: Accept, matchOperator: NotEqual, cidr: "fd00::/8", source: RemotePeers}`)
	c := n.BGP
	s := c.Settings
	if !c.Wanted || !s.Mesh || s.ASN != 64600 || s.MeshLimit != 50 || s.ListenPort != 1790 || s.PerNode["n1"].ListenPort != 1791 || s.MeshPasswordRef != "bgp/mesh" || s.MeshRestartTime != 3*time.Minute ||
		!slices.Equal(s.ClusterIPs, prefixes("10.96.0.0/12")) || !slices.Equal(s.ExternalIPs, prefixes("198.51.100.0/24")) || !slices.Equal(s.LoadBalancerIPs, prefixes("192.0.2.0/24", "2001:db8::/64")) {
		t.Errorf("settings %+v", s)
	}
	if got := fmt.Sprint(s.Advertisements); got != "[{10.1.0.0/16 [64600:1 1:2:3]}]" {
		t.Errorf("advertisements %s", got)
	}
	rack := peering.Peer{Name: "rack", NodeSelector: "rack == '1'", Address: netip.MustParseAddr("192.0.2.1"), Port: 1179, AnySource: true, Session: peering.Session{
		RemoteASN: 65546, LocalASN: 65010, PasswordRef: "bgp/rack", Multihop: 255, HoldTime: 30 * time.Second, KeepAlive: 10 * time.Second, RestartTime: 2 * time.Minute, LongLived: time.Hour,
		NextHop: peering.NextHopSelf, AllowOwnAS: 1, MaxPrefixes: 500, Filters: []string{"in", "out"}, Passive: true,
		BFD: &peering.BFD{Transmit: 150 * time.Millisecond, Receive: 150 * time.Millisecond, Multiplier: 5},
	}}
	rr := peering.Peer{Name: "rr", Node: "n1", PeerSelector: "has(rr)", OneSided: true, Session: peering.Session{
		TTLSecurity: 1, NextHop: peering.NextHopKeep, BFD: &peering.BFD{Transmit: 300 * time.Millisecond, Receive: 300 * time.Millisecond, Multiplier: 3},
	}}
	if !reflect.DeepEqual(c.Peers, []peering.Peer{rack, rr}) {
		t.Errorf("peers\n got %+v\nwant %+v", c.Peers, []peering.Peer{rack, rr})
	}
	text, err := json.Marshal(c.Filters)
	const want = `[{"name":"in","rules":[{"direction":"export","family":6,"cidr":"fd00::/8","match":"NotEqual","learned":true,"accept":true},` +
		`{"direction":"import","family":4,"cidr":"10.0.0.0/8","match":"In","minLength":16,"maxLength":24,"communities":["1:2"],"asPath":[65000],"kind":"eBGP","accept":true,"operations":[{"addCommunity":"3:4"},{"prependAS":[65001,65002]}]},` +
		`{"direction":"import","family":4,"accept":false}]}]`
	if err != nil || string(text) != want {
		t.Errorf("filters\n got %s\nwant %s", text, want)
	}
}

func TestOneWrongSettingLeavesTheOthers(t *testing.T) {
	n, problems := calico.Network(settings(t,
		"kind: IPPool\nmetadata: {name: bad}\nspec: {cidr: 10.1.0.0/16, ipipMode: Always, vxlanMode: Always}",
		"kind: IPPool\nmetadata: {name: future}\nspec: {cidr: 10.2.0.0/16, colour: blue}",
		"kind: IPPool\nmetadata: {name: good}\nspec: {cidr: 10.3.0.0/16}",
		"kind: BGPPeer\nmetadata: {name: future}\nspec: {peerIP: 10.9.9.9, localWorkloadSelector: all()}",
		"kind: BGPConfiguration\nspec: {asNumber: 0}",
		"kind: FelixConfiguration\nspec: {vxlanVNI: 7, ipipMTU: 1400, wireguardEnabled: true}",
		"kind: IPPool\napiVersion: crd.projectcalico.org/v1\nmetadata: {name: good}\nspec: {cidr: 10.4.0.0/16}",
	))
	var names []string
	for _, p := range n.Pools {
		names = append(names, p.Name+" "+p.CIDR.String())
	}
	if got := strings.Join(names, ", "); got != "future 10.2.0.0/16, good 10.3.0.0/16" {
		t.Errorf("pools %s", got)
	}
	if len(n.BGP.Peers) > 0 || n.BGP.Settings.Mesh || n.BGP.Wanted {
		t.Errorf("BGP %+v", n.BGP)
	}
	var got []string
	for _, p := range problems {
		got = append(got, fmt.Sprintf("%s %s: %s", p.Severity, p.Subject, p.Detail))
		if p.Code != "setting-invalid" || p.Next == "" {
			t.Errorf("%+v", p)
		}
	}
	want := []string{
		"error BGPConfiguration default: spec.asNumber \"0\": want the number of an AS, 1..4294967294 and not 23456, or 1.10; nothing of it counts",
		"error BGPPeer future: spec.localWorkloadSelector given: want nothing: BGPPeer has no such field; nothing of it counts",
		"warning FelixConfiguration default: spec.ipipMTU 1400: want nothing: it cannot be honoured; the rest of it counts",
		"warning FelixConfiguration default: spec.wireguardEnabled true: want false, or nothing; the rest of it counts",
		"error IPPool bad: spec.ipipMode \"Always\": want Never beside vxlanMode Always: a pool has one encapsulation; nothing of it counts",
		"warning IPPool future: spec.colour given: want nothing: IPPool has no such field; the rest of it counts",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestASettingThatIsSpoiltCountsAsBefore(t *testing.T) {
	good, spoilt := setting(t, "kind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.1.0.0/16}"), setting(t, "kind: IPPool\nmetadata: {name: p}\nspec: {cidr: nonsense}")
	var r calico.Reader
	if n, _ := r.Network([]model.Setting{spoilt}); len(n.Pools) != 0 {
		t.Errorf("got %v of what was never good", n.Pools)
	}
	_, _ = r.Network([]model.Setting{good})
	for range 2 {
		n, problems := r.Network([]model.Setting{spoilt})
		if len(n.Pools) != 1 || len(problems) != 1 || !strings.HasSuffix(problems[0].Detail, "; what it said before stays in force") {
			t.Errorf("got %v, %v", n.Pools, problems)
		}
	}
	_, _ = r.Network(nil)
	if n, _ := r.Network([]model.Setting{spoilt}); len(n.Pools) != 0 {
		t.Errorf("got %v after it was deleted", n.Pools)
	}
}

// FuzzNetwork gives texts to Network as every kind of setting. It makes values that hold, or says what is wrong;
// CheckSetting refuses just what Network has a problem with.
func FuzzNetwork(f *testing.F) {
	for _, seed := range []string{
		"kind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.1.0.0/16, blockSize: 24, nodeSelector: has(a), allowedUses: [Tunnel]}",
		"kind: BGPPeer\nmetadata: {name: p, annotations: {heddle.net/bfd: 10ms}}\nspec: {peerIP: 192.0.2.1:179, asNumber: 1.10, password: {secretKeyRef: {name: a, key: b}}}",
		"kind: BGPFilter\nmetadata: {name: p}\nspec: {importV6: [{action: Accept, cidr: 'fd00::/8', matchOperator: In, prefixLength: {min: 1}}]}",
		"kind: BGPConfiguration\nmetadata: {name: default}\nspec: {asNumber: 1, prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: ['1:1']}]}",
		"kind: FelixConfiguration\nmetadata: {name: default}\nspec: {vxlanVNI: 1, x: [1]}",
		"kind: Node\nmetadata: {name: n1}\nspec: {bgp: {asNumber: 1, routeReflectorClusterID: 1.1.1.1}}",
		"kind: IPReservation\nmetadata: {name: r}\nspec: {reservedCIDRs: [10.0.0.1]}",
		"kind: IPAMConfig\nmetadata: {name: default}\nspec: {ipCooldownSeconds: 1}",
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
		_ = json.Unmarshal(body, &head)
		s := model.Setting{Resource: model.Resource{APIVersion: head.APIVersion, Type: head.Kind, Namespace: head.Metadata.Namespace, Name: head.Metadata.Name, Body: body}}
		err = calico.CheckSetting(&s.Resource)
		n, problems := calico.Network([]model.Setting{s})
		if (err != nil) != (len(problems) > 0) {
			t.Fatalf("checked: %v; read: %v", err, problems)
		}
		if wrong, ok := errors.AsType[*model.FieldError](err); err != nil && (!ok || wrong.Noun == "" || wrong.Field == "" || wrong.Want == "") {
			t.Fatalf("refused with %v", err)
		}
		if again, _ := calico.Network([]model.Setting{s}); !reflect.DeepEqual(n, again) {
			t.Fatalf("got %+v, and then %+v", n, again)
		}
		for _, p := range n.Pools {
			if err := p.Validate(); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.IPAM.Validate(); err != nil {
			t.Fatal(err)
		}
		checkNets(t, n.Reserved)
		for _, p := range n.BGP.Peers {
			if p.Address.IsValid() == (p.PeerSelector != "") || strings.Contains(p.PasswordRef, "/.") && strings.Contains(p.PasswordRef, "..") {
				t.Fatalf("got %+v", p)
			}
		}
		for _, filter := range n.BGP.Filters {
			for _, r := range filter.Rules {
				if r.CIDR.IsValid() != (r.Match != "") || r.CIDR.IsValid() && model.FamilyOf(r.CIDR.Addr()) != r.Family {
					t.Fatalf("got %+v", r)
				}
			}
		}
	})
}
