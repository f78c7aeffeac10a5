package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
)

// TestNodeRemovedWhileAnAgentWasDownIsSweptWhenItReturns: route, neighbour and forwarding entry of the
// removed node leave the kernel of an agent that could not see it go; those of the other node stay.
func TestNodeRemovedWhileAnAgentWasDownIsSweptWhenItReturns(t *testing.T) {
	ctx, l := up(t, "flat", vxlan, func(s *lab.Spec) { s.Pods = 0 })
	// What n2's kernel has about a node: the routes to its blocks, and entries for its VXLAN device.
	about := func(node string) (routes, mac string) {
		t.Helper()
		for _, p := range status(ctx, t, l, "n2").Peers {
			if p.Node == node && p.Block.Addr().Is4() {
				routes = p.Block.String()
			}
		}
		if routes == "" {
			t.Fatalf("n2 has no peer %s", node)
		}
		mac = run(ctx, t, l, node, "cat", "/sys/class/net/flannel.1/address")
		return routes, strings.TrimSpace(mac)
	}
	has := func(block, mac string) []string {
		t.Helper()
		var found []string
		for what, argv := range map[string][]string{
			block: {"ip", "route", "show", "proto", "104"},
			mac:   {"sh", "-c", "bridge fdb show dev flannel.1; ip neigh show dev flannel.1; ip -6 neigh show dev flannel.1"},
		} {
			for line := range strings.Lines(run(ctx, t, l, "n2", argv...)) {
				if strings.Contains(line, what) {
					found = append(found, strings.TrimSpace(line))
				}
			}
		}
		return found
	}
	all := map[string]model.Path{"n1": model.PathVXLAN, "n3": model.PathVXLAN}
	eventually(t, 20*time.Second, "n2 has both peers", func() error { return pathsAre(ctx, l, "n2", all) })
	block1, mac1 := about("n1")
	block3, mac3 := about("n3")
	// While the nodes come up, a family may go by the other's tunnel for a moment.
	var kept []string
	eventually(t, 20*time.Second, "what n2 has of n1 is at rest", func() error {
		was := has(block1, mac1)
		time.Sleep(time.Second)
		if kept = has(block1, mac1); len(kept) != len(was) {
			return fmt.Errorf("%v and then %v", was, kept)
		}
		return nil
	})
	if len(kept) < 3 || len(has(block3, mac3)) < 3 {
		t.Fatalf("n2 has %v of n1 and %v of n3, want route, neighbour and forwarding entry of each", kept, has(block3, mac3))
	}
	for _, n := range []string{"n2", "n3"} {
		if err := l.StopService(ctx, n, "agent"); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := l.Exec(ctx, "n1", "heddle", "node", "remove", "n3"); err == nil || !strings.Contains(out, "--force") {
		t.Errorf("a node that was alive a moment ago is removed without --force, or nothing tells of it: %v %s", err, out)
	}
	out := run(ctx, t, l, "n1", "heddle", "node", "remove", "n3", "--force")
	if !strings.Contains(out, "removed node n3") || !strings.Contains(out, netip.MustParsePrefix(block3).String()) || !strings.Contains(out, "if its agent still runs, it registers again") {
		t.Errorf("removed with the words %q", out)
	}
	if len(has(block3, mac3)) < 3 {
		t.Fatal("the kernel of n2 lost n3 before its agent returned: nothing is tested")
	}
	if err := l.StartService(ctx, "n2", "agent"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "n2 has nothing of n3", func() error {
		if left := has(block3, mac3); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	if now := has(block1, mac1); len(now) != len(kept) {
		t.Errorf("of n1 the kernel of n2 has %v, want %v as before", now, kept)
	}
}
