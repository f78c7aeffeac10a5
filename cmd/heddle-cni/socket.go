package main

import (
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/heddle-net/heddle/internal/cni/wire"
)

// How long the plugin waits. Runtimes wait for minutes; an agent that restarts is back in a second or two.
const (
	requestTimeout = 60 * time.Second
	connectTimeout = 3 * time.Second // all tries together
	connectEvery   = 25 * time.Millisecond
	// An agent that dies breaks off the request it is at, and those that wait in its backlog.
	exchanges = 4
)

var errTimeout = errors.New("timed out")

// openNetns opens a namespace's file; the descriptor lives as long as the process.
func openNetns(path string) (int, error) {
	for {
		fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if !errors.Is(err, syscall.EINTR) {
			return fd, err
		}
	}
}

// ask sends the request, with the namespace's descriptor unless it is negative, and returns the answer.
// When the agent dies in the middle it is asked again: every verb is idempotent.
func ask(socket string, r *wire.Request, netns int, deadline time.Time) (wire.Response, error) {
	frame := r.AppendFrame(nil)
	for try := 1; ; try++ {
		fd, err := connect(socket, deadline)
		if err != nil {
			return wire.Response{}, err
		}
		answer, err := exchange(fd, frame, netns, deadline)
		_ = syscall.Close(fd)
		var bad wire.Error
		if err == nil || try == exchanges || errors.Is(err, errTimeout) || errors.As(err, &bad) {
			return answer, err
		}
		time.Sleep(connectEvery)
	}
}

// connect tries for a short while, so that an agent's restart fails no pod.
func connect(socket string, deadline time.Time) (int, error) {
	if first := time.Now().Add(connectTimeout); first.Before(deadline) {
		deadline = first
	}
	reason := errTimeout // why the last try failed
	for {
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, os.NewSyscallError("socket", err)
		}
		if limit(fd, deadline) != nil {
			_ = syscall.Close(fd)
			return -1, reason
		}
		if err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}); err == nil {
			return fd, nil
		}
		_ = syscall.Close(fd)
		reason = os.NewSyscallError("connect", err)
		if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) {
			return -1, reason // waiting does not help
		}
		time.Sleep(connectEvery)
	}
}

// limit bounds every further call on the socket by the deadline.
func limit(fd int, deadline time.Time) error {
	left := time.Until(deadline)
	if left <= 0 {
		return errTimeout
	}
	tv := syscall.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
	for _, option := range []int{syscall.SO_SNDTIMEO, syscall.SO_RCVTIMEO} {
		if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, option, &tv); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// exchange sends the frame and reads the answer's.
func exchange(fd int, frame []byte, netns int, deadline time.Time) (wire.Response, error) {
	var rights []byte
	if netns >= 0 {
		rights = syscall.UnixRights(netns)
	}
	for len(frame) > 0 {
		n, err := retried(fd, deadline, "send", func() (int, error) {
			return syscall.SendmsgN(fd, frame, rights, nil, syscall.MSG_NOSIGNAL)
		})
		if err != nil {
			return wire.Response{}, err
		}
		frame, rights = frame[n:], nil
	}
	header := make([]byte, wire.HeaderSize)
	if err := fill(fd, header, deadline); err != nil {
		return wire.Response{}, err
	}
	size, err := wire.PayloadSize(header, wire.MaxResponse)
	if err != nil {
		return wire.Response{}, err
	}
	payload := make([]byte, size)
	if err := fill(fd, payload, deadline); err != nil {
		return wire.Response{}, err
	}
	return wire.ParseResponse(payload)
}

func fill(fd int, b []byte, deadline time.Time) error {
	for len(b) > 0 {
		n, err := retried(fd, deadline, "receive", func() (int, error) { return syscall.Read(fd, b) })
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("the connection was closed before the answer")
		}
		b = b[n:]
	}
	return nil
}

// retried calls f with the time that is left until the deadline, again when a signal broke it off.
func retried(fd int, deadline time.Time, name string, f func() (int, error)) (int, error) {
	for {
		if err := limit(fd, deadline); err != nil {
			return 0, err
		}
		n, err := f()
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return 0, errTimeout
		default:
			return 0, os.NewSyscallError(name, err)
		}
	}
}
