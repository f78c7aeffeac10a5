package nft

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// Policies of a chain: NF_DROP and NF_ACCEPT of linux/netfilter.h.
const (
	policyDrop   = 0
	policyAccept = 1
)

var ownTable = tableKey{nftables.TableFamilyINet, plan.Table}

// chains are those of the skeleton. The nat hooks run them for the first packet of a flow.
var chains = []chain{
	{table: ownTable, name: "input", base: true, kind: "nat", hook: unix.NF_INET_LOCAL_IN, priority: 100, policy: policyAccept},
	{table: ownTable, name: "postrouting", base: true, kind: "nat", hook: unix.NF_INET_POST_ROUTING, priority: 100, policy: policyAccept},
}

// half is what the rules of one family differ in.
type half struct {
	suffix    string // of the sets' names
	nfproto   byte
	src, dst  uint32 // offsets in the header, bytes
	length    uint32 // of an address, bytes
	multicast []expr.Any
}

var halves = []half{
	{"4", unix.NFPROTO_IPV4, 12, 16, 4, []expr.Any{ // ip daddr != 224.0.0.0/4
		load(16, 4),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{0xf0, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{224, 0, 0, 0}},
	}},
	{"6", unix.NFPROTO_IPV6, 8, 24, 16, []expr.Any{ // ip6 daddr != ff00::/8
		load(24, 1),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0xff}},
	}},
}

func load(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

// skeletonRules are the rules of a chain of plan.Skeleton, encoded as nft itself does.
func skeletonRules(chain string) [][]expr.Any {
	var tunnels, out [][]expr.Any
	for _, h := range halves {
		in := func(offset uint32, name string, not bool) []expr.Any {
			return []expr.Any{load(offset, h.length), &expr.Lookup{SourceRegister: 1, SetName: name + h.suffix, Invert: not}}
		}
		family := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{h.nfproto}},
		}
		drop := []expr.Any{ // udp dport @tunnels drop
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: 1, SetName: "tunnels"},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}
		if chain == "input" {
			out = append(out, slices.Concat(family, in(h.src, "pods", false), drop))
			continue
		}
		tunnels = append(tunnels, slices.Concat(family, in(h.src, "pods", false), in(h.dst, "pods", true), drop))
		masquerade := []expr.Any{&expr.Masq{FullyRandom: true}}
		out = append(out,
			slices.Concat(family, in(h.src, "masq", false), in(h.dst, "pods", true), h.multicast, masquerade),
			slices.Concat(family, in(h.src, "pods", true), in(h.dst, "masq", false), in(h.dst, "local", true), masquerade))
	}
	return append(tunnels, out...)
}

// wantSet is one set as it should be.
type wantSet struct {
	name  string
	key   nftables.SetDatatype
	flags uint32
	elems []elem
}

func (w *wantSet) set(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: w.name, KeyType: w.key, Interval: w.flags == unix.NFT_SET_INTERVAL}
}

func wantSets(f plan.Filter) []wantSet {
	var out []wantSet
	for _, s := range f.Sets() {
		key := nftables.TypeIPAddr
		if strings.HasSuffix(s.Name, "6") {
			key = nftables.TypeIP6Addr
		}
		if s.Name == "tunnels" {
			out = append(out, wantSet{s.Name, nftables.TypeInetService, 0, ports(s.Ports)})
			continue
		}
		out = append(out, wantSet{s.Name, key, unix.NFT_SET_INTERVAL, intervals(s.Elements)})
	}
	return out
}

func ports(list []uint16) []elem {
	var out []elem
	for _, p := range list {
		out = append(out, elem{key: string(binary.BigEndian.AppendUint16(nil, p))})
	}
	return out
}

// intervals are the edges of prefixes, sorted: begin, and the first address after the end unless the
// prefix reaches the family's last address. A prefix within another adds nothing.
func intervals(prefixes []netip.Prefix) []elem {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, netip.Prefix.Compare)
	var out []elem
	var last netip.Prefix
	for _, p := range sorted {
		p = p.Masked()
		if last.IsValid() && last.Overlaps(p) {
			continue
		}
		last = p
		out = append(out, elem{key: string(p.Addr().AsSlice())})
		if next := lastOf(p).Next(); next.IsValid() {
			out = append(out, elem{key: string(next.AsSlice()), end: true})
		}
	}
	sortElems(out)
	return out
}

