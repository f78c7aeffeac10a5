package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/test/harness"
)

// port is an entry of capability portMappings.
func port(protocol string, host, container int, hostIP string) map[string]any {
	return map[string]any{"hostPort": host, "containerPort": container, "protocol": protocol, "hostIP": hostIP}
}

func portMappings(ports ...map[string]any) map[string]any {
	return map[string]any{"portMappings": ports}
}

// TestHostPortsLeadToTheirPods: from everywhere, for the addresses they are asked for, in both families and ways to hang
// on the node, with the client's own address wherever its answer finds back; and for nothing that only passes through.
func TestHostPortsLeadToTheirPods(t *testing.T) {
	for _, attachment := range []string{"bridge", "routed"} {
		t.Run(attachment, func(t *testing.T) {
			t.Parallel()
			n := newPorted(t, attachment)
			web := n.add("web", portMappings(port("tcp", 8080, 80, ""), port("tcp", 8443, 80, "192.168.0.1"), port("tcp", 9090, 80, "127.0.0.1"),
				port("udp", 5353, 53, ""), port("tcp", 7070, 80, "::"), port("tcp", 6060, 80, "::1")))
			answer(t, web.ns, "web", "tcp [::]:80", "udp [::]:53")
			near := n.add("near", nil)
			answer(t, n.beyond, "beyond", "tcp [::]:8080", "udp 172.16.0.2:5353")
			n.portsFromEverywhere(web, near, attachment)
			n.portsThatAreNot(web)
			n.servicesGoFirst()
			n.policiesSeeTheClient(web, near)
			n.portsComeBack()

			web.del()
			if out := n.must("nft list table inet heddle"); strings.Contains(out, "8080") || strings.Contains(out, "5353") {
				t.Errorf("left of the ports:\n%s", out)
			}
			for _, at := range []string{"192.168.0.1:8080", "192.168.0.1:8443", "[2001:db8::1]:8080"} {
				refused(t, n.client, at)
			}
			refused(t, n.ns, "127.0.0.1:8080")
		})
	}
}

func (n *ported) portsFromEverywhere(web, near *portedPod, attachment string) {
	t := n.t
	t.Helper()
	// Who shares a bridge with the pod is masqueraded: the pod would answer them past the node.
	nearSees, self, self6 := near.addr4, web.addr4, web.addr6
	if attachment == "bridge" {
		nearSees = gatewayOf(t, web.addr4)
		self, self6 = nearSees, gatewayOf(t, web.addr6)
	}
	for _, c := range []struct{ from, network, to, source, sees string }{
		{n.client, "tcp", "192.168.0.1:8080", "", "192.168.0.9"},
		{n.client, "tcp", "172.16.0.1:8080", "", "192.168.0.9"}, // another address of the node
		{n.client, "tcp", "192.168.0.1:8443", "", "192.168.0.9"},
		{n.client, "udp", "192.168.0.1:5353", "", "192.168.0.9"},
		{n.client, "tcp", "[2001:db8::1]:8080", "", "2001:db8::9"},
		{n.client, "tcp", "[2001:db8::1]:7070", "", "2001:db8::9"},
		{n.client, "udp", "[2001:db8::1]:5353", "", "2001:db8::9"},
		{n.beyond, "tcp", "172.16.0.1:8080", "", "172.16.0.2"},
		{n.ns, "tcp", "192.168.0.1:8080", "", "192.168.0.1"},
		{n.ns, "tcp", "[2001:db8::1]:8080", "", "2001:db8::1"},
		{n.ns, "tcp", "127.0.0.1:9090", "192.168.0.1", "192.168.0.1"}, // as Kubernetes' conformance test asks
		{n.ns, "tcp", "[::1]:6060", "2001:db8::1", "2001:db8::1"},
		{near.ns, "tcp", "192.168.0.1:8080", "", nearSees},
		{web.ns, "tcp", "192.168.0.1:8443", "", self},
		{web.ns, "tcp", "[2001:db8::1]:8080", "", self6},
	} {
		if c.from == web.ns && attachment == "routed" { // its own address is the only one that it can be hidden behind
			c.sees = "" // the node's, of which there are several
		}
		if c.sees == "" {
			n.answers(c.from, c.to)
			continue
		}
		hears(t, c.from, c.network, c.to, c.source, "web "+c.sees)
	}
	for _, to := range []string{"127.0.0.1:8080", "127.0.0.1:9090", "127.1.2.3:8080"} {
		n.answers(n.ns, to)
	}
}

