package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/test/harness"
)

// A host is a network namespace with an uplink, eth0 192.168.0.1/24, and a directory of its own: what
// one command or one agent needs, without a lab.
type host struct {
	t   *testing.T
	ns  string
	dir string
	env []string // for every command on the host
}

// newHost makes a host. Its directory may be read by every user, as some commands run as nobody.
func newHost(t *testing.T) *host {
	t.Helper()
	h := newBareHost(t)
	h.must("ip link add eth0 type veth peer name far0; ip link set eth0 addrgenmode none; ip link set far0 addrgenmode none; " +
		"ip addr add 192.168.0.1/24 dev eth0; ip link set far0 up; ip link set eth0 up")
	h.carrier()
	return h
}

// carrier waits until the uplink carries packets: the kernel says so a moment after both ends are up.
func (h *host) carrier() {
	h.t.Helper()
	eventually(h.t, 30*time.Second, "eth0 has carrier", func() error {
		if out := h.must("ip -o link show"); strings.Contains(out, "NO-CARRIER") || strings.Contains(out, "LOWERLAYERDOWN") {
			return errors.New(out)
		}
		return nil
	})
}

// newBareHost makes a host without an uplink.
func newBareHost(t *testing.T) *host {
	t.Helper()
	harness.Root(t)
	bin := harness.Build(t)
	dir, err := os.MkdirTemp("", "hd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, ns: harness.Netns(t), dir: dir}
	harness.Run(t, "cp", bin.Heddle, bin.Plugin, dir)
	h.env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "DIR="+dir)
	return h
}

// command is a shell command on the host, in its directory.
func (h *host) command(ctx context.Context, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", h.ns, "sh", "-c", script)
	cmd.Env, cmd.Dir = h.env, h.dir
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// sh runs a shell command and returns all that it printed, with its exit code.
func (h *host) sh(script string) (string, int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := h.command(ctx, script).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		h.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	code := 0
	if exit != nil {
		code = exit.ExitCode()
	}
	return string(out), code
}

func (h *host) must(script string) string {
	h.t.Helper()
	out, code := h.sh(script)
	if code != 0 {
		h.t.Fatalf("%s: exit %d\n%s", script, code, out)
	}
	return out
}

// start starts a program that is stopped in an orderly way at the end of the test.
func (h *host) start(script string) *program {
	h.t.Helper()
	p := &program{done: make(chan struct{})}
	p.cmd = exec.Command("ip", "netns", "exec", h.ns, "sh", "-c", "exec "+script)
	p.cmd.Env, p.cmd.Dir = h.env, h.dir
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	h.t.Cleanup(func() {
		p.stop()
		if h.t.Failed() {
			h.t.Logf("%s printed:\n%s", script, harness.Tail(p.out.String()))
		}
	})
	return p
}

type program struct {
	cmd  *exec.Cmd
	out  syncBuffer
	done chan struct{}
	once sync.Once
}

func (p *program) stop() {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(15 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	})
}

// ended tells whether the program has ended by itself.
func (p *program) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// running waits until the agent answers.
func (h *host) running(p *program, runDir string) {
	h.t.Helper()
	eventually(h.t, 30*time.Second, "the agent answers", func() error {
		if p.ended() {
			h.t.Fatalf("the agent ended:\n%s", p.out.String())
		}
		if out, code := h.sh("heddle status --run-dir " + runDir); code != 0 {
			return fmt.Errorf("exit %d: %s", code, out)
		}
		return nil
	})
}

// status is what the agent whose sockets are in the host's directory run says.
func (h *host) status() (s agent.Status) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.must("heddle status -o json --run-dir $DIR/run")), &s); err != nil {
		h.t.Fatal(err)
	}
	return s
}

