package netlink

import (
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/internal/plan"
)

// TestPlanFromMemoryTakesNoWayAway: an agent that starts without the store may remember less than its
// kernel has, and what is older. That stays, what is missing is made, and the first plan from the store's
// state sweeps again.
func TestPlanFromMemoryTakesNoWayAway(t *testing.T) {
	node, d := newNode(t)
	now := tunnelPlan(3)
	apply(t, d, now)

	// The third peer was not known yet, and there was no IPv6; the first peer was in another place.
	memory := &plan.Plan{Recalled: true, Sysctls: now.Sysctls[:1]}
	memory.Links = append(memory.Links, now.Links[0], now.Links[2])
	memory.Addresses = append(memory.Addresses, now.Addresses[0], now.Addresses[3])
	memory.Routes = []plan.Route{
		{Dst: netip.MustParsePrefix("10.245.1.0/24"), Via: netip.MustParseAddr("192.168.0.16"), Link: "eth0"},
		{Dst: netip.MustParsePrefix("10.245.2.0/24"), Via: netip.MustParseAddr("10.245.2.0"), Link: "flannel.1", OnLink: true},
	}
	memory.Neighbors = []plan.Neighbor{
		{Link: "flannel.1", IP: netip.MustParseAddr("10.245.1.0"), MAC: "02:00:00:00:99:99"},
		{Link: "flannel.1", IP: netip.MustParseAddr("10.245.2.0"), MAC: mac(2)},
	}
	memory.FDB = []plan.FDB{
		{Link: "flannel.1", MAC: mac(1), Dst: netip.MustParseAddr("192.168.99.99")},
		{Link: "flannel.1", MAC: mac(2), Dst: netip.MustParseAddr("192.168.10.2")},
	}
	if n := apply(t, d, memory); n != 0 {
		t.Errorf("the plan from memory changed %d objects", n)
	}
	if n := apply(t, d, now); n != 0 {
		t.Errorf("after the plan from memory %d objects had to be made again", n)
	}

	node.ip("route del 10.245.2.0/24")
	node.ip("neigh del 10.245.2.0 dev flannel.1")
	if n := apply(t, d, memory); n != 2 {
		t.Errorf("%d objects changed, want the missing route and neighbour", n)
	}
	memory.Recalled = false
	apply(t, d, memory)
	node.lacks("ip route show proto 104", "10.245.3.0/24")
	node.lacks("bridge fdb show dev flannel.1", "192.168.10.3")
	node.lacks("ip link", "flannel-v6.1")
	node.wants("ip route show proto 104", "10.245.1.0/24 via 192.168.0.16 dev eth0")
	node.wants("ip neigh show dev flannel.1", "10.245.1.0 lladdr 02:00:00:00:99:99 PERMANENT")
	node.wants("bridge fdb show dev flannel.1", "02:00:00:00:00:01 dst 192.168.99.99")
}
