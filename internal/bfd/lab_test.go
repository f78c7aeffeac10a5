package bfd

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/peering"
	"github.com/heddle-net/heddle/test/harness"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit is how long a test waits for what should take seconds at most.
const limit = 60 * time.Second

// lab is two machines with a cable, and with a way by a router:
//
//	near .1 ── 10.66.0.0/24, fd66::/64 ── .2 far
//	near .1 ── 10.66.1.0/24, fd66:1::/64 ── .9 router .9 ── 10.66.2.0/24, fd66:2::/64 ── .2 far
type lab struct {
	testing.TB
	near, router, far string
}

func newLab(t testing.TB) lab {
	harness.Root(t)
	l := lab{t, harness.Netns(t), harness.Netns(t), harness.Netns(t)}
	cable := func(a, b, dev string, net int) {
		harness.Run(t, "ip", "-n", a, "link", "add", dev, "type", "veth", "peer", "name", dev, "netns", b)
		for ns, host := range map[string]int{a: 1, b: 2} {
			if ns == l.router {
				host = 9
			}
			harness.Run(t, "ip", "-n", ns, "addr", "add", fmt.Sprintf("10.66.%d.%d/24", net, host), "dev", dev)
			harness.Run(t, "ip", "-n", ns, "addr", "add", fmt.Sprintf("fd66:%d::%d/64", net, host), "dev", dev, "nodad")
			harness.Run(t, "ip", "-n", ns, "link", "set", dev, "up")
		}
	}
	cable(l.near, l.far, "cable", 0)
	cable(l.near, l.router, "west", 1)
	cable(l.router, l.far, "east", 2)
	l.in(l.router, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for _, via := range [][3]string{
		{l.near, "10.66.2.0/24", "10.66.1.9"},
		{l.near, "fd66:2::/64", "fd66:1::9"},
		{l.far, "10.66.1.0/24", "10.66.2.9"},
		{l.far, "fd66:1::/64", "fd66:2::9"},
	} {
		harness.Run(t, "ip", "-n", via[0], "route", "add", via[1], "via", via[2])
	}
	return l
}

// in runs a command in a machine.
func (l lab) in(ns string, args ...string) string {
	l.Helper()
	return harness.Run(l, "ip", append([]string{"netns", "exec", ns}, args...)...)
}

// inside calls a function on a thread in a machine.
func inside(ns string, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h, err := netns.GetFromName(ns)
		if err == nil {
			err = netns.Set(h)
			_ = h.Close()
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// ear opens a socket of a machine that packets arrive at.
func (l lab) ear(ns string, k kind) (fd int) {
	l.Helper()
	err := inside(ns, func() (err error) {
		fd, err = listen(k)
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
	return fd
}

// socket opens what a session in a machine sends from.
func (l lab) socket(ns string, s Session) (fd int) {
	l.Helper()
	err := inside(ns, func() (err error) {
		fd, err = dial(s, 0)
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// cut drops what goes through a machine, to it and from it, as a broken line does that keeps its carrier.
func (l lab) cut(ns string) {
	l.Helper()
	l.in(ns, "nft", "add table inet cut; "+
		"add chain inet cut pre { type filter hook prerouting priority -400; policy drop; }; "+
		"add chain inet cut post { type filter hook postrouting priority 400; policy drop; }")
}

func (l lab) mend(ns string) {
	l.Helper()
	l.in(ns, "nft", "delete table inet cut")
}

// sessions are the four of a lab: both families, over the cable and by the router.
func sessions(timers peering.BFD) []Session {
	addr := netip.MustParseAddr
	return []Session{
		{Peer: addr("10.66.0.2"), Timers: timers},
		{Peer: addr("fd66:0::2"), Timers: timers},
		{Peer: addr("10.66.2.2"), Local: addr("10.66.1.1"), Multihop: true, Timers: timers},
		{Peer: addr("fd66:2::2"), Local: addr("fd66:1::1"), Multihop: true, Timers: timers},
	}
}

// mirrored are the other side's of sessions.
func mirrored(timers peering.BFD) []Session {
	list := sessions(timers)
	for i := range list {
		if list[i].Multihop {
			list[i].Peer, list[i].Local = list[i].Local, list[i].Peer
		} else {
			list[i].Peer = list[i].Peer.Prev()
		}
	}
	return list
}

// runner is a Watch that runs in a machine until the test ends, and what it told.
type runner struct {
	*Watch
	stop func()

	mu     sync.Mutex
	events []Event
	log    bytes.Buffer
}

func (l lab) watch(ns string) *runner {
	l.Helper()
	r := &runner{}
	r.Watch = New(slog.New(slog.NewTextHandler(&r.log, nil)))
	l.start(r, ns)
	return r
}

func (l lab) start(r *runner, ns string) {
	ctx, cancel := context.WithCancel(l.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- inside(ns, func() error {
			return r.Run(ctx, func(e Event) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.events = append(r.events, e)
			})
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			l.Errorf("Run: %v", err)
		}
	})
	l.Cleanup(func() {
		r.stop()
		if l.Failed() {
			l.Logf("it logged:\n%s", r.log.String())
		}
	})
}

func (r *runner) told() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Event(nil), r.events...)
}

// wait waits until sessions with the peers are in a state.
func (l lab) wait(r *runner, want State, peers ...Session) time.Duration {
	l.Helper()
	begin := time.Now()
	for _, s := range peers {
		for {
			got, cause := r.State(s.Peer)
			if got == want {
				break
			}
			if time.Since(begin) > limit {
				l.Fatalf("session with %s is %s (%s), want %s", s.Peer, got, cause, want)
			}
			time.Sleep(ms)
		}
	}
	return time.Since(begin)
}

// folder is one that a daemon with a user of its own can enter.
func (l lab) folder(owner string) string {
	l.Helper()
	dir, err := os.MkdirTemp("", "heddle-bfd-")
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		l.Fatal(err)
	}
	if owner != "" {
		harness.Run(l, "chown", owner, dir)
	}
	return dir
}

func write(t testing.TB, file string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// pace is how often a session sends, and its detection time.
func (w *Watch) pace(peer netip.Addr) (tx, detection time.Duration, polling bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.sessions[peer]
	return max(t.usedTx, t.remoteMinRx), t.detection(), t.polling
}
