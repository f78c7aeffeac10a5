package policy

import (
	"net/netip"
	"slices"
)

// netRange is a range of addresses of which the same is true, apart from what is true of single ones.
type netRange struct {
	AddrRange
	group *group
}

// netList is disjoint ranges, in order.
type netList []netRange

// search counts the ranges that begin at or before the address.
func (l netList) search(a netip.Addr) int {
	lo, hi := 0, len(l)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if l[m].First.Compare(a) <= 0 {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// find returns the group of the range around the address, or nil.
func (l netList) find(a netip.Addr) *group {
	i := l.search(a)
	if i == 0 || l[i-1].Last.Compare(a) < 0 {
		return nil
	}
	return l[i-1].group
}

// around returns the group of all addresses of a bucket, or nil when they are in no range; ok is false when
// they are not all alike.
func (l netList) around(k *bucket) (g *group, ok bool) {
	i := l.search(k.first)
	if i > 0 && k.first.Compare(l[i-1].Last) <= 0 {
		return l[i-1].group, k.last.Compare(l[i-1].Last) <= 0
	}
	return nil, i == len(l) || k.last.Compare(l[i].First) < 0
}

// netFacts is a prefix and what is true in it.
type netFacts struct {
	prefix netip.Prefix
	facts  facts
}

// cutNets makes disjoint ranges of nets that lie in each other; group makes groups of facts.
func cutNets(nets []netFacts, group func(facts) *group) netList {
	slices.SortStableFunc(nets, func(a, b netFacts) int { return comparePrefix(a.prefix, b.prefix) })
	type open struct {
		last  netip.Addr
		facts facts
	}
	var (
		out   netList
		stack []open
		from  netip.Addr // where what is open goes on; invalid past the last address of all
	)
	emit := func(to netip.Addr, f facts) {
		if from.IsValid() && from.Compare(to) <= 0 && len(f) > 0 {
			out = append(out, netRange{AddrRange{from, to}, group(f)})
		}
	}
	closeTop := func() {
		top := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		emit(top.last, top.facts)
		from = top.last.Next()
	}
	for i := 0; i < len(nets); {
		n := nets[i]
		for i++; i < len(nets) && nets[i].prefix == n.prefix; i++ {
			n.facts = n.facts.with(nets[i].facts)
		}
		first := n.prefix.Addr()
		for len(stack) > 0 && stack[len(stack)-1].last.Compare(first) < 0 {
			closeTop()
		}
		if len(stack) > 0 {
			top := stack[len(stack)-1]
			if from.Compare(first) < 0 {
				emit(first.Prev(), top.facts)
			}
			n.facts = top.facts.with(n.facts)
		}
		from = first
		stack = append(stack, open{lastAddr(n.prefix), n.facts})
	}
	for len(stack) > 0 {
		closeTop()
	}
	return out
}

// lastAddr is the last address of a masked prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	for i := bits; i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// ids are the ranges with their identities: without those of none, and neighbours with the same put together.
func (l netList) ids() map[AddrRange]ID {
	out := map[AddrRange]ID{}
	var (
		last AddrRange
		id   ID
	)
	for _, r := range l {
		n := r.group.identity.num
		if n != 0 && n == id && last.Last.Next() == r.First {
			last.Last = r.Last
			continue
		}
		if id != 0 {
			out[last] = id
		}
		last, id = r.AddrRange, n
	}
	if id != 0 {
		out[last] = id
	}
	return out
}
