// Package harness has what the tests of the whole product share: the built binaries, namespaces that
// are cleaned up also after a failure, and bounded waiting.
package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Bin are the product's binaries.
type Bin struct{ Heddle, Plugin string }

var build struct {
	sync.Once
	bin Bin
	err error
}

// Build makes both binaries once per test process; HEDDLE_BIN names a directory that has them.
func Build(tb testing.TB) Bin {
	tb.Helper()
	build.Do(func() {
		dir := os.Getenv("HEDDLE_BIN")
		if dir == "" {
			var out []byte
			if dir, build.err = os.MkdirTemp("", "heddle-bin-"); build.err != nil {
				return
			}
			cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, "./cmd/heddle", "./cmd/heddle-cni")
			cmd.Dir = root()
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, build.err = cmd.CombinedOutput(); build.err != nil {
				build.err = fmt.Errorf("%w: %s", build.err, out)
				return
			}
		}
		build.bin = Bin{filepath.Join(dir, "heddle"), filepath.Join(dir, "heddle-cni")}
	})
	if build.err != nil {
		tb.Fatal(build.err)
	}
	return build.bin
}

// Cleanup removes what Build made: call it at the end of TestMain.
func Cleanup() {
	if os.Getenv("HEDDLE_BIN") == "" && build.bin.Heddle != "" {
		_ = os.RemoveAll(filepath.Dir(build.bin.Heddle))
	}
}

// root is the module's directory, found upwards from the test's own.
func root() string {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return "."
}

// Root skips a test that needs root when there is none.
func Root(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: it makes network namespaces")
	}
}

var counter atomic.Int64

// Name makes a name that no other test uses, at most 12 characters long.
func Name(prefix string) string {
	return fmt.Sprintf("%s%d-%d", prefix, os.Getpid()%100000, counter.Add(1))
}

// Netns makes a network namespace with loopback up, and removes it at the end.
func Netns(tb testing.TB) string {
	tb.Helper()
	name := Name("hd")
	Run(tb, "ip", "netns", "add", name)
	tb.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	Run(tb, "ip", "-n", name, "link", "set", "lo", "up")
	return name
}

// Run runs a command, which must succeed, and returns what it printed.
func Run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Start starts a command that is killed at the end of the test; its output is shown if the test fails.
func Start(tb testing.TB, name string, args ...string) *exec.Cmd {
	tb.Helper()
	var out lockedBuffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if tb.Failed() {
			tb.Logf("%s %s printed:\n%s", name, strings.Join(args, " "), Tail(out.String()))
		}
	})
	return cmd
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// tailSize is how much of a program's output is shown when a test fails: what the test itself says must
// not drown in it.
const tailSize = 1 << 10

// Tail is the end of a program's output, in whole lines of at most a kilobyte together.
func Tail(text string) string {
	if len(text) <= tailSize {
		return text
	}
	text = text[len(text)-tailSize:]
	if _, rest, ok := strings.Cut(text, "\n"); ok {
		text = rest
	}
	return "…\n" + text
}

// Wait asks until ok is true, for at most the limit, and returns how long it took.
func Wait(tb testing.TB, limit time.Duration, what string, ok func() bool) time.Duration {
	tb.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > limit {
			tb.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(begin)
}
