package policy

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

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
		// Rapid likes what is small, and small worlds have nothing that meets: the sizes are fixed.
		for round := range 8 {
			changes := 4
			if round == 0 {
				changes = 40
			}
			for range changes {
				switch {
				case round > 0 && chance(t, "delete?", 25):
					if len(objects) == 0 {
						continue
					}
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
				for r := range d.Base.Put {
					if _, before := copied.Base[r]; before {
						t.Fatalf("row %d is used again at once", r)
					}
				}
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
		for _, n := range [][2]int{
			{len(c.idents.groups), len(anew.idents.groups)},
			{len(c.idents.by), len(anew.idents.by)},
			{len(c.rows.by), len(anew.rows.by)},
			{len(c.programs), len(anew.programs)},
			{len(c.preds.by), len(anew.preds.by)},
			{len(c.atoms.by), len(anew.atoms.by)},
			{len(c.classes), len(anew.classes)},
			{len(c.attrs), len(anew.attrs)},
			{len(c.spaces), len(anew.spaces)},
			{len(c.names), len(anew.names)},
			{len(c.pods), len(anew.pods)},
			{c.book.count, anew.book.count},
			{len(c.book.more), len(anew.book.more)},
			{len(c.sites), len(anew.sites)},
			{len(c.replaced), len(anew.replaced)},
			{len(c.book.wide), len(anew.book.wide)},
			{len(c.policed), len(anew.policed)},
			{len(c.Table().Identities), len(anew.Table().Identities)},
			{len(c.Table().Nets), len(anew.Table().Nets)},
			{len(c.Table().Rows), len(anew.Table().Rows)},
			{len(c.Table().L4), len(anew.Table().L4)},
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
