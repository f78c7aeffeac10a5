package policy

import (
	"net/netip"
	"slices"
)

// indexed is what a map of ranges cannot find quickly: the same ranges, in order.
type indexed struct {
	nets   []netEntry
	ranges map[rowProtocol][]L4Key
}

type netEntry struct {
	AddrRange
	id ID
}

type rowProtocol struct {
	row      Row
	protocol uint8
}

// Shared by all decisions without a rule behind them.
var (
	itself   = &Reason{Action: Allow, Builtin: BuiltinItself}
	notTold  = Decision{Verdict: VerdictAllow}
	toItself = Decision{Verdict: VerdictAllow, Reason: itself}
	// missing is what the kernel does when an entry that must be there is not.
	missing = Decision{Verdict: VerdictDeny}
)

// Decide walks the table as the kernel does, for a packet between the local end and a remote address. For
// ICMP and ICMPv6, dport is type<<8|code; protocols without ports have 0. A local end that is not policed
// allows without a reason.
func (t *Table) Decide(l Local, remote netip.Addr, proto uint8, sport, dport uint16) Decision {
	base, ok := t.Locals[l]
	if !ok {
		return notTold
	}
	if l.Addr.IsValid() && l.Addr == remote {
		return toItself
	}
	row, ok := t.Rows[RowKey{l, t.identity(remote)}]
	if !ok {
		row = base
	}
	if d, ok := t.L4[L4Key{row, proto, AllPorts, PortRange{dport, dport}}]; ok {
		return d
	}
	if d, ok := t.ranged(row, proto, sport, dport); ok {
		return d
	}
	if d, ok := t.L4[L4Key{row, proto, AllPorts, AllPorts}]; ok {
		return d
	}
	if d, ok := t.Base[row]; ok {
		return d
	}
	return missing
}

// identity is that of a remote address.
func (t *Table) identity(a netip.Addr) ID {
	if id, ok := t.Identities[a]; ok {
		return id
	}
	if t.indexed == nil { // not made by a Compiler
		for r, id := range t.Nets {
			if r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0 {
				return id
			}
		}
		return 0
	}
	i, found := slices.BinarySearchFunc(t.indexed.nets, a, func(e netEntry, a netip.Addr) int { return e.First.Compare(a) })
	if !found {
		i--
	}
	if i >= 0 && a.Compare(t.indexed.nets[i].Last) <= 0 {
		return t.indexed.nets[i].id
	}
	return 0
}

// ranged looks among the entries that are neither one port nor a whole protocol.
func (t *Table) ranged(row Row, proto uint8, sport, dport uint16) (Decision, bool) {
	if t.indexed == nil {
		for k, d := range t.L4 {
			if k.Row == row && k.Protocol == proto && k.isRange() && k.has(sport, dport) {
				return d, true
			}
		}
		return Decision{}, false
	}
	for _, k := range t.indexed.ranges[rowProtocol{row, proto}] {
		if k.has(sport, dport) {
			return t.L4[k], true
		}
	}
	return Decision{}, false
}

func (k *L4Key) has(sport, dport uint16) bool {
	return k.Src.First <= sport && sport <= k.Src.Last && k.Dst.First <= dport && dport <= k.Dst.Last
}

// isRange: the entry is neither one destination port nor a whole protocol.
func (k *L4Key) isRange() bool {
	return k.Src != AllPorts || k.Dst != AllPorts && k.Dst.First != k.Dst.Last
}

// reindex keeps the order in step with the maps after a difference.
func (t *Table) reindex(d *Delta) {
	fresh := t.indexed == nil
	if fresh {
		t.indexed = &indexed{ranges: map[rowProtocol][]L4Key{}}
	}
	x := t.indexed
	if fresh || !d.Nets.Empty() {
		x.nets = x.nets[:0]
		for r, id := range t.Nets {
			x.nets = append(x.nets, netEntry{r, id})
		}
		slices.SortFunc(x.nets, func(a, b netEntry) int { return a.First.Compare(b.First) })
	}
	if fresh {
		for k := range t.L4 {
			x.add(k)
		}
		return
	}
	for k := range d.L4.Del {
		x.remove(k)
	}
	for k := range d.L4.Put {
		x.remove(k)
		x.add(k)
	}
}

func (x *indexed) add(k L4Key) {
	if k.isRange() {
		at := rowProtocol{k.Row, k.Protocol}
		x.ranges[at] = append(x.ranges[at], k)
	}
}

func (x *indexed) remove(k L4Key) {
	at := rowProtocol{k.Row, k.Protocol}
	list, ok := x.ranges[at]
	if !ok || !k.isRange() {
		return
	}
	if list = slices.DeleteFunc(list, func(o L4Key) bool { return o == k }); len(list) == 0 {
		delete(x.ranges, at)
	} else {
		x.ranges[at] = list
	}
}
