package deploy_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

// patience is for a slow and busy machine.
const patience = time.Minute

func TestMain(m *testing.M) {
	code := m.Run()
	harness.Cleanup()
	os.Exit(code)
}

// store runs an embedded store until the end of the test.
func store(t *testing.T) (endpoint string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hd") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	endpoint = "unix://" + dir + "/s.sock"
	harness.Start(t, harness.Build(t).Heddle, "store", "--data-dir", dir+"/data", "--listen", endpoint)
	return endpoint
}

// node is a network namespace with the folders that an agent's host has.
type node struct {
	t              *testing.T
	name, ns, root string
	endpoint       string
	agent          *exec.Cmd
}

// pair are two nodes on one wire, forwarding as every Kubernetes node does.
func pair(t *testing.T) (a, b *node) {
	t.Helper()
	endpoint := store(t)
	var nodes [2]*node
	for i := range nodes {
		root, err := os.MkdirTemp("", "hd")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(root) })
		n := &node{t: t, name: string(rune('a' + i)), ns: harness.Netns(t), root: root, endpoint: endpoint}
		for _, dir := range []string{"run", "lib", "bin", "net.d"} {
			n.check(os.Mkdir(n.file(dir), 0o755))
		}
		n.check(os.WriteFile(n.file("net-conf.json"), []byte(`{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/56", "Backend": {"Type": "vxlan"}}`), 0o600))
		n.check(os.WriteFile(n.file("heddle.yaml"), []byte("store: {endpoints: [\""+endpoint+"\"]}\n"), 0o600))
		nodes[i] = n
	}
	a, b = nodes[0], nodes[1]
	a.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", b.ns)
	for i, n := range nodes {
		n.run("ip", "address", "add", fmt.Sprintf("192.168.9.%d/24", i+1), "dev", "up0")
		n.run("ip", "address", "add", fmt.Sprintf("fd00:9::%d/64", i+1), "dev", "up0", "nodad")
		n.run("ip", "link", "set", "up0", "up")
	}
	return a, b
}

func (n *node) check(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) file(path string) string { return filepath.Join(n.root, path) }

// run runs a command on the node, which must succeed.
func (n *node) run(args ...string) string {
	n.t.Helper()
	return harness.Run(n.t, "ip", append([]string{"netns", "exec", n.ns}, args...)...)
}

// try is run for what may fail: its error is what was printed.
func (n *node) try(args ...string) (string, error) {
	out, err := exec.Command("ip", append([]string{"netns", "exec", n.ns}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return string(out), nil
}

// dirs are the flags by which agent and uninstall know the node's folders.
func (n *node) dirs() []string {
	return []string{"--config", n.file("heddle.yaml"), "--state-dir", n.file("lib/heddle"), "--run-dir", n.file("run/heddle"), "--cni-conf-dir", n.file("net.d")}
}

// start runs the agent behind a prefix of its command line.
func (n *node) start(prefix ...string) {
	n.t.Helper()
	args := append(append([]string{"netns", "exec", n.ns}, prefix...), harness.Build(n.t).Heddle, "agent", "--node", n.name, "--net-conf", n.file("net-conf.json"))
	n.agent = harness.Start(n.t, "ip", append(args, n.dirs()...)...)
}

func (n *node) stop() {
	n.t.Helper()
	n.check(n.agent.Process.Signal(syscall.SIGTERM))
	_ = n.agent.Wait()
}

// ready waits until pods can be added, and every peer has a path.
func (n *node) ready(peers int) {
	n.t.Helper()
	defer func() {
		if n.t.Failed() {
			n.t.Logf("%s: %+v", n.name, n.status())
		}
	}()
	harness.Wait(n.t, patience, n.name+" is ready", func() bool {
		if _, err := n.try(harness.Build(n.t).Heddle, "health", "--ready", "--run-dir", n.file("run/heddle")); err != nil {
			return false
		}
		s := n.status()
		for _, p := range s.Peers {
			if p.Path != model.PathVXLAN { // the last that a node takes, when the other accepts it
				return false
			}
		}
		return len(s.Peers) == 2*peers && len(s.Problems) == 0 // one for each family
	})
}

func (n *node) status() (s agent.Status) {
	n.t.Helper()
	out, _ := exec.Command(harness.Build(n.t).Heddle, "status", "-o", "json", "--run-dir", n.file("run/heddle")).Output() // its exit code tells of problems
	_ = json.Unmarshal(out, &s)
	return s
}

// add makes a pod as a runtime does, with the plugin that is installed, and returns its namespace.
func (n *node) add() string {
	n.t.Helper()
	var conf struct{ Plugins []map[string]any }
	harness.Wait(n.t, patience, "the conflist", func() bool { // it is written right after the agent is ready
		text, err := os.ReadFile(n.file("net.d/" + cni.ConflistFile))
		return err == nil && json.Unmarshal(text, &conf) == nil
	})
	conf.Plugins[0]["cniVersion"], conf.Plugins[0]["name"] = "1.0.0", "heddle"
	stdin, err := json.Marshal(conf.Plugins[0])
	n.check(err)
	pod := harness.Netns(n.t)
	cmd := exec.Command(n.file("bin/heddle-cni"))
	cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + pod, "CNI_NETNS=/run/netns/" + pod, "CNI_IFNAME=eth0", "CNI_PATH=" + n.file("bin")}
	cmd.Stdin = strings.NewReader(string(stdin))
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.t.Fatalf("ADD: %v: %s", err, out)
	}
	return pod
}

// installPlugin is what the manifest's first container does.
func (n *node) installPlugin() {
	n.t.Helper()
	bin := harness.Build(n.t)
	n.run(bin.Heddle, "install-cni", "--from", bin.Plugin, "--to", n.file("bin"))
}
