// Package bgp_test lets the speaker talk to those of others: BIRD and FRR as Debian ships them, and such as break the rules.
package bgp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/bgp"
	"github.com/heddle-net/heddle/internal/peering"
)

const (
	inside  = "HEDDLE_BGP_LAB"     // the tests run in a namespace of their own
	asAgent = "HEDDLE_BGP_SPEAKER" // this process is a speaker, with the plan in that folder
	terse   = "HEDDLE_BGP_TERSE"   // it tells how many routes it has, and not which: with thousands, telling costs more than learning
)

// TestMain runs the tests in a network namespace of their own. It has a bridge with the addresses of all of our
// speakers; other daemons live in namespaces of theirs, on the same bridge.
func TestMain(m *testing.M) {
	if d, err := time.ParseDuration(os.Getenv("HEDDLE_BGP_PATIENCE")); err == nil {
		patience = d
	}
	if dir := os.Getenv(asAgent); dir != "" {
		speak(dir)
		return
	}
	if os.Getenv(inside) != "" {
		must("ip link set lo up", "ip link add br0 type bridge", "ip link set br0 up", "ip addr add 10.99.0.1/24 dev br0")
		for n := 1; n < 100; n++ {
			if n > 1 {
				must(fmt.Sprintf("ip addr add 10.99.0.%d/24 dev br0", n))
			}
			must(fmt.Sprintf("ip addr add fd99::%x/64 dev br0 nodad", n))
		}
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Println("needs root: network namespaces")
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		panic(err)
	}
}

func must(lines ...string) {
	for _, line := range lines {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v: %s\n", line, err, out)
			os.Exit(1)
		}
	}
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func at(n int) netip.Addr          { return addr(fmt.Sprintf("10.99.0.%d", n)) }
func at6(n int) netip.Addr         { return addr(fmt.Sprintf("fd99::%x", n)) }

var patience = 90 * time.Second

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %s: %s", patience, what)
}

// node is a speaker of ours in this process.
type node struct {
	*bgp.Server
	t    *testing.T
	plan peering.Plan
	end  func()
}

func newPlan(n int, announced ...string) peering.Plan {
	p := peering.Plan{
		ASN: 64512, RouterID: at(n), Listen: []netip.Addr{at(n), at6(n)}, Port: 179,
		Believed: []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd44::/32")}, Own: []netip.Prefix{netip.PrefixFrom(at(n), 32), netip.PrefixFrom(at6(n), 128)},
	}
	for _, a := range announced {
		p.Announced = append(p.Announced, peering.Announcement{Prefix: prefix(a), Reason: "test"})
		p.Own = append(p.Own, prefix(a))
	}
	return p
}

func knows(p *peering.Plan, a netip.Addr, change func(*peering.Neighbor)) {
	n := peering.Neighbor{Address: a, Port: 179, Name: "test", Session: peering.Session{RemoteASN: p.ASN, Source: p.Listen[0]}}
	if a.Is6() {
		n.Source = p.Listen[1]
	}
	if change != nil {
		change(&n)
	}
	p.Neighbors = append(p.Neighbors, n)
	slices.SortFunc(p.Neighbors, func(a, b peering.Neighbor) int { return a.Address.Compare(b.Address) })
}

func start(t *testing.T, p peering.Plan) *node {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	x := &node{t: t, plan: p, Server: bgp.New(bgp.Options{Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})}
	ctx, cancel := context.WithCancel(context.Background())
	x.apply()
	var done sync.WaitGroup
	done.Go(func() { _ = x.Run(ctx) })
	x.end = sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(func() {
		x.end()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("%s: %+v\n%v\n%s", p.RouterID, x.Status(), x.Routes(), tail(b))
		}
		_ = log.Close()
	})
	return x
}

func tail(b []byte) []byte { return b[max(0, len(b)-6000):] }

func (x *node) apply() {
	x.t.Helper()
	p := x.plan
	p.Neighbors = slices.Clone(p.Neighbors)
	if problems := x.Apply(context.Background(), &p); len(problems) > 0 {
		x.t.Fatal(problems)
	}
}

func (x *node) status(a netip.Addr) peering.Status {
	for _, s := range x.Status() {
		if s.Address == a {
			return s
		}
	}
	return peering.Status{}
}

func (x *node) to(p string) (out []peering.Route) {
	for _, r := range x.Routes() {
		if r.Prefix == prefix(p) {
			out = append(out, r)
		}
	}
	return out
}

// best are the next hops that won.
func best(rs []peering.Route, p string) string {
	var hops []string
	for _, r := range rs {
		if r.Best && r.Prefix == prefix(p) {
			hops = append(hops, r.NextHop.String())
		}
	}
	return strings.Join(hops, " ")
}

// agent is a speaker of ours in a process of its own, which can be killed.
type agent struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
}

// secret is what a plan's JSON leaves out.
type secret map[netip.Addr]string

func newAgent(t *testing.T, p peering.Plan) *agent {
	t.Helper()
	a := &agent{t: t, dir: t.TempDir()}
	s := secret{}
	for _, n := range p.Neighbors {
		s[n.Address] = string(n.Password)
	}
	for name, v := range map[string]any{"plan": p, "secret": s} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(a.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.start()
	t.Cleanup(func() {
		a.kill()
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(a.dir, "log"))
			t.Logf("agent %s: %s", p.RouterID, tail(b))
		}
	})
	return a
}

func (a *agent) start() {
	_ = os.Remove(filepath.Join(a.dir, "view"))
	a.cmd = exec.Command(os.Args[0])
	a.cmd.Env = append(os.Environ(), asAgent+"="+a.dir)
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(filepath.Join(a.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	a.cmd.Stderr = log
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	_ = log.Close()
}

// kill is SIGKILL: nothing is said to anybody but by the kernel.
func (a *agent) kill() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

// view is what an agent tells of itself.
type view struct {
	Routes  []peering.Route
	Count   int
	Settled bool
	RSS     int // KiB
}

func (a *agent) view() (v view) {
	if b, err := os.ReadFile(filepath.Join(a.dir, "view")); err == nil {
		_ = json.Unmarshal(b, &v)
	}
	return v
}

// speak is the agent's process.
func speak(dir string) {
	read := func(name string, v any) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			panic(err)
		}
	}
	var p peering.Plan
	var s secret
	debug.SetGCPercent(25) // as the agent does
	read("plan", &p)
	read("secret", &s)
	for i := range p.Neighbors {
		p.Neighbors[i].Password = peering.Secret(s[p.Neighbors[i].Address])
	}
	x := bgp.New(bgp.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if problems := x.Apply(context.Background(), &p); len(problems) > 0 {
		panic(problems)
	}
	go func() { panic(x.Run(context.Background())) }()
	for range x.Changed() {
		v := view{Routes: x.Routes(), Settled: x.Settled(), RSS: rss(os.Getpid())}
		if v.Count = len(v.Routes); os.Getenv(terse) != "" {
			v.Routes = nil
		}
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "view.new"), b, 0o600); err != nil {
			panic(err)
		}
		if err := os.Rename(filepath.Join(dir, "view.new"), filepath.Join(dir, "view")); err != nil {
			panic(err)
		}
		time.Sleep(20 * time.Millisecond) // not at every one of many changes
	}
}

// rss is a process's resident memory in KiB.
func rss(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return 0
}
