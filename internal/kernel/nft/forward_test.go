package nft

import (
	"regexp"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/plan"
)

var odd = plan.Filter{Pods: prefixes("10.244.0.0/16", "172.20.0.0/14", "192.0.2.7/32", "fd00:10:244::/56", "fd00:1::/33")}

// Docker's own order: the policy, its chains, its rules.
func dockerLike(s space) {
	s.run("iptables", "-P", "FORWARD", "DROP")
	s.run("iptables", "-N", "DOCKER-USER")
	s.run("iptables", "-A", "DOCKER-USER", "-j", "RETURN")
	s.run("iptables", "-A", "FORWARD", "-j", "DOCKER-USER")
	s.run("iptables", "-A", "FORWARD", "-o", "docker0", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")
	s.run("ip6tables", "-P", "FORWARD", "DROP")
}

const (
	ours4 = `-A FORWARD -s 10.244.0.0/16 -m comment --comment heddle -j ACCEPT
-A FORWARD -d 10.244.0.0/16 -m comment --comment heddle -j ACCEPT
-A FORWARD -s 172.20.0.0/14 -m comment --comment heddle -j ACCEPT
-A FORWARD -d 172.20.0.0/14 -m comment --comment heddle -j ACCEPT
-A FORWARD -s 192.0.2.7/32 -m comment --comment heddle -j ACCEPT
-A FORWARD -d 192.0.2.7/32 -m comment --comment heddle -j ACCEPT
`
	ours6 = `-A FORWARD -s fd00:10:244::/56 -m comment --comment heddle -j ACCEPT
-A FORWARD -d fd00:10:244::/56 -m comment --comment heddle -j ACCEPT
-A FORWARD -s fd00:1::/33 -m comment --comment heddle -j ACCEPT
-A FORWARD -d fd00:1::/33 -m comment --comment heddle -j ACCEPT
`
	docker4 = `-P FORWARD DROP
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
`
)

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n%s\nwant\n%s", what, got, want)
	}
}

func TestDockersPolicyGetsAcceptsThatIptablesUnderstands(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	dockerLike(s)
	apply(t, d, odd)
	expect(t, "iptables", s.run("iptables", "-S", "FORWARD"), docker4+ours4)
	expect(t, "ip6tables", s.run("ip6tables", "-S", "FORWARD"), "-P FORWARD DROP\n"+ours6)
	if n := apply(t, d, odd); n != 0 {
		t.Errorf("second pass changed %d objects", n)
	}

	// iptables' own users find and remove the rules like any other.
	s.run("iptables", "-C", "FORWARD", "-s", "192.0.2.7/32", "-j", "ACCEPT", "-m", "comment", "--comment", "heddle")
	s.run("iptables", "-F", "FORWARD")
	apply(t, d, odd)
	expect(t, "after a flush", s.run("iptables", "-S", "FORWARD"), "-P FORWARD DROP\n"+ours4)

	// Pools that go take their rules with them; the policy's end takes all.
	apply(t, d, plan.Filter{Pods: prefixes("192.0.2.7/32")})
	expect(t, "one pool left", s.run("iptables", "-S", "FORWARD"), "-P FORWARD DROP\n"+strings.Join(strings.SplitAfter(ours4, "\n")[4:], ""))
	s.run("iptables", "-P", "FORWARD", "ACCEPT")
	apply(t, d, odd)
	expect(t, "policy accept", s.run("iptables", "-S", "FORWARD"), "-P FORWARD ACCEPT\n")
}

func TestSaveAndRestoreDoesNotDoubleRules(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	dockerLike(s)
	apply(t, d, odd)
	for range 2 {
		s.feed(s.run("iptables-save"), "iptables-restore")
		if n := apply(t, d, odd); n != 0 {
			t.Errorf("pass after restore changed %d objects", n)
		}
		expect(t, "after restore", s.run("iptables", "-S", "FORWARD"), docker4+ours4)
	}
	if err := d.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, "after sweep", s.run("iptables", "-S", "FORWARD"), docker4)
}

