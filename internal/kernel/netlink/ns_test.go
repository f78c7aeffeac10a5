package netlink

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// space is a network namespace without a name: it is gone when the test closes it, or dies.
type space struct {
	t    testing.TB
	file *os.File
}

func newSpace(t testing.TB) *space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	s := bareSpace(t)
	t.Cleanup(func() { s.file.Close() })
	s.ip("link set lo up")
	return s
}

// bareSpace is a new namespace, its loopback still down; the caller closes its file.
func bareSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open(ownNS)
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	s.file, err = os.Open(ownNS)
	if rerr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); rerr != nil {
		panic(rerr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *space) fd() int { return int(s.file.Fd()) }

// path names the namespace for ip.
func (s *space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.fd()) }

func (s *space) try(args ...string) (out string, err error) {
	err = Do(s.fd(), func() error {
		b, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		out = string(b)
		return err
	})
	return out, err
}

func (s *space) run(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// ip runs one ip command, given as one string.
func (s *space) ip(cmd string) string {
	s.t.Helper()
	return s.run(append([]string{"ip"}, strings.Fields(cmd)...)...)
}

func (s *space) wants(cmd string, parts ...string) {
	s.t.Helper()
	out := s.run(strings.Fields(cmd)...)
	for _, p := range parts {
		if !strings.Contains(out, p) {
			s.t.Errorf("%s: want %q in\n%s", cmd, p, out)
		}
	}
}

func (s *space) lacks(cmd string, parts ...string) {
	s.t.Helper()
	out, _ := s.try(strings.Fields(cmd)...)
	for _, p := range parts {
		if strings.Contains(out, p) {
			s.t.Errorf("%s: want no %q in\n%s", cmd, p, out)
		}
	}
}

func (s *space) pings(dst string) {
	s.t.Helper()
	if out, err := s.try("ping", "-c1", "-W2", dst); err != nil {
		s.t.Errorf("ping %s: %v\n%s", dst, err, out)
	}
}

func (s *space) sysctl(key string) (v string) {
	s.t.Helper()
	err := Do(s.fd(), func() (err error) {
		v, err = readSysctl(key)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// wire joins two namespaces by a veth.
func wire(a *space, aName string, b *space, bName string) {
	a.t.Helper()
	a.ip(fmt.Sprintf("link add %s type veth peer name %s netns %s", aName, bName, b.path()))
	a.ip("link set " + aName + " up")
	b.ip("link set " + bName + " up")
}

// eventually waits for a promise that the kernel or a loop keeps a little later.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("after 10 s still not: %s", what)
}

func TestDoComesBack(t *testing.T) {
	s := newSpace(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns := func() string {
		l, err := os.Readlink(ownNS)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	before, inside := ns(), ""
	boom := errors.New("boom")
	if err := Do(s.fd(), func() error { inside = ns(); return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v, want the function's own error", err)
	}
	if inside == before {
		t.Error("the function ran in the own namespace")
	}
	if after := ns(); after != before {
		t.Errorf("thread is in %s, want %s", after, before)
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Do(int(f.Fd()), func() error { return nil }); err == nil {
		t.Error("a handle that is no namespace was entered")
	}
}
