package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

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
		out = append(out, NamedPort{one(t, "name", []string{"http", "dns"}), one(t, "protocol", []uint8{6, 17, 47}), one(t, "port", somePorts)})
	}
	return out
}

// drawObject draws an object with a key under which others of its sort come.
func drawObject(t *rapid.T) (string, Object) {
	space := one(t, "namespace", []string{"n1", "n2", ""})
	name := one(t, "name", []string{"p", "q", "r", "s"})
	switch rapid.IntRange(0, 13).Draw(t, "sort") {
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

// ends are all local ends that a world may have.
func ends() []Local {
	var out []Local
	for _, a := range someAddrs {
		out = append(out, Local{Hook: WorkloadIngress, Addr: a}, Local{Hook: WorkloadEgress, Addr: a})
	}
	for h := HostInput; h < Hooks; h++ {
		out = append(out, Local{Hook: h, Link: "eth0"}, Local{Hook: h, Link: "*"}, Local{Hook: h, Link: "eth1"})
	}
	return out
}

// remotes are the addresses with their neighbours, and some that nothing names.
func remotes() []netip.Addr {
	out := []netip.Addr{addr("9.9.9.9"), addr("2001:db9::9"), addr("127.255.255.255"), addr("128.0.0.0")}
	for _, a := range someAddrs {
		for _, n := range []netip.Addr{a, a.Next(), a.Prev()} {
			if n.IsValid() {
				out = append(out, n)
			}
		}
	}
	return out
}

// same compares what two tables decide everywhere.
func same(t *rapid.T, a, b *Table) {
	for _, l := range ends() {
		for _, r := range remotes() {
			if l.Addr.IsValid() && l.Addr.Is4() != r.Is4() {
				continue
			}
			for _, p := range []uint8{6, 17, 132, 1, 58, 47, 0, 136, 200} {
				for _, dst := range []uint16{0, 53, 80, 83, 255, 2048, 8080, 65535} {
					src := uint16(0)
					if hasPorts(int(p)) {
						src = one(t, "source", somePorts)
					} else if !isICMP(int(p)) {
						dst = 0
					}
					x, y := a.Decide(l, r, p, src, dst), b.Decide(l, r, p, src, dst)
					if !reflect.DeepEqual(x, y) {
						t.Fatalf("%v from/to %v protocol %d ports %d %d: %+v %+v, and anew %+v %+v", l, r, p, src, dst, x, x.Reason, y, y.Reason)
					}
				}
			}
		}
	}
}

// equalTables compares the maps, Decisions by what they say.
func equalTables(t *rapid.T, a, b *Table) {
	if !maps.Equal(a.Identities, b.Identities) || !maps.Equal(a.Nets, b.Nets) || !maps.Equal(a.Locals, b.Locals) || !maps.Equal(a.Rows, b.Rows) ||
		!maps.Equal(a.L4, b.L4) || !maps.Equal(a.Base, b.Base) || !maps.Equal(a.Sources, b.Sources) {
		t.Fatalf("the deltas make\n%+v\nand the table is\n%+v", a, b)
	}
}

// consistent checks what holds for every table: no number leads nowhere, nothing is there that nobody needs.
func consistent(t *rapid.T, tab *Table) {
	used := map[Row]bool{}
	ids := map[ID]bool{}
	for l, r := range tab.Locals {
		used[r] = true
		if _, ok := tab.Base[r]; !ok || r == 0 {
			t.Fatalf("%v has row %d, which is not there", l, r)
		}
	}
	for _, id := range tab.Identities {
		ids[id] = true
	}
	for _, id := range tab.Nets {
		if ids[id] = true; id == 0 {
			t.Fatalf("a net of identity 0: %v", tab.Nets)
		}
	}
	for k, r := range tab.Rows {
		used[r] = true
		if base, ok := tab.Locals[k.Local]; !ok || base == r {
			t.Fatalf("row %v %d beside base %d", k, r, base)
		}
		if !ids[k.ID] {
			t.Fatalf("row %v is for an identity that nobody has", k)
		}
	}
	for r := range tab.Base {
		if !used[r] {
			t.Fatalf("row %d is not used", r)
		}
	}
	var list []L4Key
	for k := range tab.L4 {
		if _, ok := tab.Base[k.Row]; !ok {
			t.Fatalf("entry %v has no row", k)
		}
		list = append(list, k)
	}
	for i, a := range list {
		for _, b := range list[:i] {
			if a.Row == b.Row && a.Protocol == b.Protocol && a.Src.First <= b.Src.Last && b.Src.First <= a.Src.Last && a.Dst.First <= b.Dst.Last && b.Dst.First <= a.Dst.Last &&
				(a.Src != AllPorts || a.Dst != AllPorts) && (b.Src != AllPorts || b.Dst != AllPorts) {
				t.Fatalf("%v and %v overlap", a, b)
			}
		}
	}
	nets := slices.SortedFunc(maps.Keys(tab.Nets), func(a, b AddrRange) int { return a.First.Compare(b.First) })
	for i, n := range nets {
		if n.First.Is4() != n.Last.Is4() || n.Last.Less(n.First) || i > 0 && !nets[i-1].Last.Less(n.First) {
			t.Fatalf("ranges overlap: %v", nets)
		}
	}
}

// tidy checks what holds inside a compiler after every Compile.
func tidy(t *rapid.T, c *Compiler) {
	numbers := map[ID]*identity{}
	for _, i := range c.idents.by {
		if other := numbers[i.num]; other != nil || i.num == 0 {
			t.Fatalf("identities %v and %v share number %d", i.content, other, i.num)
		}
		numbers[i.num] = i
	}
	groups := map[*identity]int{}
	for _, g := range c.idents.groups {
		if len(g.members) == 0 && g.ranges == 0 {
			t.Fatalf("nobody is in group %v", g.facts)
		}
		if g.identity != c.idents.none.identity && numbers[g.identity.num] != g.identity {
			t.Fatalf("group %v has an identity that is gone", g.facts)
		}
		if text := contentText(c.idents.content(g.facts)); text != g.identity.text {
			t.Fatalf("group %v has identity %q, want %q", g.facts, g.identity.text, text)
		}
		groups[g.identity]++
	}
	for _, i := range c.idents.by {
		if groups[i] != i.groups || i.groups == 0 {
			t.Fatalf("identity %d counts %d groups, and has %d", i.num, i.groups, groups[i])
		}
	}
	c.book.each(func(a *address) {
		around := ID(0)
		if g := c.nets.find(a.addr); g != nil {
			around = g.identity.num
		}
		id, there := c.Table().Identities[a.addr]
		if want := a.group.identity.num; there != (want != around) || there && id != want {
			t.Fatalf("%v is said to be %d (%t) in a range of %d, want %d", a.addr, id, there, around, want)
		}
	})
	used := map[Row]bool{}
	for _, r := range c.rows.by {
		if used[r.num] || r.refs == 0 {
			t.Fatalf("row %d is there twice, or for nobody", r.num)
		}
		used[r.num] = true
	}
}

// TestTableFollowsItsObjects: however a world came to be, the table decides as one made from it at once, the
// deltas add up to it, and nothing piles up.
func TestTableFollowsItsObjects(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCompiler(Options{Node: "a"})
		objects := map[string]Object{}
		var node []netip.Addr
		var links map[string][]netip.Addr
		copied := NewTable()
		for range rapid.IntRange(1, 8).Draw(t, "rounds") {
			for range rapid.IntRange(0, 12).Draw(t, "changes") {
				switch {
				case len(objects) > 0 && chance(t, "delete?", 20):
					key := one(t, "which", slices.Sorted(maps.Keys(objects)))
					c.Delete(key)
					delete(objects, key)
				case chance(t, "node?", 5):
					node = some(t, "node", someAddrs, 2)
					c.SetNode(node)
				case chance(t, "links?", 5):
					links = map[string][]netip.Addr{"eth0": some(t, "eth0", someAddrs, 2), "eth1": some(t, "eth1", someAddrs, 2)}
					c.SetLinks(links)
				default:
					key, o := drawObject(t)
					c.Put(key, o)
					objects[key] = o
				}
			}
			if d := c.Compile(); d != nil {
				copied.Apply(d)
			}
			consistent(t, c.Table())
			tidy(t, c)
			equalTables(t, copied, c.Table())
		}
		anew := NewCompiler(Options{Node: "a"})
		for k, o := range objects {
			anew.Put(k, o)
		}
		anew.SetNode(node)
		anew.SetLinks(links)
		anew.Compile()
		same(t, c.Table(), anew.Table())
		if !reflect.DeepEqual(c.Problems(), anew.Problems()) {
			t.Fatalf("problems %v, and anew %v", c.Problems(), anew.Problems())
		}
		for _, n := range [][3]int{
			{len(c.idents.groups), len(anew.idents.groups)}, {len(c.idents.by), len(anew.idents.by)}, {len(c.rows.by), len(anew.rows.by)}, {len(c.programs), len(anew.programs)},
			{len(c.preds.by), len(anew.preds.by)}, {len(c.atoms.by), len(anew.atoms.by)}, {len(c.classes), len(anew.classes)}, {len(c.attrs), len(anew.attrs)},
			{len(c.spaces), len(anew.spaces)}, {len(c.names), len(anew.names)}, {len(c.pods), len(anew.pods)}, {c.book.count, anew.book.count}, {len(c.book.more), len(anew.book.more)},
			{len(c.sites), len(anew.sites)}, {len(c.replaced), len(anew.replaced)}, {len(c.book.wide), len(anew.book.wide)}, {len(c.policed), len(anew.policed)},
			{len(c.Table().Identities), len(anew.Table().Identities)}, {len(c.Table().Nets), len(anew.Table().Nets)}, {len(c.Table().Rows), len(anew.Table().Rows)}, {len(c.Table().L4), len(anew.Table().L4)},
		} {
			if n[0] != n[1] {
				t.Fatalf("something piles up: %v", n)
			}
		}
		for key := range objects {
			c.Delete(key)
		}
		c.SetNode(nil)
		if d := c.Compile(); d != nil {
			copied.Apply(d)
		}
		equalTables(t, copied, NewTable())
		if n := len(c.classes) + len(c.attrs) + len(c.spaces) + len(c.names) + len(c.rows.by) + len(c.idents.by) + len(c.idents.groups) + len(c.programs) + c.book.count + len(c.subjects.by) + len(c.subjects.rest); n != 0 {
			t.Fatalf("%d things are left of an empty world", n)
		}
	})
}
