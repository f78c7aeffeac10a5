package probe

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// place is a network namespace from which and to which packets go, with a thread that lives in it.
type place struct {
	name  string // NAMESPACE/NAME of a pod, or a machine's name
	node  string // on which it is; a node is on itself
	pod   bool
	addrs []netip.Addr
	jobs  chan func()
}

// enter opens a place by the file of its network namespace, and leaves it at the test's end.
func enter(t *testing.T, p place, file string) *place {
	t.Helper()
	p.jobs = make(chan func())
	entered := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		entered <- setns(file)
		for f := range p.jobs {
			f()
		}
	}()
	t.Cleanup(func() { close(p.jobs) })
	if err := <-entered; err != nil {
		t.Fatal(err)
	}
	return &p
}

func setns(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("namespace %s: %w", file, err)
	}
	return nil
}

// do runs f in the place: sockets that it makes belong there.
func (p *place) do(f func() error) (err error) {
	done := make(chan struct{})
	p.jobs <- func() {
		defer close(done)
		err = f()
	}
	<-done
	return err
}

// own are all unicast addresses by which the namespace can be reached from elsewhere.
func (p *place) own() (all []netip.Addr, err error) {
	err = p.do(func() error {
		list, err := net.InterfaceAddrs()
		for _, a := range list {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			if addr, ok := netip.AddrFromSlice(n.IP); ok && !addr.Unmap().IsLoopback() && !addr.IsLinkLocalUnicast() {
				all = append(all, addr.Unmap())
			}
		}
		return err
	})
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all), err
}

// answerEverything lifts what keeps a kernel from refusing as often as it is asked, and lets sockets ping.
func (p *place) answerEverything() error {
	return p.do(func() error {
		for file, value := range map[string]string{
			"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0", "ipv4/icmp_msgs_per_sec": "100000", "ipv4/icmp_msgs_burst": "100000",
			"ipv4/ping_group_range": "0 2147483647",
		} {
			// Kernels before 6.13 have some of them for the whole machine.
			if err := os.WriteFile("/proc/sys/net/"+file, []byte(value), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// serve takes connections and sends datagrams back on some ports of all the place's addresses.
func (p *place) serve(t *testing.T, ports []uint16) {
	t.Helper()
	for _, a := range p.addrs {
		for _, port := range ports {
			at := netip.AddrPortFrom(a, port)
			if err := p.do(func() error { return serveAt(t, at) }); err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
		}
	}
}

func serveAt(t *testing.T, at netip.AddrPort) error {
	var l *net.TCPListener
	var err error
	for range 100 { // an IPv6 address may not be usable yet
		if l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); !errors.Is(err, unix.EADDRNOTAVAIL) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = l.Close() })
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_ = c.Close()
			}
		}
	}()
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := u.ReadFromUDPAddrPort(b)
			switch {
			case errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF):
				return
			case err == nil:
				_, _ = u.WriteToUDPAddrPort(b[:n], from)
			}
		}
	}()
	return nil
}

// sourceTowards is the address that the place's packets to an address have.
func (p *place) sourceTowards(to netip.Addr) (from netip.Addr, err error) {
	err = p.do(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
		if err != nil {
			return err
		}
		from = c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		return c.Close()
	})
	return from, err
}
