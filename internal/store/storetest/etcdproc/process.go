// Package etcdproc runs a store as a process of its own for tests: to be killed, and started again.
package etcdproc

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Process is a server that can be killed and started again over the same data.
type Process struct {
	URL  string // of the client's side
	Args []string
	Env  []string

	mu  sync.Mutex
	cmd *exec.Cmd
	log bytes.Buffer
}

// FreePort returns a TCP port of 127.0.0.1 that was free a moment ago.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// Debian returns the installed etcd (package etcd-server), not yet started; it skips the test when
// there is none.
func Debian(t testing.TB) *Process {
	t.Helper()
	bin, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("no etcd binary: apt-get install etcd-server")
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", FreePort(t))
	peer := fmt.Sprintf("http://127.0.0.1:%d", FreePort(t))
	return New(t, url, []string{
		bin, "--name", "remote", "--data-dir", filepath.Join(t.TempDir(), "etcd"),
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "remote=" + peer,
		"--log-level", "error", "--logger", "zap",
	}, nil)
}

// New returns a process that is not yet started; it is killed when the test ends.
func New(t testing.TB, url string, args, env []string) *Process {
	p := &Process{URL: url, Args: args, Env: env}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", filepath.Base(args[0]), p.Log())
		}
	})
	return p
}

// Start starts the process and does not wait until it serves.
func (p *Process) Start(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stdout, cmd.Stderr = &lockedWriter{p: p}, &lockedWriter{p: p}
	// It never outlives the test, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.cmd = cmd
}

// Kill is kill -9; it returns when the process is gone.
func (p *Process) Kill() { p.end(syscall.SIGKILL) }

// Stop is SIGTERM; it returns when the process is gone.
func (p *Process) Stop() { p.end(syscall.SIGTERM) }

func (p *Process) end(sig syscall.Signal) {
	p.mu.Lock()
	cmd := p.cmd
	p.cmd = nil
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(sig)
	_ = cmd.Wait()
}

// Log is what the process wrote.
func (p *Process) Log() string {
	logMu.Lock()
	defer logMu.Unlock()
	return p.log.String()
}

var logMu sync.Mutex

type lockedWriter struct{ p *Process }

func (w *lockedWriter) Write(b []byte) (int, error) {
	logMu.Lock()
	defer logMu.Unlock()
	return w.p.log.Write(b)
}

// WaitReady waits until the server of a plain URL answers.
func (p *Process) WaitReady(t testing.TB) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{p.URL}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := c.Get(ctx, "ready", clientv3.WithCountOnly())
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v", p.URL, err)
		}
	}
}
