package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

// load is a TCP stream and 100 pings per second between two pods, in both families.
type load struct {
	waits []func() error
}

// startLoad starts a load of so many seconds; done wants it to have lost no connection and at most so
// many pings.
func startLoad(ctx context.Context, t *testing.T, l *lab.Lab, from, to lab.Pod, seconds int) *load {
	t.Helper()
	ld := &load{}
	for i, f := range families(to) {
		addr, port := to.Address(f).String(), strconv.Itoa(5301+i)
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
		eventually(t, 10*time.Second, "iperf3 listens", func() error {
			out, err := l.Exec(ctx, to.Name, "ss", "-Hltn", "sport = :"+port)
			if err == nil && out == "" {
				err = errors.New("nobody listens")
			}
			return err
		})
		ld.start(ctx, t, l, from, streamLost, "iperf3", "-c", addr, "-p", port, "-t", strconv.Itoa(seconds), "-b", "200M", "-J")
		ld.start(ctx, t, l, from, pingsLost, "ping", "-q", "-i", "0.01", "-W", "5", "-c", strconv.Itoa(100*seconds), addr)
	}
	return ld
}

func (ld *load) start(ctx context.Context, t *testing.T, l *lab.Lab, from lab.Pod, judge func(string) error, argv ...string) {
	t.Helper()
	cmd, err := l.Command(ctx, from.Name, argv...)
	if err != nil {
		t.Fatal(err)
	}
	var out syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ld.waits = append(ld.waits, func() error {
		err := cmd.Wait()
		if jerr := judge(out.String()); jerr != nil {
			return fmt.Errorf("%s: %w", strings.Join(argv, " "), jerr)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out.String())
		}
		return nil
	})
}

// done waits for the load's end and judges it.
func (ld *load) done(t *testing.T) {
	t.Helper()
	for _, w := range ld.waits {
		if err := w(); err != nil {
			t.Error(err)
		}
	}
}

// streamLost finds a stream that broke, or stood still for a whole second.
func streamLost(text string) error {
	var r struct {
		Error     string
		Intervals []struct {
			Sum struct{ Bytes, End, Seconds float64 }
		}
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return fmt.Errorf("%w: %.300s", err, text)
	}
	if r.Error != "" || len(r.Intervals) == 0 {
		return fmt.Errorf("stream broke: %s", r.Error)
	}
	for _, i := range r.Intervals {
		if i.Sum.Bytes == 0 && i.Sum.Seconds > 0.5 {
			return fmt.Errorf("stream stood still in the second before %.0f s", i.Sum.End)
		}
	}
	return nil
}

var pingRE = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

func pingsLost(text string) error {
	m := pingRE.FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("no summary: %.300s", text)
	}
	sent, _ := strconv.Atoi(m[1])
	got, _ := strconv.Atoi(m[2])
	if sent-got > 1 {
		return fmt.Errorf("%d of %d pings lost, want at most 1", sent-got, sent)
	}
	return nil
}

// TestModeChangeLosesNoConnection is walkthrough D on a running network: vxlan → DirectRouting →
// host-gw, and back to vxlan.
func TestModeChangeLosesNoConnection(t *testing.T) {
	ctx, l := up(t, "flat", vxlan)
	all := pods(t, l)
	ld := startLoad(ctx, t, l, all[0], all[1], 16)
	for _, step := range []struct {
		conf string
		path model.Path
	}{{mixed, model.PathDirect}, {hostGW, model.PathDirect}, {vxlan, model.PathVXLAN}} {
		time.Sleep(3 * time.Second)
		setNetConf(ctx, t, l, step.conf)
		for _, n := range l.Nodes() {
			want := map[string]model.Path{}
			for _, other := range l.Nodes() {
				if other != n {
					want[other] = step.path
				}
			}
			took := eventually(t, 20*time.Second, "the new mode is in force", func() error { return pathsAre(ctx, l, n, want) })
			t.Logf("%s sends by %s to all after %s", n, step.path, took.Round(time.Millisecond))
		}
		if step.conf == hostGW {
			eventually(t, 20*time.Second, "the unused device goes once nobody sends on it", func() error {
				if out, err := l.Exec(ctx, "n1", "ip", "link", "show", "flannel.1"); err == nil {
					return fmt.Errorf("flannel.1 is still there: %s", out)
				}
				return nil
			})
		}
	}
	ld.done(t)
}

