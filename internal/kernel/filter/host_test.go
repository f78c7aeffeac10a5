package filter

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/policy"
)

// hostTable judges interface link at one hook: TCP port 80 and ICMP are allowed from and to outside, the
// rest is what otherwise says.
func hostTable(hook policy.Hook, link string, otherwise policy.Verdict) *policy.Table {
	l := policy.Local{Hook: hook, Link: link}
	return &policy.Table{
		Identities: map[netip.Addr]policy.ID{addr(out4): 1, addr(out6): 1},
		Nets:       map[policy.AddrRange]policy.ID{},
		Locals:     map[policy.Local]policy.Row{l: 1},
		Rows:       map[policy.RowKey]policy.Row{{Local: l, ID: 1}: 2},
		L4: map[policy.L4Key]policy.Decision{
			{Row: 2, Protocol: 6, Src: policy.AllPorts, Dst: port(80)}:           allow,
			{Row: 2, Protocol: 1, Src: policy.AllPorts, Dst: policy.AllPorts}:    allow,
			{Row: 2, Protocol: 58, Src: policy.AllPorts, Dst: policy.AllPorts}:   allow,
			{Row: 2, Protocol: 17, Src: policy.AllPorts, Dst: ports(7000, 7001)}: {Verdict: policy.VerdictAllowLog},
		},
		Base:    map[policy.Row]policy.Decision{1: {Verdict: otherwise}, 2: {Verdict: otherwise}},
		Sources: sources(),
	}
}

func TestHostEndpointsAreJudgedAtTheirHooks(t *testing.T) {
	const nodeOut4, nodeOut6 = "172.16.0.1", "fd00:172::1"
	for _, bridged := range []bool{false, true} {
		w := newWorld(t, bridged)
		d := w.node.driver(true, "cni0")
		type flow struct {
			from, to     space
			addr4, addr6 string
			want         map[string]bool
		}
		fromOutside := func(want map[string]bool) flow { return flow{w.outside, w.node, nodeOut4, nodeOut6, want} }
		toOutside := func(want map[string]bool) flow { return flow{w.node, w.outside, out4, out6, want} }
		open := map[string]bool{"tcp 81": true, "udp 60": true, "icmp": true}
		filtered := map[string]bool{"tcp 80": true, "tcp 81": false, "udp 60": false, "udp 7000": true, "icmp": true}
		with := func(more ...string) map[string]bool {
			m := map[string]bool{}
			for k, v := range filtered {
				m[k] = v
			}
			for _, k := range more {
				m[k] = true
			}
			return m
		}
		for _, c := range []struct {
			hook  policy.Hook
			link  string
			flows []flow
		}{
			{policy.HostInput, "wan", []flow{
				fromOutside(with("tcp 22", "tcp 6443")), toOutside(open),
				{w.a, w.node, node4, node6, open},
				{w.outside, w.a, a4, a6, open},
				{w.node, w.node, "127.0.0.1", "::1", open},
			}},
			{policy.HostInput, "*", []flow{
				fromOutside(with("tcp 22")), toOutside(open),
				{w.a, w.node, node4, node6, open},
				{w.outside, w.a, a4, a6, open},
				{w.node, w.node, "127.0.0.1", "::1", open},
			}},
			{policy.HostOutput, "wan", []flow{
				toOutside(with("udp 53", "tcp 6443")), fromOutside(open), {w.node, w.a, a4, a6, open}, {w.a, w.outside, out4, out6, open},
			}},
			{policy.HostOutput, "*", []flow{
				toOutside(with("udp 53")), fromOutside(open), {w.node, w.a, a4, a6, open}, {w.node, w.node, "127.0.0.1", "::1", open},
			}},
			{policy.HostForwardIn, "wan", []flow{
				{w.outside, w.a, a4, a6, filtered}, fromOutside(open), {w.a, w.outside, out4, out6, open}, {w.a, w.b, b4, b6, open},
			}},
			{policy.HostForwardIn, "*", []flow{{w.outside, w.a, a4, a6, filtered}, {w.a, w.outside, out4, out6, open}, {w.a, w.b, b4, b6, open}}},
			{policy.HostForwardOut, "wan", []flow{{w.a, w.outside, out4, out6, filtered}, toOutside(open), {w.outside, w.a, a4, a6, open}}},
			{policy.HostForwardOut, "*", []flow{{w.a, w.outside, out4, out6, filtered}, toOutside(open), {w.a, w.b, b4, b6, open}}},
			{policy.HostPreDNATIn, "wan", []flow{fromOutside(with("tcp 22")), {w.outside, w.a, a4, a6, filtered}, {w.a, w.outside, out4, out6, open}}},
			{policy.HostPreDNATIn, "*", []flow{fromOutside(filtered), {w.outside, w.a, a4, a6, filtered}, {w.a, w.node, node4, node6, open}, {w.a, w.b, b4, b6, open}}},
		} {
			apply(t, d, hostTable(c.hook, c.link, policy.VerdictDeny))
			for _, f := range c.flows {
				for what, want := range f.want {
					for _, to := range []string{f.addr4, f.addr6} {
						if got := probed(t, want, f.from, f.to, to, what); got != want {
							t.Errorf("bridged %v, hook %d on %s, %s to %s: reached %v, want %v", bridged, c.hook, c.link, what, to, got, want)
						}
						w.forget()
					}
				}
			}
		}
	}
}

