package policy

import (
	"fmt"
	"net/netip"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/selector"
)

// Small alphabets, so that random objects meet.
var (
	someAddrs = []netip.Addr{
		addr("10.0.0.1"), addr("10.0.0.2"), addr("10.0.0.3"), addr("10.0.0.4"), addr("10.0.1.1"), addr("10.0.1.2"), addr("192.0.2.9"), addr("255.255.255.255"), addr("0.0.0.0"),
		addr("fd00::1"), addr("fd00::2"), addr("fd00:1::1"), addr("2001:db8::1"), addr("172.16.0.1"), addr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
	}
	someNets = nets("10.0.0.0/24", "10.0.0.0/30", "10.0.0.2/32", "10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::/64", "fd00::1/128", "192.0.2.0/24", "128.0.0.0/1", "10.0.1.0/24", "255.255.255.255/32", "ffff::/16")
	someSels = []string{
		`all()`, `app == "a"`, `app != "a"`, `app in {"a", "b"}`, `!has(app)`, `has(tier)`, `global()`,
		`projectcalico.org/namespace == "n1"`, `pcns.team == "x"`, `pcns.team == "x" && app == "b"`, `pcsa.role == "r"`,
		`projectcalico.org/orchestrator == "k8s"`, `pcns.kubernetes.io/metadata.name == "n2"`, `projectcalico.org/serviceaccount == "s1"`,
	}
	somePorts = []uint16{0, 1, 53, 80, 81, 82, 443, 8080, 65534, 65535}
	protocols = []int{-1, 6, 17, 132, 1, 58, 47, 0, 255, 136}
)

func one[T any](t *rapid.T, name string, of []T) T { return rapid.SampledFrom(of).Draw(t, name) }

func chance(t *rapid.T, name string, percent int) bool {
	return rapid.IntRange(0, 99).Draw(t, name) < percent
}

func some[T any](t *rapid.T, name string, of []T, most int) []T {
	return rapid.SliceOfN(rapid.SampledFrom(of), 0, most).Draw(t, name)
}

func drawSelector(t *rapid.T) selector.Selector { return *sel(one(t, "selector", someSels)) }

func drawPorts(t *rapid.T) []Port {
	if !chance(t, "ports?", 35) {
		return nil
	}
	out := []Port{}
	for range rapid.IntRange(0, 3).Draw(t, "ports") {
		switch rapid.IntRange(0, 3).Draw(t, "port") {
		case 0:
			out = append(out, Port{Name: one(t, "name", []string{"http", "dns"})})
		case 1:
			a, b := one(t, "first", somePorts), one(t, "last", somePorts)
			out = append(out, Port{First: min(a, b), Last: max(a, b)})
		default:
			out = append(out, ports(one(t, "port", somePorts))...)
		}
	}
	return out
}

func drawSide(t *rapid.T) (s Side) {
	if chance(t, "nets?", 20) {
		s.Nets = append([]netip.Prefix{}, some(t, "nets", someNets, 3)...)
	}
	if chance(t, "notNets?", 15) {
		s.NotNets = some(t, "notNets", someNets, 2)
	}
	if chance(t, "selector?", 40) {
		n := drawSelector(t)
		s.Selector = &n
	}
	if chance(t, "notSelector?", 10) {
		n := drawSelector(t)
		s.NotSelector = &n
	}
	s.OwnNode = chance(t, "ownNode?", 5)
	if chance(t, "service?", 5) {
		s.Service = &ServiceRef{"n1", one(t, "service", []string{"v1", "v2"})}
	}
	s.Ports = drawPorts(t)
	if chance(t, "notPorts?", 20) {
		s.NotPorts = drawPorts(t)
	}
	return s
}

func drawRules(t *rapid.T) []Rule {
	var out []Rule
	for i := range rapid.IntRange(0, 4).Draw(t, "rules") {
		r := Rule{Action: one(t, "action", []Action{Allow, Allow, Deny, Pass, Log}), Index: i, Protocol: one(t, "protocol", protocols), NotProtocol: -1}
		if chance(t, "notProtocol?", 10) {
			r.NotProtocol = one(t, "notProtocol", protocols)
		}
		if chance(t, "family?", 15) {
			r.Family = one(t, "family", []model.Family{4, 6})
		}
		if r.Protocol == 1 || r.Protocol == 58 || chance(t, "icmp?", 5) {
			i := &ICMP{Type: one(t, "type", []uint8{0, 8, 255}), Code: one(t, "code", []int{-1, 0, 255})}
			if chance(t, "notICMP?", 30) {
				r.NotICMP = i
			} else {
				r.ICMP = i
			}
		}
		r.Source, r.Dest = drawSide(t), drawSide(t)
		out = append(out, r)
	}
	return out
}

