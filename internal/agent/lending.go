package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// A node without a free address, and without a block to claim, borrows single addresses of others. The owner of the
// block decides: the borrower files the address as a block of the owner's that it would like to have (Block.For); the
// owner writes into its ledger that it is lent, and files it as the borrower's (Block.Lender), or deletes it. The
// borrower gives it back by deleting it, once neither its ledger nor its kernel has it; then the owner's ledger lets it
// rest. Each of these writes is one that only the right reader of the step before can make.

const (
	// mostLoans is how often an ADD asks before it fails: others may be faster, or know more.
	mostLoans = 5
	// mostLooked is how many addresses of a block are looked at.
	mostLooked = 256
)

var errNoLoan = errors.New("no other node of the pool lends an address")

// claimOrBorrow gets what an ADD waits for, or asks for it: then nil, and the answer comes by the store.
func (k *keeping) claimOrBorrow(ctx context.Context, p *model.Pool, q *blockAsk) error {
	if q.of != "" {
		return k.borrow(ctx, p, q)
	}
	err := k.claimOf(ctx, p, q.just)
	var limit *ipam.BlocksFullError
	if err == nil || q.just.IsValid() || !errors.Is(err, ipam.ErrPoolFull) && !errors.As(err, &limit) {
		return err
	}
	if why := k.noLoans(p); why != "" {
		return fmt.Errorf("%w; %s", err, why)
	}
	if berr := k.borrow(ctx, p, q); berr != nil {
		return fmt.Errorf("%w; %w", err, berr)
	}
	return nil
}

// noLoans says why this node borrows no address of a pool; "" when it does.
func (a *Agent) noLoans(p *model.Pool) string {
	switch {
	case p.Blocks() == 1:
		return "of this pool each node has one block, and lends nothing of it"
	case a.ipamSettings().StrictAffinity:
		return "strictAffinity keeps nodes from lending addresses"
	case a.Config.Attachment != model.AttachRouted:
		return "addresses of other nodes can be borrowed in the style routed only"
	}
	return ""
}

// borrow asks one node after the other, as long as each refuses.
func (k *keeping) borrow(ctx context.Context, p *model.Pool, q *blockAsk) error {
	if q.asked.IsValid() {
		item, err := k.Store.Get(ctx, model.KindBlock, (&model.Block{CIDR: q.asked}).Key())
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if b, ok := item.Object.(*model.Block); err == nil && ok && (b.For == k.Config.Node || b.Node == k.Config.Node) {
			return nil // not decided, or lent and soon in view
		}
		q.asked = netip.Prefix{}
	}
	for ; q.loans < mostLoans; q.loans++ {
		b, ok := k.choose(p)
		if q.of != "" {
			b, ok = model.Block{CIDR: q.just, Pool: p.Name, Node: q.of, For: k.Config.Node}, q.loans == 0
		}
		if !ok && q.of != "" {
			return cni.Errorf(cni.CodeTryAgainLater, "address %s: node %q, whose block it is in, does not lend it: somebody has it, or it rests or is reserved", q.just.Addr(), q.of)
		}
		if !ok {
			return errNoLoan
		}
		_, err := k.Store.Put(ctx, &b, 0)
		switch {
		case err == nil:
			q.asked = b.CIDR
			q.loans++
			return nil
		case !errors.Is(err, store.ErrConflict):
			return err
		}
	}
	return errNoLoan
}

// choose is an address of another living node's block that nobody is known to have.
func (k *keeping) choose(p *model.Pool) (model.Block, bool) {
	var from []model.Block
	single := map[netip.Addr]bool{}
	for _, b := range k.c.Blocks {
		switch {
		case b.CIDR.IsSingleIP():
			single[b.CIDR.Addr()] = true
		case b.Node != k.Config.Node && b.Pool == p.Name && poolHolds(p, b) && k.c.Node(b.Node) != nil && k.state.lost[b.Node] == 0:
			from = append(from, b)
		}
	}
	rand.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
	for _, b := range from {
		first, end, ok := ipam.Range(b.CIDR)
		if !ok {
			continue
		}
		var free []netip.Addr
		for a, n := first, 0; n < mostLooked && !end.Less(a); a, n = a.Next(), n+1 {
			reserved := slices.ContainsFunc(k.set.Reserved, func(r netip.Prefix) bool { return r.Contains(a) })
			if !single[a] && !reserved && !k.policy.InUse(a) {
				free = append(free, a)
			}
		}
		if len(free) > 0 {
			a := free[rand.N(len(free))]
			return model.Block{CIDR: netip.PrefixFrom(a, a.BitLen()), Pool: p.Name, Node: b.Node, For: k.Config.Node}, true
		}
	}
	return model.Block{}, false
}

