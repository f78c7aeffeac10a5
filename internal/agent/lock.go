package agent

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// lockName is an abstract Unix address: one per network namespace, and freed by the kernel when the
// process ends, however it ends.
const lockName = "@heddle-agent"

// lockNode makes sure that one agent at most works on this network namespace.
func lockNode() (unlock func(), err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: lockName, Net: "unix"})
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
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: lockName, Net: "unix"})
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