// answers wants an answer of the pod, to whomever it thinks.
func (n *ported) answers(from, to string) {
	n.t.Helper()
	eventually(n.t, 20*time.Second, to+" answers", func() error { return n.answered(from, to) })
}

func (n *ported) answered(from, to string) error {
	got, err := asks(from, "tcp", to, "")
	if err == nil && (!strings.HasPrefix(got, "web ") || strings.HasPrefix(got, "web 127.")) {
		err = fmt.Errorf("%s says %q", to, got)
	}
	return err
}

func gatewayOf(t *testing.T, address string) string {
	t.Helper()
	a := netip.MustParseAddr(address)
	bits := 24
	if a.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(a, bits).Masked().Addr().Next().String()
}

// portsThatAreNot: what is for another address, another protocol, or another machine, does not get to the pod.
func (n *ported) portsThatAreNot(web *portedPod) {
	t := n.t
	t.Helper()
	hears(t, n.client, "tcp", "172.16.0.2:8080", "", "beyond 192.168.0.9") // CVE-2025-67499
	hears(t, n.client, "udp", "172.16.0.2:5353", "", "beyond 192.168.0.9")
	hears(t, n.client, "tcp", "[2001:db8:1::2]:8080", "", "beyond 2001:db8::9")
	for from, addresses := range map[string][]string{
		n.client: {"172.16.0.1:8443", "192.168.0.1:9090", "192.168.0.1:5353", "192.168.0.1:7070", "192.168.0.1:80"},
		n.ns:     {"127.0.0.1:8443", "[::1]:8080"},
	} {
		for _, a := range addresses {
			refused(t, from, a)
		}
	}
	// A pod that forges what only the node's own loopback may carry is not heard, though the kernel now takes such
	// packets from its link.
	secret, err := socket(file(n.ns), "127.0.0.5:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = secret.Close() }()
	harness.Run(t, "ip", "netns", "exec", web.ns, "sh", "-ec", "ip route del local 127.0.0.0/8 dev lo table local; ip route add 127.0.0.0/8 via $(ip route show default | awk '{print $3}') dev eth0; sysctl -qw net.ipv4.conf.eth0.route_localnet=1")
	for _, c := range [][2]string{{web.ns, "forged"}, {n.ns, "own"}} {
		from, err := socket(file(c[0]), "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = from.Close() }()
		if _, err := from.WriteTo([]byte(c[1]), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 5), Port: 7777}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // what is forged would be there first
	}
	_ = secret.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 16)
	if k, from, err := secret.ReadFrom(b); err != nil || string(b[:k]) != "own" {
		t.Fatalf("the node's loopback heard %q from %v, %v", b[:k], from, err)
	}
}

// servicesGoFirst: what kube-proxy leads elsewhere goes there, though a pod has the port.
func (n *ported) servicesGoFirst() {
	n.t.Helper()
	n.must(`echo 'table ip kube-proxy { chain c { type nat hook prerouting priority dstnat; ip daddr 192.168.0.1 tcp dport 8080 dnat to 172.16.0.2:8080; }; }' | nft -f -`)
	hears(n.t, n.client, "tcp", "192.168.0.1:8080", "", "beyond 192.168.0.9")
	n.must("nft delete table ip kube-proxy")
	hears(n.t, n.client, "tcp", "192.168.0.1:8080", "", "web 192.168.0.9")
}

