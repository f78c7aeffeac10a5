// Package space makes network namespaces for measurements: without names, so that they are gone with
// the process however it ends.
package space

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Space is a network namespace.
type Space struct{ file *os.File }

// New makes an empty namespace with its loopback up.
func New() (*Space, error) {
	s := &Space{}
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace: %w", err)
		}
		s.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, s.IP("link", "set", "lo", "up")
}

// File is the open namespace; it stays the space's.
func (s *Space) File() *os.File { return s.file }

// Close gives the namespace back: it ends with the last process in it.
func (s *Space) Close() { _ = s.file.Close() }

// Do runs f on a thread in the namespace.
func (s *Space) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Start starts cmd in the namespace, bound to one CPU (any when cpu < 0).
func (s *Space) Start(cmd *exec.Cmd, cpu int) error {
	return s.Do(func() error {
		if cpu >= 0 {
			var set unix.CPUSet
			set.Set(cpu)
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				return fmt.Errorf("bind to CPU %d: %w", cpu, err)
			}
		}
		return cmd.Start() // the child has the namespace and the CPUs of the thread that forks it
	})
}

// Run runs a command in the namespace; its error has what the command said.
func (s *Space) Run(in string, args ...string) error {
	var out strings.Builder
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &out, &out
	if err := s.Start(cmd, -1); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// IP runs ip(8) in the namespace.
func (s *Space) IP(args ...string) error { return s.Run("", append([]string{"ip"}, args...)...) }

// Lines runs several ip(8) commands, one a line, as one batch.
func (s *Space) Lines(text string) error { return s.Run(text, "ip", "-batch", "-") }

// Sysctl sets a kernel setting of the namespace, its key spelled with slashes.
func (s *Space) Sysctl(key, value string) error {
	return s.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0) })
}

// Veth joins two namespaces.
func Veth(a *Space, aName string, b *Space, bName string) error {
	// ip knows namespaces by process or by file; the file is open in this process, which outlives it.
	ns := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.file.Fd())
	return a.IP("link", "add", aName, "type", "veth", "peer", "name", bName, "netns", ns)
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func() error) error {
	out := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		out <- f()
	}()
	return <-out
}
