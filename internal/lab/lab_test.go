package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test's own binary be what a machine runs, so that the wiring is tested without
// building the product.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && slices.Equal(os.Args[1:4], machineArgs("")[:3]) {
		if err := RunMachine(context.Background(), os.Args[4], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && (os.Args[1] == "agent" || os.Args[1] == "store") {
		time.Sleep(time.Hour) // a service: see upServices
	}
	os.Exit(m.Run())
}

var serial atomic.Int32

// uniqueName fits a lab's name and is nobody else's.
func uniqueName() string { return fmt.Sprintf("t%d-%d", os.Getpid(), serial.Add(1)) }

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
}

func bareSpec(t *testing.T, topology string) Spec {
	t.Helper()
	topo, err := LoadTopology(topology)
	if err != nil {
		t.Fatal(err)
	}
	return Spec{Name: uniqueName(), Topology: topo, Bare: true}
}

func upBare(t *testing.T, spec Spec) *Lab {
	t.Helper()
	needRoot(t)
	l, err := Up(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// bounded is long enough for anything that works.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mustExec(t *testing.T, l *Lab, where string, argv ...string) string {
	t.Helper()
	out, err := l.Exec(t.Context(), where, argv...)
	if err != nil {
		t.Fatalf("%s: %v: %v\n%s", where, argv, err, out)
	}
	return out
}

func pings(t *testing.T, l *Lab, from, to string) bool {
	t.Helper()
	out, err := l.Exec(t.Context(), from, "ping", "-n", "-c", "1", "-W", "2", to)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("ping: %v\n%s", err, out)
	}
	return err == nil
}

func TestNodesReachEachOtherThroughTheRouter(t *testing.T) {
	t.Parallel()
	l := upBare(t, bareSpec(t, "two-segments"))
	for _, to := range []string{"192.168.100.101", "fd00:100::101", "192.168.200.101", "fd00:200::101", "203.0.113.10", "fd00:ffff::10"} {
		if !pings(t, l, "n1", to) {
			t.Errorf("n1 does not reach %s", to)
		}
	}
	// A node forwards nothing until its agent says so: what the real host has must not shine through.
	if got := mustExec(t, l, "n1", "cat", "/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(got) != "0" {
		t.Errorf("ip_forward on a fresh node: %q, want 0", got)
	}
	if got := mustExec(t, l, "n3", "hostname"); strings.TrimSpace(got) != "n3" {
		t.Errorf("host name %q, want n3", got)
	}
}

func TestMachinesAreCutOffFromTheHost(t *testing.T) {
	t.Parallel()
	l := upBare(t, bareSpec(t, "flat"))
	for _, m := range []string{routerName, "n1", "outside"} {
		var links []string
		for line := range strings.Lines(mustExec(t, l, m, "ip", "-o", "link")) {
			links = append(links, strings.TrimSuffix(strings.Fields(line)[1], ":"))
		}
		for _, link := range links {
			name, _, _ := strings.Cut(link, "@")
			if name != "lo" && name != uplink && !strings.HasPrefix(name, "to-") && !strings.HasPrefix(name, "br-") {
				t.Errorf("%s has link %s", m, name)
			}
		}
		for _, dir := range []string{"/etc", "/opt", "/var/lib", "/run"} {
			mustExec(t, l, m, "touch", dir+"/"+l.Name)
			if _, err := os.Lstat(dir + "/" + l.Name); err == nil {
				t.Errorf("%s: a file in %s is the host's too", m, dir)
				_ = os.Remove(dir + "/" + l.Name)
			}
		}
		if out := mustExec(t, l, m, "sh", "-c", "ls -d /proc/[0-9]* | wc -l"); strings.TrimSpace(out) > "9" {
			t.Errorf("%s sees %s processes: want its own only", m, out)
		}
	}
	if pings(t, l, "n1", "192.0.2.1") {
		t.Error("an address beyond the lab answers")
	}
}

