package e2e

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/lab"
)

// within runs f on a thread of its own in the network namespace of a file: sockets made there belong to
// it for ever.
func within(file string, f func() error) error {
	out := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err != nil {
			err = fmt.Errorf("namespace %s: %w", file, err)
		} else {
			err = f()
		}
		out <- err
	}()
	return <-out
}

// socket is a UDP socket in the namespace of a file.
func socket(file, address string) (c *net.UDPConn, err error) {
	err = within(file, func() error {
		p, err := net.ListenPacket("udp", address)
		if err == nil {
			c = p.(*net.UDPConn)
		}
		return err
	})
	return c, err
}

// netnsOf is the file of a lab pod's network namespace, as seen from here.
func netnsOf(t *testing.T, l *lab.Lab, p lab.Pod) string {
	t.Helper()
	pid, err := l.Node(p.Node).InitPID()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join("/proc", fmt.Sprint(pid), "root/run/netns", p.Name)
}

// listenTCP takes one connection after the other in a namespace.
func listenTCP(t *testing.T, file, address string) net.Listener {
	t.Helper()
	var l net.Listener
	err := within(file, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// connect opens a connection from a namespace and returns both its ends.
func connect(ctx context.Context, t *testing.T, file string, l net.Listener, address string) (client, server net.Conn) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	err := within(file, func() (err error) {
		d := net.Dialer{Timeout: 10 * time.Second}
		client, err = d.DialContext(ctx, "tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case server = <-accepted:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not accept", address)
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client, server
}
