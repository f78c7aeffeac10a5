// Package ipam decides which block a node takes and which address a workload gets.
//
// It is pure: values in, values out; the clock and the randomness are arguments. Who claims a block
// with others looking on is the store's business, what was given out is on record in the ledger.
package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/internal/model"
)

// ErrPoolFull is what a *PoolFullError is, for errors.Is.
var ErrPoolFull = errors.New("pool full")

// PoolFullError says that every block of a pool is taken.
type PoolFullError struct {
	Pool      string
	First     netip.Addr // base address of the first block that may be handed out
	Last      netip.Addr // and of the last
	BlockSize int
	Taken     uint64 // blocks in the range that somebody owns
}

func (e *PoolFullError) Error() string {
	return fmt.Sprintf("pool %q: no free /%d block in %s..%s: all %d are taken", e.Pool, e.BlockSize, e.First, e.Last, e.Taken)
}

// Is makes errors.Is(err, ErrPoolFull) true.
func (e *PoolFullError) Is(target error) bool { return target == ErrPoolFull }

// span is a run of block numbers, both ends included.
type span struct{ from, to uint64 }

// maxBlocks bounds block numbers so that sums of them fit; only the first 2^62 blocks of a larger
// IPv6 pool are handed out.
const maxBlocks = 1 << 62

// PickBlock names a free block of the pool between Min and Max (both included; by default the whole
// range). taken are the blocks that have owners, in any order and of any size: what they cover is not
// free. Attempt 0 gives the lowest free block; later attempts, after somebody else was faster, give one
// that seed and attempt choose among the lowest 8^attempt that are free: many nodes that claim at
// once part ways, and few nodes get low numbers.
// The cost depends on the number of taken blocks only. The error is a *PoolFullError.
func PickBlock(pool model.Pool, taken []netip.Prefix, attempt int, seed uint64) (netip.Prefix, error) {
	is4 := pool.CIDR.Addr().Is4()
	shift := pool.CIDR.Addr().BitLen() - pool.BlockSize
	first, end := pool.CIDR.Masked().Addr(), netip.PrefixFrom(last(pool.CIDR), pool.BlockSize).Masked().Addr()
	if pool.Min.IsValid() {
		first = pool.Min
	}
	if pool.Max.IsValid() {
		end = pool.Max
	}
	low, high := numberOf(first), numberOf(end)
	count := high.sub(low).shr(shift).capped(maxBlocks-1) + 1

	runs := occupied(taken, is4, low, shift, count)
	used := uint64(0)
	for _, r := range runs {
		used += r.to - r.from + 1
	}
	if used == count {
		return netip.Prefix{}, &PoolFullError{Pool: pool.Name, First: first, Last: end, BlockSize: pool.BlockSize, Taken: used}
	}
	nth := uint64(0)
	if attempt > 0 {
		window := min(count-used, 1<<min(3*attempt, 60))
		nth = mix(seed+uint64(attempt)*0x9e3779b97f4a7c15) % window
	}
	for _, r := range runs { // nth counts free blocks; every run below it moves it up
		if nth < r.from {
			break
		}
		nth += r.to - r.from + 1
	}
	return netip.PrefixFrom(low.add(number{0, nth}.shl(shift)).addr(is4), pool.BlockSize), nil
}

// occupied turns prefixes into sorted runs of block numbers below count that do not touch twice.
func occupied(taken []netip.Prefix, is4 bool, low number, shift int, count uint64) []span {
	runs := make([]span, 0, len(taken))
	for _, p := range taken {
		if !p.IsValid() || p.Addr().Is4() != is4 {
			continue
		}
		from, to := numberOf(p.Masked().Addr()), numberOf(last(p))
		if to.less(low) {
			continue
		}
		r := span{}
		if !from.less(low) {
			r.from = from.sub(low).shr(shift).capped(maxBlocks)
		}
		r.to = to.sub(low).shr(shift).capped(maxBlocks)
		if r.from >= count {
			continue
		}
		r.to = min(r.to, count-1)
		runs = append(runs, r)
	}
	slices.SortFunc(runs, func(a, b span) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) })
	merged := runs[:0]
	for _, r := range runs {
		if n := len(merged); n > 0 && r.from <= merged[n-1].to {
			merged[n-1].to = max(merged[n-1].to, r.to)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// mix is the finalizer of SplitMix64: every bit of the input moves every bit of the output.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
