package filter

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/policy"
)

// world is a node with two workloads, routed or on a bridge, and a machine outside:
//
//	a --- node --- b
//	       |
//	    outside
type world struct {
	node, a, b, outside space
	bridged             bool
}

// Addresses of the world.
const (
	a4, b4, node4, out4 = "10.244.1.2", "10.244.1.3", "10.244.1.1", "172.16.0.9"
	a6, b6, node6, out6 = "fd00:244:1::2", "fd00:244:1::3", "fd00:244:1::1", "fd00:172::9"
	macA, macB          = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
	macNode             = "02:00:00:00:00:01"
)

func newWorld(t testing.TB, bridged bool) world {
	w := world{newSpace(t), newSpace(t), newSpace(t), newSpace(t), bridged}
	for _, s := range []space{w.node, w.a, w.b, w.outside} {
		s.run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.ping_group_range=0 0")
	}
	for _, s := range []space{w.a, w.b, w.outside} {
		s.run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0", "net.ipv4.icmp_ratelimit=0", "net.ipv4.icmp_echo_ignore_broadcasts=0")
	}
	if bridged {
		// The bridge's own setting must do, as others may switch the machine's.
		w.node.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0", "net.bridge.bridge-nf-call-arptables=0")
		w.node.run("ip", "link", "add", "cni0", "address", macNode, "type", "bridge", "nf_call_iptables", "1", "nf_call_ip6tables", "1")
		w.node.run("ip", "link", "set", "cni0", "up")
		w.node.run("ip", "addr", "add", node4+"/24", "dev", "cni0")
		w.node.run("ip", "addr", "add", node6+"/64", "dev", "cni0", "nodad")
	}
	for _, p := range []struct {
		s                    space
		link, mac, four, six string
	}{{w.a, "hdla", macA, a4, a6}, {w.b, "hdlb", macB, b4, b6}} {
		w.node.run("ip", "link", "add", p.link, "address", "02:00:00:00:01:01", "group", "104", "type", "veth", "peer", "name", "eth0", "address", p.mac, "netns", p.s.name)
		p.s.run("ip", "link", "set", "eth0", "up")
		if bridged {
			w.node.run("ip", "link", "set", p.link, "master", "cni0")
			w.node.run("bridge", "link", "set", "dev", p.link, "hairpin", "on")
			w.node.run("ip", "link", "set", p.link, "up")
			p.s.run("ip", "addr", "add", p.four+"/24", "dev", "eth0")
			p.s.run("ip", "addr", "add", p.six+"/64", "dev", "eth0", "nodad")
		} else {
			w.node.run("ip", "link", "set", p.link, "up")
			p.s.run("ip", "addr", "add", p.four+"/32", "dev", "eth0")
			p.s.run("ip", "addr", "add", p.six+"/128", "dev", "eth0", "nodad")
			p.s.run("ip", "route", "add", node4, "dev", "eth0")
			p.s.run("ip", "route", "add", node6, "dev", "eth0")
			w.node.run("ip", "route", "add", p.four+"/32", "dev", p.link)
			w.node.run("ip", "route", "add", p.six+"/128", "dev", p.link)
			w.node.run("sysctl", "-qw", "net.ipv4.conf."+p.link+".proxy_arp=1", "net.ipv4.conf."+p.link+".rp_filter=0")
			p.s.run("ip", "neigh", "add", node6, "dev", "eth0", "lladdr", "02:00:00:00:01:01")
		}
		p.s.run("ip", "route", "add", "default", "via", node4)
		p.s.run("ip", "route", "add", "::/0", "via", node6)
	}
	if !bridged {
		w.node.run("ip", "addr", "add", node4+"/32", "dev", "lo")
		w.node.run("ip", "addr", "add", node6+"/128", "dev", "lo")
	}
	w.node.run("ip", "link", "add", "wan", "type", "veth", "peer", "name", "eth0", "netns", w.outside.name)
	w.node.run("ip", "addr", "add", "172.16.0.1/24", "dev", "wan")
	w.node.run("ip", "addr", "add", "fd00:172::1/64", "dev", "wan", "nodad")
	w.node.run("ip", "link", "set", "wan", "up")
	w.outside.run("ip", "addr", "add", out4+"/24", "dev", "eth0")
	w.outside.run("ip", "addr", "add", out6+"/64", "dev", "eth0", "nodad")
	w.outside.run("ip", "link", "set", "eth0", "up")
	w.outside.run("ip", "route", "add", "default", "via", "172.16.0.1")
	w.outside.run("ip", "route", "add", "::/0", "via", "fd00:172::1")
	return w
}

