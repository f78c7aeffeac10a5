package nft

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// wantSet is one set or map as it should be.
type wantSet struct {
	name  string
	key   nftables.SetDatatype
	data  nftables.SetDatatype // of maps
	flags uint32
	elems []elem
}

func (w *wantSet) set(t *nftables.Table) *nftables.Set {
	s := &nftables.Set{
		Table: t, Name: w.name, KeyType: w.key, DataType: w.data, IsMap: w.flags&unix.NFT_SET_MAP != 0,
		Interval: w.flags&unix.NFT_SET_INTERVAL != 0, Concatenation: w.flags&nftables.NFT_SET_CONCAT != 0,
	}
	if w.key == nftables.TypeIFName {
		s.KeyByteOrder = binaryutil.NativeEndian // or nft prints no names
	}
	return s
}

// sameForm tells whether a set is that one, whatever its elements.
func (w *wantSet) sameForm(s set) bool {
	return s.name == w.name && s.flags == w.flags &&
		s.keyType == w.key.GetNFTMagic() && s.keyLen == w.key.Bytes &&
		s.dataType == w.data.GetNFTMagic() && s.dataLen == w.data.Bytes
}

func wantSets(f plan.Filter) []wantSet {
	var out []wantSet
	for _, s := range f.Sets() {
		addr := nftables.TypeIPAddr
		if strings.HasSuffix(s.Name, "6") {
			addr = nftables.TypeIP6Addr
		}
		w := wantSet{name: s.Name, key: addr, flags: unix.NFT_SET_INTERVAL}
		switch strings.TrimRight(s.Name, "46") {
		case "tunnels":
			w.key, w.flags, w.elems = nftables.TypeInetService, 0, ports(s.Ports)
		case "protocols":
			w.key, w.flags = nftables.TypeInetProto, 0
			for _, p := range s.Protocols {
				w.elems = append(w.elems, elem{key: string([]byte{p})})
			}
		case "bridges":
			w.key, w.flags, w.elems = nftables.TypeIFName, 0, links(s.Links)
		case "hostports":
			w.key, w.flags = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService), unix.NFT_SET_MAP
			w.data, w.elems = nftables.MustConcatSetType(addr, nftables.TypeInetService), destinations(s.HostPorts, false)
		case "hostports_at":
			w.key, w.flags = nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService), unix.NFT_SET_MAP
			w.data, w.elems = nftables.MustConcatSetType(addr, nftables.TypeInetService), destinations(s.HostPorts, true)
		case "hide":
			w.key = nftables.MustConcatSetType(addr, addr, nftables.TypeInetService, nftables.TypeInetService)
			w.flags, w.elems = unix.NFT_SET_INTERVAL|nftables.NFT_SET_CONCAT, hidden(s.HostPorts)
		default:
			w.elems = intervals(s.Elements)
		}
		out = append(out, w)
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

func links(names []string) []elem {
	var out []elem
	for _, n := range names {
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, n)
		out = append(out, elem{key: string(name)})
	}
	return out
}

// A concatenation's parts are filled up to four bytes.

func portPart(p uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, p), 0, 0) }

func protocolPart(name string) []byte { return []byte{protocols[name], 0, 0, 0} }

// protocols of host ports, and of the rules that hide their users.
var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// destinations are the elements of the maps of host ports, with the node's address in the key or without.
func destinations(ps []plan.HostPort, at bool) []elem {
	var out []elem
	for _, p := range ps {
		key := slices.Concat(protocolPart(p.Protocol), portPart(p.Port))
		if at {
			key = slices.Concat(p.Address.AsSlice(), key)
		}
		out = append(out, elem{key: string(key), data: string(slices.Concat(p.To.Addr().AsSlice(), portPart(p.To.Port())))})
	}
	return out
}

// hidden are the elements of the sets of whom to masquerade: a range of sources, and one in each other part.
func hidden(ps []plan.HostPort) []elem {
	var out []elem
	for _, p := range ps {
		rest := slices.Concat(p.To.Addr().AsSlice(), portPart(p.To.Port()), portPart(p.Port))
		for _, from := range p.Hide {
			out = append(out, elem{
				key:  string(slices.Concat(from.Masked().Addr().AsSlice(), rest)),
				last: string(slices.Concat(lastOf(from).AsSlice(), rest)),
			})
		}
	}
	return out
}

// fill buffers what makes the elements of a set that is there those wanted, and counts them.
func fill(c *nftables.Conn, t *nftables.Table, have []elem, w *wantSet) (int, error) {
	gone, missing := compareElems(have, w.elems)
	if len(gone)+len(missing) == 0 {
		return 0, nil
	}
	n := len(gone) + len(missing)
	s := w.set(t)
	if len(gone) > 0 { // the edges of intervals cannot be taken out one by one
		c.FlushSet(s)
		missing = w.elems
	}
	return n, addElems(c, s, missing)
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

func addElems(c *nftables.Conn, s *nftables.Set, elems []elem) error {
	if len(elems) == 0 {
		return nil
	}
	out := make([]nftables.SetElement, len(elems))
	for i, e := range elems {
		out[i] = nftables.SetElement{Key: []byte(e.key), IntervalEnd: e.end, KeyEnd: []byte(e.last), Val: []byte(e.data)}
	}
	return c.SetAddElements(s, out)
}

// compareElems compares edges and elements. nft marks the space before the first interval with an end at the zero
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
