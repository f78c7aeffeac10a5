//go:build kube

package kube_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-net/heddle/test/harness"
)

// inNamespace runs f on a thread in a named network namespace.
func inNamespace(name string, f func() error) error {
	out := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h, err := netns.GetFromName(name)
		if err == nil {
			defer func() { _ = h.Close() }()
			if err = netns.Set(h); err == nil {
				err = f()
			}
		}
		out <- err
	}()
	return <-out
}

// machine is a network namespace with an uplink that has node-00001's address, and one for a pod.
func machine(t *testing.T) (node, pod string) {
	t.Helper()
	node, pod = harness.Name("ka"), harness.Name("kp")
	for _, n := range []string{node, pod} {
		run(t, "ip", "netns", "add", n)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n).Run() })
	}
	for _, line := range []string{"link set lo up", "link add eth0 type veth peer name wire", "link set wire up", "link set eth0 up", "address add 10.1.0.1/16 dev eth0"} {
		run(t, append([]string{"ip", "-n", node}, strings.Fields(line)...)...)
	}
	return node, pod
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

// TestAgentInALargeCluster runs a whole agent: from its start to the routes of all nodes in the kernel, what it
// keeps in memory, and how long after a change of a label elsewhere a policy says something else.
func TestAgentInALargeCluster(t *testing.T) {
	l := newLab(t)
	l.fill(t)
	until(t, "the server's own memory", func() bool {
		p := largePod(largePods - 1)
		_, err := l.admin.Resource(pods).Namespace(p.Namespace).Get(context.Background(), p.Name, metav1.GetOptions{ResourceVersion: "0"})
		return err == nil
	})
	node, podNS := machine(t)
	var ln net.Listener
	if err := inNamespace(node, func() (err error) { ln, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	w, config := l.wiredOn(t, ln)
	dir, bins := t.TempDir(), harness.Build(t)
	netConf := filepath.Join(dir, "net-conf.json")
	if err := os.WriteFile(netConf, []byte(`{"Network":"10.128.0.0/9","Backend":{"Type":"vxlan"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	agent := exec.Command("ip", "netns", "exec", node, bins.Heddle, "agent", "--store", "kubernetes", "--kubeconfig", config, "--node", "node-00001",
		"--net-conf", netConf, "--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run"), "--cni-conf-dir", filepath.Join(dir, "cni"))
	agent.Stdout, agent.Stderr = &log, &log
	begin := time.Now()
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = agent.Process.Kill()
		_ = agent.Wait()
		if t.Failed() {
			t.Log(harness.Tail(log.String()))
		}
	})
	until(t, "routes to all nodes", func() bool {
		return strings.Count(run(t, "ip", "-n", node, "route"), "flannel.1") >= largeNodes-1
	})
	programmed := time.Since(begin)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "run", "agent.sock"))
	}}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	ask := func(path string) (int, []byte) {
		resp, err := client.Get("http://agent" + path)
		if err != nil {
			return 0, nil
		}
		defer func() { _ = resp.Body.Close() }()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, text
	}
	until(t, "pods can be added", func() bool { code, _ := ask("/readyz"); return code == http.StatusOK })
	ready := time.Since(begin)

	// One of the node's pods gets its interface, and a policy lets only marked pods in.
	local := largePod(1)
	if err := l.create(networkPolicies, allowMarked(local.Namespace)); err != nil {
		t.Fatal(err)
	}
	var conf []byte
	until(t, "the runtime is told", func() (told bool) {
		var err error
		conf, err = os.ReadFile(filepath.Join(dir, "cni", "05-heddle.conflist"))
		return err == nil
	})
	var list struct {
		Plugins []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(conf, &list); err != nil {
		t.Fatal(err)
	}
	list.Plugins[0]["name"], list.Plugins[0]["cniVersion"] = "heddle", "1.0.0"
	delete(list.Plugins[0], "capabilities")
	stdin, err := json.Marshal(list.Plugins[0])
	if err != nil {
		t.Fatal(err)
	}
	add := exec.Command(bins.Plugin)
	add.Env = []string{
		"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/run/netns/" + podNS, "CNI_PATH=/nowhere",
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=%s", local.Namespace, local.Name, local.UID),
	}
	add.Stdin = bytes.NewReader(stdin)
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("ADD: %v: %s", err, out)
	}

	// In the kernel, who the policy lets in has another identity than who it does not.
	far := largePod(2)
	identity := func() string {
		out, _ := exec.Command("ip", "netns", "exec", node, "nft", "get", "element", "inet", "heddle-policy", "id4", "{ "+far.Status.PodIP+" }").Output()
		_, id, _ := strings.Cut(string(out), far.Status.PodIP+" : ")
		id, _, _ = strings.Cut(id, " ")
		return id
	}
	var took []time.Duration
	unmarked := identity()
	for i := range 100 {
		mark := `"yes"`
		if i%2 == 1 {
			mark = "null"
		}
		l.patch(t, pods, far.Namespace, far.Name, `{"metadata":{"labels":{"mark":`+mark+`}}}`)
		since := time.Now()
		for (identity() == unmarked) == (i%2 == 0) {
			if time.Since(since) > patience {
				t.Fatal("a label's change came to nothing")
			}
		}
		took = append(took, time.Since(since))
	}
	slices.Sort(took)
	const mib = 1 << 20
	peak, now := resident(agent.Process.Pid, "VmHWM"), resident(agent.Process.Pid, "VmRSS")
	t.Logf("%d nodes, %d pods: routes to all in the kernel %s after the agent's start, ready after %s; resident at most %.0f MiB, now %.0f; %.0f MiB read",
		largeNodes, largePods, programmed.Round(10*time.Millisecond), ready.Round(10*time.Millisecond), float64(peak)/mib, float64(now)/mib, float64(w.received.Load())/mib)
	t.Logf("a label elsewhere: in the kernel %s (median), %s (99th percentile), %s (most) after the API server took it", took[50], took[98], took[99])
	if peak > 120*mib {
		t.Errorf("resident size came to %.0f MiB, want at most 120", float64(peak)/mib)
	}
}

// resident reads a field of a process's memory in bytes.
func resident(pid int, field string) uint64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kb, _ := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// allowMarked lets only pods with the label mark=yes, of any namespace, in to all pods of a namespace.
func allowMarked(namespace string) any {
	return map[string]any{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": map[string]any{"name": "marked", "namespace": namespace},
		"spec": map[string]any{
			"podSelector": map[string]any{}, "policyTypes": []any{"Ingress"},
			"ingress": []any{map[string]any{"from": []any{map[string]any{
				"namespaceSelector": map[string]any{}, "podSelector": map[string]any{"matchLabels": map[string]any{"mark": "yes"}},
			}}}},
		},
	}
}
