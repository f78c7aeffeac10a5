package policy

import (
	"encoding/binary"
	"slices"
	"strconv"
)

// program is what decides at one or more local ends, as far as it does not depend on the remote one.
type program struct {
	key    string
	real   *path
	staged *path // nil: no staged policy matters
	preds  []*pred
	ends   []*end
	base   *row               // towards identity 0
	ids    map[*identity]*row // where it is another
	memo   map[string]*row    // by what identities make of preds; lives for a round
}

// path is tiers as they stand for a program.
type path struct {
	tiers  []pathTier
	end    *because
	silent bool
}

type pathTier struct {
	rules []pathRule
	end   *because
}

// pathRule is a rule of which the local end is known and fulfilled.
type pathRule struct {
	*crule
	local   value
	because *because
}

// plan is a program in the making: its key, and what it is made of.
type plan struct {
	hook   Hook
	named  bool
	site   *site
	key    []byte
	real   []*policyRec
	staged []*policyRec
	differ bool
	locals map[*crule]value
}

// prepare finds out which program an end needs, without making it: nil when the end is not policed.
func (c *Compiler) prepare(s *site, h Hook) *plan {
	all := c.policies(s, h)
	closed := s.host != nil && s.named && (h == HostInput || h == HostOutput)
	if len(all) == 0 && !closed {
		return nil
	}
	p := &plan{hook: h, named: closed, site: s, locals: map[*crule]value{}}
	for _, r := range all {
		if !r.Staged {
			p.real = append(p.real, r)
			if c.replaced[r.Ref] > 0 {
				p.differ = true
				continue
			}
		} else {
			p.differ = true
			if r.Deletion {
				continue
			}
		}
		p.staged = append(p.staged, r)
	}
	if len(p.real) == 0 && len(p.staged) == 0 && !closed {
		return nil // only the removal of what does not select it
	}
	p.key = append(p.key, byte(h), '-')
	if closed {
		p.key[1] = 'c'
	}
	slot := slotOf(h)
	family := byte(0)
	add := func(list []*policyRec) {
		var tier *tierRec
		for _, r := range list {
			if t := c.tiers[r.Tier]; t != tier {
				tier = t
				p.key = binary.AppendUvarint(append(p.key, 'T'), t.serial)
			}
			p.key = binary.AppendUvarint(append(p.key, 'P'), r.serial)
			if r.slots[slot].family && s.addr != nil {
				family = 4
				if s.addr.addr.Is6() {
					family = 6
				}
			}
			for i := range r.slots[slot].rules {
				rule := &r.slots[slot].rules[i]
				if rule.local == nil {
					continue
				}
				v, known := p.locals[rule]
				if !known {
					var unsure bool
					if v, unsure = c.localValue(s, h, rule.local); unsure {
						c.unsure(s, r)
						if rule.Action == Deny { // closed, whatever the address
							v = rule.local.anyValue()
						}
					}
					p.locals[rule] = v
				}
				p.key = binary.AppendUvarint(p.key, uint64(len(v)))
				p.key = append(p.key, v...)
			}
		}
	}
	add(p.real)
	if p.differ {
		p.key = append(p.key, 'S')
		add(p.staged)
	}
	p.key = append(p.key, 'F', family)
	return p
}

// build makes the program of a plan.
func (c *Compiler) build(p *plan) *program {
	g := &program{key: string(p.key), ids: map[*identity]*row{}}
	seen := map[*pred]struct{}{}
	g.real = c.path(p, p.real, seen)
	if p.differ {
		g.staged = c.path(p, p.staged, seen)
	}
	for n := range seen {
		g.preds = append(g.preds, n)
		n.programs[g] = struct{}{}
	}
	slices.SortFunc(g.preds, func(a, b *pred) int { return int(min(max(int64(a.serial-b.serial), -1), 1)) })
	g.base = c.rows.flatten(g.course(g.real, nil), g.course(g.staged, nil))
	return g
}

