package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/test/harness"
)

// ported is a node with an agent, 192.168.0.1 and 172.16.0.1, between two machines that are none of the network's:
// a client, 192.168.0.9, and one that the client reaches by the node only, 172.16.0.2.
type ported struct {
	*host
	client, beyond string // network namespaces
	list           *libcni.NetworkConfigList
}

func newPorted(t *testing.T, attachment string) *ported {
	t.Helper()
	n := &ported{host: newBareHost(t), client: harness.Netns(t), beyond: harness.Netns(t)}
	harness.Run(t, "ip", "-n", n.ns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", n.client)
	harness.Run(t, "ip", "-n", n.ns, "link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", n.beyond)
	n.must("ip addr add 192.168.0.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad; ip addr add 172.16.0.1/24 dev eth1; ip addr add 2001:db8:1::1/64 dev eth1 nodad; ip link set eth0 up; ip link set eth1 up")
	for ns, a := range map[string][4]string{
		n.client: {"192.168.0.9/24", "2001:db8::9/64", "192.168.0.1", "2001:db8::1"},
		n.beyond: {"172.16.0.2/24", "2001:db8:1::2/64", "172.16.0.1", "2001:db8:1::1"},
	} {
		harness.Run(t, "ip", "netns", "exec", ns, "sh", "-ec", fmt.Sprintf(
			"ip addr add %s dev eth0; ip addr add %s dev eth0 nodad; ip link set eth0 up; ip route add default via %s; ip route add default via %s", a[0], a[1], a[2], a[3]))
	}
	n.carrier()
	p := n.start("heddle store --data-dir $DIR/data")
	eventually(t, 30*time.Second, "the store serves", func() error { return p.out.has("store serves") })
	n.must("echo '" + hostGW + "' | heddle network set -")
	n.running(n.start("heddle agent --node n1 --address 192.168.0.1,2001:db8::1 --attachment "+attachment+" --state-dir $DIR/state --run-dir $DIR/run --cni-conf-dir $DIR/cni"), n.path("run"))
	eventually(t, time.Minute, "ready", func() (err error) {
		if n.list, err = libcni.ConfListFromFile(n.path("cni/" + cni.ConflistFile)); err != nil {
			err = errors.Join(err, fmt.Errorf("%s", n.must("heddle status --run-dir run")))
		}
		return err
	})
	return n
}

// pod is a namespace that was attached by CNI, and what the runtime said then.
type portedPod struct {
	n    *ported
	ns   string
	conf *libcni.RuntimeConf
	// addr4 and addr6 are its addresses.
	addr4, addr6 string
}

func (n *ported) runtime() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.dir}, n.path("cache"), nil)
}

// try calls ADD for a pod of namespace default.
func (n *ported) try(name string, capabilities map[string]any) (*portedPod, error) {
	n.t.Helper()
	p := &portedPod{n: n, ns: harness.Netns(n.t)}
	p.conf = &libcni.RuntimeConf{
		ContainerID: p.ns, NetNS: "/run/netns/" + p.ns, IfName: "eth0", CapabilityArgs: capabilities,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", name}},
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	got, err := n.runtime().AddNetworkList(ctx, n.list, p.conf)
	if err != nil {
		return p, err
	}
	r, err := types100.GetResult(got)
	if err != nil {
		return p, err
	}
	for _, ip := range r.IPs {
		if a := ip.Address.IP; a.To4() != nil {
			p.addr4 = a.String()
		} else {
			p.addr6 = a.String()
		}
	}
	return p, n.runtime().CheckNetworkList(ctx, n.list, p.conf)
}

func (n *ported) add(name string, capabilities map[string]any) *portedPod {
	n.t.Helper()
	p, err := n.try(name, capabilities)
	if err != nil {
		n.t.Fatalf("pod %s: %v", name, err)
	}
	return p
}

func (p *portedPod) del() {
	p.n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := p.n.runtime().DelNetworkList(ctx, p.n.list, p.conf); err != nil {
		p.n.t.Fatal(err)
	}
}

// file is a namespace of `ip netns`.
func file(ns string) string { return "/run/netns/" + ns }

// answer serves in a namespace: whoever connects, or sends a datagram, hears the name, and who they are here.
func answer(t *testing.T, ns, name string, addresses ...string) {
	t.Helper()
	for _, a := range addresses {
		network, address, _ := strings.Cut(a, " ")
		if network == "udp" {
			c, err := socket(file(ns), address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			go func() {
				b := make([]byte, 64)
				for {
					_, from, err := c.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					_, _ = c.WriteToUDPAddrPort([]byte(name+" "+from.Addr().Unmap().String()), from)
				}
			}()
			continue
		}
		l := listenTCP(t, file(ns), address)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				_, _ = io.WriteString(c, name+" "+from)
				_ = c.Close()
			}
		}()
	}
}

// asks connects from a namespace and returns what it hears: from a source address where one is given.
func asks(ns, network, address, source string) (string, error) {
	var heard string
	err := within(file(ns), func() error {
		d := net.Dialer{Timeout: 3 * time.Second}
		if ip := net.ParseIP(source); ip != nil && network == "tcp" {
			d.LocalAddr = &net.TCPAddr{IP: ip}
		}
		c, err := d.Dial(network, address)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		b := make([]byte, 64)
		n, err := c.Read(b)
		heard = string(b[:n])
		return err
	})
	return heard, err
}

// hears wants an answer; where a machine is very busy, not at once.
func hears(t *testing.T, ns, network, address, source, want string) {
	t.Helper()
	eventually(t, 20*time.Second, address+" answers", func() error {
		got, err := asks(ns, network, address, source)
		if err == nil && got != want {
			t.Fatalf("%s %s says %q, want %q", network, address, got, want)
		}
		return err
	})
}

// refused wants nobody there, and that the client is told so.
func refused(t *testing.T, ns, address string) {
	t.Helper()
	eventually(t, 20*time.Second, address+" refuses", func() error {
		got, err := asks(ns, "tcp", address, "")
		if err == nil {
			t.Fatalf("%s says %q, want a refusal", address, got)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		return nil
	})
}

// tracked are the lines about connections that the node's kernel has, with all of the words.
func (n *ported) tracked(words ...string) (out []string) {
	n.t.Helper()
	var text []byte
	if err := within(file(n.ns), func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/nf_conntrack")
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
lines:
	for line := range strings.Lines(string(text)) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		out = append(out, line)
	}
	return out
}
