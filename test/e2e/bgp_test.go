package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
	"github.com/heddle-net/heddle/internal/plan"
)

// ipPools are two pools in Calico's words, of blocks as Calico's, carried as told.
func ipPools(how string) string {
	pool := func(name, cidr string, size int) string {
		return fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: %s}
spec: {cidr: %q, blockSize: %d, natOutgoing: true, %s}
---`, name, cidr, size, how)
	}
	return pool("default-ipv4", "10.244.0.0/16", 26) + pool("default-ipv6", "fd00:244::/48", 122)
}

const (
	unencapsulated = "ipipMode: Never, vxlanMode: Never"
	// toReflectors and meshOff make n1 and n2 the route reflectors of everybody: upCalico gives them a cluster id and
	// the label.
	toReflectors = `
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: to-reflectors}
spec: {nodeSelector: all(), peerSelector: has(reflector)}
`
	meshOff = `
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
`
)

// upCalico brings up a lab whose network is said in Calico's words.
func upCalico(t *testing.T, topology, objects string, change ...func(*lab.Spec)) (context.Context, *lab.Lab) {
	t.Helper()
	return up(t, topology, "", append([]func(*lab.Spec){func(s *lab.Spec) {
		s.Objects, s.Attachment = objects, string(model.AttachRouted)
		for i := range s.Topology.Nodes[:2] {
			n := &s.Topology.Nodes[i]
			n.Labels, n.ClusterID = map[string]string{"reflector": "yes"}, netip.AddrFrom4([4]byte{244, 0, 0, 1})
		}
	}}, change...)...)
}

// apply has a node write objects into the store.
func apply(ctx context.Context, t *testing.T, l *lab.Lab, objects string) {
	t.Helper()
	cmd, err := l.Command(ctx, l.Nodes()[0], "heddle", "apply", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = strings.NewReader(objects)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("heddle apply: %v\n%s", err, out)
	}
}

// allPathsAre wants every node to reach every other by one path.
func allPathsAre(ctx context.Context, l *lab.Lab, want model.Path) error {
	for _, node := range l.Nodes() {
		paths := map[string]model.Path{}
		for _, other := range l.Nodes() {
			if other != node {
				paths[other] = want
			}
		}
		if err := pathsAre(ctx, l, node, paths); err != nil {
			return err
		}
	}
	return nil
}

// speaks wants a node to have so many sessions, all of them established and nothing to be waited for.
func speaks(ctx context.Context, l *lab.Lab, node string, sessions int) error {
	s, err := l.Status(ctx, node)
	if err != nil {
		return err
	}
	if s.BGP == nil || len(s.BGP.Neighbors) != sessions || s.BGP.Relearning {
		return fmt.Errorf("%s speaks: %+v, want %d sessions and all told", node, s.BGP, sessions)
	}
	for _, n := range s.BGP.Neighbors {
		if n.State != peering.Established {
			return fmt.Errorf("%s: session with %s is %s: %s", node, n.Address, n.State, n.Failure)
		}
	}
	return nil
}

// TestBGPCarriesRoutedPods, in both families (walkthrough F): every node has learned the others' blocks, the kernel has
// them as routes with a mark of their own, and heddle routes says of each where it came from.
func TestBGPCarriesRoutedPods(t *testing.T) {
	ctx, l := upCalico(t, "flat", ipPools(unencapsulated))
	for _, node := range l.Nodes() {
		eventually(t, 60*time.Second, node+" speaks to both others", func() error { return speaks(ctx, l, node, 2) })
	}
	eventually(t, 60*time.Second, "everybody has heard of everybody by BGP", func() error { return allPathsAre(ctx, l, model.PathBGP) })
	reach(ctx, t, l)
	eventually(t, 60*time.Second, "the kernel and heddle routes have what BGP told", func() error {
		for _, peer := range status(ctx, t, l, "n1").Peers {
			if err := isLearned(ctx, t, l, peer.Peer); err != nil {
				return err
			}
		}
		return nil
	})
	for _, p := range pods(t, l) {
		gateway := run(ctx, t, l, p.Name, "ip", "-4", "route", "show", "default")
		if !strings.HasPrefix(gateway, "default via 169.254.1.1 dev eth0") {
			t.Errorf("%s: %s, want Calico's gateway (walkthrough E)", p.Name, gateway)
		}
	}
	eventually(t, 60*time.Second, "the metrics tell of two sessions and four routes", func() error {
		metrics := run(ctx, t, l, "n1", "curl", "-s", "--unix-socket", "/run/heddle/agent.sock", "http://agent/metrics")
		if n := strings.Count(metrics, "\nheddle_bgp_session_up{"); n != 2 || !strings.Contains(metrics, "\nheddle_bgp_routes 4\n") {
			return fmt.Errorf("%d sessions, want 2, and heddle_bgp_routes 4", n)
		}
		return nil
	})
}

// isLearned wants n1's kernel to have a peer's block by BGP, with the mark of that, and heddle routes to say so.
func isLearned(ctx context.Context, t *testing.T, l *lab.Lab, peer plan.Peer) error {
	t.Helper()
	family := "-" + string(model.FamilyOf(peer.Block.Addr()).String()[3])
	route := run(ctx, t, l, "n1", "ip", family, "route", "show", peer.Block.String())
	if want := fmt.Sprintf("%s via %s dev eth0 proto 105", peer.Block, peer.Via); !strings.Contains(route, want) {
		return fmt.Errorf("the kernel of n1 has %q, want %q", route, want)
	}
	said := run(ctx, t, l, "n1", "heddle", "routes", peer.Block.String())
	for _, want := range []string{
		fmt.Sprintf(`(?m)^\* %s +%s +bgp: \S+ \(node %s\)`, regexp.QuoteMeta(peer.Block.String()), regexp.QuoteMeta(peer.Via.String()), peer.Node),
		fmt.Sprintf(`(?m)^  %s .* store: node %s `, regexp.QuoteMeta(peer.Block.String()), peer.Node),
	} {
		if !regexp.MustCompile(want).MatchString(said) {
			return fmt.Errorf("heddle routes %s:\n%swant %s", peer.Block, said, want)
		}
	}
	return nil
}

// TestBGPInCalicosWordsChangesUnderLoad: VXLAN, its direct half, BGP; a mesh, then route reflectors; an agent that is
// killed. No connection breaks, and no ping is lost.
func TestBGPInCalicosWordsChangesUnderLoad(t *testing.T) {
	ctx, l := upCalico(t, "flat", ipPools("vxlanMode: Always"))
	eventually(t, 60*time.Second, "vxlan", func() error { return allPathsAre(ctx, l, model.PathVXLAN) })
	all := pods(t, l)
	ld := startLoad(ctx, t, l, all[0], all[2], 45)

	apply(ctx, t, l, ipPools("vxlanMode: CrossSubnet"))
	eventually(t, 60*time.Second, "direct", func() error { return allPathsAre(ctx, l, model.PathDirect) })
	apply(ctx, t, l, ipPools(unencapsulated))
	eventually(t, 60*time.Second, "bgp", func() error { return allPathsAre(ctx, l, model.PathBGP) })
	apply(ctx, t, l, toReflectors)
	apply(ctx, t, l, meshOff)
	took := eventually(t, 60*time.Second, "n3 speaks to the reflectors alone", func() error {
		s := status(ctx, t, l, "n3")
		if s.BGP == nil || !strings.HasPrefix(s.BGP.Mode, "no mesh") {
			return fmt.Errorf("%+v", s.BGP)
		}
		return speaks(ctx, l, "n3", 2)
	})
	t.Logf("by reflectors after %s", took.Round(time.Millisecond))
	eventually(t, 60*time.Second, "bgp by reflectors", func() error { return allPathsAre(ctx, l, model.PathBGP) })
	restart(ctx, t, l, "n3", syscall.SIGKILL)
	eventually(t, 60*time.Second, "n3 has learned everything again", func() error { return speaks(ctx, l, "n3", 2) })
	apply(ctx, t, l, ipPools("vxlanMode: Always"))
	eventually(t, 60*time.Second, "vxlan again", func() error { return allPathsAre(ctx, l, model.PathVXLAN) })
	ld.done(t)
}

// TestBGPNamesWhatIsOutOfReachWithoutEncapsulation: in another segment, with a router between that has not learned the
// routes, packets would be lost; the node says so, and what to do, and CrossSubnet is the way out.
func TestBGPNamesWhatIsOutOfReachWithoutEncapsulation(t *testing.T) {
	ctx, l := upCalico(t, "two-segments", ipPools(unencapsulated), func(s *lab.Spec) { s.Pods = 0 })
	eventually(t, 60*time.Second, "n1 says that n3 is out of reach", func() error {
		return problem(ctx, l, "n1", "bgp-nexthop-unreachable", "it is in no segment of this node")
	})
	eventually(t, 60*time.Second, "it does not say as well that BGP has not told", func() error {
		if problem(ctx, l, "n1", "bgp-route-missing", "") == nil {
			return fmt.Errorf("%v", status(ctx, t, l, "n1").Problems)
		}
		return nil
	})
	if err := pathsAre(ctx, l, "n1", map[string]model.Path{"n2": model.PathBGP}); err != nil {
		t.Error(err)
	}
	apply(ctx, t, l, ipPools("vxlanMode: CrossSubnet"))
	eventually(t, 60*time.Second, "tunnelled between segments only", func() error {
		return pathsAre(ctx, l, "n1", map[string]model.Path{"n2": model.PathDirect, "n3": model.PathVXLAN})
	})
}

// torConf is a router in the words of BIRD 2: it speaks to any node of the two segments, and puts what they tell into
// its kernel. It tells rack a of rack b's segment, and of a network behind a router there, whose address it keeps.
const torConf = `router id 192.168.100.1;
protocol device {}
protocol kernel { ipv4 { import none; export all; }; }
protocol static { ipv4 { preference 10; }; route 10.77.0.0/16 blackhole; route 192.168.200.0/24 blackhole; }
template bgp node { local as 65000; direct; passive; ipv4 { import all; export where source = RTS_BGP; next hop self; }; }
template bgp rack_a from node { ipv4 { next hop self off; export filter { if net = 10.77.0.0/16 then bgp_next_hop = 192.168.200.7; accept; }; }; }
protocol bgp n1 from rack_a { local 192.168.100.1 as 65000; neighbor 192.168.100.100 as 65001; }
protocol bgp n2 from rack_a { local 192.168.100.1 as 65000; neighbor 192.168.100.101 as 65002; }
protocol bgp n3 from node { local 192.168.200.1 as 65000; neighbor 192.168.200.101 as 65003; }
`

// toRouter has every node speak to the router of its segment, and to nobody else.
const toRouter = `
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: rack-a}
spec: {nodeSelector: segment == "a", peerIP: 192.168.100.1, asNumber: 65000}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: rack-b}
spec: {nodeSelector: segment == "b", peerIP: 192.168.200.1, asNumber: 65000}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: default}
spec: {cidr: 10.244.0.0/16, ipipMode: Never, vxlanMode: Never}
`

// TestBGPRouterCarriesPodsBetweenSegments: with BIRD as the top-of-rack switch, and a node an AS, no
// packet is wrapped between segments (walkthrough F). A node that is killed keeps its pods reachable.
func TestBGPRouterCarriesPodsBetweenSegments(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "bird.conf")
	if err := os.WriteFile(conf, []byte(torConf), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, l := upCalico(t, "two-segments", toRouter, func(s *lab.Spec) {
		for i := range s.Topology.Nodes {
			n := &s.Topology.Nodes[i]
			n.ASN, n.ClusterID, n.Labels = uint32(65001+i), netip.Addr{}, map[string]string{"segment": n.Segment}
		}
	})
	bird, err := l.Command(ctx, "router", "bird", "-f", "-c", conf, "-s", filepath.Join(filepath.Dir(conf), "bird.ctl"))
	if err != nil {
		t.Fatal(err)
	}
	var said syncBuffer
	bird.Stdout, bird.Stderr = &said, &said
	if err := bird.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = bird.Process.Kill()
		_ = bird.Wait()
		if t.Failed() {
			t.Logf("bird: %s", said.String())
		}
	})
	eventually(t, 60*time.Second, "everybody has heard of everybody by the router", func() error { return allPathsAre(ctx, l, model.PathBGP) })
	reach(ctx, t, l)
	all := pods(t, l)
	onTheWire(ctx, t, l, all[0], all[2], model.IPv4, "bare")
	route := run(ctx, t, l, "n1", "ip", "route", "get", all[2].Address(model.IPv4).String())
	if !strings.Contains(route, "via 192.168.100.1 dev eth0") {
		t.Errorf("n1 reaches %s by %s, want the router", all[2].Name, route)
	}
	eventually(t, 60*time.Second, "n1 reaches a network whose next hop is behind the router", func() error {
		route := run(ctx, t, l, "n1", "ip", "-4", "route", "show", "10.77.0.0/16")
		said := run(ctx, t, l, "n1", "heddle", "routes", "10.77.0.0/16")
		want := "* 10.77.0.0/16 192.168.200.7 over 192.168.200.0/24, by 192.168.100.1"
		for _, part := range strings.Fields(want) {
			if !strings.Contains(said, part) {
				return fmt.Errorf("heddle routes:\n%swant %s", said, want)
			}
		}
		if !strings.Contains(route, "via 192.168.100.1 dev eth0 proto 105") {
			return fmt.Errorf("the kernel of n1 has %q, want the router", route)
		}
		return nil
	})
	ld := startLoad(ctx, t, l, all[0], all[2], 15)
	restart(ctx, t, l, "n3", syscall.SIGKILL)
	eventually(t, 60*time.Second, "n3 has learned everything again", func() error { return speaks(ctx, l, "n3", 1) })
	ld.done(t)
}
