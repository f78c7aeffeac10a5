//go:build kube

package kube

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/harness"
	"github.com/heddle-net/heddle/test/kube/lab"
)

// A cluster on Flannel moves to Heddle one node at a time, as docs/kubernetes.md says, under requests between
// pods of both nodes: none fails, and no pod's address changes. flanneld is upstream's packages below a main of
// our own, the chain is upstream's plugins (lab.Flannel).
func TestFlannelClusterMovesNodeByNodeWithoutAFailedRequest(t *testing.T) {
	ctx, l := up(t, func(s *lab.Spec) {
		s.Network = lab.None
		s.Programs = strings.TrimSuffix(harness.Build(t).Heddle, "/heddle")
	})
	daemons, err := l.Flannel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	web := deploy(ctx, t, l, "web", false, 8080)
	shut := deploy(ctx, t, l, "shut", false, 8080)
	old := podAddresses(ctx, t, l)
	manifests, err := l.Manifests()
	if err != nil {
		t.Fatal(err)
	}
	const everyNode = "        kubernetes.io/os: linux\n"
	if strings.Count(manifests, everyNode) != 1 {
		t.Fatalf("the manifest has no place for a nodeSelector %q", everyNode)
	}
	if err := l.Apply(ctx, strings.Replace(manifests, everyNode, everyNode+"        network: heddle\n", 1)); err != nil {
		t.Fatal(err)
	}

	service := strings.TrimSpace(kubectl(ctx, t, l, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	var loads []*load
	for i, from := range web {
		to := web[(i+1)%len(web)]
		ns := netnsOf(ctx, t, l, from)
		loads = append(loads,
			startLoad(t, ns, urlOf(to.ips[0]), 20*time.Millisecond, false),
			startLoad(t, ns, urlOf(to.ips[0]), 20*time.Millisecond, true),
			startLoad(t, ns, awaitService(t, ns, "http://"+net.JoinHostPort(service, "80")+"/hostname"), 20*time.Millisecond, false))
	}
	failed := func(when string) {
		t.Helper()
		for _, load := range loads {
			if n := load.failed.Load(); n > 0 {
				t.Errorf("%s: %s: %d of %d requests failed, the first at %v", when, load.what, n, load.asked.Load(), load.first.Load())
			}
		}
	}
	time.Sleep(2 * time.Second)
	failed("before the move")
	for _, node := range l.Nodes() {
		if _, err := l.Exec(ctx, node, "kill", daemons[node]); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "flanneld of "+node+" ends", func() error {
			if _, err := l.Exec(ctx, node, "kill", "-0", daemons[node]); err == nil {
				return fmt.Errorf("process %s is there", daemons[node])
			}
			return nil
		})
		kubectl(ctx, t, l, "label", "node", node, "network=heddle")
		eventually(t, 2*time.Minute, "node "+node+" has an agent", func() error {
			_, err := agentAnswers(ctx, l, node, "/readyz")
			return err
		})
		time.Sleep(3 * time.Second) // of load on what the agent has programmed
		failed("with " + node + " moved")
	}
	for _, load := range loads {
		load.end(t)
	}
	if now := podAddresses(ctx, t, l); !slices.Equal(now, old) {
		t.Errorf("the pods are\n%s\nbefore the move they were\n%s", strings.Join(now, "\n"), strings.Join(old, "\n"))
	}

	fresh := newPodsHaveAddressesOfTheirOwn(ctx, t, l)
	policiesHoldForOldPods(ctx, t, l, slices.Concat(web, fresh), shut)
	oldPodsGiveTheirAddressesBack(ctx, t, l, shut)
}

func urlOf(address string) string { return "http://" + net.JoinHostPort(address, "8080") + "/hostname" }

// podAddresses lists the default namespace's pods: UID, restarts, node and address.
func podAddresses(ctx context.Context, t *testing.T, l *lab.Lab) []string {
	t.Helper()
	return podAddressesOf(ctx, t, l, "")
}

func podAddressesOf(ctx context.Context, t *testing.T, l *lab.Lab, labels string) []string {
	t.Helper()
	out := kubectl(ctx, t, l, "get", "pods", "-l", labels, "-o",
		`jsonpath={range .items[*]}{.metadata.uid}{" "}{.status.containerStatuses[*].restartCount}{" "}{.spec.nodeName}{" "}{.status.podIP}{"\n"}{end}`)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	return lines
}

// newPodsHaveAddressesOfTheirOwn makes pods beside those of Flannel's chain: Heddle's, from the same block.
func newPodsHaveAddressesOfTheirOwn(ctx context.Context, t *testing.T, l *lab.Lab) (fresh []pod) {
	t.Helper()
	fresh = deploy(ctx, t, l, "fresh", false, 8080)
	taken := map[string]bool{}
	for _, line := range podAddresses(ctx, t, l) {
		f := strings.Fields(line)
		if taken[f[3]] {
			t.Errorf("two pods have the address %s", f[3])
		}
		taken[f[3]] = true
	}
	for _, p := range fresh {
		block := netip.MustParsePrefix(strings.TrimSpace(kubectl(ctx, t, l, "get", "node", p.node, "-o", "jsonpath={.spec.podCIDR}")))
		if !block.Contains(netip.MustParseAddr(p.ips[0])) {
			t.Errorf("%s on %s has %s, want one of %s", p.name, p.node, p.ips[0], block)
		}
		given, err := workloads(ctx, l, p.node)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(given["default/"+p.name], p.ips) {
			t.Errorf("the agent of %s gave %s %v, want %v", p.node, p.name, given["default/"+p.name], p.ips)
		}
		ns := netnsOf(ctx, t, l, p)
		for address := range taken {
			eventually(t, 30*time.Second, p.name+" reaches "+address, func() error { return get(ctx, inside(ns, false), urlOf(address)) })
		}
	}
	return fresh
}

// policiesHoldForOldPods closes old pods to other pods, old and new, of their own node and of the other.
func policiesHoldForOldPods(ctx context.Context, t *testing.T, l *lab.Lab, others, shut []pod) {
	t.Helper()
	if err := l.Apply(ctx, closed); err != nil {
		t.Fatal(err)
	}
	for i, from := range others {
		client := inside(netnsOf(ctx, t, l, from), false)
		client.Timeout = 2 * time.Second
		for _, to := range shut {
			eventually(t, time.Minute, fmt.Sprintf("the policy holds from %s on %s to %s on %s", from.name, from.node, to.name, to.node), func() error {
				if get(ctx, client, urlOf(to.ips[0])) == nil {
					return fmt.Errorf("%s answers", to.name)
				}
				return nil
			})
		}
		// It is the policy that holds, and no fault of the network.
		if to := others[(i+1)%len(others)]; get(ctx, client, urlOf(to.ips[0])) != nil {
			t.Errorf("%s does not reach %s, which no policy selects", from.name, to.name)
		}
	}
	for _, from := range others {
		client := inside(netnsOf(ctx, t, l, from), false)
		kubectl(ctx, t, l, "label", "pod", from.name, "friend=yes")
		for _, to := range shut {
			eventually(t, time.Minute, "the policy lets "+from.name+" in", func() error { return get(ctx, client, urlOf(to.ips[0])) })
		}
	}
}

// oldPodsGiveTheirAddressesBack deletes a pod of Flannel's chain on each node.
func oldPodsGiveTheirAddressesBack(ctx context.Context, t *testing.T, l *lab.Lab, pods []pod) {
	t.Helper()
	for _, p := range pods {
		file := lab.FlannelReservations + "/" + p.ips[0]
		if _, err := l.Exec(ctx, p.node, "test", "-e", file); err != nil {
			t.Errorf("before its end, %s has no reservation: %v", p.name, err)
		}
	}
	kubectl(ctx, t, l, "delete", "daemonset", "shut", "--cascade=foreground", "--wait")
	for _, p := range pods {
		file := lab.FlannelReservations + "/" + p.ips[0]
		eventually(t, time.Minute, p.name+" on "+p.node+" gives "+p.ips[0]+" back", func() error {
			_, err := l.Exec(ctx, p.node, "test", "!", "-e", file)
			return err
		})
	}
}
