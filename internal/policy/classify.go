package policy

import "strings"

// The first steps of Compile: endpoints to classes, and classes to the policies that select them.

// space returns the namespace, new if need be; nil for none.
func (c *Compiler) space(name string) *space {
	if name == "" {
		return nil
	}
	s := c.spaces[name]
	if s == nil {
		s = newSpace(strings.Clone(name))
		c.spaces[name] = s
	}
	return s
}

// of returns the namespace's name from shared memory.
func (s *space) of(name string) string {
	if s == nil {
		return name
	}
	return s.name
}

// dropSpace forgets a namespace that is of no use any more.
func (c *Compiler) dropSpace(name string) {
	if s := c.spaces[name]; s != nil && s.unused() {
		delete(c.spaces, name)
	}
}

// class returns the class; it takes over one reference of own.
func (c *Compiler) class(of kind, own *attrs, namespace string) *class {
	key := classKey{of, own, c.space(namespace)}
	k := c.classes[key]
	if k != nil {
		c.attrs.release(own)
		return k
	}
	k = &class{classKey: key}
	c.classes[key] = k
	if k.space != nil {
		k.space.classes[k] = struct{}{}
	}
	c.restale(k)
	return k
}

func (c *Compiler) restale(k *class) {
	if !k.stale {
		k.stale = true
		c.stale = append(c.stale, k)
	}
}

// setClass moves the holder to a class; nil: to none.
func (c *Compiler) setClass(h *holder, k *class) {
	old := h.class
	if old == k {
		return
	}
	if old != nil {
		last := len(old.holders) - 1
		old.holders[h.pos] = old.holders[last]
		old.holders[h.pos].pos = h.pos
		old.holders[last] = nil
		old.holders = old.holders[:last]
		if h.local {
			if old.locals--; old.locals == 0 {
				c.unpolice(old)
			}
		}
	}
	if h.class = k; k != nil {
		h.pos = len(k.holders)
		k.holders = append(k.holders, h)
		if h.local {
			if k.locals++; k.locals == 1 {
				c.policed[k] = struct{}{}
				c.restale(k)
			}
		}
	}
	if old != nil && len(old.holders) == 0 {
		delete(c.classes, old.classKey)
		c.attrs.release(old.attrs)
		if old.space != nil {
			delete(old.space.classes, old)
			c.dropSpace(old.space.name)
		}
	}
	c.book.touchHolder(h)
	c.touchSites(h)
}

// unpolice: nothing of the class is policed here any more.
func (c *Compiler) unpolice(k *class) {
	delete(c.policed, k)
	for p := range k.selected {
		c.use(p, k.kind, -1)
	}
	k.selected = nil
}

// touchSites says that the programs of the holder's addresses are to be found anew.
func (c *Compiler) touchSites(h *holder) {
	if h.local && h.class != nil && h.class.kind == hostEndpoint {
		c.hostsDirty = true
		return
	}
	if h.local {
		for _, a := range h.addrs {
			c.dirtySites[a] = struct{}{}
		}
	}
}

// use counts the classes that a policy selects.
func (c *Compiler) use(p *policyRec, k kind, n int) {
	i := 0
	if k == hostEndpoint {
		i = 1
	}
	p.uses[i] += n
	if !p.waiting && (p.uses[i] == 0 || p.uses[i] == n) {
		p.waiting = true
		c.activity = append(c.activity, p)
	}
}

// classify finds the classes of endpoints of which something was said.
func (c *Compiler) classify() {
	for _, e := range c.unsorted {
		e.dirty = false
		if e.own == nil {
			continue // deleted since
		}
		own := e.own
		if v := c.pods[name{e.namespace, e.name}]; len(v) > 0 && e.name != "" {
			own = c.attrs.overlay(e.own, v[0].of.of)
		} else {
			own.refs++
		}
		c.setClass(&e.holder, c.class(workload, own, e.namespace))
	}
	c.unsorted = nil
}

// choose finds which policies select the classes that are policed here.
func (c *Compiler) choose() {
	for _, p := range c.gone {
		for k := range c.policed {
			if _, had := k.selected[p]; had {
				delete(k.selected, p)
				k.moved = true
				c.use(p, k.kind, -1)
			}
		}
	}
	for _, k := range c.stale {
		if k.locals == 0 {
			continue
		}
		now := map[*policyRec]struct{}{}
		c.subjects.candidates(k, func(p *policyRec) {
			if p.Subject.Matches(k) {
				now[p] = struct{}{}
			}
		})
		for p := range now {
			if _, had := k.selected[p]; !had {
				c.use(p, k.kind, 1)
			}
		}
		for p := range k.selected {
			if _, has := now[p]; !has {
				c.use(p, k.kind, -1)
			}
		}
		k.selected, k.moved = now, true
	}
	for _, p := range c.fresh {
		if _, there := c.known[p]; !there {
			continue
		}
		for k := range c.policed {
			if k.stale || !p.Subject.Matches(k) {
				continue
			}
			k.selected[p] = struct{}{}
			k.moved = true
			c.use(p, k.kind, 1)
		}
	}
	c.gone, c.fresh = nil, nil
}

// activate makes predicates of the rules of policies that came into use, and drops those of policies that
// are not used any more: in this order, so that what both ask stays.
func (c *Compiler) activate() {
	for _, p := range c.activity {
		for n := range p.slots {
			if p.slots[n] == nil && p.uses[n/hostIngress] > 0 && p.applies(n) {
				p.slots[n] = p.compileSlot(n, &c.preds, &c.atoms)
			}
		}
	}
	for _, p := range c.activity {
		p.waiting = false
		for n, s := range p.slots {
			if s != nil && p.uses[n/hostIngress] == 0 {
				s.release(&c.preds)
				p.slots[n] = nil
			}
		}
	}
	c.activity = nil
	// What no policy asks is forgotten, before anybody learns of it.
	for _, p := range c.preds.idle {
		if p.refs > 0 || c.preds.by[p.text] != p {
			continue
		}
		delete(c.preds.by, p.text)
		p.each(func(a *atom) {
			delete(a.preds, p)
			a.marked = c.round
		})
		p.each(c.atoms.release)
	}
	c.preds.idle = nil
}