// path puts policies together.
func (c *Compiler) path(p *plan, list []*policyRec, seen map[*pred]struct{}) *path {
	out := &path{end: &because{"past", Reason{Action: Allow}}}
	slot := slotOf(p.hook)
	early := p.hook == HostPreDNATIn || p.hook == HostUntrackedIn || p.hook == HostUntrackedOut
	switch {
	case early:
		out.silent = true
	case p.named:
		out.end = &because{"closed", Reason{Action: Deny, Builtin: BuiltinHost}}
	case p.hook == WorkloadIngress:
		own := crule{Rule: &Rule{Action: Allow, Protocol: AnyProtocol, NotProtocol: AnyProtocol}, remote: c.own}
		seen[c.own] = struct{}{}
		out.tiers = append(out.tiers, pathTier{rules: []pathRule{{&own, yes, &because{"own", Reason{Action: Allow, Builtin: BuiltinOwnNode}}}}})
	}
	for i := 0; i < len(list); {
		tier := c.tiers[list[i].Tier]
		var t pathTier
		first := i
		for ; i < len(list) && c.tiers[list[i].Tier] == tier; i++ {
			r := list[i]
			for j := range r.slots[slot].rules {
				rule := &r.slots[slot].rules[j]
				v := yes
				if rule.local != nil {
					v = p.locals[rule]
				}
				if v == no || p.site.addr != nil && rule.Family != 0 && (rule.Family == 6) != p.site.addr.addr.Is6() {
					continue
				}
				if rule.remote != nil {
					seen[rule.remote] = struct{}{}
				}
				t.rules = append(t.rules, pathRule{rule, v, rule.because(r)})
			}
		}
		if !early && tier.Default != Pass {
			t.end = defaultOf(tier, list[first:i])
		}
		out.tiers = append(out.tiers, t)
	}
	return out
}

// because is what is said when the rule decides.
func (r *crule) because(of *policyRec) *because {
	if r.said == nil && r.Action != Pass && r.Action != Log {
		ref := of.Ref
		text := "rule\x00" + strconv.Itoa(int(r.Action)) + "\x00" + of.Tier + "\x00" + ref.Kind + "\x00" + ref.Namespace + "\x00" + ref.Name + "\x00" + strconv.Itoa(r.Index)
		r.said = &because{text, Reason{Action: r.Action, Tier: of.Tier, Policy: &ref, Rule: r.Index}}
	}
	return r.said
}

// defaultOf is what is said when no rule of the tier decided.
func defaultOf(tier *tierRec, list []*policyRec) *because {
	text := []byte("tier\x00" + tier.Name)
	b := &because{reason: Reason{Action: Deny, Tier: tier.Name}}
	for _, p := range list {
		b.reason.Selecting = append(b.reason.Selecting, p.Ref)
		for _, s := range [...]string{p.Ref.Kind, p.Ref.Namespace, p.Ref.Name} {
			text = append(append(text, 0), s...)
		}
	}
	b.text = string(text)
	return b
}

// course is the path towards one identity.
func (g *program) course(p *path, content []bound) *course {
	if p == nil {
		return nil
	}
	c := &course{end: p.end, silent: p.silent, tiers: make([]liveTier, len(p.tiers))}
	for i := range p.tiers {
		t := &c.tiers[i]
		t.end = p.tiers[i].end
		for j := range p.tiers[i].rules {
			r := &p.tiers[i].rules[j]
			far := yes
			if r.remote != nil {
				far = valueIn(content, r.remote)
			}
			if far == no {
				continue
			}
			source, dest := far, r.local
			if r.remoteIsDest {
				source, dest = dest, source
			}
			t.rules = append(t.rules, live{matchOf(r.Rule, source, dest), r.Action, r.because})
		}
	}
	return c
}

// valueIn is what a content makes of a predicate.
func valueIn(content []bound, p *pred) value {
	i, found := slices.BinarySearchFunc(content, p.serial, func(b bound, s uint64) int {
		switch {
		case b.pred.serial < s:
			return -1
		case b.pred.serial > s:
			return 1
		}
		return 0
	})
	if found {
		return content[i].value
	}
	return p.usual
}

// towards returns the row towards an identity, with a reference; nil when it is the base.
func (c *Compiler) towards(g *program, i *identity) *row {
	var mine []bound
	var key []byte
	for _, b := range i.content {
		if _, asks := b.pred.programs[g]; asks {
			mine = append(mine, b)
			key = binary.AppendUvarint(key, b.pred.serial)
			key = binary.AppendUvarint(key, uint64(len(b.value)))
			key = append(key, b.value...)
		}
	}
	if len(mine) == 0 {
		return nil
	}
	r, known := g.memo[string(key)]
	if !known {
		if r = c.rows.flatten(g.course(g.real, mine), g.course(g.staged, mine)); r == g.base {
			c.rows.release(r)
			r = nil
		}
		if g.memo == nil {
			g.memo = map[string]*row{}
			c.remembering = append(c.remembering, g)
		}
		g.memo[string(key)] = r
	} else if r != nil {
		r.refs++
	}
	return r
}
