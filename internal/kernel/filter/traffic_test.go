package filter

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/internal/policy"
)

var (
	allow = policy.Decision{Verdict: policy.VerdictAllow}
	deny  = policy.Decision{Verdict: policy.VerdictDeny}
)

func in(a string) policy.Local  { return policy.Local{Hook: policy.WorkloadIngress, Addr: addr(a)} }
func out(a string) policy.Local { return policy.Local{Hook: policy.WorkloadEgress, Addr: addr(a)} }

func port(n uint16) policy.PortRange     { return policy.PortRange{First: n, Last: n} }
func ports(a, b uint16) policy.PortRange { return policy.PortRange{First: a, Last: b} }
func icmp(kind uint8) policy.PortRange   { return port(uint16(kind) << 8) }
func prefix(s string) policy.AddrRange {
	p := netip.MustParsePrefix(s)
	return policy.AddrRange{First: p.Addr(), Last: lastOf(p)}
}

// small is a table in which b takes from a some ports and from others some, and a may not send to outside
// but to port 443.
func small() *policy.Table {
	return &policy.Table{
		Identities: map[netip.Addr]policy.ID{addr(a4): 1, addr(a6): 1},
		Nets:       map[policy.AddrRange]policy.ID{prefix("172.16.0.0/16"): 2, prefix("fd00:172::/32"): 2},
		Locals:     map[policy.Local]policy.Row{in(b4): 1, in(b6): 1, out(a4): 2, out(a6): 2},
		Rows: map[policy.RowKey]policy.Row{
			{Local: in(b4), ID: 1}: 3, {Local: in(b6), ID: 1}: 3, {Local: out(a4), ID: 2}: 4, {Local: out(a6), ID: 2}: 4,
		},
		L4: map[policy.L4Key]policy.Decision{
			{Row: 3, Protocol: 6, Src: policy.AllPorts, Dst: port(80)}:                   allow,
			{Row: 3, Protocol: 6, Src: policy.AllPorts, Dst: ports(8000, 8999)}:          allow,
			{Row: 3, Protocol: 6, Src: port(7777), Dst: policy.AllPorts}:                 allow,
			{Row: 3, Protocol: 17, Src: policy.AllPorts, Dst: policy.AllPorts}:           allow,
			{Row: 3, Protocol: 17, Src: policy.AllPorts, Dst: port(53)}:                  deny,
			{Row: 3, Protocol: 17, Src: policy.AllPorts, Dst: ports(5000, 5999)}:         deny,
			{Row: 3, Protocol: 1, Src: policy.AllPorts, Dst: icmp(8)}:                    allow,
			{Row: 3, Protocol: 58, Src: policy.AllPorts, Dst: ports(128<<8, 128<<8|255)}: allow,
			{Row: 4, Protocol: 6, Src: policy.AllPorts, Dst: port(443)}:                  allow,
		},
		Base:    map[policy.Row]policy.Decision{1: deny, 2: allow, 3: deny, 4: deny},
		Sources: sources(),
	}
}

func TestVerdictsAreThoseOfTheTable(t *testing.T) {
	for _, bridged := range []bool{false, true} {
		t.Run(map[bool]string{false: "routed", true: "bridged"}[bridged], func(t *testing.T) {
			w := newWorld(t, bridged)
			d := w.node.driver(true, "cni0")
			for _, c := range []struct {
				from, to     space
				addr4, addr6 string
				want         map[string]bool
			}{
				{w.a, w.b, b4, b6, map[string]bool{
					"tcp 80": true, "tcp 81": false, "tcp 8000": true, "tcp 8500": true, "tcp 8999": true, "tcp 7999": false, "tcp 9000": false,
					"tcp 81 from 7777": true, "udp 80": true, "udp 53": false, "udp 5000": false, "udp 6000": true, "icmp": true,
				}},
				{w.outside, w.b, b4, b6, map[string]bool{"tcp 80": false, "udp 80": false, "icmp": false}},
				{w.node, w.b, b4, b6, map[string]bool{"tcp 81": true, "icmp": true}},
				{w.b, w.a, a4, a6, map[string]bool{"tcp 81": true, "icmp": true}},
				{w.outside, w.a, a4, a6, map[string]bool{"tcp 80": true, "icmp": true}},
				{w.a, w.outside, out4, out6, map[string]bool{"tcp 443": true, "tcp 80": false, "icmp": false}},
				{w.b, w.outside, out4, out6, map[string]bool{"tcp 80": true, "icmp": true}},
				{w.a, w.node, "172.16.0.1", "fd00:172::1", map[string]bool{"tcp 443": true, "tcp 80": false, "icmp": false}},
				{w.a, w.node, node4, node6, map[string]bool{"tcp 80": true, "icmp": true}},
			} {
				for what, want := range c.want {
					for _, to := range []string{c.addr4, c.addr6} {
						if apply(t, d, &policy.Table{Sources: sources()}); !probed(t, true, c.from, c.to, to, what) {
							t.Fatalf("%s to %s, %s: not reached without policy", c.from.name, to, what)
						}
						w.forget()
						apply(t, d, small())
						if got := probed(t, want, c.from, c.to, to, what); got != want {
							t.Errorf("%s to %s, %s: reached %v, want %v", c.from.name, to, what, got, want)
						}
						w.forget()
					}
				}
			}
		})
	}
}

// forget makes the node's conntrack empty, so that no probe profits from one before.
func (w world) forget() {
	w.node.t.Helper()
	conntrackFlush(w.node)
}

var _ = fmt.Sprint
