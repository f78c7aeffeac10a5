package flow

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/kernel"
)

// TestForgetMeansDatagramsToThisNodeAlone: of all that is tracked with the same destination port, what goes to an address
// of the node by UDP is asked about, with where it really goes, and what is said to be stale is forgotten.
func TestForgetMeansDatagramsToThisNodeAlone(t *testing.T) {
	s := newSpace(t)
	s.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	s.run("ip", "link", "set", "far0", "up")
	s.run("ip", "link", "set", "eth0", "up")
	s.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	s.run("ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	s.run("ip", "route", "add", "local", "198.51.100.0/24", "dev", "lo") // as much the node's as an address on a link
	s.sysctl("net/ipv4/conf/eth0/route_localnet", "1")
	s.nft(`table inet t {
		chain output {
			type nat hook output priority -100;
			ip daddr 127.0.0.1 udp dport 53 dnat ip to 192.0.2.9:5353
		}
		chain track {
			ct state established accept
		}
	}`)
	send := func(network, to string) {
		s.do(func() error {
			c, err := net.Dial(network, to)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			_, err = c.Write([]byte("?"))
			return err
		})
	}
	own := map[string]string{
		"192.0.2.1:53": "192.0.2.1:53", "127.0.0.1:53": "192.0.2.9:5353", "198.51.100.7:53": "198.51.100.7:53", "[2001:db8::1]:53": "[2001:db8::1]:53",
	}
	for to := range own {
		send("udp", to)
	}
	for _, to := range []string{"192.0.2.7:53", "[2001:db8::7]:53"} {
		send("udp", to)
	}
	d := s.driver()
	asked := map[string]string{}
	n, err := d.ForgetUDP(t.Context(), func(tr kernel.Tracked) bool {
		asked[tr.Dst.String()] = tr.To.String()
		return false
	})
	if n != 0 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	for dst, to := range own {
		if asked[dst] != to {
			t.Errorf("%s goes to %q, want %s", dst, asked[dst], to)
		}
	}
	n, err = d.ForgetUDP(t.Context(), func(tr kernel.Tracked) bool {
		return tr.Dst.Port() == 53 && tr.Dst.Addr() != netip.MustParseAddr("192.0.2.1")
	})
	if n != 3 || err != nil {
		t.Errorf("forgot %d, %v; want three", n, err)
	}
	var left []string
	s.do(func() error {
		_, err := d.ForgetUDP(t.Context(), func(tr kernel.Tracked) bool { left = append(left, tr.Dst.String()); return false })
		return err
	})
	slices.Sort(left)
	if got := strings.Join(left, " "); got != "192.0.2.1:53 192.0.2.7:53 [2001:db8::7]:53" {
		t.Errorf("left are %s", got)
	}
}
