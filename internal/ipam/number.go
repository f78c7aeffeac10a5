package ipam

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// number is an address as an unsigned integer of 128 bits; an IPv4 address uses the low 32.
type number struct{ hi, lo uint64 }

func numberOf(a netip.Addr) number {
	if a.Is4() {
		b := a.As4()
		return number{0, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// addr is the inverse of numberOf.
func (n number) addr(is4 bool) netip.Addr {
	if is4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n.lo)) //nolint:gosec // the low 32 bits are the address
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b)
}

func (n number) add(m number) number {
	lo, c := bits.Add64(n.lo, m.lo, 0)
	hi, _ := bits.Add64(n.hi, m.hi, c)
	return number{hi, lo}
}

func (n number) sub(m number) number {
	lo, b := bits.Sub64(n.lo, m.lo, 0)
	hi, _ := bits.Sub64(n.hi, m.hi, b)
	return number{hi, lo}
}

func (n number) less(m number) bool { return n.hi < m.hi || n.hi == m.hi && n.lo < m.lo }

// shl and shr move by s bits, 0..127.
func (n number) shl(s int) number {
	if s >= 64 {
		return number{n.lo << (s - 64), 0}
	}
	return number{n.hi<<s | n.lo>>(64-s), n.lo << s}
}

func (n number) shr(s int) number {
	if s >= 64 {
		return number{0, n.hi >> (s - 64)}
	}
	return number{n.hi >> s, n.lo>>s | n.hi<<(64-s)}
}

// capped is n, or most when n does not fit below it.
func (n number) capped(most uint64) uint64 {
	if n.hi != 0 || n.lo > most {
		return most
	}
	return n.lo
}

// last is the highest address of p.
func last(p netip.Prefix) netip.Addr {
	p = p.Masked()
	host := p.Addr().BitLen() - p.Bits()
	if host == 128 {
		return number{^uint64(0), ^uint64(0)}.addr(false)
	}
	size := number{0, 1}.shl(host)
	return numberOf(p.Addr()).add(size).sub(number{0, 1}).addr(p.Addr().Is4())
}
