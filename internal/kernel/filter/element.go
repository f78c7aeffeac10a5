package filter

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

// ident is what tells an element of a set from the others: its key, where the set holds intervals of
// concatenations the key's end, and whether it is the end of an interval.
type ident [identSize + 1]byte

// identSize is the longest key: an interface name, a MAC and an IPv6 address.
const identSize = 16 + 8 + 16

func (i *ident) ends() bool { return i[identSize] != 0 }

// elements are elements of a set with their values; 0 in sets that are no maps.
type elements map[ident]uint32

// contents are the elements of several sets.
type contents map[*setSpec]elements

func (c contents) put(s *setSpec, i ident, value uint32) {
	e := c[s]
	if e == nil {
		e = elements{}
		c[s] = e
	}
	e[i] = value
}

// Verdicts as the chains know them. Nothing else has such a priority: rows and identities are smaller.
const (
	codeDeny     = 0xffffffff
	codeAllowLog = 0xfffffffe
	codeAllow    = 0xfffffffd
	codeContinue = 0xfffffffc
	// codeLeast is the first number that stands for no row and no identity.
	codeLeast = 0xfffffff0
)

func codeOf(v policy.Verdict) uint32 {
	switch v {
	case policy.VerdictAllow:
		return codeAllow
	case policy.VerdictAllowLog:
		return codeAllowLog
	case policy.VerdictContinue:
		return codeContinue
	}
	return codeDeny
}

// setsOf are the sets of a table by name.
func setsOf(t *tableSpec) map[string]*setSpec {
	out := map[string]*setSpec{}
	for _, s := range t.sets {
		out[s.name] = s
	}
	return out
}

var (
	inetTable, bridgeTable = skeleton[0], skeleton[1]
	inetSets, bridgeSets   = setsOf(inetTable), setsOf(bridgeTable)
)

// named is a set of the inet table.
func named(name string) *setSpec {
	s := inetSets[name]
	if s == nil {
		panic("set " + name)
	}
	return s
}

// pair are the sets of both families that have a name in common.
type pair [2]*setSpec

func paired(sets map[string]*setSpec, name string) pair { return pair{sets[name+"4"], sets[name+"6"]} }

func (p pair) of(a netip.Addr) *setSpec {
	if a.Is4() {
		return p[0]
	}
	return p[1]
}

// workloadSets are the sets of one direction.
type workloadSets struct{ policed, self, base, row pair }

// hostSets are the sets of one host hook.
type hostSets struct{ links, every, base, row, everyRow *setSpec }

var (
	identitySets = paired(inetSets, "id")
	netSets      = paired(inetSets, "net")
	workloads    = map[policy.Hook]workloadSets{
		policy.WorkloadIngress: {paired(inetSets, "in"), paired(inetSets, "self_in"), paired(inetSets, "base_in"), paired(inetSets, "row_in")},
		policy.WorkloadEgress:  {paired(inetSets, "out"), paired(inetSets, "self_out"), paired(inetSets, "base_out"), paired(inetSets, "row_out")},
	}
	hosts                             = hostSetsOf()
	portSet, rangeSet, protoSet, rows = named("ports"), named("ranges"), named("protos"), named("rows")
)

func hostSetsOf() map[policy.Hook]hostSets {
	out := map[policy.Hook]hostSets{}
	for _, h := range hooks {
		out[h.Hook] = hostSets{
			named("links_" + h.Name), named("any_" + h.Name), named("base_" + h.Name), named("row_" + h.Name), named("any_row_" + h.Name),
		}
	}
	return out
}

// keyOf joins parts to a key, each padded to whole registers when there are several.
func keyOf(parts ...[]byte) (i ident) {
	at := 0
	for _, p := range parts {
		at += int(padded(uint32(copy(i[at:], p))))
	}
	return i
}

// everyLink stands for all interfaces in a host endpoint.
const everyLink = "*"

// linkKey is an interface's name as the kernel pads it.
func linkKey(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func checkLink(noun, name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return &model.FieldError{Noun: noun, Field: "Link", Value: name, Want: fmt.Sprintf("1..%d bytes", unix.IFNAMSIZ-1)}
	}
	return nil
}

