package netlink

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/heddle-net/heddle/internal/plan"
)

func TestBridgeHandsPacketsToTheFilterWhilePlanned(t *testing.T) {
	node, d := newNode(t)
	var policed atomic.Bool
	wanted := func() *plan.Plan {
		p := tunnelPlan(0)
		p.Links[0].NFCall = policed.Load()
		return p
	}
	both := func(state string) []string {
		return []string{"nf_call_iptables " + state, "nf_call_ip6tables " + state}
	}
	apply(t, d, wanted())
	node.wants("ip -d link show cni0", both("0")...)
	policed.Store(true)
	if n := apply(t, d, wanted()); n != 1 {
		t.Errorf("changed %d objects, want the bridge only", n)
	}
	node.wants("ip -d link show cni0", both("1")...)
	if n := apply(t, d, wanted()); n != 0 {
		t.Errorf("a second pass changed %d objects", n)
	}
	node.run("ip", "link", "del", "cni0") // and one that is made with it
	apply(t, d, wanted())
	node.wants("ip -d link show cni0", both("1")...)

	policed.Store(false)
	apply(t, d, wanted())
	node.wants("ip -d link show cni0", both("0")...)
	policed.Store(true)
	apply(t, d, wanted())
	loop(t, d, wanted)
	for _, spoil := range both("0") {
		node.run(append([]string{"ip", "link", "set", "cni0", "type", "bridge"}, strings.Fields(spoil)...)...)
		eventually(t, "the setting is back after "+spoil, func() bool {
			out := node.ip("-d link show cni0")
			return strings.Contains(out, both("1")[0]) && strings.Contains(out, both("1")[1])
		})
	}
}
