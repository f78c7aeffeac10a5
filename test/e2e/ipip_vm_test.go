//go:build vm

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

const ipipMixed = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"ipip","DirectRouting":true}}`

// patience is for a machine that is emulated, on a busy one.
const patience = 3 * time.Minute

// slowUp is up for a slow machine: a lab gives agents a minute to start, which is not always enough there.
func slowUp(t *testing.T, spec lab.Spec) (ctx context.Context, l *lab.Lab) {
	t.Helper()
	bin := harness.Build(t)
	spec.Heddle, spec.CNI, spec.Pods = bin.Heddle, bin.Plugin, len(spec.Topology.Nodes)
	ctx, cancel := context.WithTimeout(context.Background(), 13*time.Minute)
	for try := 1; l == nil; try++ {
		var err error
		spec.Name = harness.Name("e2e")
		l, err = lab.Up(ctx, spec)
		if err != nil && try == 4 {
			cancel()
			t.Fatal(err)
		}
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

// slowLoad is startLoad for a slow machine: a stream that must not break, and ten pings a second of which one may be
// lost. They run until the lab ends them, or until their seconds are over.
func slowLoad(ctx context.Context, t *testing.T, l *lab.Lab, from, to lab.Pod, seconds int) *load {
	t.Helper()
	ld := &load{}
	for i, f := range families(to) {
		addr, port := to.Address(f).String(), fmt.Sprint(5301+i)
		server, err := l.Command(ctx, to.Name, "iperf3", "-s", "-1", "-p", port)
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = server.Process.Kill()
			_ = server.Wait()
		})
		eventually(t, patience, "iperf3 listens", func() error {
			out, err := l.Exec(ctx, to.Name, "ss", "-Hltn", "sport = :"+port)
			if err == nil && out == "" {
				err = errors.New("nobody listens")
			}
			return err
		})
		ld.start(ctx, t, l, from, streamBroke, "iperf3", "-c", addr, "-p", port, "-t", fmt.Sprint(seconds), "-b", "2M", "-J")
		ld.start(ctx, t, l, from, pingsLost, "ping", "-q", "-i", "0.1", "-W", "20", "-c", fmt.Sprint(10*seconds), addr)
	}
	return ld
}

func streamBroke(text string) error {
	var r struct {
		Error string
		End   struct {
			Received struct{ Bytes float64 } `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil || r.Error != "" || r.End.Received.Bytes == 0 {
		return fmt.Errorf("stream broke: %s (%w)", r.Error, err)
	}
	return nil
}

// changeTo sets a network and waits until all nodes reach each other as told.
func changeTo(ctx context.Context, t *testing.T, l *lab.Lab, conf string, path func(from, to string) model.Path) {
	t.Helper()
	eventually(t, patience, "set", func() error { return l.SetNetConf(ctx, conf) })
	for _, n := range l.Nodes() {
		want := map[string]model.Path{}
		for _, other := range l.Nodes() {
			if other != n {
				want[other] = path(n, other)
			}
		}
		took := eventually(t, patience, "the new mode is in force", func() error { return pathsAre(ctx, l, n, want) })
		t.Logf("%s reaches the others as told after %s", n, took.Round(time.Millisecond))
	}
}

// tryApply is apply where the store may be too busy to answer in time.
func tryApply(ctx context.Context, l *lab.Lab, objects string) error {
	cmd, err := l.Command(ctx, l.Nodes()[0], "heddle", "apply", "-f", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = strings.NewReader(objects)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("heddle apply: %w: %s", err, out)
	}
	return nil
}

func only(p model.Path) func(string, string) model.Path {
	return func(string, string) model.Path { return p }
}

