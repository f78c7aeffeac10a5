//go:build kube

package kube

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// One node is filled up to what a kubelet takes, 20 pods a second, and emptied again.
func TestANodeIsFilledAndEmptiedAndNothingIsLeft(t *testing.T) {
	ctx, l := up(t)
	const node, most = "n1", 110
	left := func() string {
		out, err := l.Exec(ctx, node, "sh", "-c", `ip -br link | grep -c '^hd' ; ls /run/netns | wc -l; nft list map inet heddle hostports 2>/dev/null | grep -c dnat`)
		_ = err // grep finds nothing
		return strings.Join(strings.Fields(out), " ")
	}
	before, err := workloads(ctx, l, node)
	if err != nil {
		t.Fatal(err)
	}
	clean := left()
	has, err := strconv.Atoi(strings.TrimSpace(kubectl(ctx, t, l, "get", "pods", "-A", "--field-selector=spec.nodeName="+node, "-o", "go-template={{len .items}}")))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	n := most - has
	for i := 0; i < n; i += 20 {
		var all strings.Builder
		for j := i; j < min(i+20, n); j++ {
			fmt.Fprintf(&all, `---
apiVersion: v1
kind: Pod
metadata: {name: many-%d, labels: {app: many}}
spec: {nodeName: %s, terminationGracePeriodSeconds: 0, containers: [{name: c, image: "lab.local/pause:lab", imagePullPolicy: Never}]}
`, j, node)
		}
		if err := l.Apply(ctx, all.String()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
	kubectl(ctx, t, l, "wait", "--for=condition=Ready", "pod", "-l", "app=many", "--timeout=5m")
	t.Logf("%d pods ready %s after the first was created", n, time.Since(begin).Round(time.Second))
	seen := map[string]string{}
	given, err := workloads(ctx, l, node)
	if err != nil {
		t.Fatal(err)
	}
	for pod, addrs := range given {
		for _, a := range addrs {
			if seen[a] != "" {
				t.Errorf("%s is given to %s and to %s", a, seen[a], pod)
			}
			seen[a] = pod
		}
	}
	if len(given) != n+len(before) {
		t.Errorf("the agent knows %d pods, want %d more than %d", len(given), n, len(before))
	}
	if err := addressesAreThoseOfPods(ctx, l, node); err != nil {
		t.Error(err)
	}
	if metrics, err := agentAnswers(ctx, l, node, "/metrics"); err == nil {
		for line := range strings.Lines(metrics) {
			if strings.Contains(line, "cni") && strings.Contains(line, "ADD") {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
	kubectl(ctx, t, l, "delete", "pod", "-l", "app=many", "--wait=true", "--timeout=5m")
	eventually(t, 3*time.Minute, "the node is as it was", func() error {
		now, err := workloads(ctx, l, node)
		if err != nil {
			return err
		}
		if len(now) != len(before) {
			return fmt.Errorf("%d pods are left, want %d", len(now), len(before))
		}
		if l := left(); !slices.Equal(strings.Fields(l), strings.Fields(clean)) {
			return fmt.Errorf("links, namespaces, ports: %q, want %q", l, clean)
		}
		return nil
	})
}
