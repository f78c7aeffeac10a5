package filter

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/policy"
)

// rich is a table that has something of everything.
func rich() *policy.Table {
	in := func(a string) policy.Local { return policy.Local{Hook: policy.WorkloadIngress, Addr: addr(a)} }
	out := func(a string) policy.Local { return policy.Local{Hook: policy.WorkloadEgress, Addr: addr(a)} }
	allow, deny := policy.Decision{Verdict: policy.VerdictAllow}, policy.Decision{Verdict: policy.VerdictDeny}
	t := &policy.Table{
		Identities: map[netip.Addr]policy.ID{addr("10.0.0.1"): 1, addr("10.0.0.2"): 70000, addr("fd00::1"): 1, addr("0.0.0.0"): 9},
		Nets: map[policy.AddrRange]policy.ID{
			{First: addr("0.0.0.0"), Last: addr("9.255.255.255")}:                    2,
			{First: addr("10.0.0.0"), Last: addr("10.0.0.255")}:                      3,
			{First: addr("10.0.1.0"), Last: addr("10.0.1.0")}:                        4,
			{First: addr("224.0.0.0"), Last: addr("255.255.255.255")}:                5,
			{First: addr("fd00::"), Last: addr("fd00::ffff")}:                        3,
			{First: addr("::"), Last: addr("::")}:                                    6,
			{First: addr("ff00::"), Last: lastOf(netip.MustParsePrefix("ff00::/8"))}: 5,
		},
		Locals: map[policy.Local]policy.Row{in("10.1.0.2"): 1, out("10.1.0.2"): 2, in("fd01::2"): 1, out("fd01::2"): 2},
		Rows: map[policy.RowKey]policy.Row{
			{Local: in("10.1.0.2"), ID: 1}: 3, {Local: in("10.1.0.2"), ID: 0}: 4, {Local: in("fd01::2"), ID: 1}: 3, {Local: out("10.1.0.2"), ID: 70000}: 100000, {Local: out("fd01::2"), ID: 3}: 4,
		},
		L4: map[policy.L4Key]policy.Decision{
			{Row: 3, Protocol: 6, Src: policy.AllPorts, Dst: policy.PortRange{First: 80, Last: 80}}:                       allow,
			{Row: 3, Protocol: 6, Src: policy.AllPorts, Dst: policy.PortRange{First: 8000, Last: 8999}}:                   {Verdict: policy.VerdictAllowLog},
			{Row: 3, Protocol: 17, Src: policy.PortRange{First: 53, Last: 53}, Dst: policy.AllPorts}:                      allow,
			{Row: 100000, Protocol: 1, Src: policy.AllPorts, Dst: policy.PortRange{First: 8 << 8, Last: 8 << 8}}:          allow,
			{Row: 100000, Protocol: 58, Src: policy.AllPorts, Dst: policy.PortRange{First: 128 << 8, Last: 128<<8 | 255}}: allow,
			{Row: 4, Protocol: 17, Src: policy.AllPorts, Dst: policy.AllPorts}:                                            allow,
		},
		Base: map[policy.Row]policy.Decision{1: deny, 2: allow, 3: deny, 4: {Verdict: policy.VerdictDenyLog}, 100000: deny, 7: {Verdict: policy.VerdictContinue}},
		Sources: map[policy.Source]struct{}{
			{Link: "hdl1", MAC: "02:00:00:00:00:01", Addr: addr("10.1.0.2")}: {},
			{Link: "hdl1", MAC: "02:00:00:00:00:01", Addr: addr("fd01::2")}:  {},
		},
	}
	for h := policy.HostInput; h < policy.Hooks; h++ {
		t.Locals[policy.Local{Hook: h, Link: "eth0"}] = 7
		t.Rows[policy.RowKey{Local: policy.Local{Hook: h, Link: "eth0"}, ID: 3}] = 1
		t.Locals[policy.Local{Hook: h, Link: "*"}] = 7
		t.Rows[policy.RowKey{Local: policy.Local{Hook: h, Link: "*"}, ID: 1}] = 1
	}
	return t
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// dumped is all that the kernel holds of a table, a line for each object: what differs between two tables
// that do the same (handles, figures of counters, marks, hints for printing) is left out.
func (s space) dumped(family nftables.TableFamily) []string {
	s.t.Helper()
	d := s.driver(false)
	if err := d.open(); err != nil {
		s.t.Fatal(err)
	}
	var out []string
	line := func(kind string, attrs []byte, skip ...uint16) {
		var b strings.Builder
		for k, v := range attributes(attrs) {
			if !slices.Contains(skip, k) {
				fmt.Fprintf(&b, " %d=%x", k, v)
			}
		}
		out = append(out, kind+b.String())
	}
	dump := func(kind uint16, attrs []byte, f func([]byte)) {
		if err := d.c.dump(kind, family, attrs, false, func() {}, func(_ byte, a []byte) error { f(a); return nil }); err != nil {
			s.t.Fatal(err)
		}
	}
	dump(unix.NFT_MSG_GETCHAIN, nil, func(a []byte) {
		line("chain", a, unix.NFTA_CHAIN_HANDLE, 12, unix.NFTA_CHAIN_COUNTERS, 11)
	})
	var names []string
	dump(unix.NFT_MSG_GETSET, skeleton[0].request(unix.NFTA_SET_TABLE), func(a []byte) {
		for k, v := range attributes(a) {
			if k == unix.NFTA_SET_NAME {
				names = append(names, str(v))
			}
		}
		const count = 0x14 // NFTA_SET_COUNT, later than the headers known here
		line("set", a, 16, unix.NFTA_SET_USERDATA, 0x13, count)
	})
	for _, name := range names {
		m := &message{}
		m.text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
		m.text(unix.NFTA_SET_ELEM_LIST_SET, name)
		dump(unix.NFT_MSG_GETSETELEM, m.b, func(a []byte) {
			for k, list := range attributes(a) {
				if k == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
					for _, e := range attributes(list) {
						line("element "+name, e, unix.NFTA_SET_ELEM_USERDATA)
					}
				}
			}
		})
	}
	sort.Strings(out)
	dump(unix.NFT_MSG_GETRULE, skeleton[0].request(unix.NFTA_RULE_TABLE), func(a []byte) {
		chain, text := "", ""
		for k, v := range attributes(a) {
			switch k {
			case unix.NFTA_RULE_CHAIN:
				chain = str(v)
			case unix.NFTA_RULE_EXPRESSIONS:
				for _, e := range attributes(v) {
					text += expression(e)
				}
			}
		}
		out = append(out, "rule "+chain+text)
	})
	return out
}

