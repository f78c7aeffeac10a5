package flow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

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

// TestCutMeansTheEntryThatItJudged: another one between the same ports, made since, is another flow.
func TestCutMeansTheEntryThatItJudged(t *testing.T) {
	l := newLab(t)
	args := func(sport uint16) []string {
		return []string{"-p", "udp", "-s", "10.9.1.1", "-d", "10.9.2.1", "--sport", fmt.Sprint(sport), "--dport", "2"}
	}
	add := func(sport uint16) { l.host.run(append([]string{"conntrack", "-I", "-t", "60"}, args(sport)...)...) }
	// numbers lists the kernel's numbers of the entries from port 1. It makes them of where in memory an
	// entry is, among others, so a new one may get the old one's.
	numbers := func() (all []string) {
		c, err := dial(t.Context(), l.host.fd, unix.NETLINK_NETFILTER)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		err = c.dump(ctGet, make([]byte, nfgenSize), func(data []byte) error {
			var e entry
			if parseEntry(data, &e) && e.orig.src.Port() == 1 {
				all = append(all, string(e.id))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	add(1)
	old := numbers()
	judged := 0
	l.cut(0, func(f kernel.Flow) bool {
		if judged++; judged > 1 || f.Src.Port() != 1 {
			return false
		}
		for other := uint16(3); slices.Equal(numbers(), old) && other < 50; other++ {
			l.host.run(append([]string{"conntrack", "-D"}, args(1)...)...)
			add(other) // in the place that is free now
			add(1)
		}
		return true
	})
	if left := numbers(); judged == 0 || len(left) != 1 || slices.Equal(left, old) {
		t.Errorf("%d judged, %d left: want the new one still there", judged, len(left))
	}
}