// TestChangesToAndFromIPIPLoseNoConnection on a running network: vxlan → ipip → host-gw → vxlan.
func TestChangesToAndFromIPIPLoseNoConnection(t *testing.T) {
	top := mustTopology(t, "flat")
	top.Nodes = top.Nodes[:2]
	ctx, l := slowUp(t, lab.Spec{Topology: top, NetConf: vxlan})
	all := pods(t, l)
	ld := slowLoad(ctx, t, l, all[0], all[1], 60)
	for _, step := range []struct {
		conf string
		path model.Path
	}{{ipip, model.PathIPIP}, {hostGW, model.PathDirect}, {vxlan, model.PathVXLAN}} {
		time.Sleep(5 * time.Second)
		changeTo(ctx, t, l, step.conf, only(step.path))
	}
	eventually(t, patience, "tunl0 is given back once nobody sends on it", func() error {
		out, err := l.Exec(ctx, "n1", "ip", "link", "show")
		if err == nil && (strings.Contains(out, "heddle:ipip") || strings.Contains(out, "tunl6")) {
			err = errors.New(out)
		}
		return err
	})
	ld.done(t)
}

// TestChangesBetweenIPIPAndBGPLoseNoConnection, said in Calico's words: vxlan → IP in IP → BGP without encapsulation,
// and vxlan again. Nothing changes path before BGP has told of the blocks.
func TestChangesBetweenIPIPAndBGPLoseNoConnection(t *testing.T) {
	top := mustTopology(t, "flat")
	top.Nodes = top.Nodes[:2]
	ctx, l := slowUp(t, lab.Spec{Topology: top, Objects: ipPools("vxlanMode: Always"), Attachment: string(model.AttachRouted)})
	all := pods(t, l)
	ld := slowLoad(ctx, t, l, all[0], all[1], 60)
	for _, step := range []struct {
		how  string
		path model.Path
	}{{"ipipMode: Always", model.PathIPIP}, {unencapsulated, model.PathBGP}, {"vxlanMode: Always", model.PathVXLAN}} {
		time.Sleep(5 * time.Second)
		eventually(t, patience, "applied", func() error { return tryApply(ctx, l, ipPools(step.how)) })
		took := eventually(t, patience, step.how, func() error { return allPathsAre(ctx, l, step.path) })
		t.Logf("everybody sends by %s after %s", step.path, took.Round(time.Millisecond))
	}
	ld.done(t)
}

// TestIPIPBetweenSegmentsOnly: walkthrough G with real pods. Protocols 4 and 41 are seen at the router between the
// segments when they should be, and never between two nodes of one segment.
func TestIPIPBetweenSegmentsOnly(t *testing.T) {
	ctx, l := slowUp(t, lab.Spec{Topology: mustTopology(t, "two-segments"), NetConf: ipipMixed})
	near := func(a, b string) model.Path {
		if a == "n3" || b == "n3" {
			return model.PathIPIP
		}
		return model.PathDirect
	}
	changeTo(ctx, t, l, ipipMixed, near)
	for _, n := range l.Nodes() {
		run(ctx, t, l, n, "nft", "table inet see { chain in { type filter hook input priority 0; meta l4proto 4 counter; meta l4proto 41 counter; }; }")
	}
	all := pods(t, l)
	wrapped := func(node string) bool {
		out := run(ctx, t, l, node, "nft", "list", "table", "inet", "see")
		return strings.Count(out, "packets 0 ") < 2
	}
	ping := func(from, to lab.Pod) {
		for _, f := range families(to) {
			run(ctx, t, l, from.Name, "ping", "-n", "-c", "2", "-w", "60", to.Address(f).String())
		}
	}
	ping(all[0], all[1])
	if wrapped("n1") || wrapped("n2") {
		t.Error("nodes of one segment encapsulate")
	}
	ping(all[0], all[2])
	if !wrapped("n3") {
		t.Error("nodes of different segments do not encapsulate")
	}
	// A pod's path MTU is the tunnel's.
	run(ctx, t, l, all[0].Name, "ping", "-n", "-c", "1", "-w", "60", "-M", "do", "-s", fmt.Sprint(1460-28), all[2].Address(model.IPv4).String())
	if out, err := l.Exec(ctx, all[0].Name, "ping", "-n", "-c", "1", "-w", "60", "-M", "do", "-s", "1472", all[2].Address(model.IPv4).String()); err == nil {
		t.Errorf("1,500 bytes go through a tunnel:\n%s", out)
	}
}
