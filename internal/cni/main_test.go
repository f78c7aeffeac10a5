package cni_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store/ledger"
)

var update = flag.Bool("update", false, "write the golden files")

// pluginDir holds the real plugin, built once.
var pluginDir string

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "heddle-cni-test-")
	if err != nil {
		panic(err)
	}
	pluginDir = dir
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, cni.PluginType), "../../cmd/heddle-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("building the plugin: %v\n%s", err, out))
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var blocks = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:0:1::/64")}

// pods is the agent's part with the real ledger and without a kernel: what is on record is attached.
type pods struct {
	ledger *ledger.Ledger

	mu       sync.Mutex
	notReady error
	before   func(command string) // runs at the begin of Add and Del
	seen     []model.Workload     // that Add was called with
}

func (p *pods) setReady(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notReady = err
}

func (p *pods) setBefore(f func(string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before = f
}

func (p *pods) at(command string) {
	p.mu.Lock()
	f := p.before
	p.mu.Unlock()
	if f != nil {
		f(command)
	}
}

func (p *pods) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.notReady
}

func (p *pods) Add(ctx context.Context, w model.Workload, netns *os.File) (cni.Attached, error) {
	p.at("ADD")
	p.mu.Lock()
	p.seen = append(p.seen, w)
	p.mu.Unlock()
	w.HostLink, w.MTU = model.HostLinkName(w.ContainerID, w.IfName), 1450
	w.MAC = "0a:58:0a:f4:01:02"
	w, _, err := p.ledger.Reserve(ctx, w, blocks, time.Now())
	if err != nil {
		return cni.Attached{}, err
	}
	a := cni.Attached{Workload: w}
	for i, addr := range w.Addresses {
		a.Addresses = append(a.Addresses, netip.PrefixFrom(addr, blocks[i].Bits()))
		a.Gateways = append(a.Gateways, ipam.Gateway(blocks[i]))
		a.Routes = append(a.Routes, netip.PrefixFrom(map[bool]netip.Addr{true: netip.IPv4Unspecified(), false: netip.IPv6Unspecified()}[addr.Is4()], 0))
	}
	return a, nil
}

func (p *pods) Del(ctx context.Context, containerID, ifName string) error {
	p.at("DEL")
	_, _, err := p.ledger.Release(ctx, containerID+"/"+ifName, time.Now())
	return err
}

func (p *pods) Check(_ context.Context, want model.Workload, _ *os.File) error {
	w, ok := p.ledger.Get(want.Key())
	if !ok {
		return cni.Errorf(cni.CodeUnknownContainer, "container %s: not on record", want.ContainerID)
	}
	if !slices.Equal(w.Addresses, want.Addresses) {
		return fmt.Errorf("workload %s: %w", &w, cni.Errorf(cni.CodeDiffers, "addresses %v: want %v", want.Addresses, w.Addresses))
	}
	if !slices.Equal(w.HostPorts, want.HostPorts) || !reflect.DeepEqual(w.Bandwidth, want.Bandwidth) {
		return cni.Errorf(cni.CodeDiffers, "workload %s: other ports or another bandwidth", &w)
	}
	return nil
}

func (p *pods) GC(ctx context.Context, network string, keep map[string]bool) error {
	for _, w := range p.ledger.List() {
		if w.Network == network && !keep[w.Key()] {
			if err := p.Del(ctx, w.ContainerID, w.IfName); err != nil {
				return err
			}
		}
	}
	return nil
}

// server is a running server on a socket of its own.
type server struct {
	*pods
	socket string
	stop   func() // and wait
}

func serve(t testing.TB) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	l, err := ledger.Open(filepath.Join(t.TempDir(), "ledger.db"), ledger.Options{CoolDown: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{pods: &pods{ledger: l}, socket: filepath.Join(t.TempDir(), "run", "cni.sock")}
	s.start(t)
	t.Cleanup(func() {
		s.stop()
		_ = l.Close()
	})
	return s
}

func (s *server) start(t testing.TB) {
	t.Helper()
	listener, err := cni.Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- (&cni.Server{Pods: s.pods}).Serve(ctx, listener) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

// netns makes a network namespace and returns a path to it that lives as long as the test.
func netns(t testing.TB) string {
	t.Helper()
	var fd int
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
}

// plugin runs the real plugin with nothing else in its environment.
func plugin(t testing.TB, env []string, stdin string) (stdout string, exit int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(pluginDir, cni.PluginType))
	cmd.Env = env
	cmd.Stdin = bytes.NewReader([]byte(stdin))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		t.Fatal(err)
	}
	if errOut.Len() > 0 {
		t.Errorf("standard error: %s", errOut.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// request is an environment for the plugin.
func request(command, id, ns string, more ...string) []string {
	return append([]string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + ns, "CNI_IFNAME=eth0", "CNI_PATH=" + pluginDir}, more...)
}