func drawLabels(t *rapid.T) map[string]string {
	m := map[string]string{}
	for _, k := range some(t, "labels", []string{"app", "tier", "projectcalico.org/namespace", "team", "role"}, 3) {
		m[k] = one(t, "value", []string{"a", "b", "x", "r", "n1"})
	}
	return m
}

func drawNamed(t *rapid.T) []NamedPort {
	var out []NamedPort
	for range rapid.IntRange(0, 3).Draw(t, "named") {
		out = append(out, NamedPort{Name: one(t, "name", []string{"http", "dns"}), Protocol: one(t, "protocol", []uint8{6, 17, 47}), Port: one(t, "port", somePorts)})
	}
	return out
}

// drawObject draws an object with a key under which others of its sort come.
func drawObject(t *rapid.T) (string, Object) {
	space := one(t, "namespace", []string{"n1", "n2", ""})
	name := one(t, "name", []string{"p", "q", "r", "s", "t", "u"})
	switch rapid.IntRange(0, 15).Draw(t, "sort") {
	case 0, 1, 2:
		return "e/" + name, &Endpoint{
			Key: "e/" + name, Node: one(t, "node", []string{"a", "a", "b"}), Namespace: space, Name: one(t, "pod", []string{"p", "q", ""}), Labels: drawLabels(t),
			ServiceAccount: one(t, "account", []string{"", "s1"}), Ports: drawNamed(t), Addresses: some(t, "addresses", someAddrs, 3),
		}
	case 3:
		return "pod/" + space + name, &Pod{space, one(t, "pod", []string{"p", "q"}), drawLabels(t), one(t, "account", []string{"", "s1"}), drawNamed(t)}
	case 4:
		return "ns/" + name, &Namespace{one(t, "namespace", []string{"n1", "n2"}), drawLabels(t)}
	case 5:
		return "sa/" + name, &ServiceAccount{space, "s1", drawLabels(t)}
	case 6:
		return "set/" + name, &NetworkSet{Ref{"NetworkSet", space, name}, drawLabels(t), some(t, "nets", someNets, 4)}
	case 7:
		return "slice/" + name, &EndpointSlice{ServiceRef{"n1", one(t, "service", []string{"v1", "v2"})}, []ServiceEndpoint{{one(t, "addr", someAddrs), one(t, "protocol", []uint8{6, 17}), one(t, "port", somePorts)}}}
	case 8:
		return "host/" + name, &HostEndpoint{
			Ref: Ref{"HostEndpoint", "", name}, Node: one(t, "node", []string{"a", "b"}), Interface: one(t, "interface", []string{"eth0", "*", ""}),
			Expected: some(t, "expected", someAddrs, 2), Labels: drawLabels(t), Ports: drawNamed(t),
		}
	case 9:
		return "tier/" + name, &Tier{one(t, "tier", []string{"t1", DefaultTier}), one(t, "order", []float64{1, 5e6, NoOrder}), one(t, "default", []Action{Deny, Pass})}
	}
	p := &Policy{
		Ref: Ref{one(t, "kind", []string{"NetworkPolicy", "GlobalNetworkPolicy"}), space, name}, Tier: one(t, "tier", []string{"t1", DefaultTier, DefaultTier, AdminTier}),
		Order: one(t, "order", []float64{-1, 0, 1000, NoOrder}), Subject: drawSelector(t), AppliesIngress: chance(t, "ingress?", 70), AppliesEgress: chance(t, "egress?", 50),
		Ingress: drawRules(t), Egress: drawRules(t), HostMode: one(t, "mode", []HostMode{HostNormal, HostNormal, HostForward, HostPreDNAT, HostUntracked}),
	}
	if chance(t, "staged?", 20) {
		p.Staged, p.Ref.Kind, p.Deletion = true, "Staged"+p.Ref.Kind, chance(t, "deletion?", 30)
	}
	return fmt.Sprint("policy/", p.Ref, p.Staged), p
}