func sortElems(es []elem) {
	slices.SortFunc(es, func(a, b elem) int {
		if c := strings.Compare(a.key, b.key); c != 0 {
			return c
		}
		if a.end == b.end {
			return 0
		}
		if a.end { // one interval ends where the next begins
			return -1
		}
		return 1
	})
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// repair buffers in c what makes the table equal to f, and counts the objects. A table whose form is
// not the skeleton's is made anew.
func repair(c *nftables.Conn, have *table, f plan.Filter) (int, error) {
	if have == nil || !sameForm(have) {
		return rebuild(c, f)
	}
	t := &nftables.Table{Name: plan.Table, Family: nftables.TableFamilyINet}
	n := 0
	for _, w := range wantSets(f) {
		i := slices.IndexFunc(have.sets, func(s set) bool { return s.name == w.name })
		gone, missing := compareElems(have.sets[i].elems, w.elems)
		if len(gone)+len(missing) == 0 {
			continue
		}
		n += len(gone) + len(missing)
		s := w.set(t)
		if len(gone) > 0 { // the edges of intervals cannot be taken out one by one
			c.FlushSet(s)
			missing = w.elems
		}
		if err := addElems(c, s, missing); err != nil {
			return 0, err
		}
	}
	for _, w := range chains {
		have := slices.DeleteFunc(slices.Clone(have.rules), func(r rule) bool { return r.chain != w.name })
		if want := skeletonRules(w.name); !slices.EqualFunc(have, want, sameRule) {
			ch := &nftables.Chain{Name: w.name, Table: t}
			c.FlushChain(ch)
			n += addRules(c, t, ch, want)
		}
	}
	return n, nil
}

// rebuild buffers the whole table, in place of whatever is there.
func rebuild(c *nftables.Conn, f plan.Filter) (int, error) {
	t := &nftables.Table{Name: plan.Table, Family: nftables.TableFamilyINet}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	n := 1 // the table
	for _, w := range wantSets(f) {
		s := w.set(t)
		if err := c.AddSet(s, nil); err != nil {
			return 0, err
		}
		if err := addElems(c, s, w.elems); err != nil {
			return 0, err
		}
		n += 1 + len(w.elems)
	}
	for _, w := range chains {
		hook, priority, policy := nftables.ChainHook(w.hook), nftables.ChainPriority(w.priority), nftables.ChainPolicyAccept
		ch := c.AddChain(&nftables.Chain{
			Name: w.name, Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: &hook, Priority: &priority, Policy: &policy,
		})
		n += 1 + addRules(c, t, ch, skeletonRules(w.name))
	}
	return n, nil
}

func addRules(c *nftables.Conn, t *nftables.Table, ch *nftables.Chain, rules [][]expr.Any) int {
	for _, exprs := range rules {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: exprs})
	}
	return len(rules)
}

func addElems(c *nftables.Conn, s *nftables.Set, elems []elem) error {
	if len(elems) == 0 {
		return nil
	}
	out := make([]nftables.SetElement, len(elems))
	for i, e := range elems {
		out[i] = nftables.SetElement{Key: []byte(e.key), IntervalEnd: e.end}
	}
	return c.SetAddElements(s, out)
}

// sameForm tells whether the table has the skeleton's chain and sets, and nothing else.
func sameForm(t *table) bool {
	want := wantSets(plan.Filter{})
	if t.flags != 0 || len(t.chains) != len(chains) || len(t.sets) != len(want) {
		return false
	}
	for _, w := range chains {
		if !slices.Contains(t.chains, w) {
			return false
		}
	}
	for _, w := range want {
		if !slices.ContainsFunc(t.sets, func(s set) bool {
			return s.name == w.name && s.flags == w.flags &&
				s.keyType == w.key.GetNFTMagic() && s.keyLen == w.key.Bytes
		}) {
			return false
		}
	}
	return true
}

func sameRule(have rule, want []expr.Any) bool {
	return slices.EqualFunc(have.exprs, want, func(a any, b expr.Any) bool { return reflect.DeepEqual(a, any(b)) })
}

// compareElems compares edges. nft marks the space before the first interval with an end at the zero
// address, which means nothing.
func compareElems(have, want []elem) (gone, missing []elem) {
	left := map[elem]bool{}
	for _, e := range want {
		left[e] = true
	}
	for _, e := range have {
		switch {
		case left[e]:
			delete(left, e)
		case e.end && len(bytes.Trim([]byte(e.key), "\x00")) == 0:
		default:
			gone = append(gone, e)
		}
	}
	for _, e := range want {
		if left[e] {
			missing = append(missing, e)
		}
	}
	return gone, missing
}