// TestRapidModeSwitchesLoseNothing: changes that overtake each other, as the pools of the two families
// change one after the other, and no node waits for another.
func TestRapidModeSwitchesLoseNothing(t *testing.T) {
	ctx, l := up(t, "flat", vxlan)
	all := pods(t, l)
	ld := startLoad(ctx, t, l, all[0], all[1], 8)
	end := time.Now().Add(7 * time.Second)
	switches := 0
	for ; time.Now().Before(end); switches++ {
		conf := []string{hostGW, vxlan}[switches%2]
		cmd, err := l.Command(ctx, "n1", "heddle", "network", "set", "-")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = strings.NewReader(conf)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("network set: %v\n%s", err, out)
		}
		time.Sleep(time.Duration(switches%7) * 20 * time.Millisecond)
	}
	t.Logf("%d switches", switches)
	ld.done(t)
}

// TestRestartDropsNothing: SIGTERM, SIGKILL and a new start of every agent, and of the store, while
// pods talk.
func TestRestartDropsNothing(t *testing.T) {
	ctx, l := up(t, "two-segments", mixed)
	all := pods(t, l)
	near := startLoad(ctx, t, l, all[0], all[1], 12)
	far := startLoad(ctx, t, l, all[1], all[2], 12)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for _, n := range l.Nodes() {
			time.Sleep(500 * time.Millisecond)
			restart(ctx, t, l, n, sig)
		}
	}
	if err := l.KillStore("n1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	near.done(t)
	far.done(t)
	for _, p := range all {
		if got := pods(t, l); len(got) != len(all) {
			t.Fatalf("pods %v, want %v", got, all)
		}
		s := status(ctx, t, l, p.Node)
		found := false
		for _, w := range s.Workloads {
			found = found || w.Name == p.Name && w.Addresses[0] == p.Addresses[0]
		}
		if !found {
			t.Errorf("%s has lost the record of %s %v", p.Node, p.Name, p.Addresses)
		}
	}
	reach(ctx, t, l)
}

// restart ends a node's agent by a signal and waits until the next one is ready. What the status says is
// taken from that one: the old may still answer for a moment.
func restart(ctx context.Context, t *testing.T, l *lab.Lab, node string, sig syscall.Signal) {
	t.Helper()
	before, err := l.Node(node).AgentPID()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.KillAgent(node, sig); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, node+"'s agent is back and ready", func() error {
		switch now, err := l.Node(node).AgentPID(); {
		case err != nil:
			return err
		case now == before:
			return fmt.Errorf("process %d is still there", now)
		}
		return isReady(ctx, l, node)
	})
}

func isReady(ctx context.Context, l *lab.Lab, node string) error {
	s, err := l.Status(ctx, node)
	if err == nil && !s.Ready {
		err = fmt.Errorf("%s is not ready: %s", node, s.Reason)
	}
	return err
}

