package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// blockPatience is how long an ADD waits for a block: a claim is one write to the store and one pass.
const blockPatience = 10 * time.Second

// blockAsk is an ADD that waits for a block of a pool.
type blockAsk struct {
	pool string
	// just is the only one that will do; the zero Prefix: any that is not in tried. of is the node that has to lend it.
	just  netip.Prefix
	of    string
	tried []netip.Prefix
	// asked is an address that another node was asked to lend, loans how often one was.
	asked  netip.Prefix
	loans  int
	answer chan error // of capacity one
}

// fits tells whether a block is what is waited for.
func (q *blockAsk) fits(b model.Block) bool {
	if q.just.IsValid() {
		return b.CIDR == q.just
	}
	return b.Pool == q.pool && !slices.Contains(q.tried, b.CIDR)
}

// blockAsks are those that wait, in the order in which they came.
type blockAsks struct {
	mu   sync.Mutex
	list []*blockAsk
}

func (w *blockAsks) all() []*blockAsk {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list)
}

func (w *blockAsks) add(q *blockAsk) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, q)
}

// end answers one, if it still waits.
func (w *blockAsks) end(q *blockAsk, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.Index(w.list, q)
	if i < 0 {
		return
	}
	w.list = slices.Delete(w.list, i, i+1)
	q.answer <- err
}

// refuse answers all.
func (w *blockAsks) refuse(err error) {
	for _, q := range w.all() {
		w.end(q, err)
	}
}

// awaitBlock has the register loop claim a block, and returns once the kernel has it.
func (a *Agent) awaitBlock(ctx context.Context, q *blockAsk) error {
	q.answer = make(chan error, 1)
	a.keeper.asks.add(q)
	poke(a.register)
	late := time.NewTimer(blockPatience)
	defer late.Stop()
	var why error
	select {
	case err := <-q.answer:
		return err
	case <-ctx.Done():
		why = ctx.Err()
	case <-late.C:
		why = fmt.Errorf("no block of pool %q within %s: `heddle status` says what keeps it", q.pool, blockPatience)
	}
	a.keeper.asks.end(q, nil)
	return cni.Errorf(cni.CodeTryAgainLater, "%v", why)
}

// claimAsked claims what ADDs wait for.
func (k *keeping) claimAsked(ctx context.Context) {
	for _, q := range k.keeper.asks.all() {
		p := k.c.Pool(q.pool)
		switch {
		case p == nil || p.Disabled:
			k.keeper.asks.end(q, fmt.Errorf("pool %q is gone or disabled", q.pool))
			continue
		case slices.ContainsFunc(k.keep, q.fits):
			continue
		}
		err := k.claimOrBorrow(ctx, p, q)
		if errors.Is(err, store.ErrUnavailable) || errors.Is(err, context.Canceled) || errors.Is(err, store.ErrConflict) || errors.Is(err, errBlockTaken) {
			err = cni.Errorf(cni.CodeTryAgainLater, "%v", err)
		}
		if err != nil {
			k.keeper.asks.end(q, err)
		}
	}
}

// answerBlocks answers those whose block is there and in the kernel.
func (a *Agent) answerBlocks() {
	s := a.snapshot()
	for _, q := range a.keeper.asks.all() {
		if s.input != nil && slices.ContainsFunc(applied(s.blocks, s.input), q.fits) {
			a.keeper.asks.end(q, nil)
		} else {
			poke(a.kick)
		}
	}
}

// usage is how the addresses of blocks are used.
func (k *keeping) usage(ctx context.Context, blocks []model.Block) (map[netip.Prefix]ipam.Use, bool) {
	list, err := k.ledger.Usage(ctx, prefixes(blocks), k.set.Reserved, k.now)
	if err != nil {
		return nil, false
	}
	m := make(map[netip.Prefix]ipam.Use, len(list))
	for _, u := range list {
		m[u.Block] = u
	}
	return m, true
}

// claimAhead claims the next block of a pool before the last one is full. That it cannot is a problem only once
// somebody waits.
func (k *keeping) claimAhead(ctx context.Context) {
	for i := range k.c.Pools {
		p := &k.c.Pools[i]
		if is, err := ipam.OfNode(p, k.labels, matches); err != nil || !is || p.Blocks() == 1 {
			continue
		}
		blocks := k.ofPool(p)
		m, ok := k.usage(ctx, blocks)
		if !ok || len(blocks) == 0 {
			continue
		}
		free := uint64(0)
		for _, u := range m {
			free = min(free+u.Free, 1<<62)
		}
		if !ipam.Low(free, ipam.Size(blocks[0].CIDR)) || ipam.MayClaim(p, k.keep, k.set.IPAM) != nil {
			continue
		}
		if err := k.claimOf(ctx, p, netip.Prefix{}); err != nil {
			problem := k.storeProblem("pool "+p.Name, err)
			problem.Severity = model.Warning
			k.issues = append(k.issues, problem)
		}
	}
}

// ofPool are the blocks to keep that the pool has.
func (k *keeping) ofPool(p *model.Pool) (blocks []model.Block) {
	for _, b := range k.keep {
		if b.Pool == p.Name && poolHolds(p, b) {
			blocks = append(blocks, b)
		}
	}
	return blocks
}

// releaseEmpty gives up blocks that nobody has lived in for emptyFor: those of a pool that gives no addresses here any
// more, and of the others those that the rest of the node's blocks can do without.
func (k *keeping) releaseEmpty(ctx context.Context) {
	seen := map[netip.Prefix]time.Time{}
	for i := range k.c.Pools {
		p := &k.c.Pools[i]
		is, err := ipam.OfNode(p, k.labels, matches)
		here := is || err != nil // a selector that cannot be read takes nothing away
		if here && p.Blocks() == 1 {
			continue
		}
		blocks := k.ofPool(p)
		m, ok := k.usage(ctx, blocks)
		if !ok {
			continue
		}
		for _, b := range slices.Backward(blocks) { // the youngest first
			u, elsewhere := m[b.CIDR], uint64(0)
			for cidr, other := range m {
				if cidr != b.CIDR {
					elsewhere = min(elsewhere+other.Free, 1<<62)
				}
			}
			if u.Used+u.Cooling > 0 || here && !ipam.Spare(elsewhere, ipam.Size(b.CIDR)) || k.awaited(b) {
				continue
			}
			since, long := k.emptySince(b, seen)
			if !long {
				continue
			}
			k.keep = slices.DeleteFunc(k.keep, func(o model.Block) bool { return o == b })
			delete(m, b.CIDR)
			k.Log.Info("block given up: nobody has lived in it of late", "block", b.CIDR, "since", since.UTC().Format(time.RFC3339))
		}
	}
	k.returnLoans(seen)
	k.keeper.empty = seen
}

// awaited tells whether an ADD waits for this block.
func (k *keeping) awaited(b model.Block) bool {
	return slices.ContainsFunc(k.keeper.asks.all(), func(q *blockAsk) bool { return q.fits(b) })
}

// emptySince says since when an own block is seen empty, and whether that is long enough to give it up. Until it is,
// seen remembers it for the next look.
func (k *keeping) emptySince(b model.Block, seen map[netip.Prefix]time.Time) (since time.Time, long bool) {
	since, was := k.keeper.empty[b.CIDR]
	if !was {
		since = k.now
	}
	if long = k.now.Sub(since) >= emptyFor; !long {
		seen[b.CIDR] = since
	}
	return since, long
}
