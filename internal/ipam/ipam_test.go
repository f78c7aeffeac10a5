package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
)

func pool(cidr string, size int, bounds ...string) model.Pool {
	p := model.Pool{Name: "a", CIDR: netip.MustParsePrefix(cidr), BlockSize: size}
	if len(bounds) > 0 {
		p.Min, p.Max = netip.MustParseAddr(bounds[0]), netip.MustParseAddr(bounds[1])
	}
	return p
}

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestFirstAttemptTakesTheLowestFreeBlock(t *testing.T) {
	for _, c := range []struct {
		pool  model.Pool
		taken []netip.Prefix
		want  string
	}{
		{pool("10.244.0.0/16", 24), nil, "10.244.0.0/24"},
		{pool("10.244.0.0/16", 24, "10.244.10.0", "10.244.100.0"), nil, "10.244.10.0/24"},
		{pool("10.244.0.0/16", 24), prefixes("10.244.1.0/24", "10.244.0.0/24", "10.244.3.0/24"), "10.244.2.0/24"},
		{pool("10.244.0.0/16", 24), prefixes("10.244.0.128/26"), "10.244.1.0/24"},                 // part of a block
		{pool("10.244.0.0/16", 24), prefixes("10.244.0.0/20", "10.244.1.0/24"), "10.244.16.0/24"}, // several blocks
		{pool("10.244.0.0/16", 24, "10.244.10.0", "10.244.12.0"), prefixes("10.244.0.0/21", "10.244.10.0/24", "10.0.0.0/24", "192.168.0.0/16"), "10.244.11.0/24"},
		{pool("10.0.0.0/8", 24), prefixes("10.0.0.0/9"), "10.128.0.0/24"},
		{pool("0.0.0.0/0", 24), prefixes("0.0.0.0/1"), "128.0.0.0/24"},
		{pool("fd00:244::/48", 64), prefixes("fd00:244::/64", "10.0.0.0/8"), "fd00:244:0:1::/64"},
		{pool("fd00::/4", 64), prefixes("f000::/5"), "f800::/64"},
		{pool("fd00::/16", 120), prefixes("fd00::/120"), "fd00::100/120"},
		{pool("::/0", 126), nil, "::/126"},
	} {
		got, err := PickBlock(c.pool, c.taken, 0, 7)
		if err != nil || got.String() != c.want {
			t.Errorf("%s /%d without %v: %s, %v: want %s", c.pool.CIDR, c.pool.BlockSize, c.taken, got, err, c.want)
		}
	}
}

func TestFullPoolNamesItsRange(t *testing.T) {
	_, err := PickBlock(pool("10.244.0.0/16", 24, "10.244.1.0", "10.244.2.0"), prefixes("10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"), 3, 1)
	if !errors.Is(err, ErrPoolFull) {
		t.Fatalf("error %v", err)
	}
	if want := `pool "a": no free /24 block in 10.244.1.0..10.244.2.0: all 2 are taken`; err.Error() != want {
		t.Errorf("error %q: want %q", err, want)
	}
}

func TestPickedBlockIsFreeAndInRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		is6 := rapid.Bool().Draw(t, "is6")
		p := pool("10.0.0.0/22", 27)
		if is6 {
			p = pool("fd00::/59", 64)
		}
		blocks := blocksOf(p)
		lo := rapid.IntRange(0, len(blocks)-1).Draw(t, "min")
		hi := rapid.IntRange(lo, len(blocks)-1).Draw(t, "max")
		p.Min, p.Max = blocks[lo].Addr(), blocks[hi].Addr()
		taken := rapid.SliceOf(rapid.SampledFrom(blocks)).Draw(t, "taken")
		if rapid.Bool().Draw(t, "large") {
			taken = append(taken, netip.PrefixFrom(blocks[rapid.IntRange(0, len(blocks)-1).Draw(t, "at")].Addr(), p.BlockSize-2).Masked())
		}
		var free []netip.Prefix
		for _, b := range blocks[lo : hi+1] {
			if !slices.ContainsFunc(taken, b.Overlaps) {
				free = append(free, b)
			}
		}
		attempt := rapid.IntRange(0, 3).Draw(t, "attempt")
		got, err := PickBlock(p, taken, attempt, rapid.Uint64().Draw(t, "seed"))
		switch {
		case len(free) == 0:
			if !errors.Is(err, ErrPoolFull) {
				t.Fatalf("got %s, error %v: nothing is free", got, err)
			}
		case err != nil:
			t.Fatalf("error %v: %v are free", err, free)
		case !slices.Contains(free, got):
			t.Fatalf("got %s: free are %v", got, free)
		case attempt == 0 && got != free[0]:
			t.Fatalf("got %s: the lowest free is %s", got, free[0])
		}
	})
}

func blocksOf(p model.Pool) []netip.Prefix {
	var out []netip.Prefix
	for b := netip.PrefixFrom(p.CIDR.Addr(), p.BlockSize); b.IsValid() && p.CIDR.Contains(b.Addr()); b = netip.PrefixFrom(last(b).Next(), p.BlockSize) {
		out = append(out, b)
	}
	return out
}

// Rounds: all who have no block yet look at the same state; of those who pick the same one gets it.
func TestManyNodesAtOncePartWaysFast(t *testing.T) {
	for _, c := range []struct {
		pool model.Pool
		most int // rounds
	}{
		{pool("10.0.0.0/8", 24), 6},
		{pool("10.244.0.0/16", 24), 8},
		{pool("10.244.0.0/16", 24, "10.244.0.0", "10.244.99.0"), 30}, // as many blocks as nodes
		{pool("fd00:244::/48", 64), 6},
	} {
		var taken []netip.Prefix
		waiting := make([]uint64, 100)
		for i := range waiting {
			waiting[i] = mix(uint64(i) + 1)
		}
		rounds := 0
		for ; len(waiting) > 0; rounds++ {
			claimed := map[netip.Prefix]bool{}
			var left []uint64
			for _, seed := range waiting {
				b, err := PickBlock(c.pool, taken, rounds, seed)
				if err != nil {
					t.Fatal(err)
				}
				if claimed[b] {
					left = append(left, seed)
				}
				claimed[b] = true
			}
			for b := range claimed {
				taken = append(taken, b)
			}
			waiting = left
		}
		if rounds > c.most {
			t.Errorf("%s: %d rounds: want at most %d", c.pool.CIDR, rounds, c.most)
		}
	}
}

func BenchmarkPickBlock(b *testing.B) {
	var taken []netip.Prefix
	p := pool("10.0.0.0/8", 24)
	for i := range 1000 {
		taken = append(taken, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)))
	}
	for b.Loop() {
		if _, err := PickBlock(p, taken, 1, 3); err != nil {
			b.Fatal(err)
		}
	}
}
