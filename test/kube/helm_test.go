//go:build kube

package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// Helm and the Dockerfile's image, as docs/kubernetes.md says: installed, upgraded from vxlan to host-gw under requests of
// which none fails, and taken away again, after which nodes and API server have what they had before.
func TestHelmInstallsUpgradesAndUninstalls(t *testing.T) {
	archive := buildImage(t, "")
	ctx, l := up(t, func(s *lab.Spec) { s.Network = lab.None })
	if err := l.Load(ctx, archive); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"CACHE", "CONFIG", "DATA"} {
		t.Setenv("HELM_"+folder+"_HOME", t.TempDir())
	}
	before := map[string]string{}
	for _, node := range l.Nodes() {
		before[node] = nodeDump(ctx, t, l, node)
	}
	objects := clusterObjects(ctx, t, l)

	const chart = "../../deploy/helm/heddle"
	helm(ctx, t, l, "install", "heddle", chart, "--create-namespace", "--set", "network=10.244.0.0/16", "--wait", "--timeout", "3m")
	kubectl(ctx, t, l, "wait", "--for=condition=Ready", "node", "--all", "--timeout=2m")
	web := deploy(ctx, t, l, "web", false, 8080)
	everyPodReachesEvery(ctx, t, l, web)
	goesBy(ctx, t, l, web, "dev flannel.1")

	loads := around(ctx, t, l, web)
	helm(ctx, t, l, "upgrade", "heddle", chart, "--reuse-values", "--set", "backend.type=host-gw", "--wait", "--timeout", "3m")
	// A kubelet brings pods a new ConfigMap every minute or so, and when something about them changed.
	kubectl(ctx, t, l, "annotate", "pods", "--all", "-n", "heddle-system", "heddle.net/look=now")
	goesBy(ctx, t, l, web, "dev eth0")
	time.Sleep(2 * time.Second) // of load on what was programmed
	for _, load := range loads {
		load.end(t)
	}
	everyPodReachesEvery(ctx, t, l, web)

	kubectl(ctx, t, l, "delete", "daemonset/web", "service/web", "--cascade=foreground", "--wait")
	nothingIsLeftOver(ctx, t, l) // pods without a grace period leave the API server before they end
	helm(ctx, t, l, "uninstall", "heddle", "--wait", "--timeout", "2m")
	kubectl(ctx, t, l, "apply", "-f", "../../deploy/uninstall.yaml")
	if out, err := l.Kubectl(ctx, "-n", "heddle-uninstall", "rollout", "status", "daemonset", "heddle-uninstall", "--timeout=2m"); err != nil {
		said, _ := l.Kubectl(ctx, "-n", "heddle-uninstall", "logs", "-l", "app.kubernetes.io/name=heddle-uninstall", "-c", "uninstall", "--prefix")
		t.Fatalf("%v\n%s\n%s", err, out, said)
	}
	kubectl(ctx, t, l, "delete", "-f", "../../deploy/uninstall.yaml", "--cascade=foreground", "--wait")
	kubectl(ctx, t, l, "delete", "namespace", "heddle-system")
	for _, node := range l.Nodes() {
		after := nodeDump(ctx, t, l, node)
		if left := linesNotIn(after, before[node]); len(left) > 0 {
			t.Errorf("%s has what it did not have before:\n%s", node, strings.Join(left, "\n"))
		}
		if gone := linesNotIn(before[node], after); len(gone) > 0 {
			t.Errorf("%s lost what it had before:\n%s", node, strings.Join(gone, "\n"))
		}
	}
	if left := linesNotIn(clusterObjects(ctx, t, l), objects); len(left) > 0 {
		t.Errorf("the API server has what it did not have before:\n%s", strings.Join(left, "\n"))
	}
}

// helm runs Helm as the administrator, in Heddle's namespace.
func helm(ctx context.Context, t *testing.T, l *lab.Lab, args ...string) {
	t.Helper()
	out, err := l.Exec(ctx, "cp", append([]string{"helm", "-n", "heddle-system"}, args...)...)
	t.Logf("helm %s\n%s", strings.Join(args, " "), out)
	if err != nil {
		t.Fatal(err)
	}
}

// goesBy waits until the packets of each pod's node to the other pods' nodes take a path.
func goesBy(ctx context.Context, t *testing.T, l *lab.Lab, pods []pod, path string) {
	t.Helper()
	for _, from := range pods {
		for _, to := range pods {
			if to.node == from.node {
				continue
			}
			eventually(t, 3*time.Minute, from.node+" sends to "+to.ips[0]+" by "+path, func() error {
				out, err := l.Exec(ctx, from.node, "ip", "route", "get", to.ips[0])
				if err == nil && !strings.Contains(out, path) {
					err = fmt.Errorf("it goes %s", out)
				}
				return err
			})
		}
	}
}

// nodeDump is what Heddle adds to on a node. kube-proxy and kubelet write rules of their own, when they like, and the kubelet
// leaves the folders that it makes for mounts.
func nodeDump(ctx context.Context, t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	out, err := l.Exec(ctx, node, "sh", "-c", `
		ip -o link | cut -d: -f2; ip -br address; ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all
		bridge fdb show | grep permanent; ip neighbor show nud permanent
		nft list tables | grep -v -e kube-proxy -e mangle -e filter -e nat; nft list ruleset | grep -i heddle
		find /etc/cni /opt/cni /run/heddle /run/flannel /var/lib/heddle /var/lib/cni -type f 2>/dev/null; true`)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// clusterObjects names every object of the kinds that a network brings.
func clusterObjects(ctx context.Context, t *testing.T, l *lab.Lab) string {
	t.Helper()
	return kubectl(ctx, t, l, "get", "-A", "--no-headers", "-o", "custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name",
		"namespaces,daemonsets,configmaps,secrets,serviceaccounts,clusterroles,clusterrolebindings,customresourcedefinitions,"+
			"validatingadmissionpolicies,validatingadmissionpolicybindings")
}

// linesNotIn are those of a that b does not have.
func linesNotIn(a, b string) (left []string) {
	has := strings.Split(b, "\n")
	for line := range strings.Lines(a) {
		if line = strings.TrimSuffix(line, "\n"); !slices.Contains(has, line) {
			left = append(left, line)
		}
	}
	return left
}