func TestAcceptsStandBeforeTheRuleThatDropsTheRest(t *testing.T) {
	f := plan.Filter{Pods: prefixes("10.244.0.0/16")}
	own := "-A FORWARD -s 10.244.0.0/16 -m comment --comment heddle -j ACCEPT\n-A FORWARD -d 10.244.0.0/16 -m comment --comment heddle -j ACCEPT\n"
	for _, c := range []struct{ name, before, after string }{
		{"a rejecting rule", "-A FORWARD -d 169.254.169.254/32 -j DROP\n", "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n"},
		{"a dropping chain", "-A FORWARD -p tcp -j DROP\n", "-A FORWARD -j END\n"},
	} {
		s := newSpace(t)
		d := s.driver()
		s.run("iptables", "-N", "END")
		s.run("iptables", "-A", "END", "-j", "LOG")
		s.run("iptables", "-A", "END", "-j", "DROP")
		for line := range strings.Lines(c.before + c.after) {
			s.run(append([]string{"iptables"}, strings.Fields(line)...)...)
		}
		apply(t, d, f)
		expect(t, c.name, s.run("iptables", "-S", "FORWARD"), "-P FORWARD ACCEPT\n"+c.before+own+c.after)
		// A wall that somebody puts in front makes them move.
		s.run("iptables", "-I", "FORWARD", "-j", "DROP")
		apply(t, d, f)
		expect(t, c.name+", new wall", s.run("iptables", "-S", "FORWARD"), "-P FORWARD ACCEPT\n"+own+"-A FORWARD -j DROP\n"+c.before+c.after)
		if n := apply(t, d, f); n != 0 {
			t.Errorf("%s: second pass changed %d objects", c.name, n)
		}
	}
}

func TestForeignAcceptsCountAndStay(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	f := plan.Filter{Pods: prefixes("10.244.0.0/16")}
	s.run("iptables", "-P", "FORWARD", "DROP")
	s.run("iptables", "-A", "FORWARD", "-s", "10.244.0.0/16", "-m", "comment", "--comment", "flanneld forward", "-j", "ACCEPT")
	s.run("iptables", "-A", "FORWARD", "-d", "10.244.0.0/16", "-p", "tcp", "-j", "ACCEPT") // has a condition: does not count
	before := s.run("iptables", "-S", "FORWARD")
	apply(t, d, f)
	expect(t, "iptables", s.run("iptables", "-S", "FORWARD"), before+"-A FORWARD -d 10.244.0.0/16 -m comment --comment heddle -j ACCEPT\n")
	if err := d.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, "after sweep", s.run("iptables", "-S", "FORWARD"), before)
}

func TestForeignForwardDropIsReportedWithItsCure(t *testing.T) {
	f := plan.Filter{Pods: prefixes("10.244.0.0/16", "fd00:10:244::/56")}
	for _, ruleset := range []string{
		"table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy drop; ct state established,related accept; }; }",
		"table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; ct state established,related accept; reject with icmpx admin-prohibited; }; }",
	} {
		s := newSpace(t)
		d := s.driver()
		s.feed(ruleset, "nft", "-f", "-")
		p := withProblem(t, d, f, codeForward)
		if p.Subject != "chain filter_FORWARD in table inet firewalld" {
			t.Errorf("subject is %q", p.Subject)
		}
		for command := range strings.SplitSeq(p.Next, "; ") {
			s.run(strings.Fields(command)...)
		}
		if n := apply(t, d, f); n != 0 { // no problem any more
			t.Errorf("pass changed %d objects", n)
		}
	}
}

func TestLegacyIptablesIsReported(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	s.run("iptables-legacy", "-P", "FORWARD", "DROP")
	if p := withProblem(t, d, plan.Filter{Pods: prefixes("10.244.0.0/16")}, codeLegacy); !strings.Contains(p.Next, "iptables-legacy -S FORWARD") {
		t.Errorf("next is %q", p.Next)
	}
}

func TestWatchHearsAForeignPolicy(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	f := plan.Filter{Pods: prefixes("10.244.0.0/16")}
	_, writes := loop(t, d, f)
	eventually(t, "the table is there", func() bool { return writes.Load() > 0 })
	own := regexp.MustCompile(`(?m)^-A FORWARD .*heddle`)
	s.run("iptables", "-P", "FORWARD", "DROP")
	eventually(t, "accepts after the policy", func() bool { return len(own.FindAllString(s.run("iptables", "-S", "FORWARD"), -1)) == 2 })
	s.run("iptables", "-D", "FORWARD", "1")
	eventually(t, "accepts after one was deleted", func() bool { return len(own.FindAllString(s.run("iptables", "-S", "FORWARD"), -1)) == 2 })
}