// policiesSeeTheClient: they judge the pod's address and port, and who asks.
func (n *ported) policiesSeeTheClient(web, near *portedPod) {
	t := n.t
	t.Helper()
	n.write("allow.yaml", networkPolicy("default", "ports",
		"podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 192.168.0.9/32}}], ports: [{port: 80}]}]"))
	n.must("heddle apply -f allow.yaml")
	eventually(t, 20*time.Second, "the policy is in force", func() error {
		if got, err := asks(n.beyond, "tcp", "172.16.0.1:8080", ""); err == nil {
			return fmt.Errorf("heard %q", got)
		}
		return nil
	})
	hears(t, n.client, "tcp", "192.168.0.1:8080", "", "web 192.168.0.9")
	if got, err := asks(near.ns, "tcp", "192.168.0.1:8080", ""); err == nil {
		t.Errorf("a pod that the policy does not let in heard %q", got)
	}
	n.answers(n.ns, "127.0.0.1:8080")
	n.answers(web.ns, "192.168.0.1:8080")
	n.must("heddle delete networkpolicy ports -n default")
	eventually(t, 20*time.Second, "the policy is gone", func() error { return n.answered(n.beyond, "172.16.0.1:8080") })
}

// portsComeBack: with the table, when somebody takes that away.
func (n *ported) portsComeBack() {
	n.t.Helper()
	n.must("nft delete table inet heddle")
	eventually(n.t, 20*time.Second, "the port is back", func() error { return n.answered(n.client, "192.168.0.1:8080") })
}

// TestTwoPodsGetOneErrorForOneHostPort: the second is told who has it, has nothing left behind, and gets the port when it
// is free; a pod's new sandbox takes over from the old one.
func TestTwoPodsGetOneErrorForOneHostPort(t *testing.T) {
	n := newPorted(t, "bridge")
	first := n.add("first", portMappings(port("tcp", 8080, 80, ""), port("tcp", 8443, 80, "192.168.0.1")))
	answer(t, first.ns, "first", "tcp [::]:80")
	for _, wanted := range []map[string]any{port("tcp", 8080, 81, ""), port("tcp", 8080, 80, "0.0.0.0"), port("tcp", 8080, 80, "::"), port("tcp", 8443, 80, "192.168.0.1")} {
		second, err := n.try("second", portMappings(wanted))
		var refusal *types.Error
		if !errors.As(err, &refusal) || refusal.Code != cni.CodeTryAgainLater || !strings.Contains(refusal.Msg, fmt.Sprint(wanted["hostPort"], "/tcp")) && !strings.Contains(refusal.Msg, fmt.Sprint(":", wanted["hostPort"])) || !strings.Contains(refusal.Msg, "workload default/first") {
			t.Errorf("%v: error %v", wanted, err)
		}
		if out := harness.Run(t, "ip", "-n", second.ns, "-br", "link"); strings.Contains(out, "eth0") {
			t.Errorf("left of the second: %s", out)
		}
		second.del()
	}
	others := n.add("others", portMappings(port("udp", 8080, 80, ""), port("tcp", 8443, 80, "172.16.0.1"), port("tcp", 8080, 80, "172.16.0.1")))
	answer(t, others.ns, "others", "tcp [::]:80")
	hears(t, n.client, "tcp", "172.16.0.1:8080", "", "others 192.168.0.9")
	hears(t, n.client, "tcp", "192.168.0.1:8080", "", "first 192.168.0.9")
	others.del()
	hears(t, n.client, "tcp", "172.16.0.1:8080", "", "first 192.168.0.9")

	again := n.add("first", portMappings(port("tcp", 8080, 80, "")))
	answer(t, again.ns, "again", "tcp [::]:80")
	hears(t, n.client, "tcp", "192.168.0.1:8080", "", "again 192.168.0.9")
	first.del()
	hears(t, n.client, "tcp", "192.168.0.1:8080", "", "again 192.168.0.9")
	again.conf.CapabilityArgs = portMappings(port("tcp", 8081, 80, ""))
	err := n.runtime().CheckNetworkList(t.Context(), n.list, again.conf)
	var differs *types.Error
	if !errors.As(err, &differs) || differs.Code != cni.CodeDiffers {
		t.Errorf("CHECK of another port: %v", err)
	}
	again.del()
	second := n.add("second", portMappings(port("tcp", 8080, 80, "")))
	answer(t, second.ns, "second", "tcp [::]:80")
	hears(t, n.client, "tcp", "192.168.0.1:8080", "", "second 192.168.0.9")

	_, err = n.try("bad", portMappings(port("tcp", 0, 80, "")))
	if err == nil || !strings.Contains(err.Error(), "portMappings[0].hostPort 0: want a port") {
		t.Errorf("port 0: %v", err)
	}
}

