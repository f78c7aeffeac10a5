package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Restart behaviour, as a systemd unit with Restart=always has it: at once after a long life, with a
// growing pause when the process dies young.
const (
	restartFirst = 100 * time.Millisecond
	restartMost  = 2 * time.Second
	longLife     = 5 * time.Second
	stopGrace    = 10 * time.Second // from SIGTERM to SIGKILL
)

// supervisor is the service part of a machine's init. As the first process of a PID namespace it
// also inherits, and must reap, every orphan; so it waits for any child and never for one.
type supervisor struct {
	env      []string
	services []*service // fixed after newSupervisor
	control  net.Listener

	mu    sync.Mutex // guards the services' changing fields
	wake  chan struct{}
	child chan os.Signal
}

type service struct {
	Service
	log    *os.File
	wanted bool
	pid    int           // 0 while it does not run
	gone   chan struct{} // closed when pid has been reaped
	began  time.Time
	pause  time.Duration
	next   time.Time // not to be started before
}

// newSupervisor opens what lies in the host's tree: the log files and the control socket.
func newSupervisor(dir string, c MachineConfig) (*supervisor, error) {
	s := &supervisor{env: c.Env, wake: make(chan struct{}, 1), child: make(chan os.Signal, 16)}
	signal.Notify(s.child, syscall.SIGCHLD)
	for _, spec := range c.Services {
		f, err := os.OpenFile(filepath.Join(dir, logDir, spec.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, err
		}
		s.services = append(s.services, &service{Service: spec, log: f, wanted: true})
	}
	l, err := net.Listen("unix", filepath.Join(dir, controlSocket))
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s.control = l
	return s, nil
}

// run keeps the services going and answers the control socket until ctx ends.
func (s *supervisor) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.loop(ctx) })
	g.Go(func() error { return s.serve(ctx) })
	g.Go(func() error { <-ctx.Done(); return s.control.Close() })
	return g.Wait()
}

// loop: wait for a child's end, a wish or a pause to be over → reap → start what should run.
func (s *supervisor) loop(ctx context.Context) error {
	for {
		s.reap()
		timer := time.NewTimer(s.startDue(time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.child:
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// startDue starts every service that should run and may, and returns how long until the next may.
func (s *supervisor) startDue(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := time.Hour
	for _, v := range s.services {
		if !v.wanted || v.pid != 0 {
			continue
		}
		if d := v.next.Sub(now); d > 0 {
			wait = min(wait, d)
			continue
		}
		if err := s.start(v, now); err != nil {
			v.note("cannot start: %v", err)
			v.died(now)
			wait = min(wait, v.pause)
		}
	}
	return wait
}

func (s *supervisor) start(v *service, now time.Time) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	pid, err := syscall.ForkExec(v.Args[0], v.Args, &syscall.ProcAttr{
		Dir: "/", Env: s.env,
		Files: []uintptr{null.Fd(), v.log.Fd(), v.log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	v.pid, v.began, v.gone = pid, now, make(chan struct{})
	return nil
}

// reap collects every dead child, ours or adopted.
func (s *supervisor) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, v := range s.services {
			if v.pid == pid {
				v.note("ended: %s", describe(status))
				v.died(time.Now())
			}
		}
	}
}

// died sets when the service may start again.
func (v *service) died(now time.Time) {
	if v.pid != 0 {
		close(v.gone)
		v.pid = 0
		if now.Sub(v.began) >= longLife {
			v.pause = 0
		}
	}
	v.pause = min(max(restartFirst, 2*v.pause), restartMost)
	v.next = now.Add(v.pause)
}

// note writes a line of init's own into the service's log.
func (v *service) note(format string, args ...any) {
	_, _ = fmt.Fprintf(v.log, "lab: %s %s\n", v.Name, fmt.Sprintf(format, args...))
}

func describe(w unix.WaitStatus) string {
	if w.Signaled() {
		return "killed by " + unix.SignalName(w.Signal())
	}
	return fmt.Sprintf("exit code %d", w.ExitStatus())
}

// serve answers the control socket: one line "start SERVICE" or "stop SERVICE", one line back, "ok"
// or why not. The socket lies in a directory that only root enters.
func (s *supervisor) serve(ctx context.Context) error {
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		conn, err := s.control.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		calls.Go(func() {
			defer func() { _ = conn.Close() }()
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil {
				return // the caller went away
			}
			answer := "ok"
			if err := s.do(ctx, strings.TrimSpace(line)); err != nil {
				answer = err.Error()
			}
			_, _ = fmt.Fprintln(conn, answer)
		})
	}
}

func (s *supervisor) do(ctx context.Context, line string) error {
	verb, name, _ := strings.Cut(line, " ")
	for _, v := range s.services {
		if v.Name != name {
			continue
		}
		switch verb {
		case "start":
			s.mu.Lock()
			v.wanted, v.pause, v.next = true, 0, time.Time{}
			s.mu.Unlock()
			select {
			case s.wake <- struct{}{}:
			default: // a wake-up is waiting already
			}
			return nil
		case "stop":
			return s.stop(ctx, v)
		}
		return fmt.Errorf("no such verb %q: want start or stop", verb)
	}
	return fmt.Errorf("no such service %q", name)
}

// stop ends a service and returns when it is gone.
func (s *supervisor) stop(ctx context.Context, v *service) error {
	s.mu.Lock()
	v.wanted = false
	pid, gone := v.pid, v.gone
	if pid != 0 {
		// Under the lock the process cannot be reaped, so the number is still its own.
		_ = unix.Kill(pid, unix.SIGTERM)
	}
	s.mu.Unlock()
	if pid == 0 {
		return nil
	}
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(stopGrace):
	}
	s.mu.Lock()
	if v.pid == pid {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	s.mu.Unlock()
	<-gone
	return fmt.Errorf("%s did not end within %s of SIGTERM and was killed", v.Name, stopGrace)
}
