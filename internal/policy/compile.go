package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Compile brings the table in step with what was told, and returns the difference since the last Compile; nil
// when there is none.
func (c *Compiler) Compile() *Delta {
	if !c.changed {
		return nil
	}
	c.changed = false
	c.round++
	c.classify()
	c.choose()
	c.activate()
	c.evaluate()
	recut := c.cut()
	touched := c.regroup()
	c.identify(touched, recut)
	c.reprogram()
	return c.finish()
}

// move is an end that goes to another program.
type move struct {
	site *site
	hook Hook
	to   *program // nil: it is not policed any more
	plan *plan    // of a program that is to be made
}

// reprogram finds the programs of sites, and the rows of programs towards identities.
func (c *Compiler) reprogram() {
	for a := range c.dirtySites {
		c.openSite(a)
	}
	clear(c.dirtySites)
	c.openHosts()

	var moves []move
	look := func(s *site, first, last Hook) {
		for h := first; h <= last; h++ {
			p := c.prepare(s, h)
			e := s.ends[h]
			switch {
			case p == nil && e == nil, p != nil && e != nil && e.program.key == string(p.key):
			case p == nil:
				moves = append(moves, move{s, h, nil, nil})
			default:
				moves = append(moves, move{s, h, c.programs[string(p.key)], p})
			}
		}
		s.dirty = false
	}
	for _, s := range c.sites {
		if g := s.addr.group; g != s.group {
			s.group, s.dirty = g, true
		}
		if s.dirty || c.allDirty || slices.ContainsFunc(s.classes, func(k *class) bool { return k.moved }) {
			look(s, WorkloadIngress, WorkloadEgress)
		}
	}
	for _, s := range c.hostSites { // few, and dependent on much
		s.wrong = nil
		look(s, HostInput, HostUntrackedOut)
	}
	for k := range c.policed {
		k.moved = false
	}
	c.allDirty = false

	// Ends leave their programs while the identities are still those that were written.
	for _, m := range moves {
		c.unlink(m.site, m.hook)
	}
	wanted := map[*program]bool{}
	for _, m := range moves {
		wanted[m.to] = true
	}
	for _, g := range c.orphans {
		if len(g.ends) == 0 && !wanted[g] && c.programs[g.key] == g {
			c.drop(g)
		}
	}
	c.orphans = nil
	c.exchange()
	for _, m := range moves {
		if m.plan == nil {
			continue
		}
		g := m.to
		if g == nil {
			if g = c.programs[string(m.plan.key)]; g == nil {
				g = c.build(m.plan)
				c.programs[g.key] = g
				seen := map[*identity]struct{}{}
				for _, p := range g.preds {
					for i := range p.ids {
						if _, done := seen[i]; !done {
							seen[i] = struct{}{}
							if r := c.towards(g, i); r != nil {
								g.ids[i] = r
							}
						}
					}
				}
			}
		}
		c.link(m.site, m.hook, g)
	}
	for _, g := range c.remembering {
		g.memo = nil
	}
	c.remembering = nil
}

// exchange takes dead identities out of programs and puts new ones in.
func (c *Compiler) exchange() {
	for _, i := range c.idents.dead {
		for _, b := range i.content {
			delete(b.pred.ids, i)
			for g := range b.pred.programs {
				r := g.ids[i]
				if r == nil {
					continue
				}
				delete(g.ids, i)
				c.rows.release(r)
				for _, e := range g.ends {
					c.rowOf.del(RowKey{e.local, i.num})
				}
			}
		}
	}
	c.idents.dead = nil
	for _, i := range c.idents.fresh {
		seen := map[*program]struct{}{}
		for _, b := range i.content {
			b.pred.ids[i] = struct{}{}
			for g := range b.pred.programs {
				if _, done := seen[g]; done {
					continue
				}
				seen[g] = struct{}{}
				r := c.towards(g, i)
				if r == nil {
					continue
				}
				g.ids[i] = r
				for _, e := range g.ends {
					c.rowOf.put(RowKey{e.local, i.num}, r.num)
				}
			}
		}
	}
	c.idents.fresh = nil
}

// link makes the end one of the program's.
func (c *Compiler) link(s *site, h Hook, g *program) {
	e := &end{local: s.local(h), program: g, pos: len(g.ends)}
	g.ends = append(g.ends, e)
	s.ends[h] = e
	c.locals.put(e.local, g.base.num)
	for i, r := range g.ids {
		c.rowOf.put(RowKey{e.local, i.num}, r.num)
	}
}

// unlink takes the end out of its program, and out of the table.
func (c *Compiler) unlink(s *site, h Hook) {
	e := s.ends[h]
	if e == nil {
		return
	}
	s.ends[h] = nil
	g := e.program
	last := len(g.ends) - 1
	g.ends[e.pos] = g.ends[last]
	g.ends[e.pos].pos = e.pos
	g.ends[last] = nil
	g.ends = g.ends[:last]
	if last == 0 {
		c.orphans = append(c.orphans, g)
	}
	c.locals.del(e.local)
	for i := range g.ids {
		c.rowOf.del(RowKey{e.local, i.num})
	}
}

