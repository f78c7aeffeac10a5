package e2e

import (
	"strings"
	"testing"
)

// The next commands that problems name must work as they stand, on the node.
func TestCommandsFindTheStoreByThemselves(t *testing.T) {
	ctx, l := up(t, "flat", hostGW)
	nodes := run(ctx, t, l, "n2", "heddle", "node", "list")
	for _, n := range []string{"n1", "n2", "n3"} {
		if !strings.Contains(nodes, n) {
			t.Errorf("heddle node list lacks %s:\n%s", n, nodes)
		}
	}
	if pools := run(ctx, t, l, "n3", "heddle", "network", "show"); !strings.Contains(pools, "10.244.0.0/16") {
		t.Errorf("heddle network show lacks the pool:\n%s", pools)
	}
}
