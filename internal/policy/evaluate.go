package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// The steps of Compile that find out what is true of every address.

// manyAtoms is up to how many new atoms are looked for one by one among the classes.
const manyAtoms = 64

// evaluate brings the facts of classes in step with their labels and with the atoms.
func (c *Compiler) evaluate() {
	for _, a := range c.atoms.idle {
		if a.refs > 0 || c.atoms.by[a.text] != a {
			continue
		}
		c.atoms.forget(a)
		c.takeAtom(a)
		if a.kind == atomSelector || a.kind == atomPort {
			c.classesOf(a, func(k *class) {
				if len(k.facts.find(a)) > 0 {
					c.setFacts(k, k.facts.without(a))
				}
			})
		}
	}
	c.atoms.idle = nil

	fresh := c.atoms.fresh
	c.atoms.fresh = nil
	fresh = slices.DeleteFunc(fresh, func(a *atom) bool { return c.atoms.by[a.text] != a })
	asked := fresh[:0:0]
	for _, a := range fresh {
		if a.kind == atomSelector || a.kind == atomPort {
			asked = append(asked, a)
		} else {
			c.giveAtom(a)
		}
	}
	if len(asked) > manyAtoms {
		for _, k := range c.classes {
			c.restale(k)
		}
	}
	// Classes that came to their end in this round are still listed; they must not count.
	c.stale = slices.DeleteFunc(c.stale, func(k *class) bool { return len(k.holders) == 0 })
	if len(c.stale) < len(c.classes) {
		for _, a := range asked {
			c.classesOf(a, func(k *class) {
				if k.stale {
					return
				}
				if f := a.of(k); f != nil {
					c.setFacts(k, k.facts.with(f))
				}
			})
		}
	}
	for _, k := range c.stale {
		k.stale = false
		var f facts
		c.atoms.selectors.candidates(k, func(a *atom) { f = append(f, a.of(k)...) })
		for i, n := range k.attrs.ports {
			if a := c.atoms.ports[n.Name]; a != nil && (i == 0 || k.attrs.ports[i-1].Name != n.Name) {
				f = append(f, a.of(k)...)
			}
		}
		slices.SortFunc(f, compareFact)
		c.setFacts(k, slices.Clip(f))
	}
	c.stale = nil
}

// of is what a selector or a named port says of a class; nil when nothing.
func (a *atom) of(k *class) facts {
	if a.kind == atomSelector {
		if a.sel.Matches(k) {
			return facts{{a, ""}}
		}
		return nil
	}
	var ports []NamedPort
	for _, n := range k.attrs.ports {
		if n.Name == a.name {
			ports = append(ports, n)
		}
	}
	if ports == nil {
		return nil
	}
	return facts{{a, encodePorts(ports)}}
}

func (c *Compiler) setFacts(k *class, f facts) {
	if slices.Equal(k.facts, f) {
		return
	}
	k.facts = f
	for _, h := range k.holders {
		c.book.touchHolder(h)
	}
}

// classesOf calls f for all classes of which the atom may say something.
func (c *Compiler) classesOf(a *atom, f func(*class)) {
	key, value, ok := "", "", false
	if a.kind == atomSelector {
		key, value, ok = a.sel.Requires()
	}
	switch {
	case ok && key == LabelNamespace:
		if s := c.spaces[value]; s != nil {
			for k := range s.classes {
				f(k)
			}
		}
	case ok && strings.HasPrefix(key, PrefixNamespace):
		for _, s := range c.spaces {
			if v, has := s.label(key[len(PrefixNamespace):]); has && v == value {
				for k := range s.classes {
					f(k)
				}
			}
		}
	default:
		for _, k := range c.classes {
			f(k)
		}
	}
}

// giveAtom gives an atom that names addresses itself what is its own; nil is nothing.
func (c *Compiler) giveAtom(a *atom) {
	if a == nil {
		return
	}
	c.takeAtom(a)
	give := func(ports string, addrs []netip.Addr, nets []netip.Prefix) {
		h := &holder{wide: &wide{fixed: facts{{a, ports}}}}
		c.book.give(h, addrs, nets)
		a.holders = append(a.holders, h)
	}
	switch a.kind {
	case atomOwn:
		give("", c.node, nil)
	case atomNets:
		single, wide := split(a.nets)
		give("", single, wide)
	case atomService:
		ports := map[netip.Addr][]NamedPort{}
		for _, s := range c.services[a.service] {
			for _, e := range s.Endpoints {
				if n := e.Addr.WithZone(""); n.IsValid() {
					ports[n] = append(ports[n], NamedPort{Protocol: e.Protocol, Port: e.Port})
				}
			}
		}
		same := map[string][]netip.Addr{}
		for n, p := range ports {
			text := encodePorts(p)
			same[text] = append(same[text], n)
		}
		for text, addrs := range same {
			give(text, addrs, nil)
		}
	}
}

