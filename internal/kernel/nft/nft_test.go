package nft

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dual is a node's filter with two neighbouring pools, one of them not masqueraded, and an own block of
// each family.
var dual = plan.Filter{
	Pods:       prefixes("10.244.0.0/16", "10.245.0.0/16", "fd00:10:244::/56"),
	Masquerade: prefixes("10.244.0.0/16", "fd00:10:244::/56"),
	Local:      prefixes("10.244.1.0/24", "10.244.2.0/24", "fd00:10:244:1::/64"),
	Protocols:  []uint8{4, 41},
	Nodes:      prefixes("192.168.0.4/32", "192.168.0.5/32", "2001:db8::4/128"),
	Bridges:    []string{"cni0"},
	HostPorts: []plan.HostPort{
		hostPort("tcp", "0.0.0.0", 8080, "10.244.1.2:80", "10.244.1.0/24", "127.0.0.0/8"),
		hostPort("udp", "0.0.0.0", 8080, "10.244.1.2:80", "10.244.1.0/24", "127.0.0.0/8"),
		hostPort("sctp", "192.168.0.4", 8080, "10.244.1.3:80", "10.244.1.3/32"),
		hostPort("tcp", "::", 8080, "[fd00:10:244:1::2]:80", "fd00:10:244:1::/64"),
		hostPort("udp", "2001:db8::4", 53, "[fd00:10:244:1::2]:5353", "fd00:10:244:1::2/128"),
	},
}

func hostPort(protocol, address string, port uint16, to string, hide ...string) plan.HostPort {
	return plan.HostPort{
		Protocol: protocol, Address: netip.MustParseAddr(address), Port: port, To: netip.MustParseAddrPort(to), Hide: prefixes(hide...),
	}
}

func TestTableIsWhatThePrintedPlanMakes(t *testing.T) {
	byHand, byDriver := newSpace(t), newSpace(t)
	byHand.feed(dual.NFT(), "nft", "-f", "-")
	apply(t, byDriver.driver(), dual)
	if got, want := byDriver.table(), byHand.table(); got != want {
		t.Errorf("driver made\n%s\nthe printed plan\n%s", got, want)
	}
	if n := apply(t, byHand.driver(), dual); n != 0 {
		t.Errorf("a table made by the printed plan was changed in %d places", n)
	}
	empty := newSpace(t)
	apply(t, empty.driver(), plan.Filter{})
	if got := empty.table(); got != plan.Skeleton {
		t.Errorf("without elements the table is\n%s\nthe skeleton\n%s", got, plan.Skeleton)
	}
}

