package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/cni/wire"
	"github.com/heddle-net/heddle/internal/model"
)

// Limits of a server.
const (
	// DefaultTimeout is less than the plugin's own, so that the plugin hears the reason.
	DefaultTimeout = 50 * time.Second
	// stopGrace is how long requests under way may go on when the server is told to stop.
	stopGrace = 5 * time.Second
	// frameTimeout bounds reading and writing a frame: the peer is a process of this machine.
	frameTimeout = 10 * time.Second
	// atOnce bounds requests under way; further ones wait in the socket's backlog.
	atOnce = 128
)

// Server answers plugins. The zero values of Timeout, Log and Observe are ready for use.
type Server struct {
	Pods    Pods
	Timeout time.Duration // of one request; 0 means DefaultTimeout
	Log     *slog.Logger  // nil: none
	// Observe is told of each request when it is over: its command, CNI error code (0: success) and
	// duration. It may be called from several goroutines at once.
	Observe func(command string, code uint, took time.Duration)
}

// Listen makes the socket, with mode 0600 in a folder of mode 0700 (made if need be). A socket that
// nobody listens on any more is replaced; one with a listener, or anything else of that name, is an error.
func Listen(path string) (*net.UnixListener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cni socket: %w", err)
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("cni socket: %w", err)
	} else if info.Mode().Perm()&0o022 != 0 && info.Mode()&os.ModeSticky == 0 {
		return nil, &model.FieldError{Noun: "cni socket", Field: "folder " + dir, Value: info.Mode().Perm().String(), Want: "mode 0700, or at least writable by its owner only"}
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, &model.FieldError{Noun: "cni socket", Field: "path", Value: path, Want: "a socket or nothing there, found a " + kindOf(info.Mode())}
		}
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("cni socket %s: %w: another process listens on it; one node runs one heddle agent: stop the other first", path, syscall.EADDRINUSE)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("cni socket: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cni socket: %w", err)
	}
	// The next agent may have its socket at this path already when this one closes its own.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("cni socket: %w", err)
	}
	return l, nil
}

func kindOf(m os.FileMode) string {
	if m.IsDir() {
		return "folder"
	}
	if m.IsRegular() {
		return "file"
	}
	return "file of mode " + m.String()
}

// Serve answers until ctx ends, then lets requests under way finish for a short while, and returns nil.
// It closes the listener.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var (
		running sync.WaitGroup
		places  = make(chan struct{}, atOnce)
		failed  error
	)
accept:
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			break accept
		}
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				<-places
				time.Sleep(10 * time.Millisecond)
				continue
			}
			failed = fmt.Errorf("cni socket: %w", err)
			break
		}
		running.Go(func() {
			defer func() { <-places }()
			defer conn.Close() //nolint:errcheck // the answer was written, or nobody reads it
			s.serve(requests, conn)
		})
	}
	_ = l.Close()
	grace := time.AfterFunc(stopGrace, cancel)
	defer grace.Stop()
	running.Wait()
	return failed
}

// serve answers one connection's one request.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	began := time.Now()
	if err := checkPeer(conn); err != nil {
		s.log(slog.LevelWarn, "cni connection refused", "reason", err)
		return
	}
	_ = conn.SetDeadline(began.Add(frameTimeout))
	r, netns, err := receive(conn)
	if netns != nil {
		defer netns.Close() // only read
	}
	if errors.Is(err, io.EOF) {
		return // somebody looked whether we are here
	}
	var out []byte
	var failed *Error
	if err != nil {
		failed = Errorf(CodeIO, "%v", err)
		out = errorResult(wire.Versions()[len(wire.Versions())-1], failed)
	} else {
		timeout := s.Timeout
		if timeout == 0 {
			timeout = DefaultTimeout
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		out, failed = Handle(ctx, s.Pods, r, netns)
		cancel()
	}
	answer := wire.Response{Stdout: out}
	code := uint(0)
	if failed != nil {
		answer.Exit, code = 1, failed.Code
	}
	_ = conn.SetDeadline(time.Now().Add(frameTimeout))
	if _, err := conn.Write(answer.AppendFrame(nil)); err != nil {
		s.log(slog.LevelWarn, "cni plugin did not wait for its answer", "command", r.Command, "container", short(r.ContainerID), "reason", err)
	}
	took := time.Since(began)
	if s.Observe != nil {
		s.Observe(r.Command, code, took)
	}
	attrs := []any{"command", short(r.Command), "container", short(r.ContainerID), "interface", short(r.IfName), "took", took}
	if failed != nil {
		s.log(slog.LevelWarn, "cni request failed", append(attrs, "code", code, "reason", failed)...)
		return
	}
	s.log(slog.LevelDebug, "cni request", attrs...)
}

func (s *Server) log(level slog.Level, msg string, attrs ...any) {
	if s.Log != nil {
		s.Log.Log(context.Background(), level, msg, attrs...)
	}
}

// checkPeer lets root in, and the agent's own user (tests, rootless labs).
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) //nolint:gosec // a descriptor
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("peer's user: %w", credErr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d: want root", cred.Pid, cred.Uid)
	}
	return nil
}

// receive reads a request and the namespace that came with it, which may be nil. io.EOF means that the
// peer said nothing at all.
func receive(conn *net.UnixConn) (r wire.Request, netns *os.File, err error) {
	header := make([]byte, wire.HeaderSize)
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(header, oob)
	if oobn > 0 {
		var more error
		if netns, more = descriptor(oob[:oobn]); more != nil {
			return r, netns, more
		}
	}
	if err != nil || n == 0 {
		return r, netns, orEOF(err)
	}
	if _, err := io.ReadFull(conn, header[n:]); err != nil {
		return r, netns, fmt.Errorf("cni request: %w", err)
	}
	size, err := wire.PayloadSize(header, wire.MaxRequest)
	if err != nil {
		return r, netns, err
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(conn, payload); err != nil {
		return r, netns, fmt.Errorf("cni request: %w", err)
	}
	r, err = wire.ParseRequest(payload)
	return r, netns, err
}

func orEOF(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// descriptor takes the one descriptor out of a control message; whatever else came is closed.
func descriptor(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("cni request: control message: %w", err)
	}
	var got []int
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			got = append(got, fds...)
		}
	}
	if len(got) == 1 {
		return os.NewFile(uintptr(got[0]), "netns"), nil //nolint:gosec // a descriptor
	}
	for _, fd := range got {
		_ = unix.Close(fd)
	}
	if len(got) > 1 {
		return nil, fmt.Errorf("cni request: %d descriptors: want one", len(got))
	}
	return nil, nil
}
