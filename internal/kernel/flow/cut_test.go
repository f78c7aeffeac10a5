package flow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

func tcp(f func(kernel.Flow) bool) func(kernel.Flow) bool {
	return func(flow kernel.Flow) bool { return flow.Protocol == unix.IPPROTO_TCP && f(flow) }
}

// sender is an end that sends as fast as the other takes, until it fails; reading from it tells how.
type sender struct {
	net.Conn
	failed chan error
}

func newSender(t *testing.T, conn net.Conn) *sender {
	s := &sender{conn, make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, 32<<10); ; {
			if _, err := conn.Write(b); err != nil {
				s.failed <- err
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return s
}

func (s *sender) Read([]byte) (int, error) {
	select {
	case err := <-s.failed:
		return 0, err
	case <-time.After(5 * time.Second):
		return 0, errors.New("still sends")
	}
}

func TestCutResetsBothEndsOfAConnection(t *testing.T) {
	service4, service6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")
	nat := fmt.Sprintf(`table inet nat {
		chain pre { type nat hook prerouting priority dstnat; ip daddr %s tcp dport 80 dnat ip to 10.9.2.1:8080; ip6 daddr %s tcp dport 80 dnat ip6 to [fd09:2::1]:8080; }
	}`, service4, service6)
	for _, c := range []struct {
		name    string
		lab     func(testing.TB) *lab
		nat     string
		local   func(*lab) []pod
		service bool
		before  func(*lab) // the cut
	}{
		{name: "routed", lab: newLab},
		{name: "bridged", lab: newBridgeLab},
		{name: "client elsewhere", lab: newLab, local: func(l *lab) []pod { return []pod{l.b} }},
		{name: "server elsewhere", lab: newLab, local: func(l *lab) []pod { return []pod{l.a} }},
		{
			name: "server elsewhere, resets wait in a queue", lab: newSlowLab, local: func(l *lab) []pod { return []pod{l.a} },
			before: func(l *lab) { l.a.send(netip.MustParseAddrPort("10.9.2.1:9"), 100, 1000) },
		},
		{name: "destination NAT", lab: newLab, nat: nat, service: true},
		{
			name: "destination and source NAT", lab: newLab, service: true,
			nat: nat + "\n" + `table inet out { chain post { type nat hook postrouting priority srcnat; meta l4proto tcp masquerade; }; }`,
		},
		{
			name: "NAT, client elsewhere", lab: newLab, nat: nat, service: true,
			local: func(l *lab) []pod { return []pod{l.b} },
		},
		{
			name: "NAT, server elsewhere", lab: newLab, nat: nat, service: true,
			local: func(l *lab) []pod { return []pod{l.a} },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := c.lab(t)
			if c.nat != "" {
				l.host.nft(c.nat)
			}
			if c.local != nil {
				l.local = c.local(l)
			}
			for _, v6 := range []bool{false, true} {
				a, b := l.a.addr(v6), l.b.addr(v6)
				lis := l.b.listen(netip.AddrPortFrom(b, 8080))
				to := netip.AddrPortFrom(b, 8080)
				if c.service {
					to = netip.AddrPortFrom(map[bool]netip.Addr{false: service4, true: service6}[v6], 80)
				}
				idle, idleServer := connect(l.a, lis, to)
				up, upServer := connect(l.a, lis, to)
				down, downServer := connect(l.a, lis, to)
				sendingUp, sendingDown := newSender(t, up), newSender(t, downServer)
				l.deny("tcp", a, b)
				if c.before != nil {
					c.before(l)
				}
				l.cut(3, tcp(func(f kernel.Flow) bool {
					if f.Src.Addr() != a || f.Dst != netip.AddrPortFrom(b, 8080) {
						t.Errorf("flow %v: want from %s to %s", f, a, b)
					}
					return true
				}))
				cut := time.Now()
				for what, conn := range map[string]net.Conn{
					"idle client": idle, "idle server": idleServer, "sending client": sendingUp,
					"receiving server": upServer, "receiving client": down, "sending server": sendingDown,
				} {
					wantReset(t, what, conn)
				}
				t.Logf("all reset within %v", time.Since(cut))
				l.cut(0, tcp(func(kernel.Flow) bool { return true }))
			}
		})
	}
}

// TestCutGoesOnWhereANamespaceIsLost: a workload may end at any moment.
func TestCutGoesOnWhereANamespaceIsLost(t *testing.T) {
	l := newLab(t)
	to := netip.AddrPortFrom(l.b.v4, 80)
	client, server := connect(l.a, l.b.listen(to), to)
	n, err := l.d.Cut(t.Context(), func(kernel.Flow) bool { return true }, func(addr netip.Addr) *os.File {
		if addr != l.a.v4 {
			return l.netns(addr)
		}
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Error(err)
		}
		return f
	})
	if n != 1 || err == nil || !strings.Contains(err.Error(), "workload "+l.a.v4.String()) {
		t.Errorf("%d, %v: want one ended, and an error that names the workload", n, err)
	}
	wantReset(t, "client", client)
	wantReset(t, "server", server)
}

