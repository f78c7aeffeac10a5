package storetest

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// blockPromises hold for every store whose nodes claim blocks. Those of this suite are of FreePool, and of nodes 0 to 39.
var blockPromises = []promise{
	{"BlocksAreFiled", blocksFiled},
	{"OneOfManyClaimsOfABlockWins", oneClaimWins},
	{"ClaimsOfManyNodesAreApart", claimsApart},
	{"BlocksAreWatchedInOneOrder", watchBlocks},
}

// RunBlocks runs what holds of blocks that nodes claim, where others are somebody else's to give.
func RunBlocks(t *testing.T, mk Maker) { run(t, mk, nil, blockPromises) }

// FreePool is a pool apart from Pool.
func FreePool() *model.Pool {
	return &model.Pool{
		Name: "free", CIDR: netip.MustParsePrefix("10.64.0.0/16"), BlockSize: 26, MaxBlocks: 20,
		Path: model.PathDirect, Encap: model.EncapNever,
	}
}

// FreeBlock makes a valid block of FreePool.
func FreeBlock(i int, node string) *model.Block {
	return &model.Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64, byte(i >> 2), byte(i << 6)}), 26), Pool: "free", Node: node}
}

func blocksFiled(ctx context.Context, t *testing.T, s store.Store) {
	a, b := Node(1).Name, Node(2).Name
	for _, o := range []*model.Block{
		FreeBlock(1, a),
		{CIDR: netip.MustParsePrefix("fd00:64:0:1::/122"), Pool: "free6", Node: a},
		{CIDR: netip.MustParsePrefix("::7/128"), Pool: "free6", Node: a, For: b},
		{CIDR: netip.MustParsePrefix("10.64.0.70/32"), Pool: "free", Node: a, For: b},
	} {
		rev := put(ctx, t, s, o, 0)
		_, err := s.Put(ctx, o, 0)
		is(t, err, store.ErrConflict)
		it, err := s.Get(ctx, o.Kind(), o.Key())
		ok(t, err)
		if got := *it.Object.(*model.Block); it.Revision != rev || got != *o {
			t.Fatalf("got %+v at %d, want %+v at %d", got, it.Revision, *o, rev)
		}
		it.Object.(*model.Block).Node = "scribbled"
		keys, err := s.Keys(ctx, o.Kind(), o.Key())
		ok(t, err)
		if len(keys) != 1 || keys[0].Revision != rev {
			t.Fatalf("keys: %v, want one at %d", keys, rev)
		}
		if o.For != "" { // what is asked for is lent
			o.Node, o.Lender, o.For = o.For, o.Node, ""
			now := put(ctx, t, s, o, rev)
			if now <= rev {
				t.Fatalf("revision went from %d to %d", rev, now)
			}
			_, err = s.Put(ctx, o, rev)
			is(t, err, store.ErrConflict)
			it, err := s.Get(ctx, o.Kind(), o.Key())
			ok(t, err)
			if got := *it.Object.(*model.Block); it.Revision != now || got != *o {
				t.Fatalf("got %+v at %d, want %+v at %d", got, it.Revision, *o, now)
			}
			rev = now
		}
		is(t, s.Delete(ctx, o.Kind(), o.Key(), rev+1000), store.ErrConflict)
		ok(t, s.Delete(ctx, o.Kind(), o.Key(), rev))
		_, err = s.Get(ctx, o.Kind(), o.Key())
		is(t, err, store.ErrNotFound)
		is(t, s.Delete(ctx, o.Kind(), o.Key(), rev), store.ErrNotFound)
		ok(t, s.Delete(ctx, o.Kind(), o.Key(), store.AnyRevision))
		again := put(ctx, t, s, o, store.AnyRevision)
		put(ctx, t, s, o, store.AnyRevision)
		if again <= rev {
			t.Fatalf("made anew, the block is at %d, and was at %d", again, rev)
		}
		ok(t, s.Delete(ctx, o.Kind(), o.Key(), store.AnyRevision))
	}
}

func oneClaimWins(ctx context.Context, t *testing.T, s store.Store) {
	oneMakes(ctx, t, s, 16, func(i int) model.Object { return FreeBlock(1, Node(i).Name) })
}

func claimsApart(ctx context.Context, t *testing.T, s store.Store) {
	const nodes, each = 12, 2
	pool := *FreePool()
	pool.CIDR = netip.MustParsePrefix("10.64.0.0/21") // 32 blocks
	var mu sync.Mutex
	var all []netip.Prefix
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() {
			var own []netip.Prefix
			for range each {
				b, err := store.ClaimAnother(ctx, s, Node(i).Name, pool, own, func(taken []netip.Prefix, attempt int) (netip.Prefix, error) {
					return ipam.PickBlock(pool, taken, attempt, uint64(i))
				})
				if err != nil {
					t.Error(err)
					return
				}
				own = append(own, b.CIDR)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, own...)
		})
	}
	wg.Wait()
	items, _, err := s.List(ctx, model.KindBlock)
	ok(t, err)
	if len(all) != nodes*each || len(items) < nodes*each {
		t.Errorf("%d blocks are claimed, and %d are listed, want %d", len(all), len(items), nodes*each)
	}
	for i := range all {
		for _, o := range all[:i] {
			if o.Overlaps(all[i]) {
				t.Errorf("%s and %s are both claimed", o, all[i])
			}
		}
	}
}

func watchBlocks(ctx context.Context, t *testing.T, s store.Store) {
	_, rev, err := s.List(ctx, model.KindNode, model.KindBlock)
	ok(t, err)
	ch, err := s.Watch(ctx, rev, model.KindNode, model.KindBlock)
	ok(t, err)
	var want []string
	add := func(what store.EventType, o model.Object, at store.Revision) {
		want = append(want, fmt.Sprint(what, o.Kind(), o.Key(), at))
	}
	for i := range 10 {
		n, b := Node(i), FreeBlock(i, Node(i).Name)
		add(store.EventPut, n, put(ctx, t, s, n, 0))
		at := put(ctx, t, s, b, 0)
		add(store.EventPut, b, at)
		if i%2 == 1 {
			ok(t, s.Delete(ctx, b.Kind(), b.Key(), at))
			add(store.EventDelete, b, 0)
		}
	}
	for i, w := range want {
		e := Next(t, ch)
		at := e.Revision
		if e.Revision <= rev {
			t.Fatalf("event %d is at %d, after %d", i, e.Revision, rev)
		}
		rev = e.Revision
		if e.Type == store.EventDelete {
			at = 0
		}
		if got := fmt.Sprint(e.Type, e.Kind, e.Key, at); got != w {
			t.Fatalf("event %d is %s, want %s", i, got, w)
		}
	}
}
