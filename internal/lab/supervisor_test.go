package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// upServices boots a lab whose services are this test's binary (see TestMain): it stays until it is
// killed, and that is all the supervisor knows of an agent.
func upServices(t *testing.T) *Lab {
	t.Helper()
	needRoot(t)
	spec := bareSpec(t, "flat")
	spec.Bare, spec.CNI = false, "/dev/null"
	if err := spec.complete(); err != nil {
		t.Fatal(err)
	}
	l := newLab(spec)
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := l.bootMachines(t.Context()); err != nil {
		t.Fatal(err)
	}
	return l
}

// another waits for a service process that is not the old one.
func another(t *testing.T, find func() (int, error), old int) int {
	t.Helper()
	pid := 0
	if err := poll(bounded(t), func() error {
		p, err := find()
		if err == nil && p == old {
			err = fmt.Errorf("still %d", p)
		}
		pid = p
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestServiceIsRestartedUnlessItWasStopped(t *testing.T) {
	t.Parallel()
	l := upServices(t)
	n := l.Node("n1")
	first := another(t, n.AgentPID, 0)
	store := another(t, n.StorePID, 0)
	if err := l.KillAgent("n1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := another(t, n.AgentPID, first)
	if now, err := n.StorePID(); err != nil || now != store {
		t.Errorf("the agent's death changed the store's process from %d to %d (%v)", store, now, err)
	}
	if err := l.StopService(t.Context(), "n1", "agent"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(second, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("stopped, but process %d: %v", second, err)
	}
	if pid, err := n.AgentPID(); err == nil {
		t.Errorf("stopped, but %d runs", pid)
	}
	if err := l.StartService(t.Context(), "n1", "agent"); err != nil {
		t.Fatal(err)
	}
	third := another(t, n.AgentPID, second)
	log, err := os.ReadFile(n.LogFile("agent"))
	if err != nil || !strings.Contains(string(log), "lab: agent ended: killed by SIGKILL") {
		t.Errorf("the log does not say how the agent ended: %q, %v", log, err)
	}
	if err := l.StopService(t.Context(), "n1", "cook"); err == nil || !strings.Contains(err.Error(), `no such service "cook"`) {
		t.Errorf("got %v, want no such service", err)
	}
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{third, store} {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("the lab is down, but process %d: %v", pid, err)
		}
	}
}

func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	l := upServices(t)
	mustExec(t, l, "n2", "sh", "-c", "for i in 1 2 3; do (sleep 0.05 &) ; done")
	if err := poll(bounded(t), func() error {
		out := mustExec(t, l, "n2", "sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true")
		for line := range strings.Lines(out) {
			if strings.Contains(line, "(sleep)") {
				return fmt.Errorf("left: %s", line)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
