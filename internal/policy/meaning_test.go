package policy

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
)

// say is a decision in a few words: "allow NetworkPolicy dev/p rule 0", "deny default of tier default".
func say(d Decision) string {
	verdict := map[Verdict]string{
		VerdictAllow: "allow", VerdictDeny: "deny", VerdictAllowLog: "allow+log", VerdictDenyLog: "deny+log", VerdictContinue: "continue",
	}[d.Verdict]
	text := verdict + sayReason(d.Reason)
	if d.Staged != nil {
		action := "allow"
		if d.Staged.Action == Deny {
			action = "deny"
		}
		text += "; staged: " + action + sayReason(d.Staged)
	}
	return text
}

func sayReason(r *Reason) string {
	switch {
	case r == nil:
		return " unpoliced"
	case r.Builtin != "":
		return " " + r.Builtin
	case r.Policy != nil:
		return fmt.Sprintf(" %v rule %d", r.Policy, r.Rule)
	case r.Tier != "":
		return fmt.Sprintf(" default of %s %v", r.Tier, r.Selecting)
	}
	return ""
}

// pol is an ingress policy of tier default for a workload.
func pol(name, subject string, rules ...Rule) *Policy {
	for i := range rules {
		rules[i].Index = i
	}
	return &Policy{Ref: Ref{"NetworkPolicy", "dev", name}, Tier: DefaultTier, Order: 1000, Subject: *sel(subject), AppliesIngress: true, Ingress: rules}
}

func with[T any](v T, change func(*T)) T {
	change(&v)
	return v
}

func from(selector string) Rule {
	return with(rule(Allow), func(r *Rule) { r.Source.Selector = sel(selector) })
}

func egress(p *Policy) *Policy {
	p.AppliesIngress, p.AppliesEgress, p.Ingress, p.Egress = false, true, nil, p.Ingress
	return p
}

type objects map[string]Object