// TestUDPClientFollowsItsHostPort: one that sends on from the same port is heard by the pod that came after its first
// packets, and by the one that came after that; other flows are left alone.
func TestUDPClientFollowsItsHostPort(t *testing.T) {
	n := newPorted(t, "bridge")
	n.must("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=600 net.netfilter.nf_conntrack_udp_timeout_stream=600")
	answer(t, n.beyond, "beyond", "udp 172.16.0.2:5353")
	answer(t, n.ns, "node", "udp 192.168.0.1:6000")
	c, err := socket(file(n.client), "192.168.0.9:4000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	// says sends until an answer comes, and wants it of that name.
	says := func(to, want string) {
		t.Helper()
		eventually(t, 20*time.Second, want+" answers", func() error {
			if _, err := c.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort(to)); err != nil {
				return err
			}
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			for b := make([]byte, 64); ; {
				k, _, err := c.ReadFromUDPAddrPort(b)
				if err != nil {
					return err
				}
				if strings.HasPrefix(string(b[:k]), want) {
					return nil
				}
			}
		})
	}
	others := []string{"dst=172.16.0.2 sport=4000 dport=5353", "dst=192.168.0.1 sport=4000 dport=6000"}
	says("172.16.0.2:5353", "beyond")
	says("192.168.0.1:6000", "node")
	untouched := func() {
		t.Helper()
		for _, o := range others {
			if len(n.tracked(o)) != 1 || len(n.tracked(o, "UNREPLIED")) != 0 {
				t.Errorf("%s was forgotten: %q", o, n.tracked("udp"))
			}
		}
	}
	// Nobody has the port yet: the kernel remembers that its packets are for the node itself.
	if _, err := c.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort("192.168.0.1:5353")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the kernel tracks the datagram", func() error {
		if len(n.tracked("dst=192.168.0.1 sport=4000 dport=5353")) == 0 {
			return fmt.Errorf("%q", n.tracked("udp"))
		}
		return nil
	})
	for _, name := range []string{"one", "two"} {
		p := n.add(name, portMappings(port("udp", 5353, 53, "")))
		if stale := n.tracked("dst=192.168.0.1 sport=4000 dport=5353"); len(stale) > 0 {
			t.Errorf("the kernel still has %q", stale)
		}
		untouched()
		answer(t, p.ns, name, "udp [::]:53")
		says("192.168.0.1:5353", name)
		stop := sends(t, n.client, "192.168.0.9:4001", "192.168.0.1:5353")
		eventually(t, 20*time.Second, "another client's packets go there", func() error {
			if len(n.tracked("sport=4001 dport=5353", "src="+p.addr4)) == 0 {
				return fmt.Errorf("%q", n.tracked("sport=4001"))
			}
			return nil
		})
		p.del()
		stop()
		if stale := n.tracked("sport=4001 dport=5353", "src="+p.addr4); len(stale) > 0 {
			t.Errorf("after %s went a client that kept sending is led to it: %q", name, stale)
		}
		if stale := n.tracked("dst=192.168.0.1 sport=4000 dport=5353"); len(stale) > 0 {
			t.Errorf("after %s went the kernel still has %q", name, stale)
		}
		untouched()
	}
}

// sends sends datagrams all the time, until it is told to stop.
func sends(t *testing.T, ns, from, to string) (stop func()) {
	t.Helper()
	c, err := socket(file(ns), from)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for dst := netip.MustParseAddrPort(to); !errors.Is(err, net.ErrClosed); time.Sleep(500 * time.Microsecond) {
			_, err = c.WriteToUDPAddrPort([]byte("?"), dst)
		}
	}()
	stop = sync.OnceFunc(func() {
		_ = c.Close()
		<-done
	})
	t.Cleanup(stop)
	return stop
}
