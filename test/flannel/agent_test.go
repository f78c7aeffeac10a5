package flannel

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

// node is a host on which a Heddle agent runs.
type node struct {
	n    *network
	ns   string
	name string
	dir  string
	cmd  *exec.Cmd
}

// newNode is a host of that number in the segment, without an agent yet.
func newNode(n *network, number int, dual bool) *node {
	n.t.Helper()
	own := []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.168.77.%d/24", number))}
	if dual {
		own = append(own, netip.MustParsePrefix(fmt.Sprintf("fd00:77::%d/64", number)))
	}
	return nodeOn(n, n.host(own...))
}

// nodeOn makes an agent's files for a host that is there.
func nodeOn(n *network, ns string) *node {
	n.t.Helper()
	h := &node{n: n, ns: ns, name: "heddle-" + ns, dir: n.t.TempDir()}
	conf := fmt.Sprintf("node: %s\nstore: {type: flannel, endpoints: [%q]}\nhostLocalDir: %s/host-local\n", h.name, n.endpoint, h.dir)
	must(n.t, os.WriteFile(h.file("heddle.yaml"), []byte(conf), 0o600))
	return h
}

func (h *node) file(name string) string { return filepath.Join(h.dir, name) }

// start runs the agent and waits until it is ready.
func (h *node) start() {
	h.n.t.Helper()
	h.cmd = harness.Start(h.n.t, "ip", "netns", "exec", h.ns, harness.Build(h.n.t).Heddle, "agent",
		"--config", h.file("heddle.yaml"), "--state-dir", h.file("state"), "--run-dir", h.file("run"),
		"--cni-conf-dir", h.file("net.d"), "--subnet-file", h.file("subnet.env"))
	harness.Wait(h.n.t, patience, h.name+" is ready", func() bool {
		s, err := h.status()
		return err == nil && s.Ready
	})
}

// stop ends the agent with a signal.
func (h *node) stop(sig syscall.Signal) {
	h.n.t.Helper()
	must(h.n.t, h.cmd.Process.Signal(sig))
	_ = h.cmd.Wait()
}

// status is what `heddle status` says.
func (h *node) status() (s agent.Status, err error) {
	out, err := exec.Command(harness.Build(h.n.t).Heddle, "status", "-o", "json", "--run-dir", h.file("run")).Output()
	if len(out) == 0 && err != nil {
		return s, err
	}
	return s, json.Unmarshal(out, &s) // its exit code tells of problems
}

// heddle runs a command of the product on the host; its error is what it printed.
func (h *node) heddle(stdin string, args ...string) (string, error) {
	cmd := exec.Command("ip", append([]string{"netns", "exec", h.ns, harness.Build(h.n.t).Heddle}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, stderr.String())
	}
	return stdout.String(), nil
}

// network runs `heddle network …` against the shared etcd.
func (h *node) network(stdin string, args ...string) (string, error) {
	return h.heddle(stdin, append([]string{"network", "--store", "flannel", "--endpoints", h.n.endpoint}, args...)...)
}

// pod attaches a pod as a container runtime does: with the plugin and the conflist that the agent wrote.
func (h *node) pod(t *testing.T) (ns string, addrs []netip.Addr) {
	t.Helper()
	var files []string
	harness.Wait(t, patience, "one conflist", func() bool { // it is written right after the agent is ready
		var err error
		files, err = filepath.Glob(h.file("net.d") + "/*.conflist")
		return err == nil && len(files) == 1
	})
	list, err := libcni.ConfListFromFile(files[0])
	must(t, err)
	ns = harness.Netns(t)
	runtime := libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(harness.Build(t).Plugin)}, t.TempDir(), nil)
	got, err := runtime.AddNetworkList(t.Context(), list, &libcni.RuntimeConf{ContainerID: ns, NetNS: "/run/netns/" + ns, IfName: "eth0"})
	must(t, err)
	r, err := types100.GetResult(got)
	must(t, err)
	for _, i := range r.IPs {
		a, ok := netip.AddrFromSlice(i.Address.IP)
		if !ok {
			t.Fatalf("address %v", i.Address)
		}
		addrs = append(addrs, a.Unmap())
	}
	return ns, addrs
}

// block is the node's block of a family.
func (h *node) block(t *testing.T, f model.Family) netip.Prefix {
	t.Helper()
	s, err := h.status()
	must(t, err)
	for _, b := range s.Blocks {
		if b.Family() == f {
			return b.CIDR
		}
	}
	t.Fatalf("no %s block in %+v", f, s.Blocks)
	return netip.Prefix{}
}

// kernel is what the host's kernel holds of a block's way: its route, and the entries of the tunnel.
func (h *node) kernel(t *testing.T) string {
	t.Helper()
	s := ip(t, h.ns, "route show") + ip(t, h.ns, "-6 route show") + ip(t, h.ns, "neigh show") + ip(t, h.ns, "-6 neigh show")
	return s + harness.Run(t, "bridge", "-n", h.ns, "fdb", "show")
}