func TestMeaning(t *testing.T) {
	const (
		web, db, far, alien, nobody = "10.0.0.1", "10.0.0.2", "10.0.1.1", "10.0.1.2", "203.0.113.1"
		denied                      = "deny default of default [NetworkPolicy dev/p]"
		allowed                     = "allow NetworkPolicy dev/p rule 0"
	)
	tcp := func(port uint16) [3]int { return [3]int{6, 40000, int(port)} }
	type probe struct {
		local  Local
		remote string
		l4     [3]int
		want   string
	}
	one := func(p *Policy) objects { return objects{"p": p} }
	for _, c := range []struct {
		name    string
		objects objects
		probes  []probe
	}{
		{"what no policy selects is not policed", nil, []probe{{in(web), far, tcp(80), "allow unpoliced"}, {out(web), far, tcp(80), "allow unpoliced"}}},
		{"a policy of one direction leaves the other alone", one(pol("p", `app == "web"`)), []probe{{in(web), far, tcp(80), denied}, {out(web), far, tcp(80), "allow unpoliced"}, {in(db), far, tcp(80), "allow unpoliced"}}},
		{"rules of a direction that the policy does not apply to do not count", one(with(*pol("p", `app == "web"`), func(p *Policy) { p.Egress = []Rule{rule(Deny)} }).of()), []probe{{out(web), far, tcp(80), "allow unpoliced"}}},
		{"the own node always reaches in", one(pol("p", `app == "web"`, rule(Deny))), []probe{{in(web), "172.16.0.1", tcp(80), "allow own node"}, {in("fd00::1"), "fd01::1", tcp(80), "allow own node"}, {in(web), "172.16.0.2", tcp(80), "deny NetworkPolicy dev/p rule 0"}}},
		{"to the own node is judged", one(egress(pol("p", `app == "web"`))), []probe{{out(web), "172.16.0.1", tcp(80), denied}}},
		{"unless a rule names the own node", one(egress(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Dest.OwnNode = true })))), []probe{{out(web), "172.16.0.1", tcp(80), allowed}, {out(web), far, tcp(80), denied}}},
		{"a workload reaches itself", objects{"p": pol("p", `app == "web"`, rule(Deny)), "q": egress(pol("q", `app == "web"`, rule(Deny)))}, []probe{{in(web), web, tcp(80), "allow itself"}, {out(web), web, tcp(80), "allow itself"}}},
		{"labels, namespace labels and accounts select", objects{"p": pol("p", `app == "web"`, from(`app == "client" && pcns.team == "blue"`), from(`pcsa.role == "admin" && projectcalico.org/serviceaccount == "dba"`))}, []probe{{in(web), far, tcp(1), allowed}, {in(web), alien, tcp(1), denied}, {in(web), db, tcp(1), "allow NetworkPolicy dev/p rule 1"}, {in("fd00::1"), "fd00:1::1", tcp(1), allowed}}},
		{"a namespace has its name as a label", one(pol("p", `app == "web"`, from(`pcns.kubernetes.io/metadata.name == "prod"`))), []probe{{in(web), alien, tcp(1), allowed}, {in(web), far, tcp(1), denied}}},
		{"own labels cannot be what is lent", objects{"p": pol("p", `app == "web"`, from(`projectcalico.org/namespace == "dev"`), from(`pcns.team == "blue"`)), "alien": &Endpoint{Node: "b", Namespace: "prod", Labels: map[string]string{"projectcalico.org/namespace": "dev", "pcns.team": "blue"}, Addresses: []netip.Addr{addr(alien)}}}, []probe{{in(web), alien, tcp(1), denied}}},
		{"a pod's labels add and win", objects{"p": pol("p", `app == "web"`, from(`app == "other" && extra == "1"`)), "pod": &Pod{Namespace: "prod", Name: "alien", Labels: map[string]string{"app": "other", "extra": "1"}}}, []probe{{in(web), alien, tcp(1), allowed}, {in(web), far, tcp(1), denied}}},
		{"a pod can make a policy select", objects{"p": pol("p", `app == "changed"`), "pod": &Pod{Namespace: "dev", Name: "web", Labels: map[string]string{"app": "changed"}}}, []probe{{in(web), far, tcp(1), denied}}},
		{"network sets are selected, but are no workloads", objects{"p": pol("p", `app == "web"`, from(`net == "office"`), from(`!has(projectcalico.org/namespace) && projectcalico.org/orchestrator == "k8s"`))}, []probe{{in(web), "192.0.2.77", tcp(1), allowed}, {in(web), "198.51.100.7", tcp(1), allowed}, {in(web), "198.51.100.8", tcp(1), denied}, {in(web), nobody, tcp(1), denied}}},
		{"host endpoints are selected by their own labels", objects{"p": pol("p", `app == "web"`, from(`host == "b"`)), "h": &HostEndpoint{Ref: Ref{Name: "h"}, Node: "b", Interface: "eth0", Expected: []netip.Addr{addr("172.16.0.2")}, Labels: map[string]string{"host": "b"}}}, []probe{{in(web), "172.16.0.2", tcp(1), allowed}}},
		{"nets without exceptions", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Source.Nets, r.Source.NotNets = nets("192.0.0.0/8"), nets("192.0.2.0/24") }))), []probe{{in(web), "192.0.1.255", tcp(1), allowed}, {in(web), "192.0.2.0", tcp(1), denied}, {in(web), "192.0.2.255", tcp(1), denied}, {in(web), "192.0.3.0", tcp(1), allowed}, {in(web), "193.0.0.0", tcp(1), denied}}},
		{"an empty list of nets matches nothing", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Source.Nets = nets() }))), []probe{{in(web), far, tcp(1), denied}}},
		{"not-nets alone match everything else", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Source.NotNets = nets("10.0.1.0/31") }))), []probe{{in(web), far, tcp(1), denied}, {in(web), alien, tcp(1), allowed}, {in(web), nobody, tcp(1), allowed}}},
		{"a not-selector spares what matches", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Source.NotSelector = sel(`app == "client"`) }))), []probe{{in(web), far, tcp(1), denied}, {in(web), nobody, tcp(1), allowed}}},
		{"conditions on the selected end", one(pol("p", `all()`, with(rule(Allow), func(r *Rule) { r.Dest.Selector, r.Dest.NotNets = sel(`app == "web"`), nets("fd00::/16") }))), []probe{{in(web), far, tcp(1), allowed}, {in(db), far, tcp(1), denied}, {in("fd00::1"), "fd00:1::1", tcp(1), denied}}},
		{"a family", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Family = model.IPv6 }))), []probe{{in(web), far, tcp(1), denied}, {in("fd00::1"), "fd00:1::1", tcp(1), allowed}}},
		{"ports at their ends", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Protocol, r.Dest.Ports = 6, []Port{{"", 0, 0}, {"", 65535, 65535}, {"", 100, 200}} }))), []probe{{in(web), far, tcp(0), allowed}, {in(web), far, tcp(65535), allowed}, {in(web), far, tcp(1), denied}, {in(web), far, tcp(65534), denied}, {in(web), far, tcp(99), denied}, {in(web), far, tcp(100), allowed}, {in(web), far, tcp(200), allowed}, {in(web), far, tcp(201), denied}, {in(web), far, [3]int{17, 1, 100}, denied}}},
		{"ports without a protocol are of TCP, UDP and SCTP", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Dest.Ports = ports(80) }), with(rule(Deny), func(r *Rule) { r.Protocol, r.Dest.Ports = 136, ports(81) }))), []probe{{in(web), far, tcp(80), allowed}, {in(web), far, [3]int{17, 1, 80}, allowed}, {in(web), far, [3]int{132, 1, 80}, allowed}, {in(web), far, [3]int{136, 1, 80}, denied}, {in(web), far, [3]int{47, 0, 0}, denied}, {in(web), far, [3]int{1, 0, 80}, denied}}},
		{"no ports match no list, not even a negative one", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Dest.NotPorts = ports(80) }))), []probe{{in(web), far, tcp(80), denied}, {in(web), far, tcp(81), allowed}, {in(web), far, [3]int{47, 0, 0}, denied}}},
		{"source ports and destination ports together", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) {
			r.Protocol, r.Source.Ports, r.Dest.Ports = 17, []Port{{"", 1000, 2000}}, ports(53)
		}))), []probe{{in(web), far, [3]int{17, 1000, 53}, allowed}, {in(web), far, [3]int{17, 2001, 53}, denied}, {in(web), far, [3]int{17, 999, 53}, denied}, {in(web), far, [3]int{17, 1500, 54}, denied}}},
		{"a named port is the local workload's on the way in", one(pol("p", `all()`, with(rule(Allow), func(r *Rule) { r.Protocol, r.Dest.Ports = 6, []Port{{Name: "http"}} }))), []probe{{in(web), far, tcp(8080), allowed}, {in(web), far, tcp(80), denied}, {in(db), far, tcp(8080), denied}, {in(web), far, [3]int{17, 1, 8080}, denied}}},
		{"and each remote one's on the way out", one(egress(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Protocol, r.Dest.Ports = 6, []Port{{Name: "http"}} })))), []probe{{out(web), far, tcp(80), allowed}, {out(web), alien, tcp(80), denied}, {out(web), alien, tcp(81), allowed}, {out(web), nobody, tcp(80), denied}}},
		{"a negative named port", one(egress(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Protocol, r.Dest.NotPorts = 6, []Port{{Name: "http"}} })))), []probe{{out(web), far, tcp(80), denied}, {out(web), alien, tcp(80), allowed}, {out(web), nobody, tcp(80), allowed}}},
		{"a service is its endpoints' addresses, protocols and ports", objects{"p": egress(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Dest.Service = &ServiceRef{"dev", "s"} }))), "s": &EndpointSlice{ServiceRef{"dev", "s"}, []ServiceEndpoint{{addr(far), 6, 80}, {addr(nobody), 17, 53}}}}, []probe{{out(web), far, tcp(80), allowed}, {out(web), far, tcp(81), denied}, {out(web), nobody, [3]int{17, 1, 53}, allowed}, {out(web), nobody, tcp(80), denied}, {out(web), alien, tcp(80), denied}}},
		{"a service as a source is its addresses", objects{"p": pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Source.Service = &ServiceRef{"dev", "s"} })), "s": &EndpointSlice{ServiceRef{"dev", "s"}, []ServiceEndpoint{{addr(far), 6, 80}}}}, []probe{{in(web), far, tcp(9), allowed}, {in(web), alien, tcp(9), denied}}},
		{"types and codes of ICMP", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Protocol, r.ICMP = 1, &ICMP{8, 0} }), with(rule(Allow), func(r *Rule) { r.Protocol, r.ICMP = 1, &ICMP{255, -1} }), with(rule(Allow), func(r *Rule) { r.Protocol, r.NotICMP = 58, &ICMP{128, -1} }))), []probe{{in(web), far, [3]int{1, 0, 8 << 8}, allowed}, {in(web), far, [3]int{1, 0, 8<<8 | 1}, denied}, {in(web), far, [3]int{1, 0, 65535}, "allow NetworkPolicy dev/p rule 1"}, {in(web), far, tcp(8 << 8), denied}, {in("fd00::1"), "fd00:1::1", [3]int{58, 0, 128 << 8}, denied}, {in("fd00::1"), "fd00:1::1", [3]int{58, 0, 129 << 8}, "allow NetworkPolicy dev/p rule 2"}}},
		{"a protocol, and all but one", one(pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Protocol = 255 }), with(rule(Allow), func(r *Rule) { r.NotProtocol = 6 }))), []probe{{in(web), far, [3]int{255, 0, 0}, allowed}, {in(web), far, [3]int{0, 0, 0}, "allow NetworkPolicy dev/p rule 1"}, {in(web), far, tcp(1), denied}}},
		{"the first rule that matches decides", one(pol("p", `app == "web"`, with(rule(Deny), func(r *Rule) { r.Protocol, r.Dest.Ports = 6, ports(80) }), with(rule(Allow), func(r *Rule) { r.Protocol = 6 }))), []probe{{in(web), far, tcp(80), "deny NetworkPolicy dev/p rule 0"}, {in(web), far, tcp(81), "allow NetworkPolicy dev/p rule 1"}}},
		{"a log rule goes on, and is said", one(pol("p", `app == "web"`, with(rule(Log), func(r *Rule) { r.Dest.Ports = ports(80) }), with(rule(Allow), func(r *Rule) { r.Protocol = 6 }))), []probe{{in(web), far, tcp(80), "allow+log NetworkPolicy dev/p rule 1"}, {in(web), far, tcp(81), "allow NetworkPolicy dev/p rule 1"}, {in(web), far, [3]int{17, 1, 80}, "deny+log default of default [NetworkPolicy dev/p]"}}},
		{"policies by order, then namespace, name, kind", objects{"1": with(*pol("z", `app == "web"`, rule(Allow)), func(p *Policy) { p.Order = -1 }).of(), "2": pol("a", `app == "web"`, rule(Deny))}, []probe{{in(web), far, tcp(1), "allow NetworkPolicy dev/z rule 0"}}},
		{"equal orders by name", objects{"1": pol("b", `app == "web"`, rule(Allow)), "2": pol("a", `app == "web"`, rule(Deny))}, []probe{{in(web), far, tcp(1), "deny NetworkPolicy dev/a rule 0"}}},
		{"no order is last", objects{"1": with(*pol("a", `app == "web"`, rule(Deny)), func(p *Policy) { p.Order = NoOrder }).of(), "2": with(*pol("b", `app == "web"`, rule(Allow)), func(p *Policy) { p.Order = math.MaxFloat64 }).of()}, []probe{{in(web), far, tcp(1), "allow NetworkPolicy dev/b rule 0"}}},
		{"tiers by order; pass goes to the next", objects{"1": with(*pol("a", `app == "web"`, with(rule(Pass), func(r *Rule) { r.Protocol = 17 }), with(rule(Deny), func(r *Rule) { r.Protocol = 6 })), func(p *Policy) { p.Tier = AdminTier }).of(), "2": pol("p", `app == "web"`, rule(Allow))}, []probe{{in(web), far, tcp(1), "deny NetworkPolicy dev/a rule 1"}, {in(web), far, [3]int{17, 1, 1}, allowed}, {in(web), far, [3]int{132, 1, 1}, allowed}}},
		{"past the last tier all is allowed", one(with(*pol("p", `app == "web"`, rule(Pass)), func(p *Policy) { p.Tier = BaselineTier }).of()), []probe{{in(web), far, tcp(1), "allow"}}},
		{"a tier's default denies, or passes", objects{"t": &Tier{"t", 1, Deny}, "u": &Tier{"u", 0, Pass}, "1": with(*pol("a", `app == "web"`), func(p *Policy) { p.Tier = "u" }).of(), "2": with(*pol("b", `app == "web"`), func(p *Policy) { p.Tier = "t" }).of()}, []probe{{in(web), far, tcp(1), "deny default of t [NetworkPolicy dev/b]"}}},
		{"a written tier takes the place of the built-in one", objects{"t": &Tier{DefaultTier, 5, Pass}, "p": pol("p", `app == "web"`)}, []probe{{in(web), far, tcp(1), "allow"}}},
		{"a policy in no tier decides nothing", one(with(*pol("p", `app == "web"`, rule(Deny)), func(p *Policy) { p.Tier = "nowhere" }).of()), []probe{{in(web), far, tcp(1), "allow unpoliced"}}},
		{"a staged policy decides nothing, and tells", one(with(*pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Protocol = 6 })), func(p *Policy) { p.Staged, p.Ref.Kind = true, "StagedNetworkPolicy" }).of()), []probe{{in(web), far, tcp(1), "allow"}, {in(web), far, [3]int{17, 1, 1}, "allow+log; staged: deny default of default [StagedNetworkPolicy dev/p]"}}},
		{"a staged policy stands for the one of its name", objects{"1": pol("p", `app == "web"`, rule(Allow)), "2": with(*pol("p", `app == "web"`, with(rule(Allow), func(r *Rule) { r.Protocol = 6 })), func(p *Policy) { p.Staged, p.Ref.Kind = true, "StagedNetworkPolicy" }).of()}, []probe{{in(web), far, tcp(1), allowed}, {in(web), far, [3]int{17, 1, 1}, "allow+log NetworkPolicy dev/p rule 0; staged: deny default of default [StagedNetworkPolicy dev/p]"}}},
		{"a staged deletion takes it away", objects{"1": pol("p", `app == "web"`, rule(Deny)), "2": with(*pol("p", `all()`), func(p *Policy) { p.Staged, p.Deletion, p.Ref.Kind = true, true, "StagedNetworkPolicy" }).of()}, []probe{{in(web), far, tcp(1), "deny NetworkPolicy dev/p rule 0; staged: allow"}}},
		{"policies before DNAT and tracking are not for workloads", objects{"1": with(*pol("p", `app == "web"`, rule(Deny)), func(p *Policy) { p.HostMode = HostPreDNAT }).of(), "2": with(*pol("q", `app == "web"`, rule(Deny)), func(p *Policy) { p.HostMode = HostUntracked }).of()}, []probe{{in(web), far, tcp(1), "allow unpoliced"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := world()
			maps.Copy(all, c.objects)
			tab := compiled(all).Table()
			for _, p := range c.probes {
				d := tab.Decide(p.local, addr(p.remote), uint8(p.l4[0]), uint16(p.l4[1]), uint16(p.l4[2]))
				if got := say(d); got != p.want {
					t.Errorf("%v, remote %s, protocol and ports %v: %s, want %s", p.local, p.remote, p.l4, got, p.want)
				}
			}
		})
	}
}

