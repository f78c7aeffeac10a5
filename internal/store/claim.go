package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// claimAttempts bounds how often a claim is tried against others'.
const claimAttempts = 200

// Pick chooses a free block, given those that are taken (of every pool, in the order of their keys) and the
// number of attempts that failed so far; its error ends the claim.
type Pick func(taken []netip.Prefix, attempt int) (netip.Prefix, error)

// Claim gets the node a block of the pool, by create-only writes: of many nodes that claim at once,
// each gets another one. A node that has a block of the pool already keeps it.
func Claim(ctx context.Context, s Store, node string, pool model.Pool, pick Pick) (model.Block, error) {
	return ClaimAnother(ctx, s, node, pool, nil, pick)
}

// ClaimAnother is Claim by a node that knows of blocks of its own. One that the store has beside those is the end
// of a claim of which it never heard, and is what it gets.
func ClaimAnother(ctx context.Context, s Store, node string, pool model.Pool, own []netip.Prefix, pick Pick) (model.Block, error) {
	wrap := func(err error) error { return fmt.Errorf("block of pool %q for node %q: %w", pool.Name, node, err) }
	for attempt := range claimAttempts {
		items, _, err := s.List(ctx, model.KindBlock)
		if err != nil {
			return model.Block{}, wrap(err)
		}
		taken := make([]netip.Prefix, 0, len(items))
		for _, it := range items {
			b := it.Object.(*model.Block)
			if b.Node == node && b.Pool == pool.Name && b.CIDR.Bits() == pool.BlockSize && pool.CIDR.Contains(b.CIDR.Addr()) && !slices.Contains(own, b.CIDR) {
				return *b, nil
			}
			taken = append(taken, b.CIDR)
		}
		cidr, err := pick(taken, attempt)
		if err != nil {
			return model.Block{}, wrap(err)
		}
		b := model.Block{CIDR: cidr, Pool: pool.Name, Node: node}
		_, err = s.Put(ctx, &b, 0)
		switch {
		case err == nil:
			return b, nil
		case !errors.Is(err, ErrConflict):
			return model.Block{}, wrap(err) // when unavailable, the next Claim finds what became of it
		}
		if !Pause(ctx, rand.N(time.Duration(min(attempt+1, 20))*2*time.Millisecond)) {
			return model.Block{}, wrap(ctx.Err())
		}
	}
	return model.Block{}, wrap(fmt.Errorf("%w: %d attempts were each overtaken", ErrConflict, claimAttempts))
}
