package netlink

import (
	"context"
	"math"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// limited is pod i with a rate in each direction.
func limited(i int, in, out plan.Queue) plan.Pod {
	p := bridged(i)
	p.HostQueue, p.Queue = &in, &out
	return p
}

// TestBandwidthIsWhatTheKernelHasAndVerifyNeeds: both ends get their bucket, for rates and bursts of every size that a
// runtime may ask for, and Verify tells when one of them is another or none.
func TestBandwidthIsWhatTheKernelHasAndVerifyNeeds(t *testing.T) {
	node, d := newNode(t)
	apply(t, d, bridgePlan())
	pods := newPods(t, node)
	for i, q := range []plan.Queue{
		{Rate: 1_250_000, Burst: 125_000, Limit: 64 << 10},
		{Rate: 1_250_000, Burst: math.MaxUint32 / 8, Limit: 64 << 10},
		{Rate: 125, Burst: math.MaxUint32, Limit: 64 << 10},
		{Rate: 100_000_000_000, Burst: 1500, Limit: math.MaxUint32},
		{Rate: 125_000_000_000_000, Burst: math.MaxUint32, Limit: math.MaxUint32},
	} {
		inside := newSpace(t)
		pod := limited(i+2, q, plan.Queue{Rate: 2_500_000, Burst: 250_000, Limit: 64 << 10})
		attach(t, pods, inside, pod)
		verify := func() error { return pods.Verify(context.Background(), inside.file, pod) }
		if err := verify(); err != nil {
			t.Errorf("%+v: %v", q, err)
			continue
		}
		for _, damage := range []func(){
			func() { node.run("tc", "qdisc", "del", "dev", pod.Host.Name, "root") },
			func() {
				node.run("tc", "qdisc", "replace", "dev", pod.Host.Name, "root", "tbf", "rate", "1mbit", "burst", "100000", "limit", "65536")
			},
			func() { node.run("tc", "qdisc", "replace", "dev", pod.Host.Name, "root", "pfifo", "limit", "9") },
		} {
			damage()
			if err := verify(); err == nil || !strings.Contains(err.Error(), "host end "+pod.Host.Name+": bandwidth: ") {
				t.Errorf("%+v: another queue on the host end is no difference: %v", q, err)
			}
		}
		if err := pods.Detach(context.Background(), pod.Host.Name); err != nil {
			t.Fatal(err)
		}
		attach(t, pods, inside, pod)
		inside.run("tc", "qdisc", "del", "dev", "eth0", "root")
		if err := verify(); err == nil || !strings.Contains(err.Error(), "interface eth0: bandwidth: ") {
			t.Errorf("%+v: no queue inside is no difference: %v", q, err)
		}
	}
}

// TestKernelWithoutTheQueueGetsNoHalfWorkload: the feature is named, and nothing is left.
func TestKernelWithoutTheQueueGetsNoHalfWorkload(t *testing.T) {
	node, d := newNode(t)
	apply(t, d, bridgePlan())
	pods := newPods(t, node)
	pods.bucket = "no-tbf"
	q := plan.Queue{Rate: 1_250_000, Burst: 125_000, Limit: 64 << 10}
	for _, pod := range []plan.Pod{limited(2, q, q), func() plan.Pod { p := limited(3, q, q); p.HostQueue = nil; return p }()} {
		inside := newSpace(t)
		err := pods.Attach(context.Background(), inside.file, pod)
		if err == nil || !strings.Contains(err.Error(), "token bucket filter (CONFIG_NET_SCH_TBF") || !strings.Contains(err.Error(), unix.ENOENT.Error()) {
			t.Errorf("error %v", err)
		}
		node.lacks("ip link", pod.Host.Name)
		inside.lacks("ip link", "eth0")
	}
}
