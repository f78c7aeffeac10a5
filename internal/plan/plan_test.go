package plan_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// cluster is n nodes with a block each, node 0 being ours; every third is in our segment.
func cluster(n int, p model.Path, e model.Encap) plan.Input {
	in := plan.Input{Self: "n0000"}
	in.Cluster.Pools = []model.Pool{{
		Name: "flannel", CIDR: netip.MustParsePrefix("10.0.0.0/8"), BlockSize: 24, Path: p, Encap: e,
		VXLAN: model.VXLAN{VNI: 1, Port: 8472}, Masquerade: true,
	}}
	for i := range n {
		segment := 0
		if i%3 != 0 {
			segment = 1 + i%3
		}
		node := model.Node{
			Name: fmt.Sprintf("n%04d", i), Address4: netip.AddrFrom4([4]byte{172, 16 + byte(segment), byte(i / 200), byte(1 + i%200)}),
			Accepts: []model.Path{model.PathDirect, model.PathIPIP, model.PathVXLAN},
		}
		node.VTEP4 = plan.VTEPMAC(node.Name, 1, model.IPv4)
		in.Cluster.Nodes = append(in.Cluster.Nodes, node)
		in.Cluster.Blocks = append(in.Cluster.Blocks, model.Block{
			CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i/256), byte(i), 0}), 24), Pool: "flannel", Node: node.Name,
		})
	}
	in.Host.Uplinks = []model.Uplink{{Link: "eth0", Prefix: netip.MustParsePrefix("172.16.0.1/16"), MTU: 1500}}
	in.Cluster.Sort()
	return in
}

func BenchmarkBuild1000(b *testing.B) {
	in := cluster(1000, model.PathVXLAN, model.EncapCrossSubnet)
	for b.Loop() {
		p, err := plan.Build(in)
		if err != nil || len(p.Routes) != 999 {
			b.Fatalf("%d routes, %v", len(p.Routes), err)
		}
	}
}