func TestSecondPassChangesNothing(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	if n := apply(t, d, dual); n == 0 {
		t.Error("first pass says that nothing differed")
	}
	before := s.run("nft", "-a", "list", "ruleset") // handles grow with every write
	if n := apply(t, d, dual); n != 0 {
		t.Errorf("second pass changed %d objects", n)
	}
	if after := s.run("nft", "-a", "list", "ruleset"); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

func TestEveryDamageIsRepaired(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	apply(t, d, dual)
	want := s.table()
	for _, damage := range []string{
		"flush ruleset",
		"delete table inet heddle",
		"flush table inet heddle",
		"flush chain inet heddle postrouting; delete chain inet heddle postrouting",
		"insert rule inet heddle postrouting accept",
		"add rule inet heddle postrouting ip saddr { 10.0.0.1, 10.0.0.2 } accept",
		"add chain inet heddle more",
		"add chain inet heddle more { type filter hook forward priority 0; policy drop; }",
		"chain inet heddle postrouting { policy drop; }",
		"add set inet heddle more { type ipv4_addr; }",
		"add table inet heddle { flags dormant; }",
		"delete element inet heddle pods4 { 10.245.0.0/16 }",
		"flush set inet heddle masq6",
		"add element inet heddle local4 { 10.0.0.0/8 }",
		"delete element inet heddle hostports4 { tcp . 8080 }",
		"delete element inet heddle hostports4 { tcp . 8080 }; add element inet heddle hostports4 { tcp . 8080 : 10.244.1.9 . 80 }",
		"add element inet heddle hostports_at6 { 2001:db8::5 . tcp . 1 : fd00::1 . 1 }",
		"flush set inet heddle hide4",
		"add element inet heddle hide6 { fd00::/16 . fd00::1 . 1 . 1 }",
		"flush chain inet heddle localnet",
		"flush chain inet heddle prerouting",
		"flush chain inet heddle output",
		"insert rule inet heddle hide tcp dport 1 ct original proto-dst 8080 accept",
		"insert rule inet heddle hide tcp dport 1 ct reply proto-dst 8080 accept",
		"delete element inet heddle bridges { cni0 }",
	} {
		if strings.Contains(damage, "10.0.0.0/8") { // overlaps what is there: nft refuses unless that is gone
			damage = "flush set inet heddle local4; " + damage
		}
		s.feed(strings.ReplaceAll(damage, "; ", ";\n"), "nft", "-f", "-")
		if s.run("nft", "list", "ruleset") == want {
			t.Fatalf("%s: no damage", damage)
		}
		if n := apply(t, d, dual); n == 0 {
			t.Errorf("%s: pass says that nothing differed", damage)
		}
		if got := s.table(); got != want {
			t.Errorf("%s: table is\n%s\nwant\n%s", damage, got, want)
		}
	}
}

func TestElementsFollowThePlan(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	steps := [][]netip.Prefix{
		prefixes("10.0.0.0/8"),
		prefixes("10.0.0.0/8", "11.0.0.0/8", "255.255.255.0/24"),
		prefixes("10.0.0.0/7", "192.168.0.0/16"),
		prefixes("10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16"),
		prefixes("0.0.0.0/0"),
		prefixes("0.0.0.0/1", "128.0.0.0/1"),
		nil,
	}
	for _, pods := range steps {
		f := plan.Filter{Local: pods}
		apply(t, d, f)
		if n := apply(t, d, f); n != 0 {
			t.Errorf("%v: second pass changed %d objects", pods, n)
		}
		list := s.run("nft", "list", "set", "inet", "heddle", "local4")
		for _, p := range pods {
			inner := p.String() == "10.1.0.0/16"
			if !inner && !strings.Contains(list, strings.TrimSuffix(p.String(), "/32")) {
				t.Errorf("%v: not in\n%s", p, list)
			}
		}
		if got := strings.Contains(list, "elements"); got != (len(pods) > 0) {
			t.Errorf("%v: set is\n%s", pods, list)
		}
	}
}

func TestFlushByHandIsRepairedWithoutALoop(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	passes, writes := loop(t, d, dual)
	eventually(t, "the table is there", func() bool { return writes.Load() > 0 })
	want := s.table()
	for range 3 {
		seen := writes.Load()
		s.run("nft", "flush", "ruleset")
		eventually(t, "the flushed table is back", func() bool { return writes.Load() > seen })
		if got := s.table(); got != want {
			t.Errorf("table is\n%s\nwant\n%s", got, want)
		}
	}
	// The last write is an event too; its pass finds nothing to do, and then there is quiet.
	quiet := func() bool {
		before := passes.Load()
		time.Sleep(200 * time.Millisecond)
		return passes.Load() == before
	}
	eventually(t, "no more passes", quiet)
	seen := passes.Load()
	s.feed("table ip other { chain c { accept; }; }", "nft", "-f", "-")
	if !quiet() || passes.Load() != seen {
		t.Error("a change to a table that does not concern Heddle made a pass")
	}
}

func TestSweepTakesOnlyOurOwn(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	s.run("iptables", "-P", "FORWARD", "DROP")
	s.run("iptables", "-A", "FORWARD", "-i", "docker0", "-j", "ACCEPT")
	s.feed("table inet other { set heddle { type ipv4_addr; }; chain c { type filter hook forward priority 5; accept; }; }", "nft", "-f", "-")
	before := s.run("nft", "list", "ruleset")
	apply(t, d, dual)
	if s.run("nft", "list", "ruleset") == before {
		t.Fatal("nothing was written")
	}
	for range 2 { // a second time there is nothing left, which is no error
		if err := d.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := s.run("nft", "list", "ruleset"); after != before {
			t.Errorf("before\n%s\nafter\n%s", before, after)
		}
	}
}

func TestEndedContextChangesNothing(t *testing.T) {
	s := newSpace(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := s.driver()
	if n, problems := d.Apply(ctx, &plan.Plan{Filter: dual}); n != 0 || len(problems) != 1 {
		t.Errorf("changed %d, problems %v", n, problems)
	}
	if got := s.run("nft", "list", "ruleset"); got != "" {
		t.Errorf("ruleset is\n%s", got)
	}
}

func TestProblemsNameTheKernelsReasonAndACure(t *testing.T) {
	for _, c := range []struct {
		subject      string
		err          error
		code, detail string
		next         string
	}{
		{ownSubject, unix.EPERM, codePermission, "operation not permitted", "root"},
		{ownSubject, unix.EOPNOTSUPP, codeUnsupported, "operation not supported", "modprobe -a nft_chain_nat nft_masq nft_nat nft_ct nft_fib_inet"},
		{ownSubject, unix.ENOENT, codeUnsupported, "no such file or directory", "modprobe -a nft_chain_nat nft_masq nft_nat nft_ct nft_fib_inet"},
		{ownSubject, fmt.Errorf("%w: %w", errNone, unix.EINVAL), codeUnsupported, "invalid argument", "modprobe nf_tables"},
		{"chain FORWARD in table ip filter", unix.ENOENT, codeFailed, "no such file or directory", "nft list table inet heddle"},
	} {
		p := problemOf(c.subject, fmt.Errorf("conn.Receive: %w", c.err))
		if p.Code != c.code || !strings.Contains(p.Detail, c.detail) || !strings.Contains(p.Next, c.next) || p.Subject != c.subject {
			t.Errorf("%s, %v: %+v", c.subject, c.err, p)
		}
	}
}
