package bgp

import (
	"testing"

	"github.com/heddle-net/heddle/internal/peering"
)

func TestTwoSpeakersTellEachOtherTheirBlocks(t *testing.T) {
	a := newNode(t, 1, "10.244.1.0/26", "fd44:0:0:1::/122").knows(at(2), nil).speak()
	b := newNode(t, 2, "10.244.2.0/26", "fd44:0:0:2::/122").knows(at(1), func(n *peering.Neighbor) { n.Node = "n1" })
	b.plan.Announced[0].Communities = []peering.Community{{A: 64512, B: 7}, {Large: true, A: 64512, B: 1, C: 2}}
	b.speak()
	until(t, "a has b's blocks", func() bool {
		return a.best("10.244.2.0/26") == "10.99.0.2" && a.best("fd44:0:0:2::/122") == "fd99::2"
	})
	until(t, "b has a's blocks", func() bool {
		return b.best("10.244.1.0/26") == "10.99.0.1" && b.best("fd44:0:0:1::/122") == "fd99::1"
	})
	if r := a.to("10.244.2.0/26")[0]; len(r.Communities) != 2 || r.Communities[0] != b.plan.Announced[0].Communities[0] || r.Communities[1] != b.plan.Announced[0].Communities[1] {
		t.Errorf("communities: %v", r.Communities)
	}
	until(t, "all was told", func() bool { return a.Settled() && b.Settled() })
	if s := a.status(at(2)); s.State != peering.Established || s.Received != 2 || s.Accepted != 2 || s.Sent != 2 || s.Flaps != 0 {
		t.Errorf("status: %+v", s)
	}
	b.plan.Announced = b.plan.Announced[1:]
	b.apply()
	until(t, "what b withdrew is gone", func() bool { return len(a.to("10.244.2.0/26")) == 0 && a.best("fd44:0:0:2::/122") != "" })
	b.plan.Neighbors = nil
	b.apply()
	until(t, "a knows that b wants it no more", func() bool {
		return a.status(at(2)).State != peering.Established && len(a.Routes()) == 0 && a.status(at(2)).Failure != ""
	})
	t.Log(a.status(at(2)).Failure)
}
