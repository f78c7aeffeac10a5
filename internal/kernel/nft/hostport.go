package nft

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
)

// Registers of 32 bits, as the kernel counts them; the first four of each 128 bits are called 1, 2, 3, 4 as a whole.
const (
	reg32 = unix.NFT_REG32_00
	// linkGroup is that of workloads' veths (internal/kernel/netlink).
	linkGroup = 0x68
	loopback  = 127 // the first byte of IPv4's
)

// hostPortRules are the rules of the chains that are about host ports.
var hostPortRules = map[string]func() [][]expr.Any{
	"hostports": lookupRules,
	"hide":      hideRules,
	"prerouting": func() [][]expr.Any {
		return [][]expr.Any{slices.Concat(toLocal(), jump("hostports"))}
	},
	"output": func() [][]expr.Any {
		own := slices.Concat(halves[1].family(), []expr.Any{ // ip6 saddr ::1 return
			load(halves[1].src, 16),
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append(make([]byte, 15), 1)},
			&expr.Verdict{Kind: expr.VerdictReturn},
		})
		return [][]expr.Any{own, slices.Concat(toLocal(), jump("hostports"))}
	},
	"localnet": localnetRules,
}

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// toLocal is `fib daddr type local`.
func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// translated is `ct status dnat`, or the contrary.
func translated(yes bool) []expr.Any {
	const dnat = 1 << 5 // IPS_DST_NAT
	op := expr.CmpOpNeq
	if !yes {
		op = expr.CmpOpEq
	}
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dnat), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)},
	}
}

// register names the one that begins after so many words of 32 bits.
func register(words uint32) uint32 {
	if words%4 == 0 {
		return unix.NFT_REG_1 + words/4
	}
	return reg32 + words
}

// lookupRules are `dnat ip to ip daddr . meta l4proto . th dport map @hostports_at4`, the same without the address, and
// both of IPv6.
func lookupRules() [][]expr.Any {
	var out [][]expr.Any
	for _, h := range halves {
		words := h.length / 4
		key := func(at uint32) []expr.Any {
			return []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register(at)},
				&expr.Payload{DestRegister: register(at + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			}
		}
		to := func(name string) []expr.Any {
			return []expr.Any{
				&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: name + h.suffix},
				&expr.NAT{
					Type: expr.NATTypeDestNAT, Family: uint32(h.nfproto), RegAddrMin: 1, RegAddrMax: 1,
					RegProtoMin: register(words), RegProtoMax: register(words), Specified: true,
				},
			}
		}
		out = append(out,
			slices.Concat(h.family(), []expr.Any{load(h.dst, h.length)}, key(words), to("hostports_at")),
			slices.Concat(key(0), to("hostports")))
	}
	return out
}

// hideRules are `ip saddr . ip daddr . tcp dport . ct original proto-dst @hide4 masquerade fully-random`, the same for
// other protocols, and all of IPv6.
func hideRules() [][]expr.Any {
	var out [][]expr.Any
	for _, h := range halves {
		words := h.length / 4
		for _, name := range model.HostPortProtocols {
			dst := &expr.Payload{DestRegister: register(words), Base: expr.PayloadBaseNetworkHeader, Offset: h.dst, Len: h.length}
			out = append(out, slices.Concat(h.family(), []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocols[name]}},
				load(h.src, h.length), dst,
				&expr.Payload{DestRegister: register(2 * words), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Ct{Key: expr.CtKeyPROTODST, Register: register(2*words + 1)},
				&expr.Lookup{SourceRegister: 1, SetName: "hide" + h.suffix},
				&expr.Masq{FullyRandom: true},
			}))
		}
	}
	return out
}

// localnetRules drop what has a loopback address and comes in by a link of workloads, as the source, or as the
// destination of anything but an answer to what the node began.
func localnetRules() [][]expr.Any {
	by := [][]expr.Any{{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: "bridges"},
	}, {
		&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, linkGroup)},
	}}
	h := &halves[0]
	var out [][]expr.Any
	for _, offset := range []uint32{h.src, h.dst} {
		for _, in := range by {
			rule := slices.Concat(h.family(), []expr.Any{
				load(offset, 1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{loopback}},
			}, in)
			if offset == h.dst {
				rule = append(rule, translated(false)...)
			}
			out = append(out, append(rule, &expr.Verdict{Kind: expr.VerdictDrop}))
		}
	}
	return out
}