func (p Policy) of() *Policy { return &p }

func TestHostEndpoints(t *testing.T) {
	host := func(name, link string, expected ...netip.Addr) *HostEndpoint {
		return &HostEndpoint{Ref: Ref{"HostEndpoint", "", name}, Node: "a", Interface: link, Expected: expected, Labels: map[string]string{"host": name}, Ports: []NamedPort{{Name: "ssh", Protocol: 6, Port: 2222}}}
	}
	ssh := with(rule(Allow), func(r *Rule) { r.Protocol, r.Dest.Ports = 6, []Port{{Name: "ssh"}} })
	policy := func(name string, mode HostMode, rules ...Rule) *Policy {
		p := pol(name, `has(host)`, rules...)
		p.Ref, p.HostMode = Ref{"GlobalNetworkPolicy", "", name}, mode
		return p
	}
	const closed = "deny host endpoint without policy"
	for _, c := range []struct {
		name    string
		objects objects
		want    map[Local]string
	}{
		{"a named one without policy is closed, and forwards", objects{"h": host("h", "eth0")}, map[Local]string{
			{Hook: HostInput, Link: "eth0"}: closed, {Hook: HostOutput, Link: "eth0"}: closed, {Hook: HostForwardIn, Link: "eth0"}: "allow unpoliced", {Hook: HostPreDNATIn, Link: "eth0"}: "allow unpoliced", {Hook: HostInput, Link: "eth1"}: "allow unpoliced",
		}},
		{"one of all interfaces is open", objects{"h": host("h", "*")}, map[Local]string{{Hook: HostInput, Link: "*"}: "allow unpoliced"}},
		{"one without interface has those with its addresses", objects{"h": host("h", "", addr("172.16.0.1"))}, map[Local]string{{Hook: HostInput, Link: "eth1"}: closed, {Hook: HostInput, Link: "eth0"}: "allow unpoliced"}},
		{"a normal policy is for the host alone", objects{"h": host("h", "eth0"), "p": policy("p", HostNormal, ssh)}, map[Local]string{
			{Hook: HostInput, Link: "eth0"}: "allow GlobalNetworkPolicy p rule 0", {Hook: HostForwardIn, Link: "eth0"}: "allow unpoliced", {Hook: HostOutput, Link: "eth0"}: closed,
		}},
		{"one on forwarded packets for both", objects{"h": host("h", "*"), "p": policy("p", HostForward, rule(Pass))}, map[Local]string{
			{Hook: HostInput, Link: "*"}: "allow", {Hook: HostForwardIn, Link: "*"}: "allow", {Hook: HostForwardOut, Link: "*"}: "allow unpoliced",
		}},
		{"passed on to the end, a named one is closed", objects{"h": host("h", "eth0"), "p": policy("p", HostNormal, rule(Pass))}, map[Local]string{{Hook: HostInput, Link: "eth0"}: closed}},
		{"before DNAT what no rule decides goes on", objects{"h": host("h", "eth0"), "p": policy("p", HostPreDNAT, with(rule(Deny), func(r *Rule) { r.Protocol = 17 }))}, map[Local]string{
			{Hook: HostPreDNATIn, Link: "eth0"}: "continue", {Hook: HostInput, Link: "eth0"}: closed,
		}},
		{"before tracking", objects{"h": host("h", "*"), "p": policy("p", HostUntracked, rule(Deny))}, map[Local]string{
			{Hook: HostUntrackedIn, Link: "*"}: "deny GlobalNetworkPolicy p rule 0", {Hook: HostUntrackedOut, Link: "*"}: "allow unpoliced", {Hook: HostInput, Link: "*"}: "allow unpoliced",
		}},
		{"the first by name has the interface", objects{"2": host("b", "eth0"), "1": host("a", "eth0"), "p": with(*policy("p", HostNormal, rule(Deny)), func(p *Policy) { p.Subject = *sel(`host == "b"`) }).of()}, map[Local]string{{Hook: HostInput, Link: "eth0"}: closed}},
		{"of another node, none of ours", objects{"h": with(*host("h", "eth0"), func(h *HostEndpoint) { h.Node = "b" }).host()}, map[Local]string{{Hook: HostInput, Link: "eth0"}: "allow unpoliced"}},
		{"the host's own end, where all its addresses agree", objects{"h": host("h", "eth0"), "p": policy("p", HostNormal, with(rule(Allow), func(r *Rule) { r.Dest.Nets = nets("172.16.0.0/16", "fd01::/64") }))}, map[Local]string{{Hook: HostInput, Link: "eth0"}: "allow GlobalNetworkPolicy p rule 0"}},
		{"and closed where they do not", objects{"h": host("h", "eth0"), "p": policy("p", HostNormal, with(rule(Allow), func(r *Rule) { r.Dest.Nets = nets("172.16.0.0/16") }))}, map[Local]string{{Hook: HostInput, Link: "eth0"}: "deny default of default [GlobalNetworkPolicy p]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			comp := NewCompiler(Options{Node: "a"})
			comp.SetNode([]netip.Addr{addr("172.16.0.1"), addr("fd01::1")})
			comp.SetLinks(map[string][]netip.Addr{"eth1": {addr("172.16.0.1")}, "eth0": {addr("172.16.0.9")}})
			feed(comp, c.objects)
			comp.Compile()
			for l, want := range c.want {
				if got := say(comp.Table().Decide(l, addr("203.0.113.9"), 6, 40000, 2222)); got != want {
					t.Errorf("%v: %s, want %s", l, got, want)
				}
			}
			if unsure := strings.HasPrefix(c.name, "and closed"); unsure != (len(comp.Problems()) == 1) {
				t.Errorf("problems %v", comp.Problems())
			}
		})
	}
}