// sources are what a and b may send.
func sources() map[policy.Source]struct{} {
	return map[policy.Source]struct{}{
		{Link: "hdla", MAC: macA, Addr: addr(a4)}: {}, {Link: "hdla", MAC: macA, Addr: addr(a6)}: {},
		{Link: "hdlb", MAC: macB, Addr: addr(b4)}: {}, {Link: "hdlb", MAC: macB, Addr: addr(b6)}: {},
	}
}

// inside runs f on a thread in the namespace.
func (s space) inside(f func() error) error {
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

// patience is how long a probe waits for an answer.
const patience = 250 * time.Millisecond

// reached tells whether a packet from one namespace gets to addr in another and is answered: "tcp 80",
// "udp 53", "tcp 80 from 1234", "icmp".
func reached(t testing.TB, from, to space, addr, what string) bool {
	t.Helper()
	w := strings.Fields(what)
	if w[0] == "icmp" {
		return echoed(t, from, addr)
	}
	target := net.JoinHostPort(addr, w[1])
	local := ""
	if len(w) > 3 {
		local = ":" + w[3]
	}
	var err error
	if w[0] == "tcp" {
		var l net.Listener
		must(t, to.inside(func() (err error) { l, err = net.Listen("tcp", target); return err }))
		defer func() { _ = l.Close() }()
		d := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}}
		if local != "" {
			if d.LocalAddr, err = net.ResolveTCPAddr("tcp", local); err != nil {
				t.Fatal(err)
			}
		}
		err = from.inside(func() error {
			c, err := d.Dial("tcp", target)
			if err == nil {
				_ = c.(*net.TCPConn).SetLinger(0) // frees the port
				_ = c.Close()
			}
			return err
		})
		return answered(t, err)
	}
	var server, client net.PacketConn
	must(t, to.inside(func() (err error) { server, err = net.ListenPacket("udp", target); return err }))
	defer func() { _ = server.Close() }()
	must(t, from.inside(func() (err error) { client, err = net.ListenPacket("udp", local); return err }))
	defer func() { _ = client.Close() }()
	go func() {
		buf := make([]byte, 100)
		for {
			n, source, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:n], source)
		}
	}()
	a, err := net.ResolveUDPAddr("udp", target)
	must(t, err)
	if _, err := client.WriteTo([]byte("ping"), a); err != nil {
		return answered(t, err)
	}
	_ = client.SetReadDeadline(time.Now().Add(patience))
	_, _, err = client.ReadFrom(make([]byte, 100))
	return answered(t, err)
}

// probed is reached for one who knows what should be: on a busy machine an answer may come late.
func probed(t testing.TB, want bool, from, to space, addr, what string) bool {
	t.Helper()
	for try := 0; ; try++ {
		if got := reached(t, from, to, addr, what); got || !want || try == 5 {
			return got
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// answered tells an answer from silence; other errors end the test.
func answered(t testing.TB, err error) bool {
	t.Helper()
	var timeout net.Error
	switch {
	case err == nil:
		return true
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.EPERM):
		return false
	}
	t.Fatal(err)
	return false
}

// echoed tells whether addr answers an echo request.
func echoed(t testing.TB, from space, to string) bool {
	t.Helper()
	a := netip.MustParseAddr(to)
	domain, proto, kind := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{}}
	if a.Is4() {
		sa = &unix.SockaddrInet4{Addr: a.As4()}
	} else {
		domain, proto, kind = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
		sa = &unix.SockaddrInet6{Addr: a.As16()}
	}
	var err error
	must(t, from.inside(func() error {
		fd, serr := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
		if serr != nil {
			return fmt.Errorf("ping socket: %w", serr)
		}
		defer func() { _ = unix.Close(fd) }()
		tv := unix.NsecToTimeval(patience.Nanoseconds())
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		if err = unix.Sendto(fd, []byte{kind, 0, 0, 0, 0, 0, 0, 1, 'p', 'i', 'n', 'g'}, 0, sa); err != nil {
			return nil
		}
		for { // signals of the runtime interrupt it
			if _, _, err = unix.Recvfrom(fd, make([]byte, 100), 0); !errors.Is(err, unix.EINTR) {
				return nil
			}
		}
	}))
	if errors.Is(err, unix.EAGAIN) {
		return false
	}
	return answered(t, err)
}

// listen listens inside.
func listen(s space, at string) (l net.Listener, err error) {
	err = s.inside(func() error { l, err = net.Listen("tcp", at); return err })
	return l, err
}

// dialled tells whether a TCP connection comes about.
func dialled(t testing.TB, from space, to string) bool {
	t.Helper()
	return answered(t, from.inside(func() error {
		c, err := net.DialTimeout("tcp", to, patience)
		if err == nil {
			_ = c.Close()
		}
		return err
	}))
}
