package bgp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/internal/peering"
)

// TestMain runs the tests in a network namespace of their own, whose loopback device has all of 10.99.0.0/16 and
// fd99::1 to fd99::80: every speaker has addresses of its own there, and the real port.
func TestMain(m *testing.M) {
	const inside = "HEDDLE_BGP_TEST_NAMESPACE"
	if os.Getenv(inside) == "" && os.Geteuid() == 0 {
		cmd := exec.Command(os.Args[0], os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		runtime.LockOSThread()
		if err := cmd.Run(); err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				os.Exit(exit.ExitCode())
			}
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(inside) != "" {
		lines := []string{"link set lo up", "addr add 10.99.0.1/16 dev lo"}
		for i := range 128 {
			lines = append(lines, fmt.Sprintf("addr add fd99::%x/128 dev lo nodad", i+1))
		}
		for _, line := range lines {
			if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "ip %s: %v: %s\n", line, err, out)
				os.Exit(1)
			}
		}
	}
	// gobgp may leave a queue behind, with what a session that ended would have sent.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/eapache/channels.(*InfiniteChannel).infiniteBuffer"))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a network namespace of its own")
	}
}

// node is a speaker in a test.
type node struct {
	*Server
	t    *testing.T
	name string
	plan peering.Plan
	log  *record
	end  context.CancelFunc
	done chan struct{}
}

// record is a log that tests can read.
type record struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

func newRecordOf(h slog.Handler) *slog.Logger { return slog.New(h) }

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// at is the address of the nth node.
func at(n int) netip.Addr  { return addr(fmt.Sprintf("10.99.0.%d", n)) }
func at6(n int) netip.Addr { return addr(fmt.Sprintf("fd99::%x", n)) }

// newNode is the nth speaker, of AS 64512 unless the plan is changed before speak.
func newNode(t *testing.T, n int, announced ...string) *node {
	t.Helper()
	needRoot(t)
	x := &node{t: t, name: fmt.Sprintf("n%d", n), log: &record{}, plan: peering.Plan{
		ASN: 64512, RouterID: at(n), Listen: []netip.Addr{at(n), at6(n)}, Port: 179,
		Believed: []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd44::/32")},
	}}
	for _, a := range announced {
		x.plan.Announced = append(x.plan.Announced, peering.Announcement{Prefix: prefix(a), Reason: "test"})
	}
	x.Server = New(Options{Log: slog.New(slog.NewTextHandler(x.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	return x
}

// knows adds a neighbour to the plan.
func (x *node) knows(a netip.Addr, change func(*peering.Neighbor)) *node {
	n := peering.Neighbor{Address: a, Port: 179, Name: "test", Session: peering.Session{RemoteASN: x.plan.ASN}}
	if a.Is4() {
		n.Source = x.plan.Listen[0]
	} else {
		n.Source = x.plan.Listen[1]
	}
	if change != nil {
		change(&n)
	}
	x.plan.Neighbors = append(x.plan.Neighbors, n)
	slices.SortFunc(x.plan.Neighbors, func(a, b peering.Neighbor) int { return a.Address.Compare(b.Address) })
	return x
}

func (x *node) apply() {
	x.t.Helper()
	p := x.plan
	p.Neighbors, p.Announced, p.Own = slices.Clone(p.Neighbors), slices.Clone(p.Announced), slices.Clone(p.Own)
	if problems := x.Apply(context.Background(), &p); len(problems) > 0 {
		x.t.Fatalf("%s: %v", x.name, problems)
	}
}

// speak starts it, until the test ends.
func (x *node) speak() *node {
	x.t.Helper()
	ctx, end := context.WithCancel(context.Background())
	x.end, x.done = end, make(chan struct{})
	x.apply()
	go func() {
		defer close(x.done)
		if err := x.Run(ctx); err != nil {
			x.t.Errorf("%s: %v", x.name, err)
		}
	}()
	x.t.Cleanup(func() {
		x.stop()
		if x.t.Failed() {
			x.t.Logf("%s: %+v\n%v\n%s", x.name, x.Status(), x.Routes(), x.log)
		}
	})
	return x
}

func (x *node) stop() {
	x.end()
	<-x.done
}

func (x *node) status(a netip.Addr) peering.Status {
	for _, s := range x.Status() {
		if s.Address == a {
			return s
		}
	}
	return peering.Status{}
}

// routes are those for a prefix, in order.
func (x *node) to(p string) (out []peering.Route) {
	for _, r := range x.Routes() {
		if r.Prefix == prefix(p) {
			out = append(out, r)
		}
	}
	return out
}

// best are the next hops that won.
func (x *node) best(p string) string {
	var hops []string
	for _, r := range x.to(p) {
		if r.Best {
			hops = append(hops, r.NextHop.String())
		}
	}
	return strings.Join(hops, " ")
}

// until waits for a condition; it says what it waited for when it does not come.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within a minute: %s", what)
}

func (x *node) untilUp(a netip.Addr) {
	x.t.Helper()
	until(x.t, fmt.Sprintf("%s speaks with %s", x.name, a), func() bool { return x.status(a).State == peering.Established })
}

// stays watches that a condition holds for a while.
func stays(t *testing.T, what string, d time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if !ok() {
			t.Fatalf("did not stay: %s", what)
		}
	}
}