func TestNATNodeIsReachedByItsPublicAddressOnly(t *testing.T) {
	t.Parallel()
	l := upBare(t, bareSpec(t, "nat"))
	for _, public := range []string{"198.51.100.13", "fd00:198::13"} {
		if !pings(t, l, "n1", public) {
			t.Errorf("n1 does not reach n3 at %s", public)
		}
	}
	for _, inner := range []string{"10.99.0.13", "fd00:99::13"} {
		if pings(t, l, "n1", inner) {
			t.Errorf("n1 reaches n3 at its inner address %s", inner)
		}
	}
	// Peers see the public address as the source.
	seen := make(chan string, 1)
	go func() {
		out, _ := l.Exec(t.Context(), "n1", "timeout", "10", "tcpdump", "-n", "-l", "-c", "1", "-i", uplink, "icmp and icmp[0]=8")
		seen <- out
	}()
	deadline := time.After(10 * time.Second)
	for {
		if !pings(t, l, "n3", "192.168.100.11") {
			t.Fatal("n3 does not reach n1")
		}
		select {
		case out := <-seen:
			if !strings.Contains(out, "198.51.100.13 > 192.168.100.11") {
				t.Errorf("capture on n1:\n%s\nwant source 198.51.100.13", out)
			}
			return
		case <-deadline:
			t.Fatal("no capture")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// hostDirs are where a lab could leave something.
var hostDirs = []string{"/run", "/opt", "/var/lib"}

// hostState is everything by which a lab could be noticed on a host of its own: see inOwnHost.
func hostState(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, argv := range [][]string{{"ip", "-o", "link"}, {"ip", "netns"}, {"ip", "route", "show", "table", "all"}, {"nft", "list", "ruleset"}} {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
		fmt.Fprintf(&b, "%v\n%s\n", argv, out)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		// Others' mounts do not appear here, but go with the folder that they are on.
		f := strings.Fields(line)
		fmt.Fprintln(&b, "mount", f[0], strings.TrimSuffix(f[4], "//deleted"))
	}
	for _, dir := range append([]string{"/etc/cni", "/etc/heddle"}, hostDirs...) {
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error { // most are not there
			switch {
			case err != nil:
				return nil
			case path == Root:
				return filepath.SkipDir
			}
			fmt.Fprintln(&b, path)
			return nil
		})
	}
	return b.String()
}

// inOwnHost runs a test again, alone in network and mount namespaces of its own that stand for the
// host, with empty folders where labs work, so that what other tests do to the real one at the same time
// is not seen.
func inOwnHost(t *testing.T) bool {
	t.Helper()
	needRoot(t)
	if os.Getenv("HEDDLE_LAB_OWN_HOST") != "" {
		for _, dir := range hostDirs {
			if err := unix.Mount("own", dir, "tmpfs", 0, ""); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "HEDDLE_LAB_OWN_HOST=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("the test did not run:\n%s", out)
	}
	return false
}

func TestDownLeavesNoTrace(t *testing.T) {
	t.Parallel()
	if !inOwnHost(t) {
		return
	}
	before := hostState(t)
	l, err := Up(t.Context(), bareSpec(t, "nat"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := diffLines(before, hostState(t)); diff != "" {
		t.Errorf("a lab that is up shows on the host:\n%s", diff)
	}
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := diffLines(before, hostState(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
	if _, err := os.Stat(Root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory of labs left: %v", err)
	}
	if left, err := inits(l.Dir); err != nil || len(left) > 0 {
		t.Errorf("processes left: %v, %v", left, err)
	}
	if _, err := os.Stat(l.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory left: %v", err)
	}
}

// diffLines tells what is new, and what is gone but others' mounts.
func diffLines(a, b string) string {
	old, now := strings.Split(a, "\n"), strings.Split(b, "\n")
	var out strings.Builder
	for _, l := range now {
		if !slices.Contains(old, l) {
			fmt.Fprintln(&out, "+", l)
		}
	}
	for _, l := range old {
		if !slices.Contains(now, l) && !strings.HasPrefix(l, "mount ") {
			fmt.Fprintln(&out, "-", l)
		}
	}
	return out.String()
}

func TestUpTwiceWithOneNameIsRefusedAndHarmsNothing(t *testing.T) {
	t.Parallel()
	spec := bareSpec(t, "flat")
	l := upBare(t, spec)
	_, err := Up(t.Context(), spec)
	if !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "heddle lab down --name "+spec.Name) {
		t.Fatalf("got %v, want ErrExists with the command to run", err)
	}
	if !pings(t, l, "n1", "192.168.100.12") {
		t.Error("the first lab does not work any more")
	}
}

func TestTwoLabsSideBySideDoNotMeet(t *testing.T) {
	t.Parallel()
	a, b := upBare(t, bareSpec(t, "flat")), upBare(t, bareSpec(t, "flat"))
	mustExec(t, a, "n2", "ip", "addr", "add", "192.168.100.77/24", "dev", uplink)
	if !pings(t, a, "n1", "192.168.100.77") {
		t.Error("n1 of the first lab does not reach the address")
	}
	if pings(t, b, "n1", "192.168.100.77") {
		t.Error("n1 of the second lab reaches an address of the first")
	}
	if err := a.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !pings(t, b, "n1", "192.168.100.12") {
		t.Error("taking down one lab broke the other")
	}
}

func TestDownRemovesHalfAMadeLab(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, half := range []string{"directory only", "machine killed", "state file lost", "directory lost"} {
		spec := bareSpec(t, "flat")
		if half == "directory only" {
			if err := os.MkdirAll(labDir(spec.Name), 0o700); err != nil {
				t.Fatal(err)
			}
		} else {
			l := upBare(t, spec)
			var err error
			switch half {
			case "machine killed":
				var pid int
				if pid, err = l.Node("n2").InitPID(); err == nil {
					err = syscall.Kill(pid, syscall.SIGKILL)
				}
			case "state file lost":
				err = os.Remove(filepath.Join(l.Dir, stateFile))
			case "directory lost":
				err = os.RemoveAll(l.Dir)
			}
			if err != nil {
				t.Fatalf("%s: %v", half, err)
			}
		}
		if err := Down(t.Context(), spec.Name); err != nil {
			t.Errorf("%s: %v", half, err)
		}
		if left, err := inits(labDir(spec.Name)); err != nil || len(left) > 0 {
			t.Errorf("%s: processes left: %v, %v", half, left, err)
		}
		if _, err := os.Stat(labDir(spec.Name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: directory left: %v", half, err)
		}
		if err := Down(t.Context(), spec.Name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: a second down: %v, want ErrNotFound", half, err)
		}
	}
}

// lateDeadline is a context whose time is over when somebody says so: how long the machines take to boot
// is nobody's promise.
type lateDeadline struct {
	context.Context
	passed chan struct{}
}

func (d lateDeadline) Done() <-chan struct{} { return d.passed }

func (d lateDeadline) Err() error {
	select {
	case <-d.passed:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func TestUpThatFailsOrIsInterruptedCleansUp(t *testing.T) {
	t.Parallel()
	needRoot(t)
	failing := bareSpec(t, "flat")
	failing.Bare, failing.CNI = false, "/dev/null" // the test's own binary never writes what an agent does
	late := lateDeadline{t.Context(), make(chan struct{})}
	failing.Progress = func(_ time.Duration, step string) {
		if strings.Contains(step, "agents run") {
			time.AfterFunc(100*time.Millisecond, func() { close(late.passed) })
		}
	}
	if _, err := Up(late, failing); !strings.Contains(fmt.Sprint(err), "CNI configuration") {
		t.Errorf("got %v, want what the lab waited for", err)
	}
	interrupted := bareSpec(t, "flat")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Up(ctx, interrupted); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	for _, s := range []Spec{failing, interrupted} {
		if left, err := inits(labDir(s.Name)); err != nil || len(left) > 0 {
			t.Errorf("processes left: %v, %v", left, err)
		}
		if _, err := os.Stat(labDir(s.Name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("directory left: %v", err)
		}
	}
}