func TestPreDNATPolicySeesWhatTheClientAskedFor(t *testing.T) {
	w := newWorld(t, false)
	w.node.feed(`table ip nat { chain prerouting { type nat hook prerouting priority dstnat; iifname "wan" tcp dport 80 dnat to `+b4+`:8080; iifname "wan" tcp dport 81 dnat to `+b4+`:8080; }; }`, "nft", "-f", "-")
	d := w.node.driver(true)
	for _, verdict := range []policy.Verdict{policy.VerdictDeny, policy.VerdictContinue} {
		apply(t, d, hostTable(policy.HostPreDNATIn, "wan", verdict))
		for _, asked := range []string{"80", "81"} {
			l, err := listen(w.b, b4+":8080")
			must(t, err)
			w.forget()
			want := asked == "80" || verdict == policy.VerdictContinue
			if got := dialled(t, w.outside, "172.16.0.1:"+asked); got != want {
				t.Errorf("verdict %d: port %s reached %v, want %v", verdict, asked, got, want)
			}
			_ = l.Close()
		}
	}
}

func TestUntrackedPolicyKeepsFlowsOutOfConntrack(t *testing.T) {
	w := newWorld(t, false)
	d := w.node.driver(true)
	in, out := policy.Local{Hook: policy.HostUntrackedIn, Link: "wan"}, policy.Local{Hook: policy.HostUntrackedOut, Link: "wan"}
	table := hostTable(policy.HostUntrackedIn, "wan", policy.VerdictDeny)
	table.Locals[out] = 3 // answers: from port 7000
	table.L4[policy.L4Key{Row: 3, Protocol: 17, Src: port(7000), Dst: policy.AllPorts}] = allow
	table.Base[3] = policy.Decision{Verdict: policy.VerdictContinue}
	// A normal policy that would deny what untracked policy allows.
	table.Locals[policy.Local{Hook: policy.HostInput, Link: "wan"}], table.Base[4] = 4, deny
	apply(t, d, table)
	w.node.feed("table inet late { chain c { type filter hook postrouting priority 200; udp sport 7000 meta priority != none counter; }; }", "nft", "-f", "-")
	for what, want := range map[string]bool{"udp 7000": true, "udp 60": false, "tcp 81": false, "tcp 22": true} {
		for _, to := range []string{"172.16.0.1", "fd00:172::1"} {
			w.forget()
			if got := probed(t, want, w.outside, w.node, to, what); got != want {
				t.Errorf("%s to %s: reached %v, want %v", what, to, got, want)
			}
			if tracked := strings.Contains(w.node.tracked(), "7000"); tracked {
				t.Errorf("%s to %s is tracked", what, to)
			}
		}
	}
	if list := w.node.run("nft", "list", "table", "inet", "late"); !strings.Contains(list, "packets 0 ") {
		t.Errorf("an answer left with a number of the chains:\n%s", list)
	}
	if n := strings.Count(w.node.run("nft", "list", "table", "inet", TableName), "chain untracked_in {"); n != 1 {
		t.Errorf("%d chains for untracked policy", n)
	}
	// Without such policy nobody pays for it.
	must(t, d.Update(t.Context(), &policy.Delta{
		Locals: policy.Change[policy.Local, policy.Row]{Del: map[policy.Local]struct{}{in: {}, out: {}}},
		Rows:   policy.Change[policy.RowKey, policy.Row]{Del: map[policy.RowKey]struct{}{{Local: in, ID: 1}: {}}},
	}))
	if list := w.node.run("nft", "list", "table", "inet", TableName); strings.Contains(list, "chain untracked_in {") || strings.Contains(list, "chain untracked_out {") {
		t.Error("the chains for untracked policy are still there")
	}
	if !probed(t, true, w.outside, w.node, "172.16.0.1", "tcp 22") || reached(t, w.outside, w.node, "172.16.0.1", "udp 7000") {
		t.Error("then normal policy does not decide")
	}
	must(t, d.Update(t.Context(), &policy.Delta{
		Locals: policy.Change[policy.Local, policy.Row]{Put: map[policy.Local]policy.Row{in: 1, out: 3}},
		Rows:   policy.Change[policy.RowKey, policy.Row]{Put: map[policy.RowKey]policy.Row{{Local: in, ID: 1}: 2}},
	}))
	if n := apply(t, d, table); n != 0 {
		t.Errorf("after differences to and fro a pass changed %d objects", n)
	}
}

