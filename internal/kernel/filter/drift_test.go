package filter

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/policy"
)

var bothFamilies = []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge}

// everything is all that the kernel holds of both tables.
func (s space) everything() string {
	s.t.Helper()
	var out []string
	for _, f := range bothFamilies {
		out = append(out, s.dumped(f)...)
	}
	return strings.Join(out, "\n")
}

// refused runs a command that must fail, and returns what it said.
func (s space) refused(args ...string) string {
	s.t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", s.name}, args...)...).CombinedOutput()
	if err == nil {
		s.t.Errorf("%s: done", strings.Join(args, " "))
	}
	return string(out)
}

func TestNobodyElseChangesTheTables(t *testing.T) {
	s := newSpace(t)
	d := s.driver(true)
	apply(t, d, rich())
	before := s.everything()
	s.run("nft", "flush", "ruleset")
	for _, c := range []string{
		"flush set inet heddle-policy in4", "delete table inet heddle-policy", "flush table bridge heddle-policy",
		"insert rule inet heddle-policy forward accept", "add element inet heddle-policy in4 { 10.9.9.9 }",
	} {
		if said := s.refused("nft", c); !strings.Contains(said, "not permitted") {
			t.Errorf("%s: %s", c, said)
		}
	}
	if s.everything() != before {
		t.Error("the tables changed")
	}
	second := s.driver(true)
	if _, problems := second.Apply(t.Context(), rich()); len(problems) != 1 || problems[0].Code != codePermission || !strings.Contains(problems[0].Detail, "another process") {
		t.Errorf("a second driver: %v", problems)
	}
	if err := second.Sweep(t.Context()); !errors.Is(err, unix.EPERM) {
		t.Errorf("a second driver's sweep: %v", err)
	}
	if n := apply(t, d, rich()); n != 0 {
		t.Errorf("the first changed %d objects", n)
	}
}

func TestTheNextDriverTakesOver(t *testing.T) {
	s := newSpace(t)
	first := s.driver(true)
	apply(t, first, rich())
	must(t, first.Close())
	handles := s.run("nft", "-a", "list", "ruleset")
	second := s.driver(true)
	if n := apply(t, second, rich()); n != 2 {
		t.Errorf("taking over changed %d objects, want the owner of two tables", n)
	}
	if after := s.run("nft", "-a", "list", "ruleset"); !strings.Contains(after, "flags owner") || without(after, "flags", "table ") != without(handles, "flags", "table ") {
		t.Errorf("before\n%s\nafter\n%s", handles, after)
	}
	s.refused("nft", "delete", "table", "inet", TableName)
	must(t, second.Close())

	third := s.driver(true) // sweeps what a dead one left
	must(t, third.Sweep(t.Context()))
	if left := s.run("nft", "list", "ruleset"); left != "" {
		t.Errorf("left\n%s", left)
	}
	must(t, third.Sweep(t.Context())) // a second time there is nothing
}

// without leaves out lines with a word.
func without(text string, words ...string) string {
	var b strings.Builder
next:
	for line := range strings.Lines(text) {
		for _, w := range words {
			if strings.Contains(line, w) {
				continue next
			}
		}
		b.WriteString(line)
	}
	return b.String()
}

func TestEveryDamageIsRepaired(t *testing.T) {
	s := newSpace(t)
	d := s.driver(false, "cni0")
	must(t, d.SetLogging(t.Context(), true)) // no set is empty
	apply(t, d, rich())
	want := s.everything()
	damages := []string{
		"flush ruleset",
		"delete table inet heddle-policy",
		"delete table bridge heddle-policy",
		"flush table inet heddle-policy",
		"flush chain inet heddle-policy forward",
		"insert rule inet heddle-policy judge accept",
		"insert rule bridge heddle-policy sent accept",
		"add rule inet heddle-policy forward accept",
		"add chain inet heddle-policy more",
		"add chain inet heddle-policy more { type filter hook forward priority 0; policy drop; }",
		"chain inet heddle-policy forward { policy drop; }",
		"add set inet heddle-policy more { type ipv4_addr; }",
		"add table inet heddle-policy { flags dormant; }",
		"delete element inet heddle-policy id4 { 10.0.0.1 }",
		"delete element inet heddle-policy net4 { 10.0.1.0 }",
		"delete element inet heddle-policy protos { udp . 0:4 }",
		"delete element inet heddle-policy id4 { 10.0.0.1 }; add element inet heddle-policy id4 { 10.0.0.1 : 0:5 }",
		"add element inet heddle-policy in4 { 10.0.0.1 }",
		"add element inet heddle-policy net4 { 11.0.0.0/8 : 0:5 }",
		"add element inet heddle-policy ranges { 0-65535 . 22 . tcp . 0:3 : ffff:fffd }",
		"delete element inet heddle-policy ranges { 0-65535 . 8000-8999 . tcp . 0:3 }",
	}
	for _, set := range inetTable.sets {
		damages = append(damages, "flush "+set.kind()+" inet heddle-policy "+set.name)
	}
	for _, set := range bridgeTable.sets {
		damages = append(damages, "flush "+set.kind()+" bridge heddle-policy "+set.name)
	}
	for _, damage := range damages {
		s.feed(strings.ReplaceAll(damage, "; add", ";\nadd"), "nft", "-f", "-")
		if n := apply(t, d, rich()); n == 0 {
			t.Errorf("%s: pass says that nothing differed", damage)
		}
		if got := s.everything(); got != want {
			t.Fatalf("%s: tables are not what they were", damage)
		}
		if n := apply(t, d, rich()); n != 0 {
			t.Errorf("%s: second pass changed %d objects", damage, n)
		}
	}
}