func (h HostEndpoint) host() *HostEndpoint { return &h }

func TestPolicyOfAMissingTierIsAProblemUntilTheTierComes(t *testing.T) {
	c := compiled(world(), objects{"p": with(*pol("p", `app == "web"`), func(p *Policy) { p.Tier = "later" }).of()})
	if p := c.Problems(); len(p) != 1 || p[0].Code != "policy-tier-missing" || p[0].Subject != "NetworkPolicy dev/p" {
		t.Fatalf("problems %v", p)
	}
	c.Put("t", &Tier{"later", 3, Deny})
	c.Compile()
	if p := c.Problems(); len(p) != 0 {
		t.Fatalf("problems %v", p)
	}
	if got := say(c.Table().Decide(in("10.0.0.1"), addr("10.0.1.1"), 6, 1, 1)); got != "deny default of later [NetworkPolicy dev/p]" {
		t.Fatal(got)
	}
}

// TestSinglePortsStaySingle: what people write port by port is exact keys in the kernel, and ranges stay ranges.
func TestSinglePortsStaySingle(t *testing.T) {
	r := with(rule(Allow), func(r *Rule) {
		r.Protocol, r.Dest.Ports = 6, append(ports(80, 81, 443), Port{"", 8000, 9000}, Port{"", 8500, 9500})
	})
	tab := compiled(world(), objects{"p": pol("p", `app == "web"`, r)}).Table()
	var got []PortRange
	for k := range tab.L4 {
		if k.Src != AllPorts || k.Protocol != 6 {
			t.Errorf("entry %v", k)
		}
		got = append(got, k.Dst)
	}
	slices.SortFunc(got, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	if want := []PortRange{{80, 80}, {81, 81}, {443, 443}, {8000, 9500}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestEqualEndsShareRows: workloads of one policy need one row, however many they are.
func TestEqualEndsShareRows(t *testing.T) {
	all := objects{"p": pol("p", `app == "many"`, from(`app == "client"`))}
	for i := range 200 {
		all[fmt.Sprint("e", i)] = &Endpoint{Node: "a", Namespace: "dev", Labels: map[string]string{"app": "many", "number": fmt.Sprint(i)}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 0, byte(i)})}}
	}
	c := compiled(world(), all)
	if tab := c.Table(); len(tab.Base) != 3 || len(tab.Locals) != 200 || len(c.programs) != 1 {
		t.Errorf("%d rows, %d locals, %d programs", len(tab.Base), len(tab.Locals), len(c.programs))
	}
}

