// Package learn_test keeps the pages of this folder true: the commands on them are what `heddle plan`
// prints for the hosts and addresses they speak of.
package learn_test

import (
	"flag"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
	"github.com/heddle-net/heddle/internal/plan"
)

var update = flag.Bool("update", false, "write the pages anew")

// shown is a place on a page: a comment with the output's name, and the block below it.
var shown = regexp.MustCompile("(?s)<!-- heddle: ([a-z -]+) -->\n```(?:sh|text)\n(.*?)```\n")

// host is a machine of a page: name, address with its segment, block.
type host struct{ name, address, block string }

// network makes the input of the first host's plan. All hosts accept VXLAN.
func network(t *testing.T, netConf, uplink string, hosts ...host) plan.Input {
	t.Helper()
	in := plan.Input{Self: hosts[0].name, Attachment: model.AttachBridge, Bridge: plan.DefaultBridge}
	setNetwork(t, &in, netConf)
	pool := in.Cluster.Pools[0]
	for i, h := range hosts {
		address := netip.MustParsePrefix(h.address)
		up := model.Uplink{Link: uplink, Prefix: address, MTU: 1500}
		if i == 0 {
			in.Host.Uplinks = []model.Uplink{up}
		}
		in.Cluster.Nodes = append(in.Cluster.Nodes, model.Node{
			Name: h.name, ID: h.name, Address4: address.Addr(), Uplinks: []model.Uplink{up},
			VTEP4: plan.VTEPMAC(h.name, 1, model.IPv4), Accepts: []model.Path{model.PathDirect, model.PathVXLAN},
		})
		in.Cluster.Blocks = append(in.Cluster.Blocks, model.Block{CIDR: netip.MustParsePrefix(h.block), Pool: pool.Name, Node: h.name})
	}
	in.Cluster.Sort()
	return in
}

func setNetwork(t *testing.T, in *plan.Input, netConf string) {
	t.Helper()
	pools, err := flannel.ParseNetConf([]byte(netConf))
	if err != nil {
		t.Fatal(err)
	}
	for i := range pools {
		pools[i].Masquerade = true
	}
	in.Cluster.Pools = pools
}