// TestPodsAreAddedWhileTheStoreIsAway, also by an agent that starts without it.
func TestPodsAreAddedWhileTheStoreIsAway(t *testing.T) {
	ctx, l := up(t, "two-segments", mixed)
	if err := l.StopService(ctx, "n1", "store"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.AddPod(ctx, "n2", "while-away"); err != nil {
		t.Fatal(err)
	}
	restart(ctx, t, l, "n3", syscall.SIGKILL)
	if _, err := l.AddPod(ctx, "n3", "after-restart"); err != nil {
		t.Fatal(err)
	}
	reach(ctx, t, l)
	if err := problem(ctx, l, "n3", "store-unreachable", "packets flow"); err != nil {
		t.Error(err)
	}
	if err := l.StartService(ctx, "n1", "store"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "the problem goes away", func() error {
		s, err := l.Status(ctx, "n3")
		if err == nil && len(s.Problems) > 0 {
			err = fmt.Errorf("%v", s.Problems)
		}
		return err
	})
}

// TestStartWithoutTheStoreFromAnOldMemoryTakesNoWayAway: what an agent remembers of the cluster may be older
// than its kernel, when it was killed soon after a change. The pods of a node that it does not remember stay
// in reach.
func TestStartWithoutTheStoreFromAnOldMemoryTakesNoWayAway(t *testing.T) {
	ctx, l := up(t, "two-segments", mixed)
	service := func(do func(context.Context, string, string) error, node, service string) {
		t.Helper()
		if err := do(ctx, node, service); err != nil {
			t.Fatal(err)
		}
	}
	memory, err := l.Node("n3").File("/var/lib/heddle/ledger.db")
	if err != nil {
		t.Fatal(err)
	}
	peers := func(want ...string) func() error {
		return func() error {
			s, err := l.Status(ctx, "n3")
			have := map[string]bool{}
			for _, p := range s.Peers {
				have[p.Node] = p.State == agent.PeerUp
			}
			if err == nil && (len(have) != len(want) || slices.ContainsFunc(want, func(n string) bool { return !have[n] })) {
				err = fmt.Errorf("n3 has peers %v, want %v", s.Peers, want)
			}
			return err
		}
	}
	service(l.StopService, "n2", "agent")
	run(ctx, t, l, "n1", "heddle", "node", "remove", "n2", "--force")
	eventually(t, 30*time.Second, "n3 has forgotten n2", peers("n1"))
	service(l.StopService, "n3", "agent")
	harness.Run(t, "cp", memory, memory+".old")
	service(l.StartService, "n2", "agent")
	service(l.StartService, "n3", "agent")
	eventually(t, 30*time.Second, "n3 has n2 again", peers("n1", "n2"))
	if _, err := l.WaitPeers(ctx); err != nil { // of both families
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "n1 and n2 have each other", func() error {
		return errors.Join(isReady(ctx, l, "n2"), pathsAre(ctx, l, "n1", map[string]model.Path{"n2": model.PathDirect}), pathsAre(ctx, l, "n2", map[string]model.Path{"n1": model.PathDirect, "n3": model.PathVXLAN}))
	})

	service(l.StopService, "n3", "agent")
	service(l.StopService, "n1", "store")
	harness.Run(t, "mv", memory+".old", memory)
	service(l.StartService, "n3", "agent")
	eventually(t, 30*time.Second, "n3 is ready without the store", func() error { return isReady(ctx, l, "n3") })
	if err := peers("n1")(); err != nil {
		t.Errorf("nothing is tested: %v", err)
	}
	if _, err := l.AddPod(ctx, "n3", "new"); err != nil {
		t.Fatal(err)
	}
	reach(ctx, t, l)
}

// TestChangedNodeAddressIsFollowed: republished, and the peers send to the new one.
func TestChangedNodeAddressIsFollowed(t *testing.T) {
	ctx, l := up(t, "two-segments", mixed)
	run(ctx, t, l, "n2", "ip", "addr", "del", "192.168.100.101/24", "dev", "eth0")
	run(ctx, t, l, "n2", "ip", "addr", "add", "192.168.100.77/24", "dev", "eth0")
	run(ctx, t, l, "n2", "ip", "route", "replace", "default", "via", "192.168.100.1")
	eventually(t, 30*time.Second, "n1 and n3 send to the new address", func() error {
		for _, n := range []string{"n1", "n3"} {
			s, err := l.Status(ctx, n)
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				if p.Node == "n2" && p.Block.Addr().Is4() && p.Via.String() != "192.168.100.77" {
					return fmt.Errorf("%s sends to %s", n, p.Via)
				}
			}
		}
		return nil
	})
	reach(ctx, t, l)
}

// TestHandMadeDamageIsRepaired within a second, as a user would do it by hand in the lab.
func TestHandMadeDamageIsRepaired(t *testing.T) {
	ctx, l := up(t, "two-segments", vxlan)
	to := pods(t, l)[2].Address(model.IPv4).String()
	for _, damage := range [][]string{
		{"ip", "link", "del", "flannel.1"},
		{"ip", "route", "flush", "proto", "104"},
		{"ip", "addr", "flush", "dev", "cni0"},
		{"ip", "link", "del", "cni0"},
		{"nft", "flush", "ruleset"},
	} {
		run(ctx, t, l, "n1", damage...)
		took := eventually(t, 5*time.Second, strings.Join(damage, " ")+" is repaired", func() error {
			out, err := l.Exec(ctx, "p1", "ping", "-c1", "-W1", to)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			_, err = l.Exec(ctx, "n1", "nft", "list", "table", "inet", "heddle")
			return err
		})
		t.Logf("%s: repaired, and a ping answered, after %s", strings.Join(damage, " "), took.Round(time.Millisecond))
	}
	reach(ctx, t, l)
}

// TestSecondAgentOnANodeIsRefused with a message that says why.
func TestSecondAgentOnANodeIsRefused(t *testing.T) {
	ctx, l := up(t, "flat", only4, func(s *lab.Spec) { s.Pods = 0 })
	out, err := l.Exec(ctx, "n1", "heddle", "agent", "--node", "n1", "--state-dir", "/tmp/second", "--run-dir", "/tmp/second-run")
	if err == nil || !strings.Contains(out, "another agent") {
		t.Fatalf("second agent: %v\n%s", err, out)
	}
	if s := status(ctx, t, l, "n1"); !s.Ready {
		t.Errorf("the first agent suffered: %s", s.Reason)
	}
}
