package nft

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// world is a pod behind node a, a pod behind node b, and a machine outside, on three wires of a and one
// of b:
//
//	pod1 --- a --- b --- pod2
//	         |
//	      outside
type world struct{ pod1, a, b, pod2, outside space }

var nodeFilter = plan.Filter{
	Pods:       prefixes("10.244.0.0/16", "fd00:10:244::/48"),
	Masquerade: prefixes("10.244.0.0/16", "fd00:10:244::/48"),
	Local:      prefixes("10.244.1.0/24", "fd00:10:244:1::/64"),
}

func newWorld(t *testing.T) world {
	w := world{newSpace(t), newSpace(t), newSpace(t), newSpace(t), newSpace(t)}
	for _, s := range []space{w.pod1, w.a, w.b, w.pod2, w.outside} { // link-local addresses that count at once
		s.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	}
	wire := func(x space, xName, x4, x6 string, y space, yName, y4, y6 string) {
		x.run("ip", "link", "add", xName, "type", "veth", "peer", "name", yName, "netns", y.name)
		for _, e := range []struct {
			s            space
			name, v4, v6 string
		}{{x, xName, x4, x6}, {y, yName, y4, y6}} {
			e.s.run("ip", "addr", "add", e.v4, "dev", e.name)
			e.s.run("ip", "addr", "add", e.v6, "dev", e.name, "nodad")
			e.s.run("ip", "link", "set", e.name, "up")
		}
	}
	wire(w.a, "pod", "10.244.1.1/24", "fd00:10:244:1::1/64", w.pod1, "eth0", "10.244.1.2/24", "fd00:10:244:1::2/64")
	wire(w.a, "uplink", "192.168.0.1/24", "fd00:192::1/64", w.b, "uplink", "192.168.0.2/24", "fd00:192::2/64")
	wire(w.b, "pod", "10.244.2.1/24", "fd00:10:244:2::1/64", w.pod2, "eth0", "10.244.2.2/24", "fd00:10:244:2::2/64")
	wire(w.a, "wan", "172.16.0.1/24", "fd00:172::1/64", w.outside, "eth0", "172.16.0.9/24", "fd00:172::9/64")
	route := func(s space, dst, via string) { s.run("ip", "route", "add", dst, "via", via) }
	route(w.pod1, "default", "10.244.1.1")
	route(w.pod1, "::/0", "fd00:10:244:1::1")
	route(w.pod2, "default", "10.244.2.1")
	route(w.pod2, "::/0", "fd00:10:244:2::1")
	route(w.outside, "10.244.0.0/16", "172.16.0.1")
	route(w.outside, "fd00:10:244::/48", "fd00:172::1")
	route(w.a, "10.244.2.0/24", "192.168.0.2")
	route(w.a, "fd00:10:244:2::/64", "fd00:192::2")
	route(w.b, "10.244.1.0/24", "192.168.0.1")
	route(w.b, "fd00:10:244:1::/64", "fd00:192::1")
	for _, s := range []space{w.a, w.b} {
		s.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	}
	return w
}

// within runs f on a thread in the namespace.
func (s space) within(f func() error) error {
	out := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h, err := netns.GetFromName(s.name)
		if err == nil {
			defer func() { _ = h.Close() }()
			if err = unix.Setns(int(h), unix.CLONE_NEWNET); err == nil {
				err = f()
			}
		}
		out <- err
	}()
	return <-out
}