// expression is one of a rule; counters count.
func expression(attrs []byte) string {
	name, data := "", ""
	for k, v := range attributes(attrs) {
		if k == unix.NFTA_EXPR_NAME {
			name = str(v)
			continue
		}
		for k, v := range attributes(v) {
			data += fmt.Sprintf(" %d=%x", k, v)
		}
	}
	if name == "counter" {
		data = ""
	}
	return " [" + name + data + "]"
}

// checkSame compares line by line.
func checkSame(t *testing.T, what string, got, want []string) {
	t.Helper()
	bad := 0
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("%s:\n  driver %s\n  nft    %s", what, g, w)
			if bad++; bad > 5 {
				t.Fatal("and so on")
			}
		}
	}
}

func TestTablesAreWhatTheTextMakes(t *testing.T) {
	for name, table := range map[string]*policy.Table{"empty": {}, "rich": rich()} {
		t.Run(name, func(t *testing.T) {
			byHand, byDriver := newSpace(t), newSpace(t)
			byHand.feed(Text(table, "cni0"), "nft", "-f", "-")
			apply(t, byDriver.driver(false, "cni0"), table)
			for _, f := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
				checkSame(t, fmt.Sprintf("family %d", f), byDriver.dumped(f), byHand.dumped(f))
			}
		})
	}
}

func TestSkeletonIsTheGoldenOne(t *testing.T) {
	const golden = "testdata/skeleton.nft"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(Skeleton()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got := Skeleton(); got != string(want) {
		t.Errorf("%s is not what the skeleton expands to: run with UPDATE_GOLDEN=1 and look at the difference", golden)
	}
}

func TestFilledTablesPrintAndReload(t *testing.T) {
	s := newSpace(t)
	apply(t, s.driver(false, "cni0"), rich())
	list := s.run("nft", "list", "ruleset")
	other := newSpace(t)
	other.feed(list, "nft", "-f", "-")
	for _, f := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
		checkSame(t, "reloaded", s.dumped(f), other.dumped(f))
	}
}
