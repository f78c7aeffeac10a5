package bgp

import (
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/peering"
)

// TestNeighborThatComesBackIsCountedAnew: what it told in an earlier life does not add to what it tells in this one,
// and what it took back does not count.
func TestNeighborThatComesBackIsCountedAnew(t *testing.T) {
	x := newNode(t, 1).knows(at(2), func(n *peering.Neighbor) { n.MaxPrefixes = 3 }).speak()
	told := func(announced ...string) *node { return newNode(t, 2, announced...).knows(at(1), nil).speak() }
	has := func(announced ...string) {
		t.Helper()
		until(t, "all are there: "+strings.Join(announced, " "), func() bool {
			for _, a := range announced {
				if x.best(a) == "" {
					return false
				}
			}
			return len(x.Routes()) == len(announced) && x.status(at(2)).State == peering.Established
		})
	}
	first := told("10.244.1.0/26", "10.244.2.0/26", "10.244.3.0/26")
	has("10.244.1.0/26", "10.244.2.0/26", "10.244.3.0/26")
	first.stop()
	second := told("10.244.4.0/26", "10.244.5.0/26", "10.244.6.0/26")
	has("10.244.4.0/26", "10.244.5.0/26", "10.244.6.0/26")
	second.plan.Announced[0].Prefix = prefix("10.244.7.0/26")
	second.apply()
	has("10.244.5.0/26", "10.244.6.0/26", "10.244.7.0/26")
	if s := x.status(at(2)); strings.Contains(s.Failure, "prefixes") {
		t.Fatalf("it never told of more than three at once: %s", s.Failure)
	}
	second.plan.Announced = append(second.plan.Announced, peering.Announcement{Prefix: prefix("10.244.8.0/26"), Reason: "test"})
	second.apply()
	until(t, "a fourth one is too many", func() bool { return strings.Contains(x.status(at(2)).Failure, "more than 3 prefixes") })
}