// seenFrom sends a packet from one namespace to addr in another, answers it, and returns the source that
// the receiver saw.
func seenFrom(t *testing.T, from, to space, addr string) (netip.Addr, error) {
	t.Helper()
	var server, client net.PacketConn
	target := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 7777))
	if err := to.within(func() (err error) { server, err = net.ListenUDP("udp", target); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	if err := from.within(func() (err error) { client, err = net.ListenUDP("udp", nil); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()

	type answer struct {
		addr netip.Addr
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		buf := make([]byte, 100)
		_, source, err := server.ReadFrom(buf)
		if err != nil {
			got <- answer{err: err}
			return
		}
		_, err = server.WriteTo([]byte("pong"), source)
		got <- answer{source.(*net.UDPAddr).AddrPort().Addr().Unmap(), err}
	}()
	buf := make([]byte, 100)
	for try := 0; ; try++ {
		if _, err := client.WriteTo([]byte("ping"), target); err != nil {
			return netip.Addr{}, err
		}
		_ = client.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if _, _, err := client.ReadFrom(buf); err == nil {
			break
		} else if try == 3 {
			_ = server.Close()
			<-got
			return netip.Addr{}, fmt.Errorf("%s does not answer: %w", addr, err)
		}
	}
	a := <-got
	return a.addr, a.err
}

func (w world) checkSources(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		what          string
		from, to      space
		addr, wantSrc string
	}{
		{"pod to outside", w.pod1, w.outside, "172.16.0.9", "172.16.0.1"},
		{"pod to outside", w.pod1, w.outside, "fd00:172::9", "fd00:172::1"},
		{"pod to the other node", w.pod1, w.b, "192.168.0.2", "192.168.0.1"},
		{"pod to another node's pod", w.pod1, w.pod2, "10.244.2.2", "10.244.1.2"},
		{"pod to another node's pod", w.pod1, w.pod2, "fd00:10:244:2::2", "fd00:10:244:1::2"},
		{"another node's pod to pod", w.pod2, w.pod1, "10.244.1.2", "10.244.2.2"},
		{"outside to own pod", w.outside, w.pod1, "10.244.1.2", "172.16.0.9"},
		{"outside to own pod", w.outside, w.pod1, "fd00:10:244:1::2", "fd00:172::9"},
		{"outside to another node's pod", w.outside, w.pod2, "10.244.2.2", "192.168.0.1"},
		{"outside to another node's pod", w.outside, w.pod2, "fd00:10:244:2::2", "fd00:192::1"},
	} {
		src, err := seenFrom(t, c.from, c.to, c.addr)
		if err != nil || src != netip.MustParseAddr(c.wantSrc) {
			t.Errorf("%s %s: seen from %v, want %s: %v", c.what, c.addr, src, c.wantSrc, err)
		}
	}
}

func TestMasqueradeHidesPodsFromTheOutsideOnly(t *testing.T) {
	w := newWorld(t)
	d := w.a.driver()
	apply(t, d, nodeFilter)
	w.checkSources(t)

	// A pool without masquerade keeps its addresses everywhere.
	f := nodeFilter
	f.Masquerade = nil
	apply(t, d, f)
	if src, err := seenFrom(t, w.pod1, w.outside, "172.16.0.9"); err != nil || src != netip.MustParseAddr("10.244.1.2") {
		t.Errorf("pod of a pool without masquerade: seen from %v: %v", src, err)
	}
}

func TestPodsPassWhereDockerDropsForwarding(t *testing.T) {
	w := newWorld(t)
	dockerLike(w.a)
	if src, err := seenFrom(t, w.pod1, w.pod2, "10.244.2.2"); err == nil {
		t.Fatalf("passed the drop policy from %v", src)
	}
	apply(t, w.a.driver(), nodeFilter)
	w.checkSources(t)
}

func TestMulticastIsNotMasqueraded(t *testing.T) {
	w := newWorld(t)
	apply(t, w.a.driver(), nodeFilter)
	// Nothing routes multicast here: the source of what a itself sends as a pod is what the chain sees.
	w.a.run("ip", "addr", "add", "10.244.1.77/32", "dev", "lo")
	w.a.run("ip", "route", "add", "224.0.0.0/4", "dev", "wan")
	w.a.feed("table ip see { chain c { type filter hook postrouting priority 300; ip saddr 10.244.1.77 ip daddr 224.0.0.0/4 counter; }; }", "nft", "-f", "-")
	err := w.a.within(func() error {
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 244, 1, 77)}, &net.UDPAddr{IP: net.IPv4(239, 1, 2, 3), Port: 9})
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = c.Write([]byte("x"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "multicast leaves with the pod's source", func() bool {
		return strings.Contains(w.a.run("nft", "list", "table", "ip", "see"), "counter packets 1 ")
	})
}

// TestPermissionIsNamed runs itself again without CAP_NET_ADMIN.
func TestPermissionIsNamed(t *testing.T) {
	if os.Getenv("HEDDLE_TEST_UNPRIVILEGED") != "" {
		d, err := New(Options{NS: -1})
		if err != nil {
			t.Fatal(err)
		}
		p := withProblem(t, d, nodeFilter, codePermission)
		if want := "operation not permitted"; !strings.Contains(p.Detail, want) {
			t.Errorf("detail %q does not give the kernel's reason %q", p.Detail, want)
		}
		if err := d.Sweep(t.Context()); err == nil {
			t.Error("sweep says that it worked")
		}
		return
	}
	s := newSpace(t)
	cmd := exec.Command("ip", "netns", "exec", s.name, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin",
		os.Args[0], "-test.run=^TestPermissionIsNamed$")
	cmd.Env = append(os.Environ(), "HEDDLE_TEST_UNPRIVILEGED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// arrives tells whether an IP packet of a protocol gets from one namespace to an address in another.
func arrives(t *testing.T, network string, from, to space, addr string) bool {
	t.Helper()
	target := &net.IPAddr{IP: net.ParseIP(addr)}
	var server, client *net.IPConn
	if err := to.within(func() (err error) { server, err = net.ListenIP(network, target); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	if err := from.within(func() (err error) { client, err = net.ListenIP(network, nil); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	buf := make([]byte, 200)
	for range 4 {
		if _, err := client.WriteTo([]byte("IP in IP, or so it says"), target); err != nil {
			return false // dropped on its way out
		}
		_ = server.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if _, _, err := server.ReadFrom(buf); err == nil {
			return true
		}
	}
	return false
}

// TestOnlyNodesMaySendWhatIsUnwrapped: a node with an ipip device takes protocols 4 and 41 from nodes, and from nobody
// else; least of all from pods, to which it would look as if another pod spoke.
func TestOnlyNodesMaySendWhatIsUnwrapped(t *testing.T) {
	w := newWorld(t)
	d := w.a.driver()
	f := nodeFilter
	f.Protocols, f.Nodes = []uint8{4, 41}, prefixes("192.168.0.2/32", "fd00:192::2/128")
	apply(t, d, f)
	for _, c := range []struct {
		what, network string
		from, to      space
		addr          string
		want          bool
	}{
		{"node", "ip4:4", w.b, w.a, "192.168.0.1", true},
		{"node", "ip6:41", w.b, w.a, "fd00:192::1", true},
		{"stranger", "ip4:4", w.outside, w.a, "172.16.0.1", false},
		{"stranger", "ip6:41", w.outside, w.a, "fd00:172::1", false},
		{"pod", "ip4:4", w.pod1, w.a, "10.244.1.1", false},
		{"pod", "ip6:41", w.pod1, w.a, "fd00:10:244:1::1", false},
		{"pod to another node", "ip4:4", w.pod1, w.b, "192.168.0.2", false},
		{"pod to another node", "ip6:41", w.pod1, w.b, "fd00:192::2", false},
		{"pod to pod", "ip4:4", w.pod1, w.pod2, "10.244.2.2", true},
		{"another protocol", "ip4:99", w.outside, w.a, "172.16.0.1", true},
	} {
		if got := arrives(t, c.network, c.from, c.to, c.addr); got != c.want {
			t.Errorf("%s, %s to %s: arrives %v, want %v", c.what, c.network, c.addr, got, c.want)
		}
	}
	apply(t, d, nodeFilter)
	if !arrives(t, "ip4:4", w.outside, w.a, "172.16.0.1") {
		t.Error("without an ipip device of Heddle's, somebody else's tunnel is held up")
	}
}
