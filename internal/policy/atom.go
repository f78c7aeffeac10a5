package policy

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/selector"
)

// atomKind tells what an atom says of an address.
type atomKind uint8

const (
	atomSelector atomKind = iota // some holder's class matches
	atomPort                     // some workload calls these ports so
	atomNets                     // it lies in one of the nets, and in none of those left out
	atomOwn                      // it is one of the own node's
	atomService                  // it is an endpoint of a service, with these ports
)

// atom is one thing that some predicate asks of an address.
type atom struct {
	kind    atomKind
	text    string // canonical
	serial  uint64
	refs    int
	preds   map[*pred]struct{}
	marked  uint64 // round in which the predicates over it changed
	sel     selector.Selector
	name    string         // of the port
	service ServiceRef     // of which it tells
	nets    []netip.Prefix // what is left of them without those left out
	holders []*holder      // those that exist because of the atom
}

// fact is an atom that is true, with the protocols and ports (encodePorts) that make it so, if any.
type fact struct {
	atom  *atom
	ports string
}

// facts is what is true of an address: by serial and ports, without duplicates. Values are shared.
type facts []fact

func compareFact(a, b fact) int {
	return cmp.Or(cmp.Compare(a.atom.serial, b.atom.serial), strings.Compare(a.ports, b.ports))
}

func (f facts) text(to []byte) []byte {
	for i := range f {
		to = binary.AppendUvarint(to, f[i].atom.serial)
		to = binary.AppendUvarint(to, uint64(len(f[i].ports)))
		to = append(to, f[i].ports...)
	}
	return to
}

// find returns the facts about one atom.
func (f facts) find(a *atom) facts {
	i, _ := slices.BinarySearchFunc(f, a.serial, func(e fact, s uint64) int { return cmp.Compare(e.atom.serial, s) })
	end := i
	for end < len(f) && f[end].atom == a {
		end++
	}
	return f[i:end]
}

// with is the union of two.
func (f facts) with(g facts) facts {
	switch {
	case len(f) == 0:
		return g
	case len(g) == 0:
		return f
	}
	out := make(facts, 0, len(f)+len(g))
	for len(f) > 0 && len(g) > 0 {
		switch c := compareFact(f[0], g[0]); {
		case c < 0:
			out, f = append(out, f[0]), f[1:]
		case c > 0:
			out, g = append(out, g[0]), g[1:]
		default:
			out, f, g = append(out, f[0]), f[1:], g[1:]
		}
	}
	return append(append(out, f...), g...)
}

// without is f without what is said about the atom.
func (f facts) without(a *atom) facts {
	out := make(facts, 0, len(f))
	for _, e := range f {
		if e.atom != a {
			out = append(out, e)
		}
	}
	return out
}

// atoms knows all that predicates ask.
type atoms struct {
	by        map[string]*atom
	serial    uint64
	selectors index[*atom]
	ports     map[string]*atom
	services  map[ServiceRef]*atom
	own       *atom
	fresh     []*atom // of which classes and addresses do not know yet
	idle      []*atom // whose refs came to 0
}

func newAtoms() atoms {
	return atoms{by: map[string]*atom{}, selectors: newIndex[*atom](), ports: map[string]*atom{}, services: map[ServiceRef]*atom{}}
}

func (s *atoms) get(text string, fill func(*atom)) *atom {
	a := s.by[text]
	if a == nil {
		s.serial++
		a = &atom{text: text, serial: s.serial, preds: map[*pred]struct{}{}}
		fill(a)
		s.by[text] = a
		switch a.kind {
		case atomSelector:
			s.selectors.add(a.sel, a)
		case atomPort:
			s.ports[a.name] = a
		case atomService:
			s.services[a.service] = a
		case atomOwn:
			s.own = a
		}
		s.fresh = append(s.fresh, a)
	}
	a.refs++
	return a
}

func (s *atoms) release(a *atom) {
	if a.refs--; a.refs == 0 {
		s.idle = append(s.idle, a)
	}
}

// forget takes an idle atom out.
func (s *atoms) forget(a *atom) {
	delete(s.by, a.text)
	switch a.kind {
	case atomSelector:
		s.selectors.remove(a.sel, a)
	case atomPort:
		delete(s.ports, a.name)
	case atomService:
		delete(s.services, a.service)
	case atomOwn:
		s.own = nil
	}
}

func (s *atoms) selector(sel selector.Selector) *atom {
	return s.get("s"+sel.String(), func(a *atom) { a.kind, a.sel = atomSelector, sel })
}

func (s *atoms) port(name string) *atom {
	return s.get("p"+name, func(a *atom) { a.kind, a.name = atomPort, name })
}

func (s *atoms) ownNode() *atom {
	return s.get("o", func(a *atom) { a.kind = atomOwn })
}

func (s *atoms) endpoints(r ServiceRef) *atom {
	return s.get("v"+r.Namespace+"/"+r.Name, func(a *atom) { a.kind, a.service = atomService, r })
}

// net asks for an address in one of the nets and in none of the others.
func (s *atoms) net(in, except []netip.Prefix) *atom {
	text := []byte("n")
	lists := [2][]netip.Prefix{}
	for i, list := range [2][]netip.Prefix{in, except} {
		single, wide := split(list)
		for _, n := range single {
			lists[i] = append(lists[i], netip.PrefixFrom(n, n.BitLen()))
		}
		lists[i] = append(lists[i], wide...)
		for _, n := range lists[i] {
			text = append(n.AppendTo(text), ' ')
		}
		text = append(text, '-')
	}
	return s.get(string(text), func(a *atom) {
		a.kind = atomNets
		for _, n := range lists[0] {
			a.nets = appendWithout(a.nets, n, lists[1])
		}
		slices.SortFunc(a.nets, comparePrefix)
		a.nets = slices.Compact(a.nets)
	})
}

// appendWithout appends what is left of a net without others, as nets.
func appendWithout(to []netip.Prefix, n netip.Prefix, except []netip.Prefix) []netip.Prefix {
	var inside []netip.Prefix
	for _, e := range except {
		if !e.Overlaps(n) {
			continue
		}
		if e.Bits() <= n.Bits() {
			return to // all of it
		}
		inside = append(inside, e)
	}
	if len(inside) == 0 {
		return append(to, n)
	}
	bits := n.Bits() + 1
	low, high := netip.PrefixFrom(n.Addr(), bits), netip.PrefixFrom(lastAddr(n), bits).Masked()
	return appendWithout(appendWithout(to, low, inside), high, inside)
}
