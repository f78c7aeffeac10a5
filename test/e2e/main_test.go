// Package e2e tests the whole product as its users meet it: labs of real nodes, real CNI calls, real
// packets.
package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.Cleanup()
	os.Exit(code)
}

// Networks in Flannel's words. The addresses are those of the tutorials that users come from.
const (
	hostGW = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"host-gw"}}`
	vxlan  = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}`
	mixed  = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan","Directrouting":"true"}}`
	only4  = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`
	only6  = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}`
)

// up brings up a lab that is taken down at the test's end.
func up(t *testing.T, topology, netConf string, change ...func(*lab.Spec)) (context.Context, *lab.Lab) {
	t.Helper()
	harness.Root(t)
	bin := harness.Build(t)
	top, err := lab.LoadTopology(topology)
	if err != nil {
		t.Fatal(err)
	}
	spec := lab.Spec{Name: harness.Name("e2e"), Topology: top, NetConf: netConf, Heddle: bin.Heddle, CNI: bin.Plugin, Pods: 3}
	for _, c := range change {
		c(&spec)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	l, err := lab.Up(ctx, spec)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, l)
		}
		cancel()
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return ctx, l
}

func showLogs(t *testing.T, l *lab.Lab) {
	for _, n := range l.Nodes() {
		text, err := os.ReadFile(l.Node(n).LogFile("agent"))
		if err != nil {
			continue
		}
		t.Logf("agent of %s:\n%s", n, harness.Tail(string(text)))
	}
}

// run runs a command that must succeed in a place of the lab.
func run(ctx context.Context, t *testing.T, l *lab.Lab, where string, argv ...string) string {
	t.Helper()
	out, err := l.Exec(ctx, where, argv...)
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", where, strings.Join(argv, " "), err, out)
	}
	return out
}

func pods(t *testing.T, l *lab.Lab) []lab.Pod {
	t.Helper()
	p, err := l.Pods()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func status(ctx context.Context, t *testing.T, l *lab.Lab, node string) agent.Status {
	t.Helper()
	s, err := l.Status(ctx, node)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// families lists the families that a pod has.
func families(p lab.Pod) (fs []model.Family) {
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if p.Address(f).IsValid() {
			fs = append(fs, f)
		}
	}
	return fs
}

// reach pings from every pod to every other and carries some TCP from the first to each, in every
// family.
func reach(ctx context.Context, t *testing.T, l *lab.Lab) {
	t.Helper()
	all := pods(t, l)
	for _, from := range all {
		for _, to := range all {
			for _, f := range families(to) {
				run(ctx, t, l, from.Name, "ping", "-c1", "-W5", to.Address(f).String())
			}
		}
	}
	for _, to := range all[1:] {
		for _, f := range families(to) {
			tcp(ctx, t, l, all[0], to, f)
		}
	}
}

// tcp carries 8 MiB and wants all of it.
func tcp(ctx context.Context, t *testing.T, l *lab.Lab, from, to lab.Pod, f model.Family) {
	t.Helper()
	server, err := l.Command(ctx, to.Name, "iperf3", "-s", "-1", "-p", "5201")
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	var out string
	for range 100 {
		if out, err = l.Exec(ctx, from.Name, "iperf3", "-c", to.Address(f).String(), "-p", "5201", "-n", "8M"); err == nil || !strings.Contains(out, "refused") {
			break
		}
		time.Sleep(50 * time.Millisecond) // the server is still starting
	}
	if err != nil {
		t.Fatalf("TCP %s → %s: %v\n%s", from.Name, to.Address(f), err, out)
	}
}

// eventually asks until it gets nil.
func eventually(t *testing.T, limit time.Duration, what string, f func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// pathsAre wants a node to know all of the others, and to reach every block that it knows of them as told.
func pathsAre(ctx context.Context, l *lab.Lab, node string, want map[string]model.Path) error {
	s, err := l.Status(ctx, node)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, p := range s.Peers {
		known[p.Node] = true
		if w, ok := want[p.Node]; ok && (p.Path != w || p.State != agent.PeerUp) {
			return fmt.Errorf("%s reaches %s %s by %q (%s), want %q", node, p.Node, p.Block, p.Path, p.State, w)
		}
	}
	for n := range want {
		if n != node && !known[n] {
			return fmt.Errorf("%s does not know %s", node, n)
		}
	}
	return nil
}
