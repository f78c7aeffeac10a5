package agent

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSilentNodesAreForgivenLate: a node that is lost is not counted on until it has been there for ten leases; one
// that flaps stays out. After the store was away nobody is lost who was not before.
func TestSilentNodesAreForgivenLate(t *testing.T) {
	const lease = time.Minute
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	lost := map[string]time.Duration{"n2": time.Second}
	var silent map[string]time.Time
	for _, c := range []struct {
		at     int // minutes
		lost   map[string]time.Duration
		steady bool
		want   string
	}{
		{0, nil, true, ""},
		{1, lost, false, ""}, // the store was away
		{2, lost, true, "n2"},
		{3, nil, true, "n2"},
		{8, map[string]time.Duration{"n2": time.Second, "n3": time.Second}, false, "n2"},
		{17, nil, true, "n2"}, // nine leases
		{18, nil, true, ""},
		{19, lost, true, "n2"},
	} {
		silent = stillSilent(silent, c.lost, c.steady, begin.Add(time.Duration(c.at)*time.Minute), lease)
		if got := strings.Join(slices.Sorted(maps.Keys(silent)), " "); got != c.want {
			t.Errorf("after %d minutes silent: %q, want %q", c.at, got, c.want)
		}
	}
	again := stillSilent(silent, lost, true, begin.Add(20*time.Minute), lease)
	if !sameNodes(silent, again) || sameNodes(silent, nil) {
		t.Error("the same nodes, seen later, are others")
	}
}
