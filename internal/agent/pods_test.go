package agent

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

func TestAddNamesTheMACOfAWorkloadWithoutAWish(t *testing.T) {
	in := plan.Input{
		Self: "n1",
		Cluster: model.Cluster{
			Pools:  []model.Pool{*pool("10.244.0.0/16", 24)},
			Blocks: []model.Block{{CIDR: netip.MustParsePrefix("10.244.1.0/24"), Pool: "flannel", Node: "n1"}},
		},
	}
	w := model.Workload{ContainerID: "c1", IfName: "eth0", Attachment: model.AttachBridge, Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}
	pod := plan.PodOf(in, w, 1450)
	if got := attached(w, pod); got.Workload.MAC == "" || got.Workload.MAC != pod.MAC {
		t.Fatalf("ADD says MAC %q, the interface gets %q", got.Workload.MAC, pod.MAC)
	}
}

// twoBlocks is a node after its network moved to another range: the old block is kept for its workloads.
func twoBlocks() (model.Cluster, []model.Block) {
	c := model.Cluster{Pools: []model.Pool{*pool("10.245.0.0/16", 24)}}
	return c, []model.Block{
		{CIDR: netip.MustParsePrefix("10.244.1.0/24"), Pool: "flannel", Node: "n1"},
		{CIDR: netip.MustParsePrefix("10.244.2.0/24"), Pool: "gone", Node: "n1"},
		{CIDR: netip.MustParsePrefix("10.245.1.0/25"), Pool: "flannel", Node: "n1"},
		{CIDR: netip.MustParsePrefix("10.245.1.0/24"), Pool: "flannel", Node: "n1"},
	}
}

func TestNewWorkloadsStayOutOfBlocksThatTheirPoolsHaveNoMore(t *testing.T) {
	c, own := twoBlocks()
	if got, err := inUse(c, own); err != nil || len(got) != 1 || got[0] != own[3] {
		t.Fatalf("blocks for new workloads: %v, %v: want only %v", got, err, own[3])
	}
	own = append(own[:3], model.Block{CIDR: netip.MustParsePrefix("fd00:1::/64"), Pool: "flannel6", Node: "n1"})
	c.Pools = append(c.Pools, model.Pool{Name: "flannel6", CIDR: netip.MustParsePrefix("fd00::/16"), BlockSize: 64})
	var refused *cni.Error
	if got, err := inUse(c, own); !errors.As(err, &refused) || refused.Code != cni.CodeTryAgainLater {
		t.Fatalf("while the new IPv4 block is missing: %v, %v: want the workload to wait for it", got, err)
	}
}

func TestAddNamesNoRouteThatTheInterfaceDoesNotGet(t *testing.T) {
	c, own := twoBlocks()
	c.Blocks = own[3:]
	w := model.Workload{ContainerID: "c1", IfName: "eth0", Attachment: model.AttachBridge, Addresses: []netip.Addr{
		netip.MustParseAddr("fd00::2"), // of a block that is gone: its gateway is nobody
		netip.MustParseAddr("10.245.1.2"),
	}}
	got := attached(w, plan.PodOf(plan.Input{Self: "n1", Cluster: c}, w, 1450))
	if len(got.Routes) != 1 || !got.Routes[0].Addr().Is4() {
		t.Fatalf("routes %v, want the IPv4 default alone", got.Routes)
	}
}