// loop runs Watch and Apply as an agent does, and counts the passes and what they changed.
func loop(t *testing.T, d *Driver, table *policy.Table) (passes, writes *atomic.Int64) {
	t.Helper()
	passes, writes = new(atomic.Int64), new(atomic.Int64)
	ctx, cancel := context.WithCancel(t.Context())
	kick, done := make(chan struct{}, 1), make(chan error, 2)
	go func() {
		done <- d.Watch(ctx, func() {
			select {
			case kick <- struct{}{}:
			default:
			}
		})
	}()
	go func() {
		for {
			select {
			case <-kick:
				n, _ := d.Apply(ctx, table)
				writes.Add(int64(n))
				passes.Add(1)
			case <-ctx.Done():
				done <- nil
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("watch: %v", err)
			}
		}
	})
	return passes, writes
}

func TestDriftIsRepairedWithinASecondAndWithoutALoop(t *testing.T) {
	s := newSpace(t)
	d := s.driver(false)
	passes, writes := loop(t, d, rich())
	eventually(t, "the tables are there", func() bool { return writes.Load() > 0 })
	want := s.everything()
	for _, damage := range []string{"flush ruleset", "flush map inet heddle-policy id4", "delete element inet heddle-policy id4 { 10.0.0.1 }", "flush chain bridge heddle-policy sent"} {
		seen, start := writes.Load(), time.Now()
		s.run("nft", damage)
		eventually(t, damage+": repaired", func() bool { return writes.Load() > seen })
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s: repaired after %v", damage, took)
		}
		eventually(t, damage+": tables are what they were", func() bool { return s.everything() == want })
	}
	quiet := func() bool {
		before := passes.Load()
		time.Sleep(200 * time.Millisecond)
		return passes.Load() == before
	}
	eventually(t, "no more passes", quiet)
	seen := passes.Load()
	s.feed("table inet other { chain c { accept; }; }", "nft", "-f", "-")
	must(t, d.Update(t.Context(), &policy.Delta{Identities: policy.Change[netip.Addr, policy.ID]{Put: map[netip.Addr]policy.ID{addr("10.7.7.7"): 3}}}))
	if !quiet() || passes.Load() != seen {
		t.Error("a change to another's table, or the driver's own, made a pass")
	}
}

func TestALargeTransactionIsFollowedByAPass(t *testing.T) {
	s := newSpace(t)
	d := s.driver(true)
	table := large(4 * loud)
	passes, _ := loop(t, d, large(0))
	eventually(t, "the first pass", func() bool { return passes.Load() > 0 })
	seen := passes.Load()
	must(t, d.Update(t.Context(), &policy.Delta{Identities: policy.Change[netip.Addr, policy.ID]{Put: table.Identities}}))
	eventually(t, "a pass", func() bool { return passes.Load() > seen })
}

// TestTablesOfAnotherVersionAreMadeAnew: of a rule only its mark is looked at, which follows from its text.
func TestTablesOfAnotherVersionAreMadeAnew(t *testing.T) {
	s := newSpace(t)
	d := s.driver(true)
	rule := &inetTable.chains[0].rules[0]
	now := *rule
	rule.mark = markOf(inetTable.family, inetTable.chains[0].name, "what this rule once was")
	apply(t, d, small())
	*rule = now
	if n := apply(t, d, small()); n < 100 {
		t.Errorf("changed %d objects, want the whole table", n)
	}
	if n := apply(t, d, small()); n != 0 {
		t.Errorf("then changed %d objects", n)
	}
	marks := map[string]bool{}
	for _, table := range skeleton {
		for _, c := range table.chains {
			for _, r := range c.rules {
				marks[r.mark] = true
			}
		}
	}
	if len(marks) < 100 {
		t.Errorf("%d different marks", len(marks))
	}
}
