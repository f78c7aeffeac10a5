package filter

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
	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/internal/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var spaces atomic.Int64

// space is a network namespace of a test's own, by name, gone when the test ends.
type space struct {
	t    testing.TB
	name string
}

func newSpace(t testing.TB) space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	s := space{t, fmt.Sprintf("hdflt%d-%d", os.Getpid(), spaces.Add(1))}
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

func command(t testing.TB, in string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// driver is a driver in the namespace. Without owned its tables belong to nobody, as on Linux before 6.9.
func (s space) driver(owned bool, inside ...string) *Driver {
	s.t.Helper()
	h, err := netns.GetFromName(s.name)
	if err != nil {
		s.t.Fatal(err)
	}
	d, err := New(Options{NS: int(h), Inside: inside, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	if !owned {
		d.flags = 0
	}
	s.t.Cleanup(func() { _, _ = d.Close(), h.Close() })
	return d
}

// apply runs a pass that must have no problem.
func apply(t testing.TB, d *Driver, table *policy.Table) int {
	t.Helper()
	n, problems := d.Apply(context.Background(), table)
	if len(problems) > 0 {
		t.Fatalf("problems: %+v", problems)
	}
	return n
}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 10 s: %s", what)
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
