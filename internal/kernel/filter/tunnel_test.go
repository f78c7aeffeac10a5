package filter

import (
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/internal/policy"
)

// TestPolicyHoldsBetweenABridgeAndATunnel: packets that a bridge takes from a port and hands to the router,
// and from there to a VXLAN device, and back.
func TestPolicyHoldsBetweenABridgeAndATunnel(t *testing.T) {
	const remote4, remote6 = "10.244.2.2", "fd00:244:2::2"
	w := newWorld(t, true)
	for _, n := range []struct {
		s                             space
		dev, local, remote, four, six string
		to4, to6, via4, via6          string
	}{
		{w.node, "wan", "172.16.0.1", out4, "10.244.1.0/32", "fd00:244:1::/128", "10.244.2.0/24", "fd00:244:2::/64", "10.244.2.0", "fd00:244:2::"},
		{w.outside, "eth0", out4, "172.16.0.1", "10.244.2.0/32", "fd00:244:2::/128", "10.244.1.0/24", "fd00:244:1::/64", "10.244.1.0", "fd00:244:1::"},
	} {
		n.s.run("ip", "link", "add", "tunnel", "type", "vxlan", "id", "1", "dev", n.dev, "local", n.local, "remote", n.remote, "dstport", "8472")
		n.s.run("ip", "address", "add", n.four, "dev", "tunnel")
		n.s.run("ip", "address", "add", n.six, "dev", "tunnel", "nodad")
		n.s.run("ip", "link", "set", "tunnel", "up")
		n.s.run("ip", "route", "add", n.to4, "via", n.via4, "dev", "tunnel", "onlink")
		n.s.run("ip", "route", "add", n.to6, "via", n.via6, "dev", "tunnel", "onlink")
	}
	w.outside.run("ip", "address", "add", remote4+"/32", "dev", "lo")
	w.outside.run("ip", "address", "add", remote6+"/128", "dev", "lo", "nodad")

	table := closed()
	table.Identities = map[netip.Addr]policy.ID{addr(remote4): 1, addr(remote6): 1, addr("10.244.2.0"): 1, addr("fd00:244:2::"): 1}
	for _, l := range []policy.Local{in(b4), in(b6), out(a4), out(a6)} {
		table.Rows[policy.RowKey{Local: l, ID: 1}] = 3
	}
	table.L4[policy.L4Key{Row: 3, Protocol: 6, Src: policy.AllPorts, Dst: port(80)}], table.Base[3] = allow, deny
	d := w.node.driver(true, "cni0")
	for _, f := range []struct {
		from, to     space
		four, six    string
		open, closed string
	}{{w.outside, w.b, b4, b6, "tcp 80", "tcp 81"}, {w.a, w.outside, remote4, remote6, "tcp 80", "tcp 81"}} {
		for _, to := range []string{f.four, f.six} {
			if apply(t, d, &policy.Table{Sources: sources()}); !probed(t, true, f.from, f.to, to, f.closed) {
				t.Errorf("%s is not reached without policy", to)
			}
			w.forget()
			if apply(t, d, table); !probed(t, true, f.from, f.to, to, f.open) || reached(t, f.from, f.to, to, f.closed) {
				t.Errorf("%s: policy does not hold", to)
			}
		}
	}
	// An established connection goes on whatever the table says then.
	words := talk(t, w.a, w.outside, remote4, "80")
	goesOn(t, "its beginning", words)
	apply(t, d, closed())
	goesOn(t, "policy", words)
}