func checkNumber(noun string, n uint32) error {
	if n >= codeLeast {
		return &model.FieldError{Noun: noun, Field: "number", Value: fmt.Sprint(n), Want: fmt.Sprintf("less than %d", uint32(codeLeast))}
	}
	return nil
}

func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

// The elements of each noun. Those who take an entry out give value 0.

func identity(out contents, a netip.Addr, id policy.ID) {
	out.put(identitySets.of(a), keyOf(a.AsSlice()), uint32(id))
}

// netRange writes a range as its edges: the first address, with the value, and the first one after it,
// unless there is none. The first address of a family has an element of its own, which is always there
// (see fixed), and stays when del takes the range out.
func netRange(out contents, r policy.AddrRange, id policy.ID, del bool) {
	s, first := netSets.of(r.First), r.First
	if first.IsUnspecified() {
		if !del {
			out.put(s, keyOf(first.AsSlice()), uint32(id))
		}
		if first = first.Next(); r.Last.Less(first) {
			return
		}
	}
	out.put(s, keyOf(first.AsSlice()), uint32(id))
	if next := r.Last.Next(); next.IsValid() {
		end := keyOf(next.AsSlice())
		end[identSize] = 1
		out.put(s, end, 0)
	}
}

func local(out contents, l policy.Local, row policy.Row) error {
	if w, ok := workloads[l.Hook]; ok {
		a := l.Addr.AsSlice()
		out.put(w.policed.of(l.Addr), keyOf(a), 0)
		out.put(w.self.of(l.Addr), keyOf(a, a), 0)
		out.put(w.base.of(l.Addr), keyOf(a), uint32(row))
		return nil
	}
	h := hosts[l.Hook]
	if l.Link == everyLink {
		out.put(h.every, keyOf([]byte{unix.NFPROTO_IPV4}), 0)
		out.put(h.every, keyOf([]byte{unix.NFPROTO_IPV6}), 0)
		out.put(h.everyRow, keyOf(native(codeDeny)), uint32(row))
		return nil
	}
	out.put(h.links, keyOf(linkKey(l.Link)), 0)
	out.put(h.base, keyOf(linkKey(l.Link)), uint32(row))
	return checkLink("host endpoint", l.Link)
}

func rowOf(out contents, k policy.RowKey, row policy.Row) error {
	id := native(uint32(k.ID))
	if w, ok := workloads[k.Local.Hook]; ok {
		out.put(w.row.of(k.Local.Addr), keyOf(k.Local.Addr.AsSlice(), id), uint32(row))
		return nil
	}
	h := hosts[k.Local.Hook]
	if k.Local.Link == everyLink {
		out.put(h.everyRow, keyOf(id), uint32(row))
		return nil
	}
	out.put(h.row, keyOf(linkKey(k.Local.Link), id), uint32(row))
	return checkLink("host endpoint", k.Local.Link)
}

func l4(out contents, k policy.L4Key, v policy.Verdict) {
	s, i := l4Element(k)
	out.put(s, i, codeOf(v))
}

// l4Element tells which map holds an entry. For ICMP, what L4Key calls the destination port is where other
// protocols have the source port.
func l4Element(k policy.L4Key) (*setSpec, ident) {
	proto, row := []byte{k.Protocol}, native(uint32(k.Row))
	icmp := k.Protocol == unix.IPPROTO_ICMP || k.Protocol == unix.IPPROTO_ICMPV6
	switch {
	case k.Src == policy.AllPorts && k.Dst == policy.AllPorts:
		return protoSet, keyOf(proto, row)
	case k.Src == policy.AllPorts && k.Dst.First == k.Dst.Last:
		return portSet, keyOf(be16(k.Dst.First), proto, row)
	case icmp:
		k.Src, k.Dst = k.Dst, k.Src
	}
	row = binary.BigEndian.AppendUint32(nil, uint32(k.Row)) // the parts of intervals are compared as big endian
	return rangeSet, keyOf(be16(k.Src.First), be16(k.Dst.First), proto, row, be16(k.Src.Last), be16(k.Dst.Last), proto, row)
}

func base(out contents, r policy.Row, v policy.Verdict) {
	out.put(rows, keyOf(native(uint32(r))), codeOf(v))
}

