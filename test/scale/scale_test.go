// Package scale measures one agent among a thousand nodes: simulated registrations in a real embedded
// store, the real agent, the real kernel.
package scale

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	nl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/test/harness"
)

const nodes = 1000

func TestMain(m *testing.M) {
	code := m.Run()
	harness.Cleanup()
	os.Exit(code)
}

func TestAgentJoinsAThousandNodes(t *testing.T) {
	harness.Root(t)
	bin := harness.Build(t)
	ns := harness.Netns(t)
	dir := t.TempDir()
	harness.Run(t, "ip", "-n", ns, "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	harness.Run(t, "ip", "-n", ns, "addr", "add", "192.168.0.1/16", "dev", "eth0")
	harness.Run(t, "ip", "-n", ns, "link", "set", "eth0", "up")
	harness.Run(t, "ip", "-n", ns, "link", "set", "far0", "up")

	socket := "unix://" + filepath.Join(dir, "store.sock")
	harness.Start(t, bin.Heddle, "store", "--data-dir", filepath.Join(dir, "store"), "--listen", socket)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	s, err := etcd.New(ctx, etcd.Options{Endpoints: []string{socket}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	harness.Wait(t, 30*time.Second, "store answers", func() bool {
		_, _, err := s.List(ctx, model.KindPool)
		return err == nil
	})
	put(ctx, t, s, &model.Pool{
		Name: "flannel", CIDR: netip.MustParsePrefix("10.0.0.0/8"), BlockSize: 24,
		Path: model.PathVXLAN, Encap: model.EncapAlways, VXLAN: model.VXLAN{VNI: 1, Port: 8472},
	})
	for i := range nodes {
		register(ctx, t, s, i)
	}

	handle := handleAt(t, ns)
	agent := agentCommand(t, bin, ns, dir, socket)
	begin := time.Now()
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = agent.Process.Kill()
		_ = agent.Wait()
	})
	harness.Wait(t, time.Minute, "all routes in the kernel", func() bool { return ourRoutes(t, handle) >= nodes })
	joined := time.Since(begin)
	rss := resident(t, agent.Process.Pid)

	var one []time.Duration
	for i := nodes; i < nodes+9; i++ {
		time.Sleep(500 * time.Millisecond) // a node joins a quiet network
		want := ourRoutes(t, handle) + 1
		at := time.Now()
		register(ctx, t, s, i)
		harness.Wait(t, 10*time.Second, "one further node in the kernel", func() bool { return ourRoutes(t, handle) >= want })
		one = append(one, time.Since(at))
	}
	peak := resident(t, agent.Process.Pid)
	slow := one[0]
	for _, d := range one {
		slow = max(slow, d)
	}
	t.Logf("%d nodes: all routes in the kernel %s after the agent's start; one further node after at most %s (%v); resident %d MiB at joining, %d MiB after",
		nodes, joined.Round(time.Millisecond), slow.Round(time.Millisecond), one, rss>>20, peak>>20)
	if n := entries(t, handle); n < 2*nodes {
		t.Errorf("neighbour and FDB entries on flannel.1: %d, want one of each per node: %d", n, 2*nodes)
	}
	// The bounds of the promise, not a benchmark: a machine that is busy with other tests is slower.
	if joined > 10*3*time.Second || slow > 10*200*time.Millisecond {
		t.Errorf("ten times slower than promised: joined in %s (promise 3s), one node in %s (promise 200ms)", joined, slow)
	}
	if peak > 80<<20 {
		t.Errorf("resident %d MiB, want under 80", peak>>20)
	}
}

// agentCommand starts the agent in the namespace, with the store's socket reachable by its path.
func agentCommand(t *testing.T, bin harness.Bin, ns, dir, socket string) *exec.Cmd {
	cmd := exec.Command("ip", "netns", "exec", ns, bin.Heddle, "agent", "--node", "joiner", "--endpoints", socket,
		"--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run"), "--cni-conf-dir", filepath.Join(dir, "cni"))
	cmd.Stderr = logFile(t, filepath.Join(dir, "agent.log"))
	return cmd
}

func register(ctx context.Context, t *testing.T, s store.Store, i int) {
	t.Helper()
	name := fmt.Sprintf("node-%04d", i)
	put(ctx, t, s, &model.Node{
		Name: name, ID: name, Address4: netip.AddrFrom4([4]byte{192, 168, byte(1 + i/250), byte(1 + i%250)}),
		VTEP4: plan.VTEPMAC(name, 1, model.IPv4), Accepts: []model.Path{model.PathVXLAN},
	})
	put(ctx, t, s, &model.Block{
		CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i/250), byte(i % 250), 0}), 24), Pool: "flannel", Node: name,
	})
}

func put(ctx context.Context, t *testing.T, s store.Store, o model.Object) {
	t.Helper()
	if _, err := s.Put(ctx, o, 0); err != nil {
		t.Fatal(err)
	}
}

func handleAt(t *testing.T, name string) *nl.Handle {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns, err := netns.GetFromName(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	h, err := nl.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func ourRoutes(t *testing.T, h *nl.Handle) int {
	t.Helper()
	routes, err := h.RouteListFiltered(nl.FAMILY_V4, &nl.Route{Protocol: plan.RouteProtocol}, nl.RT_FILTER_PROTOCOL)
	if err != nil {
		return 0 // interrupted by a change: asked again
	}
	return len(routes)
}

func entries(t *testing.T, h *nl.Handle) int {
	t.Helper()
	link, err := h.LinkByName("flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	arp, err := h.NeighList(link.Attrs().Index, nl.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	fdb, err := h.NeighList(link.Attrs().Index, 7 /* AF_BRIDGE */)
	if err != nil {
		t.Fatal(err)
	}
	return len(arp) + len(fdb)
}

// resident is the process's resident memory in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// logFile collects the agent's log, which is shown when the test fails.
func logFile(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = f.Close()
		if text, err := os.ReadFile(name); err == nil && t.Failed() {
			t.Logf("agent's log:\n%s", text[max(0, len(text)-8<<10):])
		}
	})
	return f
}
