package policy

import (
	"cmp"
	"slices"
)

// otherProtocol stands for all protocols that no rule names.
const otherProtocol = -2

// fewPorts is up to how many ports a range is written as single ports: exact keys are cheap to change in a
// kernel's hash map, ranges are not.
const fewPorts = 4

// flatten turns what decides into a row. staged may be nil.
func (s *rows) flatten(real, staged *course) *row {
	var named [256]bool
	name := func(m *live) {
		for _, p := range [...]int{m.protocol, m.notProtocol} {
			if p >= 0 && p < 256 {
				named[p] = true
			}
		}
		if m.protocol >= 0 {
			return
		}
		if m.ported() {
			named[6], named[17], named[132] = true, true, true
		}
		if m.icmp != nil || m.notICMP != nil {
			named[1], named[58] = true, true
		}
	}
	real.each(name)
	staged.each(name)

	at := func(real, staged *course, protocol int, src, dst uint16) *decision {
		var would outcome
		if staged != nil {
			would = staged.decide(protocol, src, dst)
		}
		return s.decision(real.decide(protocol, src, dst), would)
	}
	one := func(protocol int) (*course, *course) {
		if staged == nil {
			return real.of(protocol), nil
		}
		return real.of(protocol), staged.of(protocol)
	}
	r, t := one(otherProtocol)
	base := at(r, t, otherProtocol, 0, 0)
	var entries []entry
	for p := range named {
		if !named[p] {
			continue
		}
		r, t := one(p)
		g := newGrid(r, t)
		for i, src := range g.src {
			for j, dst := range g.dst {
				g.cells[i*len(g.dst)+j] = at(r, t, p, uint16(src), uint16(dst))
			}
		}
		entries = append(entries, g.entries(uint8(p), base)...)
	}
	row := s.get(base, entries)
	s.sweepDecisions()
	return row
}

// sweepDecisions forgets decisions that were only tried.
func (s *rows) sweepDecisions() {
	if len(s.decisions) < 2*s.kept+64 {
		return
	}
	for text, d := range s.decisions {
		if d.refs == 0 {
			delete(s.decisions, text)
		}
	}
	s.kept = len(s.decisions)
}

// grid is what is decided for one protocol, cut by source and destination port wherever it may differ.
type grid struct {
	src, dst []uint32 // where each stripe begins; the first is 0
	cells    []*decision
}

func newGrid(courses ...*course) *grid {
	g := &grid{src: []uint32{0}, dst: []uint32{0}}
	cut := func(to []uint32, list []span) []uint32 {
		for _, s := range list {
			to = append(to, uint32(s.first), uint32(s.last)+1)
		}
		return to
	}
	for _, c := range courses {
		c.each(func(r *live) {
			g.src = cut(cut(g.src, r.src), r.notSrc)
			g.dst = cut(cut(cut(g.dst, r.dst), r.notDst), r.service)
			for _, i := range [...]*ICMP{r.icmp, r.notICMP} {
				if i == nil {
					continue
				}
				first, last := uint32(i.Type)<<8, uint32(i.Type)<<8|255
				if i.Code >= 0 {
					first |= uint32(i.Code & 255)
					last = first
				}
				g.dst = append(g.dst, first, last+1)
			}
		})
	}
	g.src, g.dst = stripes(g.src), stripes(g.dst)
	g.cells = make([]*decision, len(g.src)*len(g.dst))
	return g
}

func stripes(starts []uint32) []uint32 {
	slices.Sort(starts)
	starts = slices.Compact(starts)
	if starts[len(starts)-1] > 65535 {
		starts = starts[:len(starts)-1]
	}
	return starts
}

// stripe i of the starts.
func stripe(starts []uint32, i int) PortRange {
	if i+1 < len(starts) {
		return PortRange{uint16(starts[i]), uint16(starts[i+1] - 1)}
	}
	return PortRange{uint16(starts[i]), 65535}
}

// entries turns the grid into as few entries as the two ways to cut it give: in stripes by source port, each
// cut by destination port, or the other way round.
func (g *grid) entries(protocol uint8, base *decision) []entry {
	best := choose(g.boxes(protocol, false), protocol, base)
	if len(g.src) > 1 && len(g.dst) > 1 {
		if other := choose(g.boxes(protocol, true), protocol, base); len(other) < len(best) {
			best = other
		}
	}
	return best
}

// boxes covers the whole protocol. byDst: in stripes by destination port.
func (g *grid) boxes(protocol uint8, byDst bool) []entry {
	outer, inner := g.src, g.dst
	cell := func(i, j int) *decision { return g.cells[i*len(g.dst)+j] }
	if byDst {
		outer, inner = g.dst, g.src
		cell = func(i, j int) *decision { return g.cells[j*len(g.dst)+i] }
	}
	same := func(a, b int) bool {
		for j := range inner {
			if cell(a, j) != cell(b, j) {
				return false
			}
		}
		return true
	}
	var out []entry
	for i := 0; i < len(outer); {
		across := stripe(outer, i)
		n := i + 1
		for ; n < len(outer) && same(i, n); n++ {
			across.Last = stripe(outer, n).Last
		}
		for j := 0; j < len(inner); {
			along, d := stripe(inner, j), cell(i, j)
			for j++; j < len(inner) && cell(i, j) == d; j++ {
				along.Last = stripe(inner, j).Last
			}
			if byDst {
				out = append(out, entry{protocol, along, across, d})
			} else {
				out = append(out, entry{protocol, across, along, d})
			}
		}
		i = n
	}
	return out
}

// choose leaves out the boxes of one decision, for which one entry for the whole protocol, or the row's base,
// stands: the one that saves most, ranges counted as more than single ports.
func choose(boxes []entry, protocol uint8, base *decision) []entry {
	saved := map[*decision]int{}
	var order []*decision
	for _, b := range boxes {
		if _, known := saved[b.decision]; !known {
			order = append(order, b.decision)
			saved[b.decision] = 0
			if b.decision == base {
				saved[b.decision] = 2 // needs no entry of its own
			}
		}
		weight := 4
		if b.src == AllPorts && b.dst.Last-b.dst.First < fewPorts {
			weight = 1 + int(b.dst.Last-b.dst.First)
		}
		saved[b.decision] += weight
	}
	rest := slices.MaxFunc(order, func(a, b *decision) int { return cmp.Compare(saved[a], saved[b]) })
	var out []entry
	if rest != base {
		out = append(out, entry{protocol, AllPorts, AllPorts, rest})
	}
	for _, b := range boxes {
		switch {
		case b.decision == rest:
		case b.src == AllPorts && b.dst.Last-b.dst.First < fewPorts:
			for port := uint32(b.dst.First); port <= uint32(b.dst.Last); port++ {
				out = append(out, entry{protocol, AllPorts, PortRange{uint16(port), uint16(port)}, b.decision})
			}
		default:
			out = append(out, b)
		}
	}
	return out
}
