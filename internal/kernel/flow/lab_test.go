package flow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var spaces atomic.Int64

// space is a network namespace of a test's own, gone when the test ends.
type space struct {
	t    testing.TB
	name string
	fd   int
}

func newSpace(t testing.TB) space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	name := fmt.Sprintf("hdflow%d-%d", os.Getpid(), spaces.Add(1))
	command(t, "", "ip", "netns", "add", name)
	t.Cleanup(func() { command(t, "", "ip", "netns", "del", name) })
	h, err := netns.GetFromName(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	s := space{t, name, int(h)}
	s.run("ip", "link", "set", "lo", "up")
	s.sysctl("net/ipv6/conf/default/accept_dad", "0") // else link-local addresses come after two seconds
	return s
}

// run runs a command inside and returns what it printed; an error ends the test.
func (s space) run(args ...string) string {
	s.t.Helper()
	return command(s.t, "", append([]string{"ip", "netns", "exec", s.name}, args...)...)
}

// nft loads rules.
func (s space) nft(rules string) {
	s.t.Helper()
	command(s.t, rules, "ip", "netns", "exec", s.name, "nft", "-f", "-")
}

// sysctl sets one of the namespace's own.
func (s space) sysctl(name, value string) {
	s.t.Helper()
	s.do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) })
}

func command(t testing.TB, in string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// do runs f with the thread inside; an error ends the test. Sockets made there stay there.
func (s space) do(f func() error) {
	s.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(home)
		if err := unix.Setns(s.fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		err = f()
		if back := unix.Setns(home, unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
		done <- err
	}()
	if err := <-done; err != nil {
		s.t.Fatalf("in %s: %v", s.name, err)
	}
}

// driver is one whose packets are forwarded in the namespace.
func (s space) driver() *Driver {
	s.t.Helper()
	d, err := New(Options{NS: s.fd, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// pod is a namespace with an interface eth0 and an address of each family.
type pod struct {
	space
	v4, v6 netip.Addr
}

func (p pod) addr(v6 bool) netip.Addr {
	if v6 {
		return p.v6
	}
	return p.v4
}

// lab is a host with pods a and b, which it forwards between, and tracks.
type lab struct {
	t    testing.TB
	host space
	a, b pod
	// local are the pods of which Cut knows the namespace; opened what it was given.
	local  []pod
	opened []*os.File
	d      *Driver
}

// rules accept what is established, log nothing, and drop what the set says.
const rules = `
table inet t {
	set denied4 { type ipv4_addr . ipv4_addr . inet_proto; }
	set denied6 { type ipv6_addr . ipv6_addr . inet_proto; }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		ip saddr . ip daddr . meta l4proto @denied4 counter drop
		ip6 saddr . ip6 daddr . meta l4proto @denied6 counter drop
	}
}`

// newLab makes one with routed pods.
func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t, host: newSpace(t)}
	l.host.sysctl("net/ipv4/ip_forward", "1")
	l.host.sysctl("net/ipv6/conf/all/forwarding", "1")
	for i, p := range []*pod{&l.a, &l.b} {
		*p = l.newPod(i + 1)
		link := fmt.Sprintf("p%d", i+1)
		l.host.run("ip", "addr", "add", fmt.Sprintf("10.9.%d.254/24", i+1), "dev", link)
		l.host.run("ip", "addr", "add", fmt.Sprintf("fd09:%d::254/64", i+1), "dev", link, "nodad")
		p.run("ip", "addr", "add", p.v4.String()+"/24", "dev", "eth0")
		p.run("ip", "addr", "add", p.v6.String()+"/64", "dev", "eth0", "nodad")
		p.run("ip", "route", "add", "default", "via", fmt.Sprintf("10.9.%d.254", i+1))
		p.run("ip", "route", "add", "default", "via", fmt.Sprintf("fd09:%d::254", i+1))
	}
	l.host.nft(rules)
	l.local, l.d = []pod{l.a, l.b}, l.host.driver()
	return l
}

// newSlowLab makes one with routed pods, of which a may send 8 Mbit/s: a packet waits for those before it.
func newSlowLab(t testing.TB) *lab {
	l := newLab(t)
	l.a.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "8mbit", "burst", "2000", "limit", "1000000")
	return l
}

// newBridgeLab makes one with pods on one bridge that hands packets to the IP hooks.
func newBridgeLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t, host: newSpace(t)}
	l.host.run("ip", "link", "add", "br0", "type", "bridge", "nf_call_iptables", "1", "nf_call_ip6tables", "1")
	l.host.run("ip", "addr", "add", "10.9.0.254/16", "dev", "br0")
	l.host.run("ip", "link", "set", "br0", "up")
	for i, p := range []*pod{&l.a, &l.b} {
		*p = l.newPod(i + 1)
		l.host.run("ip", "link", "set", fmt.Sprintf("p%d", i+1), "master", "br0")
		p.run("ip", "addr", "add", p.v4.String()+"/16", "dev", "eth0")
		p.run("ip", "addr", "add", p.v6.String()+"/16", "dev", "eth0", "nodad")
	}
	l.host.nft(rules)
	l.local, l.d = []pod{l.a, l.b}, l.host.driver()
	return l
}