// TestANewConditionThatTellsNobodyApartCostsNothing: identities keep their numbers when all who have them move on together.
func TestANewConditionThatTellsNobodyApartCostsNothing(t *testing.T) {
	c := compiled(world(), objects{"p": pol("p", `app == "web"`, from(`app == "client"`))})
	c.Put("q", pol("q", `app == "web"`, with(from(`app == "client" && has(app)`), func(r *Rule) { r.Protocol = 6 })))
	d := c.Compile()
	if d == nil || !d.Identities.Empty() || d.Base.Empty() {
		t.Fatalf("%+v", d)
	}
	c.Delete("q")
	if d := c.Compile(); d == nil || !d.Identities.Empty() {
		t.Fatalf("%+v", d)
	}
	if c.Compile() != nil {
		t.Fatal("a difference although nothing was told")
	}
}

// TestWhatChangesLater: things that come after the first Compile, and of which nothing else tells.
func TestWhatChangesLater(t *testing.T) {
	service := with(rule(Allow), func(r *Rule) { r.Source.Service = &ServiceRef{"dev", "s"} })
	mine := with(rule(Allow), func(r *Rule) { r.Dest.Selector = sel(`set == "mine"`) })
	slice := func(a string) *EndpointSlice {
		return &EndpointSlice{ServiceRef{"dev", "s"}, []ServiceEndpoint{{addr(a), 6, 80}}}
	}
	set := func(label string) *NetworkSet {
		return &NetworkSet{Ref: Ref{"NetworkSet", "dev", "set"}, Labels: map[string]string{"set": label}, Nets: nets("10.0.0.1/32", "fd00::/64")}
	}
	for _, c := range []struct {
		name   string
		rule   Rule
		before Object
		after  Object
		want   bool // whether 10.0.1.5 comes in afterwards; before it is the other way round
	}{
		{"an endpoint of a service comes", service, nil, slice("10.0.1.5"), true},
		{"it moves", service, slice("10.0.1.5"), slice("10.0.1.2"), false},
		{"it goes", service, slice("10.0.1.5"), nil, false},
		{"the selected end comes into a network set", mine, nil, set("mine"), true},
		{"the set is another", mine, set("mine"), set("yours"), false},
		{"a small net in a range of many", with(rule(Allow), func(r *Rule) { r.Source.Selector = sel(`net == "small"`) }), nil, &NetworkSet{Labels: map[string]string{"net": "small"}, Nets: nets("10.0.1.4/30")}, true},
		{"it goes", with(rule(Allow), func(r *Rule) { r.Source.Selector = sel(`net == "small"`) }), &NetworkSet{Labels: map[string]string{"net": "small"}, Nets: nets("10.0.1.4/30")}, nil, false},
		{"an account's labels", with(rule(Allow), func(r *Rule) { r.Source.Selector = sel(`pcsa.role == "x"`) }), nil, &ServiceAccount{"dev", "runner", map[string]string{"role": "x"}}, true},
		{"a namespace's labels go", with(rule(Allow), func(r *Rule) { r.Source.Selector = sel(`pcns.extra == "x"`) }), &Namespace{"dev", map[string]string{"extra": "x"}}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := world()
			delete(all, "ns/dev")
			all["far"] = &Endpoint{Key: "b:far", Node: "b", Namespace: "dev", Name: "far", Labels: map[string]string{"app": "client"}, ServiceAccount: "runner", Addresses: []netip.Addr{addr("10.0.1.5")}}
			other := with(from(`app == "client"`), func(r *Rule) { r.Action, r.Protocol = Deny, 17 }) // tells it apart already
			comp := compiled(all, objects{"p": pol("p", `app == "web"`, c.rule, other)})
			for i, o := range []Object{c.before, c.after} {
				if o == nil {
					comp.Delete("it")
				} else {
					comp.Put("it", o)
				}
				comp.Compile()
				want := c.want == (i == 1)
				if got := comp.Table().Decide(in("10.0.0.1"), addr("10.0.1.5"), 6, 1, 1).Verdict == VerdictAllow; got != want {
					t.Errorf("step %d: %t, want %t", i, got, want)
				}
			}
		})
	}
}