// write puts a pool in Calico's words in place of the network's. All hosts accept IP in IP then.
func write(t *testing.T, in *plan.Input, spec string) {
	t.Helper()
	objects, err := dialect.ReadYAML([]byte("{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: default}, spec: " + spec + "}"))
	if err != nil {
		t.Fatal(err)
	}
	net, problems := calico.Network([]model.Setting{{Resource: objects[0]}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	in.Cluster.Pools, in.BGP, in.Attachment = net.Pools, net.BGP, model.AttachRouted
	in.Cluster.Nodes, in.Cluster.Blocks = slices.Clone(in.Cluster.Nodes), slices.Clone(in.Cluster.Blocks)
	for i := range in.Cluster.Nodes {
		in.Cluster.Nodes[i].Accepts = []model.Path{model.PathDirect, model.PathIPIP}
	}
	for i := range in.Cluster.Blocks {
		in.Cluster.Blocks[i].Pool = net.Pools[0].Name
	}
}

// speaker is what Shell prints of BGP.
func speaker(p plan.Plan) string {
	_, text, _ := strings.Cut(plan.Shell(p), "\nEOF\n\n")
	return text
}

func build(t *testing.T, in plan.Input) plan.Plan {
	t.Helper()
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// routes is what Shell prints without the nftables table, which the first page has.
func routes(p plan.Plan) string {
	text, _, _ := strings.Cut(plan.Shell(p), "\n# forwarding")
	return text
}

func reasons(p plan.Plan) string {
	var b strings.Builder
	for _, problem := range p.Problems {
		b.WriteString(problem.String() + "\n    try: " + problem.Next + "\n")
	}
	return b.String()
}

const (
	vxlan  = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`
	direct = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Directrouting":"true"}}`
	hostGW = `{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`
)

// outputs are what the pages show, by page and name.
func outputs(t *testing.T) map[string]map[string]string {
	a := network(t, vxlan, "eth0", host{"node1", "192.168.0.4/24", "10.244.0.0/24"}, host{"node2", "192.168.0.16/24", "10.244.2.0/24"})
	pod := model.Workload{ContainerID: "pod1", IfName: "eth0", Network: "heddle", Attachment: model.AttachBridge, Addresses: []netip.Addr{netip.MustParseAddr("10.244.0.3")}}

	segment := []host{
		{"master", "192.168.81.10/24", "10.244.0.0/24"},
		{"node1", "192.168.81.20/24", "10.244.1.0/24"},
		{"node2", "192.168.81.30/24", "10.244.2.0/24"},
		{"far", "192.168.82.40/24", "10.244.3.0/24"},
	}
	b := network(t, direct, "ens33", segment...)
	c := network(t, hostGW, "ens33", segment...)

	before := network(t, vxlan, "ens33", segment[:3]...)
	between, after := before, before
	setNetwork(t, &between, direct)
	setNetwork(t, &after, hostGW)

	e := network(t, hostGW, "eth0", host{"node1", "192.168.0.4/24", "192.168.190.192/26"})
	setNetwork(t, &e, `{"Network":"192.168.128.0/17","SubnetLen":26,"Backend":{"Type":"host-gw"}}`)
	e.Attachment = model.AttachRouted
	routed := model.Workload{ContainerID: "pod1", IfName: "eth0", Network: "heddle", Attachment: model.AttachRouted, Addresses: []netip.Addr{netip.MustParseAddr("192.168.190.203")}}

	f := network(t, hostGW, "eth0", host{"node1", "192.168.100.100/24", "172.17.8.0/24"}, host{"node2", "192.168.100.101/24", "172.17.9.0/24"})
	write(t, &f, `{cidr: 172.17.0.0/16, blockSize: 24, ipipMode: Never, vxlanMode: Never}`)
	f.Learned = []peering.Route{{
		Prefix: netip.MustParsePrefix("172.17.9.0/24"), NextHop: netip.MustParseAddr("192.168.100.101"),
		Neighbor: netip.MustParseAddr("192.168.100.101"), Preference: 100, Best: true, Reason: "the only one",
	}}

	g := network(t, hostGW, "eth0", host{"node1", "172.171.5.95/24", "192.168.190.0/26"},
		host{"node2", "172.171.5.96/24", "192.168.190.192/26"}, host{"node3", "172.171.6.97/24", "192.168.191.0/26"})
	write(t, &g, `{cidr: 192.168.128.0/17, blockSize: 26, ipipMode: CrossSubnet}`)
	always := g
	write(t, &always, `{cidr: 192.168.128.0/17, blockSize: 26, ipipMode: Always}`)

	h := a
	h.Attachment = model.AttachRouted

	return map[string]map[string]string{
		"a-vxlan.md":          {"plan": plan.Shell(build(t, a)), "pod": plan.ShellPod(plan.PodOf(a, pod, build(t, a).MTU), "pod1")},
		"b-direct-routing.md": {"plan": routes(build(t, b))},
		"c-host-gw.md":        {"plan": routes(build(t, c)), "problems": reasons(build(t, c))},
		"d-changing-the-backend.md": {
			"diff to direct":  plan.DiffText(plan.Diff(build(t, before), build(t, between))),
			"diff to host-gw": plan.DiffText(plan.Diff(build(t, between), build(t, after))),
		},
		"e-routed-pods.md": {"pod": plan.ShellPod(plan.PodOf(e, routed, build(t, e).MTU), "pod1"), "plan": routes(build(t, e))},
		"f-bgp.md":         {"plan": routes(build(t, f)), "speaker": speaker(build(t, f))},
		"g-ip-in-ip.md":    {"plan": routes(build(t, g)), "always": routes(build(t, always))},
		"h-canal.md":       {"plan": routes(build(t, h))},
	}
}

func TestPagesShowWhatHeddlePrints(t *testing.T) {
	for page, want := range outputs(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		seen := map[string]bool{}
		fresh := shown.ReplaceAllStringFunc(string(text), func(place string) string {
			m := shown.FindStringSubmatch(place)
			name, old := m[1], m[2]
			seen[name] = true
			if want[name] == "" {
				t.Errorf("%s shows %q, which is nothing that is printed", page, name)
				return place
			}
			if old != want[name] && !*update {
				t.Errorf("%s, %s: run go test ./docs/learn -update. It shows\n%s\nand Heddle prints\n%s", page, name, old, want[name])
			}
			return strings.TrimSuffix(place, old+"```\n") + want[name] + "```\n"
		})
		for name := range want {
			if !seen[name] {
				t.Errorf("%s does not show %q", page, name)
			}
		}
		if *update {
			if err := os.WriteFile(page, []byte(fresh), 0o644); err != nil {
				t.Error(err)
			}
		}
	}
}