// inside calls f in the host's namespace: sockets made there belong to it for ever.
func (h *host) inside(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer func() { _ = own.Close() }()
	ns, err := netns.GetFromName(h.ns)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	if err := netns.Set(ns); err != nil {
		return err
	}
	defer func() {
		if err := netns.Set(own); err != nil {
			panic(err) // this thread is in the wrong namespace: nothing else may run on it
		}
	}()
	return f()
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *host) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(h.path(name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// kernel prints all that a namespace's kernel holds and that does not change by itself. What goes to
// standard error is no part of it: `ip link` looks up the names of all namespaces, and complains of one that
// another test takes away at that moment.
func kernel(t *testing.T, ns string) string {
	t.Helper()
	out, err := exec.Command("ip", "netns", "exec", ns, "sh", "-ec", `
ip -d -o link; ip -o addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all
ip neigh show nud permanent; bridge fdb show; nft list ruleset
grep -rs . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/conf/*/rp_filter \
  /proc/sys/net/ipv4/conf/*/proxy_arp /proc/sys/net/ipv6/conf/*/forwarding /proc/sys/net/ipv6/conf/*/accept_ra ||
  true # a device that goes takes its files along`).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Logf("%s", exit.Stderr)
		}
		t.Fatalf("the kernel of %s: %v\n%s", ns, err, out)
	}
	return timerRE.ReplaceAllString(string(out), "")
}

var timerRE = regexp.MustCompile(` (\w+_timer +[0-9.]+|expires \w+)`)

// settled prints a kernel once it has come to rest. A tentative address is none: within two seconds the
// kernel finds no duplicate, and makes its route.
func settled(t *testing.T, ns string) string {
	t.Helper()
	return atRest(t, "the kernel of "+ns, func() string { return kernel(t, ns) }, " tentative ")
}

// atRest looks until it sees the same twice in a row, and nothing in it that is on its way.
func atRest(t *testing.T, what string, look func() string, onItsWay ...string) string {
	t.Helper()
	now := look()
	eventually(t, 30*time.Second, what+" comes to rest", func() error {
		time.Sleep(150 * time.Millisecond)
		last := now
		now = look()
		for _, word := range onItsWay {
			if strings.Contains(now, word) {
				return fmt.Errorf("something is%s", word)
			}
		}
		if now != last {
			return fmt.Errorf("gone %q, added %q", lines(last, now), lines(now, last))
		}
		return nil
	})
	return now
}

// lines lists what is in one text and not in the other.
func lines(in, notIn string) (out []string) {
	have := map[string]bool{}
	for l := range strings.Lines(notIn) {
		have[l] = true
	}
	for l := range strings.Lines(in) {
		if !have[l] {
			out = append(out, strings.TrimSuffix(l, "\n"))
		}
	}
	return out
}

// A storeProcess is an embedded store on a Unix socket, which every namespace reaches.
type storeProcess struct{ socket string }

// startStore runs a store until the end of the test.
func startStore(t *testing.T) storeProcess {
	t.Helper()
	dir, err := os.MkdirTemp("", "hds")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s.sock")
	harness.Start(t, harness.Build(t).Heddle, "store", "--data-dir", filepath.Join(dir, "data"), "--listen", "unix://"+socket)
	return storeProcess{socket}
}

// open returns the flags by which commands use the store below a prefix, and the same for the test itself.
func (p storeProcess) open(t *testing.T, prefix string) (flags string, s *etcd.Store) {
	t.Helper()
	url := "unix://" + p.socket
	s, err := etcd.New(context.Background(), etcd.Options{Endpoints: []string{url}, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	eventually(t, 30*time.Second, "the store answers", func() error {
		_, _, err := s.List(context.Background(), model.KindPool)
		return err
	})
	return "--endpoints " + url + " --prefix " + prefix, s
}

// stored prints what a store holds of some kinds, with revisions.
func stored(t *testing.T, s store.Store, kinds ...model.Kind) string {
	t.Helper()
	var b bytes.Buffer
	for _, k := range kinds {
		items, _, err := s.List(context.Background(), k)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items {
			_, _ = fmt.Fprintf(&b, "%s %s revision %d\n", k, i.Object.Key(), i.Revision)
		}
	}
	return b.String()
}