// TestAnAddressThatItsRangeCatchesUpWith: what is said of a single address stays right when another policy tells
// the range around it apart, or no longer does.
func TestAnAddressThatItsRangeCatchesUpWith(t *testing.T) {
	office := with(rule(Allow), func(r *Rule) { r.Source.Nets = nets("10.0.1.0/24") })
	both := with(office, func(r *Rule) { r.Source.NotSelector, r.Protocol = sel(`app == "client" && pcns.team == "red"`), 17 })
	c := compiled(world(), objects{"p": pol("p", `app == "web"`, office, with(rule(Deny), func(r *Rule) {
		r.Dest.Selector = both.Source.NotSelector // known before, and not asked of remote ends
	}))})
	probe := func(far, alien, empty string) {
		t.Helper()
		for remote, want := range map[string]string{"10.0.1.1": far, "10.0.1.2": alien, "10.0.1.99": empty} {
			if got := say(c.Table().Decide(in("10.0.0.1"), addr(remote), 17, 1, 1)); got != want {
				t.Errorf("%s: %s, want %s", remote, got, want)
			}
		}
	}
	const p, q = "allow NetworkPolicy dev/p rule 0", "allow NetworkPolicy dev/a rule 0"
	probe(p, p, p)
	c.Put("a", pol("a", `app == "web"`, both))
	c.Compile()
	probe(q, p, q)
	c.Delete("a")
	c.Compile()
	probe(p, p, p)
}

// TestManyPredicatesOfOneAddress: more rules than a byte counts, each with a net of its own around one address.
func TestManyPredicatesOfOneAddress(t *testing.T) {
	var rules []Rule
	for i := range 300 {
		rules = append(rules, with(rule(Allow), func(r *Rule) {
			r.Protocol, r.Dest.Ports = 6, ports(uint16(65535-i))
			r.Source.Nets = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(i % 256), 0, 0, 0}), 8), netip.MustParsePrefix("203.0.113.0/24")}
			r.Source.NotNets = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32)}
		}))
	}
	tab := compiled(world(), objects{"p": pol("p", `app == "web"`, rules...)}).Table()
	for i := range 300 {
		for _, remote := range []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)})} {
			want := fmt.Sprintf("allow NetworkPolicy dev/p rule %d", i)
			if remote.As4()[3] == byte(i) {
				want = "deny default of default [NetworkPolicy dev/p]"
			}
			if got := say(tab.Decide(in("10.0.0.1"), remote, 6, 1, uint16(65535-i))); got != want {
				t.Fatalf("%v port %d: %s, want %s", remote, 65535-i, got, want)
			}
		}
	}
}
