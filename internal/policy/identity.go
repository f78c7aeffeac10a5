package policy

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// group is all addresses and ranges of which the same is true.
type group struct {
	text     string
	facts    facts
	identity *identity
	from     *identity // of a new group: of a group that one of its members was in before
	members  []*address
	ranges   int // how many ranges are of it
	// changed: the number of its identity did, in this round. stale: what it makes of predicates may have.
	changed, stale bool
}

// identity is what predicates make of addresses: groups that no predicate tells apart share it.
type identity struct {
	num     ID
	text    string
	content []bound
	groups  int
}

// bound is a predicate with what it makes of the addresses, where that is not the usual.
type bound struct {
	pred  *pred
	value value
}

// identities knows all groups and identities.
type identities struct {
	groups  map[string]*group
	by      map[string]*identity
	none    *group // of which nothing is true
	numbers numbers
	fresh   []*identity
	dead    []*identity
	stale   []*group
	scratch []byte
}

func newIdentities() identities {
	none := &group{identity: &identity{}}
	return identities{groups: map[string]*group{}, by: map[string]*identity{}, none: none}
}

// group returns the group for the facts; a new one has no identity until settle.
func (s *identities) group(f facts) *group {
	if len(f) == 0 {
		return s.none
	}
	s.scratch = f.text(s.scratch[:0])
	g := s.groups[string(s.scratch)]
	if g == nil {
		g = &group{text: string(s.scratch), facts: f}
		s.groups[g.text] = g
		s.touch(g)
	}
	return g
}

func (s *identities) touch(g *group) {
	if !g.stale {
		g.stale = true
		s.stale = append(s.stale, g)
	}
}

// join makes the address a member of the group; nil: of none.
func (s *identities) join(a *address, g *group) {
	if a.group == g {
		return
	}
	if old := a.group; old != nil && old != s.none {
		if g != nil && g.identity == nil {
			g.from = old.identity
		}
		last := old.members[len(old.members)-1]
		old.members[a.pos] = last
		last.pos = a.pos
		old.members[len(old.members)-1] = nil
		old.members = old.members[:len(old.members)-1]
		if len(old.members) == 0 {
			s.touch(old)
		}
	}
	a.group = g
	if g != nil && g != s.none {
		a.pos = int32(len(g.members))
		g.members = append(g.members, a)
	}
}

// content is what the listed predicates make of the facts.
func (s *identities) content(f facts) []bound {
	var out []bound
	seen := map[*pred]struct{}{}
	for i := range f {
		for p := range f[i].atom.preds {
			if p.listed == 0 {
				continue
			}
			if _, done := seen[p]; done {
				continue
			}
			seen[p] = struct{}{}
			if v := p.evaluate(f); v != p.usual {
				out = append(out, bound{p, v})
			}
		}
	}
	slices.SortFunc(out, func(a, b bound) int { return cmp.Compare(a.pred.serial, b.pred.serial) })
	return out
}

// contentText is canonical for a content.
func contentText(content []bound) string {
	text := make([]byte, 0, 8*len(content))
	for _, b := range content {
		text = binary.AppendUvarint(text, b.pred.serial)
		text = binary.AppendUvarint(text, uint64(len(b.value)))
		text = append(text, b.value...)
	}
	return string(text)
}

// settle gives every stale group its identity. Groups of which the number changed are marked and returned.
//
// When all groups leave an identity and some of them meet in a new one, that takes over the number, so that a
// new predicate costs nothing in the kernel where it tells nobody apart.
func (s *identities) settle() (changed []*group) {
	type move struct {
		groups  []*group
		content []bound
		weight  int
	}
	moves := map[string]*move{}
	var order []string
	leaving := map[*identity]int{}
	for _, g := range s.stale {
		g.stale = false
		if len(g.members) == 0 && g.ranges == 0 {
			delete(s.groups, g.text)
			if g.identity != nil {
				s.leave(g)
				g.identity = nil
			}
			continue
		}
		content := s.content(g.facts)
		text := contentText(content)
		if g.identity != nil && g.identity.text == text {
			continue
		}
		m := moves[text]
		if m == nil {
			m = &move{content: content}
			moves[text] = m
			order = append(order, text)
		}
		m.groups = append(m.groups, g)
		m.weight += len(g.members) + g.ranges
		if g.identity != nil && g.identity.num != 0 {
			leaving[g.identity]++
		}
	}
	s.stale = s.stale[:0]
	// The weightiest moves choose first. An identity that others join is not left.
	slices.SortFunc(order, func(a, b string) int {
		return cmp.Or(cmp.Compare(moves[b].weight, moves[a].weight), cmp.Compare(a, b))
	})
	inherited := map[*identity]bool{}
	for _, text := range order {
		m := moves[text]
		if text == "" || s.by[text] != nil {
			continue
		}
		to := &identity{text: text, content: m.content}
		s.by[text] = to
		s.fresh = append(s.fresh, to)
		for _, g := range m.groups {
			// An identity that others join in this round keeps its number.
			from := g.identity
			if from == nil {
				from = g.from
			}
			if from != nil && from.num != 0 && leaving[from] == from.groups && !inherited[from] && moves[from.text] == nil {
				inherited[from] = true
				to.num = from.num
				break
			}
		}
		if to.num == 0 {
			to.num = ID(s.numbers.take())
		}
	}
	for _, text := range order {
		to := s.none.identity
		if text != "" {
			to = s.by[text]
		}
		for _, g := range moves[text].groups {
			before := ID(0)
			if g.identity != nil {
				before = g.identity.num
				s.leave(g)
			}
			g.identity, g.from = to, nil
			to.groups++
			if before != to.num {
				g.changed = true
				changed = append(changed, g)
			}
		}
	}
	// What everybody left is gone; its number is free unless somebody inherited it.
	s.dead = slices.DeleteFunc(s.dead, func(i *identity) bool { return i.groups > 0 })
	for _, i := range s.dead {
		delete(s.by, i.text)
		if !inherited[i] {
			s.numbers.give(uint32(i.num))
		}
	}
	return changed
}

func (s *identities) leave(g *group) {
	i := g.identity
	if i.groups--; i.groups == 0 && i != s.none.identity {
		s.dead = append(s.dead, i)
	}
}
