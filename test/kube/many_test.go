//go:build kube

package kube

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/heddle-net/heddle/test/kube/lab"
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
	api := administrator(t, l)
	// The other node and the control plane would be machines of their own, and not on the CPUs of this one.
	if err := l.SetCPUWeight(node, 20); err != nil {
		t.Fatal(err)
	}
	run, wait := scheduled(ctx, t, l, node)
	begin := time.Now()
	n := most - has
	grace := int64(0)
	for i := range n {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / 20)))
		pod := &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("many-", i), Labels: map[string]string{"app": "many"}},
			Spec: v1.PodSpec{NodeName: node, TerminationGracePeriodSeconds: &grace, Containers: []v1.Container{
				{Name: "c", Image: "lab.local/pause:lab", ImagePullPolicy: v1.PullNever},
			}},
		}
		if _, err := api.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d pods created in %s", n, time.Since(begin).Round(100*time.Millisecond))
	kubectl(ctx, t, l, "wait", "--for=condition=Ready", "pod", "-l", "app=many", "--timeout=5m")
	t.Logf("%d pods ready %s after the first was created", n, time.Since(begin).Round(time.Second))
	ran, waited := scheduled(ctx, t, l, node)
	t.Logf("the agent's threads ran %s, and waited %s for a CPU", (ran - run).Round(10*time.Millisecond), (waited - wait).Round(10*time.Millisecond))
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
	// How long an ADD takes depends on the machine, which starts a hundred containers besides: it is told, not judged.
	metrics, err := agentAnswers(ctx, l, node, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "heddle_cni_request_seconds") && strings.Contains(line, "ADD") || strings.HasPrefix(line, "heddle_cni_add_phase_seconds_sum") {
			t.Log(strings.TrimSpace(line))
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

// administrator talks to a lab's API server without a process per request.
func administrator(t *testing.T, l *lab.Lab) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(lab.Root(), l.Spec.Name, "pki", "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	ns, err := os.Open("/run/netns/hk-" + l.Spec.Name + "-cp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	config.Dial, config.QPS = dialFrom(ns), -1
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return api
}

// scheduled is how long the threads of a node's agent have run, and how long they could have run and had no CPU
// (Documentation/scheduler/sched-stats.rst of Linux, /proc/PID/schedstat). Threads that have ended are left out.
func scheduled(ctx context.Context, t *testing.T, l *lab.Lab, node string) (ran, waited time.Duration) {
	t.Helper()
	out, err := l.Exec(ctx, node, "sh", "-c", "cat /proc/$1/task/*/schedstat", "sh", agentPID(ctx, t, l, node))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		var r, w time.Duration
		if _, err := fmt.Sscan(line, &r, &w); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		ran, waited = ran+r, waited+w
	}
	return ran, waited
}