// TestWhatHostPolicyAllowsBeforeRoutingIsNotJudgedAgainOnTheWayIn: as in Calico; but it is where it is
// forwarded, and somebody else's notrack allows nothing.
func TestWhatHostPolicyAllowsBeforeRoutingIsNotJudgedAgainOnTheWayIn(t *testing.T) {
	w := newWorld(t, false)
	d := w.node.driver(true)
	table := hostTable(policy.HostPreDNATIn, "wan", policy.VerdictContinue)
	for _, h := range []policy.Hook{policy.HostInput, policy.HostForwardIn} {
		table.Locals[policy.Local{Hook: h, Link: "wan"}] = 3
	}
	table.Base[3] = deny
	apply(t, d, table)
	w.node.feed(`table inet other {
		chain raw { type filter hook prerouting priority raw; udp dport 61 notrack; }
		chain late { type filter hook postrouting priority 200; udp dport 7000 meta priority != none counter; }
	}`, "nft", "-f", "-")
	for what, want := range map[string]bool{"tcp 80": true, "udp 7000": true, "udp 60": false, "udp 61": false, "tcp 22": true} {
		for _, to := range []string{"172.16.0.1", "fd00:172::1"} {
			w.forget()
			if got := probed(t, want, w.outside, w.node, to, what); got != want {
				t.Errorf("%s to the node at %s: reached %v, want %v", what, to, got, want)
			}
		}
	}
	for _, to := range []string{a4, a6} {
		w.forget()
		if reached(t, w.outside, w.a, to, "tcp 80") {
			t.Errorf("tcp 80 is forwarded to %s, which policy for what is forwarded denies", to)
		}
	}
	// Where nothing judges what is forwarded, it leaves with a priority of its own.
	apply(t, d, hostTable(policy.HostPreDNATIn, "wan", policy.VerdictContinue))
	for _, to := range []string{a4, a6} {
		w.forget()
		if !probed(t, true, w.outside, w.a, to, "udp 7000") {
			t.Errorf("udp 7000 is not forwarded to %s", to)
		}
	}
	if list := w.node.run("nft", "list", "chain", "inet", "other", "late"); !strings.Contains(list, "packets 0 ") {
		t.Errorf("a packet left with a number of the chains:\n%s", list)
	}
}