// drop forgets a program.
func (c *Compiler) drop(g *program) {
	delete(c.programs, g.key)
	for _, p := range g.preds {
		delete(p.programs, g)
	}
	c.rows.release(g.base)
	for _, r := range g.ids {
		c.rows.release(r)
	}
}

func (s *site) local(h Hook) Local {
	if s.addr != nil {
		return Local{Hook: h, Addr: s.addr.addr}
	}
	return Local{Hook: h, Link: s.link}
}

// openSite makes the address a site, or brings its classes in step, if a local workload has it.
func (c *Compiler) openSite(a *address) {
	var classes []*class
	c.book.owners(a, func(h *holder) {
		if h.local && h.class != nil && h.class.kind == workload && !slices.Contains(classes, h.class) {
			classes = append(classes, h.class)
		}
	})
	s := c.sites[a]
	switch {
	case len(classes) == 0:
		c.closeSite(a)
		return
	case s == nil:
		s = &site{addr: a}
		c.sites[a] = s
	}
	s.classes, s.dirty = classes, true
}

func (c *Compiler) closeSite(a *address) {
	s := c.sites[a]
	if s == nil {
		return
	}
	for h := range s.ends {
		c.unlink(s, Hook(h))
	}
	delete(c.sites, a)
}

// openHosts finds which host endpoint is at which interface.
func (c *Compiler) openHosts() {
	if !c.hostsDirty {
		return
	}
	c.hostsDirty = false
	all := slices.SortedFunc(maps.Keys(c.hosts), func(a, b *hostRec) int {
		return cmp.Or(strings.Compare(a.of.Ref.Namespace, b.of.Ref.Namespace), strings.Compare(a.of.Ref.Name, b.of.Ref.Name), strings.Compare(a.key, b.key))
	})
	at := map[string]*hostRec{}
	for _, h := range all { // the first by name has the interface
		var links []string
		switch {
		case h.of.Interface != "":
			links = []string{h.of.Interface}
		default:
			for l, addrs := range c.links {
				if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(h.of.Expected, a) }) {
					links = append(links, l)
				}
			}
		}
		for _, l := range links {
			if at[l] == nil {
				at[l] = h
			}
		}
	}
	for l, s := range c.hostSites {
		if h := at[l]; h == nil || &h.holder != s.host {
			for i := range s.ends {
				c.unlink(s, Hook(i))
			}
			delete(c.hostSites, l)
		}
	}
	for l, h := range at {
		s := c.hostSites[l]
		if s == nil {
			s = &site{link: l, host: &h.holder, of: h.of, named: l != "*"}
			c.hostSites[l] = s
		}
		s.classes = []*class{h.class}
		s.addrs = usableAddrs(h.of.Expected)
		for _, list := range c.links {
			s.addrs = append(s.addrs, list...)
		}
		s.addrs = append(s.addrs, c.node...)
	}
}

// unsure remembers that a rule asks of a host endpoint's own end what is not the same for all its packets.
func (c *Compiler) unsure(s *site, p *policyRec) {
	s.wrong = append(s.wrong, model.Problem{
		Code: "policy-host-side", Severity: model.Failure, Subject: p.Ref.String(),
		Detail: "a rule names addresses of this host, or of what it forwards for, at " + s.of.Ref.String() +
			", where only the remote end is told apart: it denies whatever the address, and allows nothing",
		Next: "heddle get " + p.Ref.Kind + " " + p.Ref.Name,
	})
}

// finish forgets what nobody uses, writes rows, and returns what changed in the table.
func (c *Compiler) finish() *Delta {
	for _, r := range c.rows.fresh {
		if r.refs == 0 {
			continue
		}
		c.base.put(r.num, r.base.Decision)
		for _, e := range r.entries {
			c.l4.put(L4Key{r.num, e.protocol, e.src, e.dst}, e.decision.Decision)
		}
	}
	c.rows.fresh = nil
	for _, r := range c.rows.idle {
		if r.refs > 0 || c.rows.by[r.text] != r {
			continue
		}
		c.base.del(r.num)
		for _, e := range r.entries {
			c.l4.del(L4Key{r.num, e.protocol, e.src, e.dst})
		}
		c.rows.forget(r)
	}
	c.rows.idle = nil
	d := &Delta{
		Identities: c.identityOf.end(), Nets: c.netsOut.end(), Locals: c.locals.end(), Rows: c.rowOf.end(),
		L4: c.l4.end(), Base: c.base.end(), Sources: c.sources.end(),
	}
	if d.Empty() {
		return nil
	}
	c.table.reindex(d)
	return d
}
