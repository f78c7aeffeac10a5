package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

const ipip = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"ipip"}}`

// hasIPIP tells whether this kernel has the tunnels of both families.
func hasIPIP(t *testing.T) bool {
	t.Helper()
	ns := harness.Netns(t)
	for _, tunnel := range []string{"ipip remote 192.0.2.1", "ip6tnl remote 2001:db8::1"} {
		if exec.Command("ip", append([]string{"-n", ns}, strings.Fields("link add probe type "+tunnel)...)...).Run() != nil {
			return false
		}
		harness.Run(t, "ip", "-n", ns, "link", "del", "probe")
	}
	return true
}

// TestBackendIPIPOnAnyKernel: a network that is carried by vxlan is told to use ipip. Where the kernel has it, that
// carries; where it has not, every node says so, and how to go on, peers know why, and what ran before still does.
func TestBackendIPIPOnAnyKernel(t *testing.T) {
	has := hasIPIP(t)
	ctx, l := up(t, "two-segments", vxlan)
	reach(ctx, t, l)
	setNetConf(ctx, t, l, ipip)
	for _, n := range l.Nodes() {
		want := map[string]model.Path{}
		for _, peer := range l.Nodes() {
			if want[peer] = model.PathVXLAN; has {
				want[peer] = model.PathIPIP
			}
		}
		eventually(t, time.Minute, n+" follows the new backend", func() error {
			if has {
				return pathsAre(ctx, l, n, want)
			}
			if err := problem(ctx, l, n, "kernel-lacks-ipip", "module ipip"); err != nil {
				return err
			}
			if err := staysForLack(ctx, l, n); err != nil {
				return err
			}
			return pathsAre(ctx, l, n, want)
		})
	}
	reach(ctx, t, l)
	setNetConf(ctx, t, l, vxlan)
	for _, n := range l.Nodes() {
		eventually(t, time.Minute, n+" is as before", func() error {
			s, err := l.Status(ctx, n)
			if err != nil {
				return err
			}
			if len(s.Problems) > 0 {
				return fmt.Errorf("problems %v", s.Problems)
			}
			return pathsAre(ctx, l, n, map[string]model.Path{"n1": model.PathVXLAN, "n2": model.PathVXLAN, "n3": model.PathVXLAN})
		})
	}
	reach(ctx, t, l)
}

// staysForLack wants all peers of a node to be reached as before, as its kernel has no ipip.
func staysForLack(ctx context.Context, l *lab.Lab, node string) error {
	s, err := l.Status(ctx, node)
	if err != nil {
		return err
	}
	for _, p := range s.Peers {
		if p.State != agent.PeerUp || !strings.HasPrefix(p.Reason, "stays on vxlan: the kernel of this node ") {
			return fmt.Errorf("%s reaches %s (%s): %q", node, p.Node, p.State, p.Reason)
		}
	}
	return nil
}