// lend decides what others ask of this node, takes back what they have returned, and withdraws what this node asks for
// and nobody waits for any more.
func (k *keeping) lend(ctx context.Context) {
	for addr, node := range k.ledger.Lent() {
		if k.lentStill(ctx, addr, node) {
			continue
		}
		if err := k.ledger.Returned(ctx, addr, node, k.now); err == nil {
			k.Log.Info("address came back", "address", addr, "node", node)
		}
	}
	for _, b := range k.c.Blocks {
		mine := b.For == k.Config.Node && !slices.ContainsFunc(k.keeper.asks.all(), func(q *blockAsk) bool { return q.asked == b.CIDR }) && !k.holds(k.own, b)
		if !mine && (b.For == "" || b.Node != k.Config.Node) {
			continue
		}
		item, err := k.Store.Get(ctx, model.KindBlock, b.Key())
		if err != nil {
			continue // gone, or the store is away
		}
		if now, ok := item.Object.(*model.Block); !ok || *now != b {
			continue
		}
		if !mine && k.mayLend(ctx, b) {
			lent := model.Block{CIDR: b.CIDR, Pool: b.Pool, Node: b.For, Lender: k.Config.Node}
			if _, err := k.Store.Put(ctx, &lent, item.Revision); err == nil {
				k.Log.Info("address lent", "address", b.CIDR.Addr(), "node", b.For)
			}
			continue // else the next look finds what became of it
		}
		_ = k.Store.Delete(ctx, model.KindBlock, b.Key(), item.Revision) // the next look tries again
	}
}

// lentStill tells whether the store has an address as lent to a node, or as asked for by it.
func (k *keeping) lentStill(ctx context.Context, addr netip.Addr, node string) bool {
	is := func(b *model.Block) bool {
		return b.Node == node && b.Lender == k.Config.Node || b.Node == k.Config.Node && b.For == node
	}
	block := model.Block{CIDR: netip.PrefixFrom(addr, addr.BitLen())}
	if slices.ContainsFunc(k.c.Blocks, func(b model.Block) bool { return b.CIDR == block.CIDR && is(&b) }) {
		return true
	}
	item, err := k.Store.Get(ctx, model.KindBlock, block.Key())
	if errors.Is(err, store.ErrNotFound) {
		return false
	}
	b, ok := item.Object.(*model.Block)
	return err != nil || ok && is(b)
}

// mayLend writes into the ledger that the address is lent, if it can be. An error is a refusal.
func (k *keeping) mayLend(ctx context.Context, b model.Block) bool {
	p := k.c.Pool(b.Pool)
	i := slices.IndexFunc(k.keep, func(o model.Block) bool { return p != nil && poolHolds(p, o) && o.CIDR.Contains(b.CIDR.Addr()) })
	if i < 0 || p.Disabled || k.set.StrictAffinity || !k.holds(k.own, k.keep[i]) {
		return false
	}
	return k.ledger.Lend(ctx, k.keep[i].CIDR, b.CIDR.Addr(), b.For, k.set.Reserved, k.now) == nil
}

// returnLoans gives up what was borrowed once nobody has used it for emptyFor. seen is since when.
func (k *keeping) returnLoans(seen map[netip.Prefix]time.Time) {
	for _, b := range slices.Clone(k.keep) {
		if b.Lender == "" || k.used(b) || k.awaited(b) {
			continue
		}
		if _, long := k.emptySince(b, seen); !long {
			continue
		}
		k.keep = slices.DeleteFunc(k.keep, func(o model.Block) bool { return o == b })
		k.Log.Info("borrowed address given back", "address", b.CIDR.Addr(), "lender", b.Lender)
	}
}
