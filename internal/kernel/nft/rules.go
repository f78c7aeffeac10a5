package nft

import (
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

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

func (h *half) family() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{h.nfproto}},
	}
}

func load(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

// skeletonRules are the rules of a chain of plan.Skeleton, encoded as nft itself does.
func skeletonRules(chain string) [][]expr.Any {
	if own, ok := hostPortRules[chain]; ok {
		return own()
	}
	var tunnels, out [][]expr.Any
	for _, h := range halves {
		in := func(offset uint32, name string, not bool) []expr.Any {
			return []expr.Any{load(offset, h.length), &expr.Lookup{SourceRegister: 1, SetName: name + h.suffix, Invert: not}}
		}
		family := h.family()
		drop := []expr.Any{ // udp dport @tunnels drop
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: 1, SetName: "tunnels"},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}
		dropIP := []expr.Any{ // meta l4proto @protocols drop
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: "protocols"},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}
		if chain == "input" {
			out = append(out, slices.Concat(family, in(h.src, "pods", false), drop), slices.Concat(family, in(h.src, "nodes", true), dropIP))
			continue
		}
		fromPod := slices.Concat(family, in(h.src, "pods", false), in(h.dst, "pods", true))
		tunnels = append(tunnels, slices.Concat(fromPod, drop), slices.Concat(fromPod, dropIP))
		masquerade := []expr.Any{&expr.Masq{FullyRandom: true}}
		out = append(out,
			slices.Concat(family, in(h.src, "masq", false), in(h.dst, "pods", true), h.multicast, masquerade),
			slices.Concat(family, in(h.src, "pods", true), in(h.dst, "masq", false), in(h.dst, "local", true), masquerade))
	}
	if chain == "postrouting" {
		tunnels = append(tunnels, slices.Concat(translated(true), jump("hide")))
	}
	return append(tunnels, out...)
}