func TestDriverTakesNamespacesOnly(t *testing.T) {
	if _, err := New(Options{NS: -2}); err == nil || !strings.Contains(err.Error(), "NS") {
		t.Errorf("NS -2: %v", err)
	}
	d, err := New(Options{NS: -1})
	if err != nil {
		t.Fatal(err)
	}
	s := newSpace(t)
	s.fill(3, netip.MustParseAddr("10.1.0.0"), netip.MustParseAddr("10.2.0.1"))
	s.do(func() error { // -1 is where the thread is
		n, err := d.Cut(t.Context(), func(kernel.Flow) bool { return true }, func(netip.Addr) *os.File { return nil })
		if n != 3 {
			t.Errorf("%d ended, want 3", n)
		}
		return err
	})
}

func TestCutResetsConnectionsOfTheHost(t *testing.T) {
	l := newLab(t)
	here := pod{space: l.host, v4: netip.MustParseAddr("10.9.1.254")}
	in := here.listen(netip.AddrPortFrom(here.v4, 10250))
	client, server := connect(l.a, in, netip.AddrPortFrom(here.v4, 10250))
	lis := l.b.listen(netip.AddrPortFrom(l.b.v4, 80))
	out, outServer := connect(here, lis, netip.AddrPortFrom(l.b.v4, 80))
	l.local = nil // so that no end but the host's can be destroyed
	l.cut(2, func(kernel.Flow) bool { return true })
	for what, conn := range map[string]net.Conn{"pod's client": client, "host's server": server, "host's client": out, "pod's server": outServer} {
		wantReset(t, what, conn)
	}
}

// TestCutLeavesTheRestAlone keeps allowed flows going, and listeners, while others are cut again and again.
func TestCutLeavesTheRestAlone(t *testing.T) {
	l := newLab(t)
	web, ssh := netip.AddrPortFrom(l.b.v4, 80), netip.AddrPortFrom(l.b.v4, 22)
	lis, good := l.b.listen(web), l.b.listen(ssh)
	kept, keptServer := connect(l.a, good, ssh)

	var talking sync.WaitGroup
	stop := make(chan struct{})
	echo := func(conn net.Conn) {
		b := make([]byte, 4)
		for {
			if n, err := conn.Read(b); err != nil || n == 0 {
				return
			}
			if _, err := conn.Write(b); err != nil {
				return
			}
		}
	}
	talk := func(what string, conn net.Conn) {
		b := make([]byte, 4)
		for i := 0; ; i++ {
			select {
			case <-stop:
				t.Logf("%s: %d round trips", what, i)
				_ = conn.Close()
				return
			default:
			}
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := conn.Write([]byte("ping")); err != nil {
				t.Errorf("%s, round trip %d: %v", what, i, err)
				return
			}
			if _, err := conn.Read(b); err != nil {
				t.Errorf("%s, round trip %d: %v", what, i, err)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	var udpServer net.PacketConn
	var udpClient net.Conn
	l.b.do(func() (err error) {
		udpServer, err = net.ListenPacket("udp", netip.AddrPortFrom(l.b.v4, 53).String())
		return err
	})
	l.a.do(func() (err error) {
		udpClient, err = net.Dial("udp", netip.AddrPortFrom(l.b.v4, 53).String())
		return err
	})
	talking.Go(func() { echo(keptServer) })
	talking.Go(func() { talk("TCP", kept) })
	talking.Go(func() {
		b := make([]byte, 64)
		for {
			n, from, err := udpServer.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = udpServer.WriteTo(b[:n], from)
		}
	})
	talking.Go(func() { talk("UDP", udpClient) }) // no packet of it is sent twice

	for range 10 {
		client, server := connect(l.a, lis, web)
		l.cut(1, func(f kernel.Flow) bool { return f.Dst == web })
		wantReset(t, "client", client)
		wantReset(t, "server", server)
	}
	// An entry of which the sockets are gone: the one who listens is not meant by its port.
	l.host.run("conntrack", "-I", "-p", "tcp", "-s", l.a.v4.String(), "-d", l.b.v4.String(), "--sport", "999", "--dport", "80",
		"--state", "ESTABLISHED", "-t", "60")
	l.cut(1, func(f kernel.Flow) bool { return f.Dst == web })
	client, _ := connect(l.a, lis, web)
	_ = client.Close()

	close(stop)
	_ = udpServer.SetDeadline(time.Now().Add(time.Second))
	talking.Wait()
	_ = udpServer.Close()
}

func TestCutStopsWhenItsContextEnds(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	lis := l.b.listen(netip.AddrPortFrom(l.b.v4, 80))
	connect(l.a, lis, netip.AddrPortFrom(l.b.v4, 80))
	n, err := l.d.Cut(ctx, func(kernel.Flow) bool {
		cancel()
		time.Sleep(10 * time.Millisecond)
		return true
	}, l.netns)
	if n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d, %v: want that it was canceled", n, err)
	}
	if left := l.flows(); len(left) != 1 {
		t.Errorf("flows %v: want the one still there", left)
	}
}
