//go:build kube

// Package kube tests Heddle where Kubernetes uses it: on a cluster of real nodes, with real pods. The
// cluster is built by build/kube; `make kube` runs these tests.
package kube

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/harness"
	"github.com/heddle-net/heddle/test/kube/lab"
)

func TestMain(m *testing.M) {
	lab.Init()
	code := m.Run()
	harness.Cleanup()
	os.Exit(code)
}

// up brings up a lab that is taken down at the test's end.
func up(t *testing.T, change ...func(*lab.Spec)) (context.Context, *lab.Lab) {
	t.Helper()
	spec := lab.Default()
	spec.Name = strings.ReplaceAll(harness.Name("t"), "-", "")
	spec.Bin = os.Getenv("HEDDLE_KUBE_BIN")
	spec.Manifest = "../../deploy/heddle.yaml"
	spec.Progress = func(at time.Duration, step string) { t.Logf("%6.1fs %s", at.Seconds(), step) }
	for _, c := range change {
		c(&spec)
	}
	if spec.Network == lab.Heddle {
		spec.Programs = strings.TrimSuffix(harness.Build(t).Heddle, "/heddle")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	l, err := lab.Up(ctx, spec)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			show(ctx, t, l)
		}
		cancel()
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	return ctx, l
}

// show tells what one wants to know after a failure.
func show(ctx context.Context, t *testing.T, l *lab.Lab) {
	for _, what := range [][]string{
		{"get", "nodes,pods,services", "-A", "-o", "wide"},
		{"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"logs", "-n", "heddle-system", "-l", "app.kubernetes.io/name=heddle", "--prefix", "--tail=40"},
	} {
		out, err := l.Kubectl(ctx, what...)
		t.Logf("kubectl %s: %v\n%s", strings.Join(what, " "), err, harness.Tail(out))
	}
}

// web is a pod on every node that answers with its own name, on its own network and on the node's, and a
// Service of each.
const web = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      hostNetwork: %[2]t
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: lab.local/agnhost:2.63.0
        args: [netexec, --http-port=%[3]d, --udp-port=-1]
        readinessProbe: {httpGet: {path: /hostname, port: %[3]d}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: %[1]s}
  ports: [{port: 80, targetPort: %[3]d}]
`

// pod is one of a DaemonSet.
type pod struct {
	name, node string
	ips        []string
}

// deploy makes the DaemonSet and the Service, waits until each pod is ready, and lists them.
func deploy(ctx context.Context, t *testing.T, l *lab.Lab, app string, hostNetwork bool, port int) (pods []pod) {
	t.Helper()
	if err := l.Apply(ctx, fmt.Sprintf(web, app, hostNetwork, port)); err != nil {
		t.Fatal(err)
	}
	kubectl(ctx, t, l, "rollout", "status", "daemonset/"+app, "--timeout=2m")
	return ofApp(ctx, t, l, app)
}

// ofApp lists the pods of a DaemonSet.
func ofApp(ctx context.Context, t *testing.T, l *lab.Lab, app string) (pods []pod) {
	t.Helper()
	out := kubectl(ctx, t, l, "get", "pods", "-l", "app="+app, "-o",
		`jsonpath={range .items[*]}{.metadata.name}{" "}{.spec.nodeName}{" "}{.status.podIPs[*].ip}{"\n"}{end}`)
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 {
			pods = append(pods, pod{f[0], f[1], f[2:]})
		}
	}
	if len(pods) != l.Spec.Nodes {
		t.Fatalf("%s: %d pods on %d nodes:\n%s", app, len(pods), l.Spec.Nodes, out)
	}
	return pods
}

func kubectl(ctx context.Context, t *testing.T, l *lab.Lab, args ...string) string {
	t.Helper()
	out, err := l.Kubectl(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually asks until it gets nil.
func eventually(t *testing.T, limit time.Duration, what string, ask func() error) {
	t.Helper()
	begin := time.Now()
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Since(begin) > limit {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(300 * time.Millisecond)
	}
}
