package datapath

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/internal/kernel/filter"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/test/bench/space"
)

// sizes are the numbers of table entries that are compared.
var sizes = []int{10, 1_000, 100_000}

var policies = suite{
	name: "policy", floor: fmt.Sprintf("policy-%d", sizes[0]), recipes: policyRecipes(), tests: []string{"rr", "rr-1cpu", "connect", "udp64"},
	title: "Policies, kernel %s, %d rounds in turns. Figures are ratios to the fewest table entries in the same\n" +
		"round: median (least..most). connect and udp64: more is better; rr: less is better.\n",
}

// Policy measures what policies cost per packet, by the size of the table.
func Policy(ctx context.Context, args []string, out io.Writer) error {
	return policies.run(ctx, args, out)
}

func policyRecipes() []recipe {
	with := func(more func(*space.Space, int) error) func(context.Context, *network) error {
		return planned(setting{path: model.PathDirect, attachment: model.AttachBridge, filter: true, more: more})
	}
	out := []recipe{{"none", "Heddle, path direct, no policy", with(nil), ""}}
	for _, n := range sizes {
		out = append(out, recipe{
			fmt.Sprintf("policy-%d", n), fmt.Sprintf("pods policed both ways by %d table entries", n),
			with(func(s *space.Space, i int) error { return police(s, tableOf(i, n)) }), "",
		})
	}
	for _, n := range sizes {
		out = append(out, recipe{
			fmt.Sprintf("iptables-%d", n), fmt.Sprintf("an iptables chain of %d rules before the accept", n),
			with(func(s *space.Space, _ int) error { return chainOf(s, n) }), "iptables-restore",
		})
	}
	return out
}

// tableOf has n entries: nine tenths are addresses with an identity, the rest decisions. The other node's pod
// may talk to node i's on every port of the tests.
func tableOf(i, n int) *policy.Table {
	const identities = 50
	own, peer := podAddr(i), podAddr(1-i)
	t := sourcesOf(i)
	t.Identities[peer] = 1
	allow, deny := policy.Decision{Verdict: policy.VerdictAllow}, policy.Decision{Verdict: policy.VerdictDeny}
	rows := max(1, n/1000)
	for r := range rows {
		t.Base[policy.Row(r+1)] = deny
	}
	closed := policy.Row(rows + 1)
	t.Base[closed] = deny
	for _, h := range []policy.Hook{policy.WorkloadIngress, policy.WorkloadEgress} {
		local := policy.Local{Hook: h, Addr: own}
		t.Locals[local] = closed
		t.Rows[policy.RowKey{Local: local, ID: 1}] = 1
	}
	for _, proto := range []uint8{6, 17} {
		t.L4[policy.L4Key{Row: 1, Protocol: proto, Src: policy.AllPorts, Dst: policy.PortRange{First: port, Last: port}}] = allow
	}
	for k := 0; len(t.Identities) < n*9/10; k++ {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 0x0b000000+uint32(k))
		t.Identities[netip.AddrFrom4(b)] = policy.ID(2 + k%identities)
	}
	for k := 0; len(t.L4) < n/10; k++ {
		at := uint16(1 + k/rows)
		if at != port {
			t.L4[policy.L4Key{Row: policy.Row(1 + k%rows), Protocol: 6, Src: policy.AllPorts, Dst: policy.PortRange{First: at, Last: at}}] = allow
		}
	}
	return t
}

// sourcesOf is the table of a node without policies: what its pod may send.
func sourcesOf(i int) *policy.Table {
	t := policy.NewTable()
	for _, w := range input(i, setting{}).Workloads {
		t.Sources[policy.Source{Link: w.HostLink, MAC: podMAC(i), Addr: podAddr(i)}] = struct{}{}
	}
	return t
}

// police puts a table into a node's kernel.
func police(s *space.Space, t *policy.Table) error {
	d, err := filter.New(filter.Options{NS: int(s.File().Fd()), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	if _, problems := d.Apply(context.Background(), t); len(problems) > 0 {
		return fmt.Errorf("policies: %s", problems[0])
	}
	return nil
}

// chainOf is what an agent on iptables keeps: a rule for each address that is not meant, before the one that
// accepts. Established connections are accepted first, as in Heddle's own chains.
func chainOf(s *space.Space, n int) error {
	var b strings.Builder
	b.WriteString("*filter\n:POLICY - [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n-A FORWARD -j POLICY\n")
	for k := range n {
		fmt.Fprintf(&b, "-A POLICY -s 11.%d.%d.%d/32 -j DROP\n", k>>16&0xff, k>>8&0xff, k&0xff)
	}
	b.WriteString("-A POLICY -j ACCEPT\nCOMMIT\n")
	return s.Run(b.String(), "iptables-restore")
}
