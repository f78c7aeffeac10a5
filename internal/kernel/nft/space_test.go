package nft

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

var spaces atomic.Int64

// space is a network namespace of a test's own, by name, gone when the test ends.
type space struct {
	t    *testing.T
	name string
}

func newSpace(t *testing.T) space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	s := space{t, fmt.Sprintf("hdnft%d-%d", os.Getpid(), spaces.Add(1))}
	command(t, "", "ip", "netns", "add", s.name)
	t.Cleanup(func() { command(t, "", "ip", "netns", "del", s.name) })
	s.run("ip", "link", "set", "lo", "up")
	return s
}

// run runs a command inside and returns what it printed; an error ends the test.
func (s space) run(args ...string) string {
	s.t.Helper()
	return command(s.t, "", append([]string{"ip", "netns", "exec", s.name}, args...)...)
}

// feed is run with standard input.
func (s space) feed(in string, args ...string) string {
	s.t.Helper()
	return command(s.t, in, append([]string{"ip", "netns", "exec", s.name}, args...)...)
}

func command(t *testing.T, in string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s space) driver() *Driver {
	s.t.Helper()
	h, err := netns.GetFromName(s.name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = h.Close() })
	d, err := New(Options{NS: int(h), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s space) table() string { s.t.Helper(); return s.run("nft", "list", "table", "inet", "heddle") }

// apply runs a pass that must have no problem.
func apply(t *testing.T, d *Driver, f plan.Filter) int {
	t.Helper()
	n, problems := d.Apply(t.Context(), &plan.Plan{Filter: f})
	if len(problems) > 0 {
		t.Fatalf("problems: %+v", problems)
	}
	return n
}

func withProblem(t *testing.T, d *Driver, f plan.Filter, code string) model.Problem {
	t.Helper()
	_, problems := d.Apply(t.Context(), &plan.Plan{Filter: f})
	if len(problems) != 1 || problems[0].Code != code {
		t.Fatalf("problems: %+v, want one %s", problems, code)
	}
	return problems[0]
}

func prefixes(words ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, w := range words {
		out = append(out, netip.MustParsePrefix(w))
	}
	return out
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 10 s: %s", what)
}

// loop runs Watch and Apply as an agent does, and counts the passes, until the test ends.
func loop(t *testing.T, d *Driver, f plan.Filter) (passes, writes *atomic.Int64) {
	t.Helper()
	passes, writes = new(atomic.Int64), new(atomic.Int64)
	ctx, cancel := context.WithCancel(t.Context())
	kick := make(chan struct{}, 1)
	done := make(chan error, 2)
	go func() {
		done <- d.Watch(ctx, func() {
			select {
			case kick <- struct{}{}:
			default:
			}
		})
	}()
	go func() {
		for {
			select {
			case <-kick:
				n, _ := d.Apply(ctx, &plan.Plan{Filter: f})
				writes.Add(int64(n))
				passes.Add(1)
			case <-ctx.Done():
				done <- nil
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("watch: %v", err)
			}
		}
	})
	return passes, writes
}