func (c *Compiler) takeAtom(a *atom) {
	for _, h := range a.holders {
		c.book.take(h)
	}
	a.holders = nil
}

// cut makes the ranges anew when nets changed.
func (c *Compiler) cut() bool {
	if !c.book.netsDirty {
		return false
	}
	c.book.netsDirty = false
	var in []netFacts
	for h := range c.book.wide {
		if f := h.facts(); len(f) > 0 {
			for _, n := range h.wide.nets {
				in = append(in, netFacts{n, f})
			}
		}
	}
	old := c.nets
	if len(in) == 0 && len(old) == 0 {
		return false
	}
	c.nets = cutNets(in, func(f facts) *group {
		g := c.idents.group(f)
		g.ranges++
		return g
	})
	for _, r := range old {
		if r.group.ranges--; r.group.ranges == 0 {
			c.idents.touch(r.group)
		}
	}
	if slices.Equal(old, c.nets) {
		return false
	}
	for _, k := range c.book.buckets {
		was, same := old.around(k)
		is, all := c.nets.around(k)
		if same && all && was == is {
			continue
		}
		for _, a := range k.list {
			if n := c.nets.find(a.addr); n != a.net {
				a.net = n
				c.book.touch(a)
			}
		}
	}
	return true
}

// regroup finds the groups of addresses of which something else may be true, and returns those that are left.
func (c *Compiler) regroup() []*address {
	type key struct {
		class *class
		net   *group
	}
	memo := map[key]*group{}
	touched := c.book.dirty
	c.book.dirty = nil
	kept := touched[:0]
	for _, a := range touched {
		a.dirty = false
		if a.owner == nil {
			c.idents.join(a, nil)
			c.book.forget(a)
			delete(c.dirtySites, a)
			c.closeSite(a)
			c.identityOf.del(a.addr)
			continue
		}
		kept = append(kept, a)
		if a.group == nil {
			a.net = c.nets.find(a.addr)
		}
		k := key{a.owner.class, a.net}
		single := k.class != nil && c.book.more[a] == nil
		g := memo[k]
		if g == nil || !single {
			var f facts
			if a.net != nil {
				f = a.net.facts
			}
			c.book.owners(a, func(h *holder) { f = f.with(h.facts()) })
			g = c.idents.group(f)
			if single {
				memo[k] = g
			}
		}
		c.idents.join(a, g)
	}
	return kept
}

// identify gives groups their identities, and writes what the table says of addresses.
func (c *Compiler) identify(touched []*address, recut bool) {
	if len(c.preds.changed) > 0 {
		for _, p := range c.preds.changed {
			p.relisting = false
			p.each(func(a *atom) { a.marked = c.round })
		}
		c.preds.changed = nil
		for _, g := range c.idents.groups {
			if slices.ContainsFunc(g.facts, func(f fact) bool { return f.atom.marked == c.round }) {
				c.idents.touch(g)
			}
		}
	}
	changed := c.idents.settle()
	write := func(a *address) {
		around := ID(0)
		if a.net != nil {
			around = a.net.identity.num
		}
		if id := a.group.identity.num; id != around {
			c.identityOf.put(a.addr, id)
		} else {
			c.identityOf.del(a.addr)
		}
	}
	for _, a := range touched {
		write(a)
	}
	ranges := false
	for _, g := range changed {
		ranges = ranges || g.ranges > 0
		for _, a := range g.members {
			write(a)
		}
	}
	if ranges {
		c.book.each(func(a *address) {
			if a.net != nil && a.net.changed {
				write(a)
			}
		})
	}
	for _, g := range changed {
		g.changed = false
	}
	if ranges || recut {
		ids := c.nets.ids()
		for r := range c.netsOut.now {
			if _, there := ids[r]; !there {
				c.netsOut.del(r)
			}
		}
		for r, id := range ids {
			c.netsOut.put(r, id)
		}
	}
}
