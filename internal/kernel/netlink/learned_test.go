package netlink

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/plan"
)

// bgpPlan has learned routes of every form beside one that the store knows.
func bgpPlan() *plan.Plan {
	four, six := netip.MustParseAddr("192.168.0.16"), netip.MustParseAddr("fd00:192::16")
	return &plan.Plan{Routes: []plan.Route{
		{Dst: netip.MustParsePrefix("10.1.0.0/24"), Via: four, Link: "eth0"},
		{Dst: netip.MustParsePrefix("10.2.0.0/24"), Via: four, Link: "eth0", Learned: true},
		{Dst: netip.MustParsePrefix("10.3.0.0/24"), Learned: true, NextHops: []plan.NextHop{{Via: four, Link: "eth0"}, {Via: netip.MustParseAddr("192.168.0.17"), Link: "eth0"}}},
		{Dst: netip.MustParsePrefix("fd00:2::/64"), Via: six, Link: "eth0", Learned: true},
		{Dst: netip.MustParsePrefix("fd00:3::/64"), Learned: true, NextHops: []plan.NextHop{{Via: six, Link: "eth0"}, {Via: netip.MustParseAddr("fd00:192::17"), Link: "eth0"}}},
	}}
}

// TestLearnedRoutesCarryTheirOwnMarkAndAreRepaired, with one way or with several, in both families.
func TestLearnedRoutesCarryTheirOwnMarkAndAreRepaired(t *testing.T) {
	node, d := newNode(t)
	p := bgpPlan()
	apply(t, d, p)
	check := func() {
		t.Helper()
		node.wants("ip route show proto 104", "10.1.0.0/24 via 192.168.0.16 dev eth0")
		node.wants("ip route show proto 105", "10.2.0.0/24 via 192.168.0.16 dev eth0", "10.3.0.0/24", "nexthop via 192.168.0.16 dev eth0", "nexthop via 192.168.0.17 dev eth0")
		node.wants("ip -6 route show proto 105", "fd00:2::/64 via fd00:192::16 dev eth0", "fd00:3::/64", "nexthop via fd00:192::16 dev eth0", "nexthop via fd00:192::17 dev eth0")
		if n := apply(t, d, p); n != 0 {
			t.Errorf("a pass that should find nothing changed %d objects", n)
		}
	}
	check()
	for _, damage := range []string{
		"route del 10.3.0.0/24",
		"-6 route del fd00:3::/64",
		"route replace 10.3.0.0/24 via 192.168.0.17 dev eth0 proto 105",
		"-6 route replace fd00:3::/64 via fd00:192::17 dev eth0 proto 105",
		"route replace 10.3.0.0/24 proto 105 nexthop via 192.168.0.16 dev eth0 weight 5 nexthop via 192.168.0.17 dev eth0",
		"route replace 10.2.0.0/24 via 192.168.0.16 dev eth0 proto 104",
		"route replace 10.1.0.0/24 via 192.168.0.16 dev eth0 proto 105",
		"-6 route replace fd00:2::/64 proto 105 nexthop via fd00:192::16 dev eth0 nexthop via fd00:192::18 dev eth0",
		"route add 10.4.0.0/24 via 192.168.0.16 dev eth0 proto 105",
	} {
		node.ip(damage)
		if n := apply(t, d, p); n == 0 {
			t.Errorf("%s: nothing was repaired", damage)
		}
		check()
	}
	node.lacks("ip route show proto 105", "10.4.0.0/24")
	if err := d.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []string{"ip route show proto 104", "ip route show proto 105", "ip -6 route show proto 105"} {
		node.lacks(cmd, "10.", "fd00:")
	}
}

// TestLearnedRoutesStayUntilBGPHasToldAll: a restarted agent knows nothing of what its last life learned.
func TestLearnedRoutesStayUntilBGPHasToldAll(t *testing.T) {
	node, d := newNode(t)
	all := bgpPlan()
	apply(t, d, all)

	// So far one neighbour has told of one route, otherwise than before, and the store's plan has another way to a
	// block that BGP was asked for.
	part := &plan.Plan{Relearning: true, Routes: []plan.Route{
		all.Routes[0],
		{Dst: all.Routes[1].Dst, Via: netip.MustParseAddr("192.168.0.16"), Link: "eth0"},
		{Dst: all.Routes[2].Dst, Via: netip.MustParseAddr("192.168.0.17"), Link: "eth0", Learned: true},
	}}
	apply(t, d, part)
	node.wants("ip route show proto 105", "10.2.0.0/24 via 192.168.0.16 dev eth0", "10.3.0.0/24 via 192.168.0.17 dev eth0")
	node.wants("ip -6 route show proto 105", "fd00:2::/64", "fd00:3::/64")
	if n := apply(t, d, part); n != 0 {
		t.Errorf("the second pass changed %d objects", n)
	}
	// An own block is the node's own whatever is left over.
	part.Routes[1] = plan.Route{Dst: all.Routes[1].Dst, Type: plan.RouteBlackhole}
	apply(t, d, part)
	node.wants("ip route show proto 104", "blackhole 10.2.0.0/24")

	part.Relearning = false
	apply(t, d, part)
	node.lacks("ip -6 route show proto 105", "fd00:")
	node.wants("ip route show proto 105", "10.3.0.0/24 via 192.168.0.17 dev eth0")
}

// TestKernelWithoutIPIPIsNamed: a kernel that has such tunnels makes them; another one is a problem that says what
// to do, and everything else of the plan is there.
func TestKernelWithoutIPIPIsNamed(t *testing.T) {
	node, d := newNode(t)
	for _, c := range []struct {
		link  plan.Link
		route plan.Route
		kind  string
	}{
		{
			plan.Link{Name: "tunl0", Kind: plan.LinkIPIP, Alias: "heddle:ipip", MTU: 1480, IPIP: &plan.IPIPDevice{Local: netip.MustParseAddr("192.168.0.4")}},
			plan.Route{Dst: netip.MustParsePrefix("10.9.0.0/24"), Via: netip.MustParseAddr("192.168.9.9"), Link: "tunl0", OnLink: true},
			"ipip remote 192.0.2.1",
		},
		{
			plan.Link{Name: "tunl6", Kind: plan.LinkIPIP, Alias: "heddle:ipip", MTU: 1460, IPIP: &plan.IPIPDevice{Local: netip.MustParseAddr("fd00:192::4")}},
			plan.Route{Dst: netip.MustParsePrefix("fd00:9::/64"), Encap: netip.MustParseAddr("fd00:192:9::9"), Link: "tunl6"},
			"ip6tnl remote 2001:db8::1",
		},
	} {
		_, err := node.try(strings.Fields("ip link add probe type " + c.kind)...)
		_, gone := node.try("ip", "link", "del", "probe")
		has := err == nil && gone == nil
		p := &plan.Plan{Links: []plan.Link{c.link}, Routes: []plan.Route{c.route, {Dst: netip.MustParsePrefix("10.1.0.0/24"), Via: netip.MustParseAddr("192.168.0.16"), Link: "eth0"}}}
		if has {
			apply(t, d, p)
			node.wants("ip link show "+c.link.Name, "alias heddle:ipip", ",UP,")
			continue
		}
		problem := applyFor(t, d, p, "kernel-lacks-ipip")
		if want := "link " + c.link.Name; problem.Subject != want {
			t.Errorf("the problem is of %q, want %q", problem.Subject, want)
		}
		node.wants("ip route show proto 104", "10.1.0.0/24")
	}
	if err := d.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
}
