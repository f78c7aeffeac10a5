package policy

import (
	"net/netip"
	"slices"
)

// holder is something that has addresses: a workload, a host endpoint, a network set; and what a predicate
// names itself, such as a list of nets, the own node, or the endpoints of a service.
type holder struct {
	class *class // nil: fixed says what is true of it
	pos   int    // in class.holders
	local bool   // a workload or host endpoint that is policed here
	dirty bool   // its class is to be found anew
	addrs []*address
	wide  *wide
}

// wide is what few holders have.
type wide struct {
	fixed facts
	nets  []netip.Prefix // those of more than one address; masked, without duplicates
}

// facts is what is true of every address of the holder.
func (h *holder) facts() facts {
	if h.class != nil {
		return h.class.facts
	}
	if h.wide != nil {
		return h.wide.fixed
	}
	return nil
}

// address is one address that some holder has.
type address struct {
	addr  netip.Addr
	group *group  // what is true of it
	net   *group  // what is true of the range around it
	owner *holder // one of them; the others are in book.more
	pos   int32   // in group.members
	dirty bool    // its group is to be found anew
}

// book knows all addresses, in buckets of neighbours: a change of nets looks at whole buckets.
type book struct {
	buckets map[netip.Addr]*bucket // by first address
	count   int
	more    map[*address][]*holder
	dirty   []*address
	wide    map[*holder]struct{} // holders with nets
	// netsDirty: the nets, or what is true of them, changed.
	netsDirty bool
}

func newBook() book {
	return book{buckets: map[netip.Addr]*bucket{}, more: map[*address][]*holder{}, wide: map[*holder]struct{}{}}
}

// bucket is the known ones of 256 addresses that differ in the last byte only, in order.
type bucket struct {
	first, last netip.Addr
	list        []*address
}

// bucketOf is the first address of the bucket.
func bucketOf(a netip.Addr) netip.Addr {
	p, err := a.Prefix(a.BitLen() - 8)
	if err != nil {
		return a // not reached: the address is valid
	}
	return p.Addr()
}

func (k *bucket) find(a netip.Addr) (int, bool) {
	return slices.BinarySearchFunc(k.list, a, func(e *address, a netip.Addr) int { return e.addr.Compare(a) })
}

// get returns what is known of an address, or nil.
func (b *book) get(a netip.Addr) *address {
	if k := b.buckets[bucketOf(a)]; k != nil {
		if i, ok := k.find(a); ok {
			return k.list[i]
		}
	}
	return nil
}

// add makes an address known.
func (b *book) add(n netip.Addr) *address {
	first := bucketOf(n)
	k := b.buckets[first]
	if k == nil {
		k = &bucket{first: first, last: lastAddr(netip.PrefixFrom(first, first.BitLen()-8))}
		b.buckets[first] = k
	}
	i, ok := k.find(n)
	if !ok {
		k.list = slices.Insert(k.list, i, &address{addr: n})
		b.count++
	}
	return k.list[i]
}

// forget is the opposite of add.
func (b *book) forget(a *address) {
	first := bucketOf(a.addr)
	k := b.buckets[first]
	if i, ok := k.find(a.addr); ok {
		k.list = slices.Delete(k.list, i, i+1)
		b.count--
	}
	if len(k.list) == 0 {
		delete(b.buckets, first)
	}
}

// each calls f for all addresses.
func (b *book) each(f func(*address)) {
	for _, k := range b.buckets {
		for _, a := range k.list {
			f(a)
		}
	}
}

func (b *book) touch(a *address) {
	if !a.dirty {
		a.dirty = true
		b.dirty = append(b.dirty, a)
	}
}

// touchHolder says that what is true of the holder's addresses may have changed.
func (b *book) touchHolder(h *holder) {
	for _, a := range h.addrs {
		b.touch(a)
	}
	if h.wide != nil && len(h.wide.nets) > 0 {
		b.netsDirty = true
	}
}

// give makes the addresses and nets those of the holder.
func (b *book) give(h *holder, addrs []netip.Addr, nets []netip.Prefix) {
	h.addrs = make([]*address, 0, len(addrs))
	for _, n := range addrs {
		a := b.add(n)
		switch {
		case a.owner == nil:
			a.owner = h
		case a.owner == h || slices.Contains(b.more[a], h):
			continue
		default:
			b.more[a] = append(b.more[a], h)
		}
		h.addrs = append(h.addrs, a)
		b.touch(a)
	}
	if len(nets) > 0 {
		if h.wide == nil {
			h.wide = &wide{}
		}
		h.wide.nets = nets
		b.wide[h] = struct{}{}
		b.netsDirty = true
	}
}

// take is the opposite of give. Addresses without owners go when their group is found anew.
func (b *book) take(h *holder) {
	for _, a := range h.addrs {
		if a.owner == h {
			a.owner = nil
			if m := b.more[a]; len(m) > 0 {
				a.owner = m[0]
				b.setMore(a, m[1:])
			}
		} else {
			b.setMore(a, slices.DeleteFunc(b.more[a], func(o *holder) bool { return o == h }))
		}
		b.touch(a)
	}
	h.addrs = nil
	if h.wide != nil && len(h.wide.nets) > 0 {
		h.wide.nets = nil
		delete(b.wide, h)
		b.netsDirty = true
	}
}

func (b *book) setMore(a *address, m []*holder) {
	if len(m) == 0 {
		delete(b.more, a)
	} else {
		b.more[a] = m
	}
}

// owners calls f for every holder of the address.
func (b *book) owners(a *address, f func(*holder)) {
	if a.owner != nil {
		f(a.owner)
	}
	if len(b.more) > 0 {
		for _, h := range b.more[a] {
			f(h)
		}
	}
}

// split canonicalises nets: those of one address, and the others; invalid ones are left out.
func split(nets []netip.Prefix) (single []netip.Addr, wide []netip.Prefix) {
	all := make([]netip.Prefix, 0, len(nets))
	for _, p := range nets {
		if p = p.Masked(); p.IsValid() {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, comparePrefix)
	for _, p := range slices.Compact(all) {
		if p.IsSingleIP() {
			single = append(single, p.Addr())
		} else {
			wide = append(wide, p)
		}
	}
	return single, wide
}

// comparePrefix puts a prefix before those in it.
func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// usableAddrs leaves out what is no address, zones and duplicates.
func usableAddrs(in []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(in))
	for _, a := range in {
		if a = a.WithZone(""); a.IsValid() && (len(in) == 1 || len(in) > 16 || !slices.Contains(out, a)) {
			out = append(out, a)
		}
	}
	return out
}