func (l *lab) newPod(i int) pod {
	l.t.Helper()
	p := pod{newSpace(l.t), netip.AddrFrom4([4]byte{10, 9, byte(i), 1}), netip.MustParseAddr(fmt.Sprintf("fd09:%d::1", i))}
	link := fmt.Sprintf("p%d", i)
	l.host.run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", p.name)
	l.host.run("ip", "link", "set", link, "up")
	p.run("ip", "link", "set", "eth0", "up")
	return p
}

// deny makes the rules drop new packets of a protocol from one address to another.
func (l *lab) deny(protocol string, src, dst netip.Addr) {
	l.t.Helper()
	set := "denied4"
	if src.Is6() {
		set = "denied6"
	}
	l.host.run("nft", "add", "element", "inet", "t", set, fmt.Sprintf("{ %s . %s . %s }", src, dst, protocol))
}

// netns opens the namespace of a local pod.
func (l *lab) netns(addr netip.Addr) *os.File {
	for _, p := range l.local {
		if addr == p.v4 || addr == p.v6 {
			f, err := os.Open("/run/netns/" + p.name)
			if err != nil {
				l.t.Errorf("open the namespace of %s: %v", addr, err)
				return nil
			}
			l.opened = append(l.opened, f)
			return f
		}
	}
	return nil
}

// cut ends what is denied, and wants so many ended.
func (l *lab) cut(want int, denied func(kernel.Flow) bool) {
	l.t.Helper()
	start := time.Now()
	n, err := l.d.Cut(l.t.Context(), denied, l.netns)
	if err != nil || n != want {
		l.t.Fatalf("cut: %d ended, %v, want %d\n%s", n, err, want, l.conntrack())
	}
	for _, f := range l.opened {
		if !errors.Is(f.Close(), os.ErrClosed) {
			l.t.Error("the namespace of a workload was left open")
		}
	}
	l.opened = nil
	l.t.Logf("cut %d in %v", n, time.Since(start).Round(10*time.Microsecond))
}

func (l *lab) conntrack() string {
	return l.host.run("conntrack", "-L") + l.host.run("conntrack", "-L", "-f", "ipv6")
}

// flows lists what the driver reads from the table.
func (l *lab) flows() []kernel.Flow {
	l.t.Helper()
	var all []kernel.Flow
	l.cut(0, func(f kernel.Flow) bool {
		all = append(all, f)
		return false
	})
	return all
}

// listen opens a TCP listener in a pod.
func (p pod) listen(addr netip.AddrPort) net.Listener {
	p.t.Helper()
	var lis net.Listener
	p.do(func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		lis, err = c.Listen(context.Background(), "tcp", addr.String())
		return err
	})
	p.t.Cleanup(func() { _ = lis.Close() })
	return lis
}

// dial connects from a pod.
func (s space) dial(addr netip.AddrPort, control func(fd uintptr) error) net.Conn {
	s.t.Helper()
	var conn net.Conn
	s.do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		if control != nil {
			d.Control = func(_, _ string, raw syscall.RawConn) error {
				var inner error
				return errors.Join(raw.Control(func(fd uintptr) { inner = control(fd) }), inner)
			}
		}
		conn, err = d.Dial("tcp", addr.String())
		return err
	})
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// connect makes a TCP connection from one pod to a listener of another.
func connect(from pod, lis net.Listener, to netip.AddrPort) (client, server net.Conn) {
	from.t.Helper()
	client = from.dial(to, nil)
	server, err := lis.Accept()
	if err != nil {
		from.t.Fatal(err)
	}
	from.t.Cleanup(func() { _ = server.Close() })
	if _, err := client.Write([]byte("hi")); err != nil {
		from.t.Fatal(err)
	}
	if n, err := server.Read(make([]byte, 2)); n == 0 {
		from.t.Fatal(err)
	}
	return client, server
}

// wantReset waits until reading from a connection says that it was reset, and not that it ended well.
func wantReset(t testing.TB, what string, c net.Conn) {
	t.Helper()
	start := time.Now()
	_ = c.SetReadDeadline(start.Add(5 * time.Second))
	b := make([]byte, 64<<10)
	for {
		_, err := c.Read(b)
		switch {
		case err == nil:
		case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EPIPE):
			t.Logf("%s: %v after %v", what, err, time.Since(start).Round(10*time.Microsecond))
			return
		default:
			t.Errorf("%s: %v, want a reset", what, err)
			return
		}
	}
}
