package flow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
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
	}{
		{name: "routed", lab: newLab},
		{name: "bridged", lab: newBridgeLab},
		{name: "client elsewhere", lab: newLab, local: func(l *lab) []pod { return []pod{l.b} }},
		{name: "server elsewhere", lab: newLab, local: func(l *lab) []pod { return []pod{l.a} }},
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
				l.cut(3, func(f kernel.Flow) bool {
					if f.Src.Addr() != a || f.Dst != netip.AddrPortFrom(b, 8080) {
						t.Errorf("flow %v: want from %s to %s", f, a, b)
					}
					return true
				})
				cut := time.Now()
				for what, conn := range map[string]net.Conn{
					"idle client": idle, "idle server": idleServer, "sending client": sendingUp,
					"receiving server": upServer, "receiving client": down, "sending server": sendingDown,
				} {
					wantReset(t, what, conn)
				}
				if took := time.Since(cut); took > time.Second {
					t.Errorf("resets took %v", took)
				}
				l.cut(0, func(kernel.Flow) bool { return true })
			}
		})
	}
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

// TestCutEndsConnectionsInEveryState wants no end left waiting: neither a caller, nor a socket of the kernel's own.
func TestCutEndsConnectionsInEveryState(t *testing.T) {
	l := newLab(t)
	to := netip.AddrPortFrom(l.b.v4, 80)
	lis := l.b.listen(to)
	all := func(kernel.Flow) bool { return true }
	noSockets := func() {
		t.Helper()
		for _, p := range []pod{l.a, l.b} {
			if left := p.run("ss", "-Htan", "state", "connected"); left != "" {
				t.Errorf("sockets left in %s:\n%s", p.name, left)
			}
		}
	}

	t.Run("half open", func(t *testing.T) {
		// b's answers are dropped, so that a waits with SYN sent, and b with SYN received.
		l.host.nft("table inet mute { chain c { type filter hook postrouting priority 0; oifname p1 drop; }; }")
		failed := make(chan error)
		l.a.do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			go func() {
				failed <- unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: l.b.v4.As4()})
				unix.Close(fd)
			}()
			return nil
		})
		for len(l.flows()) == 0 {
			time.Sleep(time.Millisecond)
		}
		l.cut(1, all)
		select {
		case err := <-failed:
			if !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("connect: %v, want it aborted", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("connect still waits")
		}
		l.host.run("nft", "delete", "table", "inet", "mute")
		noSockets()
	})
	t.Run("closed by one", func(t *testing.T) {
		client, server := connect(l.a, lis, to)
		_ = client.Close() // FIN_WAIT2, CLOSE_WAIT
		if _, err := server.Read(make([]byte, 1)); err == nil {
			t.Fatal("no end of the stream")
		}
		l.cut(1, all)
		if _, err := server.Write([]byte("x")); err == nil {
			t.Error("the other end can still write")
		}
		_ = server.Close()
		noSockets()
	})
	t.Run("closing without an answer", func(t *testing.T) {
		client, server := connect(l.a, lis, to)
		l.host.nft("table inet mute { chain c { type filter hook postrouting priority 0; oifname p2 drop; }; }")
		if _, err := client.Write([]byte("more")); err != nil {
			t.Fatal(err)
		}
		_ = client.Close() // FIN_WAIT1, as nothing arrives
		l.cut(1, all)
		wantReset(t, "server", server)
		l.host.run("nft", "delete", "table", "inet", "mute")
		noSockets()
	})
	t.Run("closed by both", func(t *testing.T) {
		client, server := connect(l.a, lis, to)
		_ = client.Close()
		_ = server.Close() // TIME_WAIT
		l.cut(1, all)
		noSockets()
	})
}

// TestCutFindsSocketsBoundToAnInterface: no workload keeps a connection by binding it.
func TestCutFindsSocketsBoundToAnInterface(t *testing.T) {
	l := newLab(t)
	to := netip.AddrPortFrom(l.b.v4, 80)
	lis := l.b.listen(to)
	client := l.a.dial(to, func(fd uintptr) error { return unix.BindToDevice(int(fd), "eth0") })
	l.local = []pod{l.a}
	l.cut(1, func(kernel.Flow) bool { return true })
	wantReset(t, "client", client)
	server, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	wantReset(t, "server", server)
}

// TestCutEndsMultipathConnections: MPTCP's ends outlive their subflows by close_timeout, as the kernel has no way to
// destroy them; but nothing passes meanwhile.
func TestCutEndsMultipathConnections(t *testing.T) {
	l := newLab(t)
	for _, p := range []pod{l.a, l.b} {
		p.sysctl("net/mptcp/close_timeout", "1")
	}
	var lis net.Listener
	var client net.Conn
	l.b.do(func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(true)
		lis, err = c.Listen(context.Background(), "tcp", netip.AddrPortFrom(l.b.v4, 80).String())
		return err
	})
	defer lis.Close()
	l.a.do(func() (err error) {
		var d net.Dialer
		d.SetMultipathTCP(true)
		client, err = d.Dial("tcp", lis.Addr().String())
		return err
	})
	defer client.Close()
	server, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if multi, err := server.(*net.TCPConn).MultipathTCP(); !multi {
		t.Fatalf("not a multipath connection: %v", err)
	}
	l.cut(1, func(kernel.Flow) bool { return true })
	if _, err := client.Write([]byte("x")); err != nil {
		t.Logf("write: %v", err)
	}
	_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := server.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("server read %d bytes, %v: want the connection to end", n, err)
	}
	_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := client.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("client: %v: want the connection to end", err)
	}
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
