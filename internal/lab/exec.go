package lab

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
)

// Exec runs a command in a machine ("n1", "router", "outside") or in a pod ("n1/p1", or only "p1")
// and returns its output, both streams together. A command that fails gives an *exec.ExitError. When
// ctx ends, the command and what it started are killed.
func (l *Lab) Exec(ctx context.Context, where string, argv ...string) (string, error) {
	cmd, err := l.Command(ctx, where, argv...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Command prepares a command inside, for callers that want its streams or its process.
func (l *Lab) Command(ctx context.Context, where string, argv ...string) (*exec.Cmd, error) {
	pid, pod, err := l.place(where)
	if err != nil {
		return nil, err
	}
	return enter(ctx, pid, pod, argv...), nil
}

// Become replaces this process by a command inside, so that terminal and signals are the command's
// own. It returns only on error.
func (l *Lab) Become(where string, argv ...string) error {
	pid, pod, err := l.place(where)
	if err != nil {
		return err
	}
	args := enterArgs(pid, pod, argv)
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args, insideEnv())
}

// place finds the init of the machine, and the pod's name if a pod is meant.
func (l *Lab) place(where string) (initPID int, pod string, err error) {
	if pid, err := l.initPID(where); err == nil {
		return pid, "", nil
	} else if !strings.Contains(where, "/") {
		if _, perr := l.Pod(where); perr != nil {
			return 0, "", err
		}
	}
	p, err := l.Pod(where)
	if err != nil {
		return 0, "", err
	}
	initPID, err = l.initPID(p.Node)
	return initPID, p.Name, err
}