func BenchmarkPodOf1000(b *testing.B) {
	in := cluster(1000, model.PathVXLAN, model.EncapCrossSubnet)
	w := model.Workload{ContainerID: "c", IfName: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.9")}}
	for b.Loop() {
		if p := plan.PodOf(in, w, 1450); len(p.Routes) != 1 {
			b.Fatal(p)
		}
	}
}

func TestBuildFailsOnlyWithoutItsNode(t *testing.T) {
	in := cluster(3, model.PathDirect, model.EncapNever)
	in.Self = "nobody"
	if _, err := plan.Build(in); err == nil || err.Error() != `node "nobody": not registered in the cluster, which has 3 nodes` {
		t.Errorf("got %v", err)
	}
	in = plan.Input{Self: "n", Cluster: model.Cluster{Nodes: []model.Node{{Name: "n"}}}}
	p, err := plan.Build(in)
	if err != nil || p.MTU != 1500 || len(p.Links) != 0 {
		t.Errorf("a node with nothing: %+v, %v", p, err)
	}
}

func TestEveryListIsSortedAndWithoutDuplicates(t *testing.T) {
	in := cluster(300, model.PathVXLAN, model.EncapCrossSubnet)
	in.Workloads = []model.Workload{{ContainerID: "c", IfName: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.9")}}}
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string, keys []string) {
		if s := slices.Clone(keys); len(slices.Compact(s)) != len(keys) {
			t.Errorf("%s: twice the same key", name)
		}
	}
	check("routes", keysOf(p.Routes, func(r plan.Route) string { return r.Dst.String() }))
	check("fdb", keysOf(p.FDB, func(f plan.FDB) string { return f.Link + f.MAC }))
	check("neighbors", keysOf(p.Neighbors, func(n plan.Neighbor) string { return n.Link + n.IP.String() }))
	if !slices.IsSortedFunc(p.Routes, func(a, b plan.Route) int { return a.Dst.Compare(b.Dst) }) {
		t.Error("routes are not sorted")
	}
	if len(p.Routes) != 299 || len(p.FDB) != 200 || len(p.Neighbors) != 200 {
		t.Errorf("%d routes, %d FDB entries, %d neighbours; want one route for each block, one entry for each node behind the router", len(p.Routes), len(p.FDB), len(p.Neighbors))
	}
}

func keysOf[T any](list []T, key func(T) string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = key(v)
	}
	return out
}

// TestBuildHoldsWhatPodOfSays: one source of truth for a workload's host part, in both styles.
func TestBuildHoldsWhatPodOfSays(t *testing.T) {
	for _, style := range []model.Attachment{model.AttachBridge, model.AttachRouted} {
		in := cluster(3, model.PathDirect, model.EncapNever)
		in.Attachment = style
		in.Workloads = []model.Workload{{ContainerID: "c", IfName: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.9")}}}
		p, err := plan.Build(in)
		if err != nil {
			t.Fatal(err)
		}
		pod := plan.PodOf(in, in.Workloads[0], p.MTU)
		if !slices.Contains(keysOf(p.Links, func(l plan.Link) string { return fmt.Sprintf("%+v", l) }), fmt.Sprintf("%+v", pod.Host)) {
			t.Errorf("%s: the plan lacks %+v", style, pod.Host)
		}
		for _, r := range pod.HostRoutes {
			if !slices.ContainsFunc(p.Routes, func(have plan.Route) bool { return reflect.DeepEqual(have, r) }) {
				t.Errorf("%s: the plan lacks %+v", style, r)
			}
		}
		for _, s := range pod.HostSysctls {
			if !slices.Contains(p.Sysctls, s) {
				t.Errorf("%s: the plan lacks %+v", style, s)
			}
		}
		if (len(pod.HostRoutes) > 0) != (style == model.AttachRouted) {
			t.Errorf("%s: host routes %v", style, pod.HostRoutes)
		}
	}
}

// TestWorkloadKeepsItsGatewayWhenTheBlockIsLost: a lease that ran out takes no address from a bridge that
// pods hang on.
func TestWorkloadKeepsItsGatewayWhenTheBlockIsLost(t *testing.T) {
	in := cluster(3, model.PathVXLAN, model.EncapAlways)
	in.Workloads = []model.Workload{{ContainerID: "c", IfName: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.9")}}}
	want, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Cluster.Blocks = in.Cluster.Blocks[1:]
	got, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range plan.Diff(want, got) {
		if c.Text != "10.1.0.0/32 dev flannel.1" {
			t.Errorf("changed: %s", c)
		}
	}
}

func TestTunnelDeviceGoesWhenNobodySendsOnIt(t *testing.T) {
	for _, tunnel := range []model.Path{model.PathVXLAN, model.PathIPIP} {
		in := cluster(3, tunnel, model.EncapAlways)
		before, err := plan.Build(in)
		if err != nil {
			t.Fatal(err)
		}
		self := &in.Cluster.Nodes[0]
		self.Accepts, self.Sends = plan.Accepts(&before), plan.Sends(&before)
		in.Cluster.Pools[0].Path, in.Cluster.Pools[0].Encap = model.PathDirect, model.EncapNever
		in.Keep = before.Links
		direct, both := []model.Path{model.PathDirect}, []model.Path{model.PathDirect, tunnel}
		for _, c := range []struct {
			name      string
			sends     []model.Path // of a peer
			published []model.Path
			there     bool
			accepts   []model.Path
		}{
			{"a peer sends on it", both, both, true, both},
			{"a peer sends on it that was told not to", both, direct, true, both},
			{"nobody does, but may think that it can", direct, both, true, direct},
			{"nobody does, and nobody will", direct, direct, false, direct},
		} {
			in.Cluster.Nodes[1].Sends, in.Published = c.sends, c.published
			p, err := plan.Build(in)
			if err != nil {
				t.Fatal(err)
			}
			there := slices.ContainsFunc(p.Links, func(l plan.Link) bool { return string(l.Kind) == string(tunnel) })
			if there != c.there || !slices.Equal(plan.Accepts(&p), c.accepts) {
				t.Errorf("%s, %s: device there %v, accepts %v: want %v, %v", tunnel, c.name, there, plan.Accepts(&p), c.there, c.accepts)
			}
			if p.MTU != 1500 || slices.Contains(plan.Sends(&p), tunnel) {
				t.Errorf("%s, %s: mtu %d, sends %v", tunnel, c.name, p.MTU, plan.Sends(&p))
			}
		}
	}
}

// TestPoolsThatChangeOneAfterTheOtherKeepBothTunnels: the store changes one object at a time.
func TestPoolsThatChangeOneAfterTheOtherKeepBothTunnels(t *testing.T) {
	in := cluster(2, model.PathVXLAN, model.EncapAlways)
	six := in.Cluster.Pools[0]
	six.Name, six.CIDR, six.BlockSize = "flannel6", netip.MustParsePrefix("fd00:244::/48"), 64
	in.Cluster.Pools = append(in.Cluster.Pools, six)
	for i := range in.Cluster.Nodes {
		n := &in.Cluster.Nodes[i]
		n.Address6 = netip.MustParseAddr(fmt.Sprintf("fd00:172::%d", i+1))
		n.VTEP6 = plan.VTEPMAC(n.Name, 1, model.IPv6)
	}
	in.Host.Uplinks = append(in.Host.Uplinks, model.Uplink{Link: "eth0", Prefix: netip.MustParsePrefix("fd00:172::1/64"), MTU: 1500})
	before, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Keep, in.Published = before.Links, plan.Accepts(&before)
	for i := range in.Cluster.Pools {
		if p := &in.Cluster.Pools[i]; p.Family() == model.IPv4 {
			p.Path, p.Encap = model.PathDirect, model.EncapNever
		}
	}
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if plan.VTEP(&p, f) == "" || plan.VTEP(&p, f) != plan.VTEP(&before, f) {
			t.Errorf("device with %s outside: %q, want %q kept", f, plan.VTEP(&p, f), plan.VTEP(&before, f))
		}
	}
}

func TestVTEPMACsAreUnicastLocalAndDistinct(t *testing.T) {
	seen := map[string]bool{}
	for i := range 500 {
		for _, f := range []model.Family{model.IPv4, model.IPv6} {
			for vni := 1; vni < 4; vni++ {
				m := plan.VTEPMAC(fmt.Sprintf("n%d", i), vni, f)
				if seen[m] || !model.ValidMAC(m) || strings.IndexByte("26ae", m[1]) < 0 {
					t.Fatalf("%s: twice, or not local and unicast", m)
				}
				seen[m] = true
			}
		}
	}
}

// TestDiffIsEmptyOnlyForEqualPlans over random clusters, and leads from one to the other by its keys.
func TestDiffIsEmptyOnlyForEqualPlans(t *testing.T) {
	draw := func(rt *rapid.T, label string) plan.Plan {
		path := rapid.SampledFrom([]model.Path{model.PathVXLAN, model.PathIPIP}).Draw(rt, label+" path")
		encap := rapid.SampledFrom([]model.Encap{model.EncapAlways, model.EncapCrossSubnet, model.EncapNever}).Draw(rt, label+" encap")
		in := cluster(rapid.IntRange(1, 8).Draw(rt, label+" nodes"), path, encap)
		in.Attachment = rapid.SampledFrom([]model.Attachment{model.AttachBridge, model.AttachRouted}).Draw(rt, label+" style")
		in.Host.Uplinks[0].MTU = rapid.SampledFrom([]int{1500, 9000}).Draw(rt, label+" mtu")
		if rapid.Bool().Draw(rt, label+" pod") {
			in.Workloads = []model.Workload{{ContainerID: "c", IfName: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.9")}}}
		}
		p, err := plan.Build(in)
		if err != nil {
			rt.Fatal(err)
		}
		return p
	}
	rapid.Check(t, func(rt *rapid.T) {
		a, b := draw(rt, "a"), draw(rt, "b")
		changes := plan.Diff(a, b)
		for _, p := range []*plan.Plan{&a, &b} {
			p.Peers, p.Problems, p.Origins = nil, nil, nil
		}
		if equal := reflect.DeepEqual(a, b); equal != (len(changes) == 0) {
			rt.Fatalf("equal %v, but changes %v", equal, changes)
		}
		back := plan.Diff(b, a)
		if len(back) != len(changes) {
			rt.Fatalf("%d changes there, %d back", len(changes), len(back))
		}
		if len(plan.Diff(a, a)) != 0 {
			rt.Fatal("a plan differs from itself")
		}
	})
}

// TestNoValueBecomesAShellCommand: names that outsiders choose stand as one word, whatever is in them.
func TestNoValueBecomesAShellCommand(t *testing.T) {
	evil := "x'; touch /tmp/heddle-was-here; $(id) `id` \n rm -rf / #"
	in := cluster(2, model.PathDirect, model.EncapNever)
	w := model.Workload{ContainerID: "c", IfName: "eth0", Namespace: evil, Name: evil, Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.9")}}
	in.Workloads = []model.Workload{w}
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	text := plan.Shell(p) + plan.ShellPod(plan.PodOf(in, w, 1500), evil)
	// Every command becomes a function that prints its words: a word that was none would run, or break the line.
	script := "set -eu\nip() { printf '[%s]' \"$@\"; echo; }\nbridge() { ip \"$@\"; }\nsysctl() { ip \"$@\"; }\nnft() { cat >/dev/null; }\nnsenter() { ip \"$@\"; }\nPATH=\n" + text
	script = strings.Replace(script, "nft() { cat >/dev/null; }", "nft() { while read -r _; do :; done; }", 1)
	out, err := exec.Command("/bin/sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	pod := plan.PodOf(in, w, 1500)
	if !strings.Contains(string(out), "["+pod.Host.Alias+"]") || !strings.Contains(string(out), "["+evil+"]") {
		t.Errorf("the names did not arrive as one word:\n%s", out)
	}
}
