// Package flannel proves with packets that a Heddle agent and a flanneld share one network: the agent is
// the real one, the flanneld's host is made by hand as flanneld 0.28 makes it, and all that the two know
// of each other is what stands in an etcd between them.
package flannel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel/netlink"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/internal/store/flannelkv"
	"github.com/heddle-net/heddle/internal/store/storetest/etcdproc"
	"github.com/heddle-net/heddle/test/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.Cleanup()
	os.Exit(code)
}

const (
	patience = 20 * time.Second
	prefix   = "/coreos.com/network"
	// The segment's own addresses; nobody in it has a route to a pod.
	segment4, segment6 = "192.168.77.1", "fd00:77::1"
)

// network is a segment in a namespace of its own, with an etcd on it.
type network struct {
	t        *testing.T
	ns       string
	endpoint string // for those on the segment
	etcd     *clientv3.Client
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	harness.Root(t)
	n := &network{t: t, ns: harness.Netns(t)}
	ip(t, n.ns, "link add br0 type bridge")
	ip(t, n.ns, "addr add "+segment4+"/24 dev br0")
	ip(t, n.ns, "addr add "+segment6+"/64 dev br0 nodad")
	ip(t, n.ns, "link set br0 up")
	n.startEtcd()
	return n
}

// startEtcd runs Debian's etcd on the segment where it is installed, else `heddle store`.
func (n *network) startEtcd() {
	n.t.Helper()
	dir := n.t.TempDir()
	socket := filepath.Join(dir, "s.sock") // by which the test itself gets there
	var p *etcdproc.Process
	if bin, err := exec.LookPath("etcd"); err == nil {
		n.endpoint = "http://" + segment4 + ":2379"
		peer := "http://127.0.0.1:2380"
		p = etcdproc.New(n.t, n.endpoint, []string{
			"ip", "netns", "exec", n.ns, bin, "--name", "e", "--data-dir", dir + "/etcd",
			"--listen-client-urls", n.endpoint, "--advertise-client-urls", n.endpoint,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "e=" + peer,
			"--log-level", "error", "--logger", "zap",
		}, nil)
		n.forward(socket, segment4+":2379")
	} else {
		n.endpoint = "unix://" + socket
		p = etcdproc.New(n.t, n.endpoint, []string{harness.Build(n.t).Heddle, "store", "--data-dir", dir + "/store", "--listen", n.endpoint}, nil)
	}
	p.Start(n.t)
	p.URL = "unix://" + socket
	p.WaitReady(n.t)
	s, err := flannelkv.New(context.Background(), etcd.Options{Endpoints: []string{p.URL}})
	must(n.t, err)
	n.t.Cleanup(func() { _ = s.Close() })
	n.etcd = s.Client()
}

// forward joins a Unix socket with an address inside the segment.
func (n *network) forward(socket, address string) {
	n.t.Helper()
	l, err := net.Listen("unix", socket)
	must(n.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := dial(n.ns, address)
			if err != nil {
				_ = near.Close()
				continue
			}
			end := func() { _, _ = near.Close(), far.Close() }
			all.Go(func() { _, _ = io.Copy(far, near); end() })
			all.Go(func() { _, _ = io.Copy(near, far); end() })
			all.Go(func() { <-ctx.Done(); end() })
		}
	})
	n.t.Cleanup(func() {
		_ = l.Close()
		cancel()
		all.Wait()
	})
}

// host makes a namespace with eth0 on the segment.
func (n *network) host(addrs ...netip.Prefix) string {
	n.t.Helper()
	ns := harness.Netns(n.t)
	port := harness.Name("p")
	ip(n.t, n.ns, "link add "+port+" type veth peer name eth0 netns "+ns)
	ip(n.t, n.ns, "link set "+port+" master br0 up")
	addresses(n.t, ns, "eth0", addrs...)
	return ns
}

// config is the network's configuration as etcd has it.
func (n *network) config() string { return n.get("config") }

func (n *network) get(key string) string {
	n.t.Helper()
	resp, err := n.etcd.Get(n.t.Context(), prefix+"/"+key)
	must(n.t, err)
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// subnets are the keys below subnets/ with their values.
func (n *network) subnets() map[string]string {
	n.t.Helper()
	resp, err := n.etcd.Get(n.t.Context(), prefix+"/subnets/", clientv3.WithPrefix())
	must(n.t, err)
	m := map[string]string{}
	for _, kv := range resp.Kvs {
		m[strings.TrimPrefix(string(kv.Key), prefix+"/subnets/")] = string(kv.Value)
	}
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ip runs one line of `ip` in a namespace.
func ip(t testing.TB, ns, line string) string {
	t.Helper()
	return harness.Run(t, "ip", append([]string{"-n", ns}, strings.Fields(line)...)...)
}

// addresses sets a device up and gives it addresses that work at once.
func addresses(t testing.TB, ns, dev string, addrs ...netip.Prefix) {
	t.Helper()
	ip(t, ns, "link set "+dev+" up")
	for _, a := range addrs {
		nodad := ""
		if a.Addr().Is6() {
			nodad = " nodad"
		}
		ip(t, ns, fmt.Sprintf("addr add %s dev %s%s", a, dev, nodad))
	}
}

// inside runs a function in a named namespace.
func inside(ns string, f func() error) error {
	handle, err := os.Open("/run/netns/" + ns)
	if err != nil {
		return err
	}
	defer func() { _ = handle.Close() }()
	return netlink.Do(int(handle.Fd()), f)
}

func dial(ns, address string) (c net.Conn, err error) {
	err = inside(ns, func() (err error) {
		c, err = net.DialTimeout("tcp", address, 2*time.Second)
		return err
	})
	return c, err
}

// ping tells whether one echo comes back within a second.
func ping(ns string, to netip.Addr) error {
	out, err := exec.Command("ip", "netns", "exec", ns, "ping", "-n", "-c", "1", "-W", "1", to.String()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ping %s from %s: %w\n%s", to, ns, err, out)
	}
	return nil
}

// answers waits until a ping comes back, and returns how long that took.
func answers(t *testing.T, from string, to netip.Addr) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := ping(from, to)
		if err == nil {
			return time.Since(begin)
		}
		if time.Since(begin) > patience {
			t.Fatal(err)
		}
	}
}

// carries sends a megabyte by TCP and returns the source address that the receiver saw.
func carries(t *testing.T, from, to string, address netip.Addr) netip.Addr {
	t.Helper()
	const size = 1 << 20
	var l net.Listener
	must(t, inside(to, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(address, 0).String())
		return err
	}))
	type received struct {
		n    int64
		from netip.Addr
		err  error
	}
	done := make(chan received, 1)
	go func() {
		var r received
		c, err := l.Accept()
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(patience))
			r.from = c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			r.n, err = io.Copy(io.Discard, c)
			_ = c.Close()
		}
		r.err = err
		done <- r
	}()
	c, err := dial(from, l.Addr().String())
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = c.Write(make([]byte, size))
		_ = c.Close()
	}
	if err != nil {
		_ = l.Close()
	}
	r := <-done
	_ = l.Close()
	if err != nil || r.err != nil || r.n != size {
		t.Fatalf("TCP from %s to %s at %s: %d bytes: %v", from, address, to, r.n, errors.Join(err, r.err))
	}
	return r.from
}

// sysctl writes a value as the namespace sees it.
func sysctl(t *testing.T, ns, key, value string) {
	t.Helper()
	must(t, inside(ns, func() error {
		fd, err := unix.Open("/proc/sys/"+key, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, []byte(value))
		return errors.Join(err, unix.Close(fd))
	}))
}