// source writes what a workload may send, for routed and bridged ones alike: nobody but their interface
// tells them apart, and what is not asked for costs nothing.
func source(out contents, s policy.Source) error {
	if err := checkLink("source", s.Link); err != nil {
		return err
	}
	mac, err := net.ParseMAC(s.MAC)
	if err != nil || len(mac) != 6 {
		return &model.FieldError{Noun: "source " + s.Link, Field: "MAC", Value: s.MAC, Want: "six bytes, aa:bb:cc:dd:ee:ff"}
	}
	link := linkKey(s.Link)
	for _, sets := range []map[string]*setSpec{inetSets, bridgeSets} {
		out.put(sets["mac"], keyOf(link, mac), 0)
		out.put(paired(sets, "source").of(s.Addr), keyOf(link, mac, s.Addr.AsSlice()), 0)
	}
	if s.Addr.Is6() {
		out.put(bridgeSets["target6"], keyOf(link, mac, s.Addr.AsSlice()), 0)
	}
	return nil
}

// failSafe are Calico's defaults: ports of a host that no policy closes, so that nobody locks himself out.
var failSafe = map[string]map[uint8][]uint16{
	"failsafe_in":  {unix.IPPROTO_TCP: {22, 179, 2379, 2380, 5473, 6443, 6666, 6667}, unix.IPPROTO_UDP: {68}},
	"failsafe_out": {unix.IPPROTO_TCP: {179, 2379, 2380, 5473, 6443, 6666, 6667}, unix.IPPROTO_UDP: {53, 67}},
}

// fixed are the elements that are always there. Those of the maps through which the chains fall when
// nothing is found carry a key that no packet has: when somebody flushes such a map it is missed, and
// everything is denied until the map is repaired.
func fixed(out contents, o stated) {
	for name, protos := range failSafe {
		for proto, ports := range protos {
			for _, p := range ports {
				out.put(named(name), keyOf(be16(p), []byte{proto}), 0)
			}
		}
	}
	for _, sets := range []map[string]*setSpec{inetSets, bridgeSets} {
		for _, n := range []byte{133, 134, 135, 136, 137} { // RFC 4861
			out.put(sets["neighbor"], keyOf([]byte{n}), 0)
		}
		for _, n := range []byte{130, 131, 132, 143} { // RFC 2710, RFC 3810
			out.put(sets["listener"], keyOf([]byte{n}), 0)
		}
	}
	for _, name := range o.inside {
		out.put(named("inside"), keyOf(linkKey(name)), 0)
	}
	if o.logged {
		for _, family := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
			out.put(named("logged"), keyOf([]byte{family}), 0)
		}
	}
	none := native(0)
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		identity(out, a, 0)
		netRange(out, policy.AddrRange{First: a, Last: a}, 0, false)
		end := keyOf(a.Next().AsSlice())
		end[identSize] = 1
		out.put(netSets.of(a), end, 0)
		for _, w := range workloads {
			out.put(w.row.of(a), keyOf(a.AsSlice(), none), 0)
		}
	}
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE} {
		out.put(portSet, keyOf(be16(0), []byte{proto}, none), 0)
	}
	out.put(protoSet, keyOf([]byte{0}, none), 0)
	all := be16(0xffff)
	out.put(rangeSet, keyOf(be16(0), be16(0), []byte{0}, none, be16(0), all, []byte{0xff}, none), 0)
}

// stated is what elements follow from beside the table.
type stated struct {
	inside []string // as in Options
	logged bool     // what is allowed is logged too
}

// elementsOf are all elements for a table.
func elementsOf(t *policy.Table, l locals, o stated) (contents, []error) {
	out := contents{}
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	fixed(out, o)
	for a, id := range t.Identities {
		note(checkNumber("identity", uint32(id)))
		identity(out, a, id)
	}
	for r, id := range t.Nets {
		note(checkNumber("identity", uint32(id)))
		netRange(out, r, id, false)
	}
	for l, row := range t.Locals {
		note(local(out, l, row))
	}
	for k, row := range t.Rows {
		note(rowOf(out, k, row))
	}
	for k, d := range t.L4 {
		l4(out, k, d.Verdict)
	}
	for r, d := range t.Base {
		note(checkNumber("row", uint32(r)))
		base(out, r, d.Verdict)
	}
	shared, err := l.derived()
	note(err)
	maps.Copy(out, shared) // sets of their own
	return out, errs
}
