package agent

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// LockName is the abstract Unix address that an agent holds while it works on a network namespace: the kernel
// frees it when the process ends, however it ends.
const LockName = "@heddle-agent"

// lockNode makes sure that one agent at most works on this network namespace.
func lockNode() (unlock func(), err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: LockName, Net: "unix"})
	if err == nil {
		return func() { _ = l.Close() }, nil
	}
	if pid := lockHolder(); pid > 0 {
		return nil, fmt.Errorf("another agent, process %d, already works on this node: stop it first (systemctl stop heddle-agent)", pid)
	}
	return nil, fmt.Errorf("another agent already works on this node: %w", err)
}

// lockHolder asks the kernel who listens; 0 when it cannot be told, also across PID namespaces.
func lockHolder() int {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: LockName, Net: "unix"})
	if err != nil {
		return 0
	}
	defer func() { _ = c.Close() }()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
