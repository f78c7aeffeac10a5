//go:build vm

package netlink

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// town is three nodes, the first two in one segment, the third behind a router, in both families.
type town struct {
	nodes   [3]*space
	drivers [3]*Driver
	cluster model.Cluster
}

func nodeAddresses(i int) (v4, v6 netip.Prefix) {
	segment := 1 + i/2
	return netip.MustParsePrefix(fmt.Sprintf("192.168.%d.%d/24", segment, 10+i)), netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::%d/64", segment, 10+i))
}

func newTown(t *testing.T) *town {
	w, router := &town{}, newSpace(t)
	router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for s := 1; s <= 2; s++ {
		router.ip(fmt.Sprintf("link add seg%d type bridge", s))
		router.ip(fmt.Sprintf("link set seg%d up", s))
		router.ip(fmt.Sprintf("addr add 192.168.%d.1/24 dev seg%d", s, s))
		router.ip(fmt.Sprintf("addr add 2001:db8:%d::1/64 dev seg%d nodad", s, s))
	}
	for i := range w.nodes {
		n := newSpace(t)
		w.nodes[i] = n
		v4, v6 := nodeAddresses(i)
		wire(n, "eth0", router, fmt.Sprintf("n%d", i))
		router.ip(fmt.Sprintf("link set n%d master seg%d", i, 1+i/2))
		n.ip("addr add " + v4.String() + " dev eth0")
		n.ip("addr add " + v6.String() + " dev eth0 nodad")
		n.ip(fmt.Sprintf("route add default via 192.168.%d.1", 1+i/2))
		n.ip(fmt.Sprintf("-6 route add default via 2001:db8:%d::1", 1+i/2))
		n.run("nft", "table inet count { chain input { type filter hook input priority 0; meta l4proto 4 counter; meta l4proto 41 counter; }; }")
		d, err := New(Options{NS: n.fd()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Close)
		w.drivers[i] = d
		name := fmt.Sprintf("n%d", i)
		w.cluster.Nodes = append(w.cluster.Nodes, model.Node{Name: name, Address4: v4.Addr(), Address6: v6.Addr(), Accepts: []model.Path{model.PathIPIP}})
		for pool, f := range map[string]string{"four": "10.244.%d.0/26", "six": "fd00:244:0:%d::/122"} {
			w.cluster.Blocks = append(w.cluster.Blocks, model.Block{CIDR: netip.MustParsePrefix(fmt.Sprintf(f, i+1)), Pool: pool, Node: name})
		}
	}
	for name, cidr := range map[string]string{"four": "10.244.0.0/16", "six": "fd00:244::/48"} {
		w.cluster.Pools = append(w.cluster.Pools, model.Pool{Name: name, CIDR: netip.MustParsePrefix(cidr), BlockSize: 26, Path: model.PathIPIP, Encap: model.EncapAlways})
	}
	w.cluster.Sort()
	return w
}

func (w *town) plan(t *testing.T, i int) *plan.Plan {
	t.Helper()
	v4, v6 := nodeAddresses(i)
	in := plan.Input{Self: fmt.Sprintf("n%d", i), Cluster: w.cluster, Attachment: model.AttachRouted}
	in.Host.Uplinks = []model.Uplink{{Link: "eth0", Prefix: v4, MTU: 1500}, {Link: "eth0", Prefix: v6, MTU: 1500}}
	p, err := plan.Build(in)
	if err != nil || len(p.Problems) > 0 {
		t.Fatalf("%v, %v", err, p.Problems)
	}
	return &p
}

// apply makes the network so that blocks go through the tunnel always, or between segments.
func (w *town) apply(t *testing.T, e model.Encap) {
	t.Helper()
	for i := range w.cluster.Pools {
		w.cluster.Pools[i].Encap = e
	}
	for i, d := range w.drivers {
		p := w.plan(t, i)
		apply(t, d, p)
		if n := apply(t, d, p); n != 0 {
			t.Errorf("node %d: the second pass changed %d objects", i, n)
		}
	}
}

// ends are the addresses that a node's tunnel devices have, which are in its blocks.
func ends(i int) []string {
	return []string{fmt.Sprintf("10.244.%d.0", i+1), fmt.Sprintf("fd00:244:0:%d::", i+1)}
}

// unwrapped counts the packets of IP in IP that a node has received, by family.
func unwrapped(t *testing.T, n *space) (counts [2]int) {
	t.Helper()
	words := strings.Fields(n.run("nft", "list", "table", "inet", "count"))
	at := 0
	for i, word := range words {
		if word == "packets" && at < 2 {
			v, err := strconv.Atoi(words[i+1])
			if err != nil {
				t.Fatal(err)
			}
			counts[at] = v
			at++
		}
	}
	return counts
}

// exchange pings from one node's block to another's and back, and tells in which families it went by IP in IP.
func (w *town) exchange(t *testing.T, from, to int, args ...string) (wrapped [2]bool) {
	t.Helper()
	before := unwrapped(t, w.nodes[to])
	for f, dst := range ends(to) {
		ping := append([]string{"ping", "-n", "-c", "2", "-w", "60", "-i", "0.2", "-I", ends(from)[f]}, args...)
		w.nodes[from].run(append(ping, dst)...)
	}
	after := unwrapped(t, w.nodes[to])
	for f := range wrapped {
		wrapped[f] = after[f] > before[f]
	}
	return wrapped
}

// TestPlannedIPIPCarriesPacketsBetweenNodes: walkthrough G, in both families.
func TestPlannedIPIPCarriesPacketsBetweenNodes(t *testing.T) {
	w := newTown(t)
	both, none := [2]bool{true, true}, [2]bool{}
	for _, c := range []struct {
		encap      model.Encap
		near, away [2]bool
	}{{model.EncapAlways, both, both}, {model.EncapCrossSubnet, none, both}, {model.EncapAlways, both, both}} {
		w.apply(t, c.encap)
		if got := w.exchange(t, 0, 1); got != c.near {
			t.Errorf("%s, same segment: IP in IP %v, want %v", c.encap, got, c.near)
		}
		if got := w.exchange(t, 0, 2); got != c.away {
			t.Errorf("%s, another segment: IP in IP %v, want %v", c.encap, got, c.away)
		}
		w.exchange(t, 2, 1)
	}
	// The largest packet that a workload would be allowed goes through in one piece.
	mtu := w.plan(t, 0).MTU
	if mtu != 1460 {
		t.Errorf("workloads get %d bytes, want 1460: IPv6 in IPv6 takes 40", mtu)
	}
	w.nodes[0].run("ping", "-n", "-c", "1", "-w", "60", "-M", "do", "-s", strconv.Itoa(1480-28), ends(2)[0])
	w.nodes[0].run("ping", "-n", "-c", "1", "-w", "60", "-M", "do", "-s", strconv.Itoa(1460-48), ends(2)[1])
	w.nodes[0].wants("ip route show proto 104", "10.244.3.0/26 via 192.168.2.12 dev tunl0 onlink", "blackhole 10.244.1.0/26")
	w.nodes[0].wants("ip -6 route show proto 104", "fd00:244:0:3::/122  encap ip6", "dst 2001:db8:2::12", "dev tunl6")
}

// TestIPIPIsRepairedAndGivenBack: what somebody changes is mended, and tunl0, which the kernel does not let go of, is
// left as it was found.
func TestIPIPIsRepairedAndGivenBack(t *testing.T) {
	w := newTown(t)
	w.apply(t, model.EncapAlways)
	n, d, p := w.nodes[0], w.drivers[0], w.plan(t, 0)
	for _, damage := range []string{
		"link set tunl0 down", "link set tunl6 down", "link set tunl0 mtu 1400", "link set tunl0 alias other", "link del tunl6",
		"addr flush dev tunl0", "addr flush dev tunl6", "route del 10.244.2.0/26",
		"route replace 10.244.2.0/26 via 192.168.2.12 dev tunl0 onlink proto 104",
		"-6 route del fd00:244:0:2::/122",
		"-6 route replace fd00:244:0:2::/122 encap ip6 dst 2001:db8:2::12 dev tunl6 proto 104",
		"-6 route replace fd00:244:0:2::/122 via 2001:db8:1::1 dev eth0 proto 104",
	} {
		n.ip(damage)
		if apply(t, d, p) == 0 {
			t.Errorf("%s: nothing was repaired", damage)
		}
		if again := apply(t, d, p); again != 0 {
			t.Errorf("%s: the pass after the repair changed %d objects", damage, again)
		}
	}
	w.exchange(t, 0, 1)

	// A route of another program's into tunl0, as BIRD leaves them, is ours with the device.
	n.ip("route replace 10.244.2.0/26 via 192.168.2.12 dev tunl0 onlink proto bird")
	apply(t, d, p)
	n.wants("ip route show proto 104", "10.244.2.0/26 via 192.168.1.11 dev tunl0 onlink")

	apply(t, d, &plan.Plan{})
	given := func() {
		t.Helper()
		n.lacks("ip link show", "heddle:", "tunl6")
		n.lacks("ip address show dev tunl0", "10.244", "UP")
		n.lacks("ip route show", "10.244")
		n.lacks("ip -6 route show", "fd00:244")
		if changed := apply(t, d, &plan.Plan{}); changed != 0 {
			t.Errorf("one more empty pass changed %d objects", changed)
		}
	}
	given()
	apply(t, d, p)
	w.exchange(t, 0, 2)
	if err := d.Sweep(context.Background()); err != nil {
		t.Error(err)
	}
	given()
	apply(t, d, p)
	w.exchange(t, 0, 2)
}

// TestIPIPSpeaksWithAPlainTunnel: at the other end is one that somebody made by hand.
func TestIPIPSpeaksWithAPlainTunnel(t *testing.T) {
	w := newTown(t)
	apply(t, w.drivers[0], w.plan(t, 0))
	peer := w.nodes[2]
	for _, c := range []struct{ name, make string }{
		{"plain", "ip6tnl mode ip6ip6 encaplimit none"},
		{"with the option that limits encapsulation", "ip6tnl mode ip6ip6"},
	} {
		peer.ip("link add hand type ipip local 192.168.2.12 remote 192.168.1.10")
		peer.ip("link add hand6 type " + c.make + " local 2001:db8:2::12 remote 2001:db8:1::10")
		for f, link := range []string{"hand", "hand6"} {
			peer.ip("link set " + link + " up")
			peer.ip("addr add " + ends(2)[f] + " dev " + link + []string{"", " nodad"}[f])
			peer.ip("route add " + []string{"10.244.1.0/26", "fd00:244:0:1::/122"}[f] + " dev " + link)
		}
		if got := w.exchange(t, 0, 2); got != [2]bool{true, true} {
			t.Errorf("%s: to the plain tunnel: IP in IP %v", c.name, got)
		}
		if got := w.exchange(t, 2, 0); got != [2]bool{true, true} {
			t.Errorf("%s: from the plain tunnel: IP in IP %v", c.name, got)
		}
		peer.ip("link del hand")
		peer.ip("link del hand6")
	}
}

// TestSeveralWaysIntoTunnels: BGP tells of two next hops for one destination, and both are used.
func TestSeveralWaysIntoTunnels(t *testing.T) {
	w := newTown(t)
	w.apply(t, model.EncapAlways)
	p := w.plan(t, 0)
	p.Routes = append(p.Routes, plan.Route{Dst: netip.MustParsePrefix("10.244.9.0/26"), Learned: true, NextHops: []plan.NextHop{
		{Via: netip.MustParseAddr("192.168.1.11"), Link: "tunl0", OnLink: true}, {Via: netip.MustParseAddr("192.168.2.12"), Link: "tunl0", OnLink: true},
	}})
	apply(t, w.drivers[0], p)
	w.nodes[0].wants("ip route show proto 105", "10.244.9.0/26", "nexthop via 192.168.1.11 dev tunl0 weight 1 onlink", "nexthop via 192.168.2.12 dev tunl0 weight 1 onlink")
	if n := apply(t, w.drivers[0], p); n != 0 {
		t.Errorf("the second pass changed %d objects", n)
	}
}
