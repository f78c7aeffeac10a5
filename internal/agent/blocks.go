package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// emptyFor is how long a block stays empty before a node gives it up: at least two looks apart.
const emptyFor = time.Minute

// blockKeeper is what the register loop remembers of blocks.
//
// The order of writes keeps a block from having two owners, whenever the agent dies: a block is used once the
// store has it as this node's and the ledger too; and it is deleted in the store once the ledger has it no more
// and the kernel neither. What the store alone has as this node's is the end of a claim or the beginning of a
// release that was cut off, and is taken back.
type blockKeeper struct {
	asks blockAsks
	// empty is since when an own block was seen empty at every look.
	empty map[netip.Prefix]time.Time
	// letGo are blocks that this node has given up and the store may still have as its own; true once it was
	// deleted there.
	letGo map[netip.Prefix]bool
}

// keeping is one look of the register loop at its blocks.
type keeping struct {
	*Agent
	c      model.Cluster
	state  state
	labels map[string]string // of this node
	set    ipam.Settings
	own    []model.Block // as it was
	keep   []model.Block // as it shall be
	issues []model.Problem
	now    time.Time
}

// reconcileBlocks makes sure that this node owns the blocks that it needs: it re-claims what the store lost,
// takes back what only the store knows of, lets go of blocks whose pool is gone once no workload uses them, and
// of those that were empty for a while; and it claims a first block of pools, another where few addresses are
// left, and those that an ADD waits for. A block in use is never given up.
func (a *Agent) reconcileBlocks(ctx context.Context, own []model.Block) (changed bool, issues []model.Problem) {
	c, synced := a.view.Snapshot()
	if !synced {
		a.keeper.asks.refuse(errors.New("the store has not been reached yet"))
		return false, nil
	}
	c.Pools = a.claimable(a.clusterPools()) // also those in a dialect's words
	k := &keeping{Agent: a, c: c, state: a.snapshot(), set: a.ipamSettings(), own: own, now: time.Now()}
	k.labels = k.nodeLabels()
	k.finishReleases(ctx)
	k.keepOwn(ctx)
	k.takeBack(ctx)
	k.lend(ctx)
	if err := model.ValidatePools(c.Pools); err == nil {
		k.releaseEmpty(ctx)
		k.claimFirst(ctx)
		k.claimAhead(ctx)
		k.claimAsked(ctx)
	} else {
		a.keeper.asks.refuse(err) // the pass says so in `heddle status`
	}
	changed = k.commit(ctx)
	a.answerBlocks()
	return changed, k.issues
}

// nodeLabels are what selectors of pools see of this node.
func (k *keeping) nodeLabels() map[string]string {
	if k.state.input != nil {
		if n := k.state.input.Cluster.Node(k.Config.Node); n != nil {
			return n.Labels
		}
	}
	if n := k.c.Node(k.Config.Node); n != nil {
		return n.Labels
	}
	return nil
}

// used tells whether a workload has an address of the block, or another node.
func (a *Agent) used(b model.Block) bool {
	for addr := range a.ledger.Lent() {
		if b.CIDR.Contains(addr) {
			return true
		}
	}
	return slices.ContainsFunc(a.ledger.List(), func(w model.Workload) bool {
		return slices.ContainsFunc(w.Addresses, b.CIDR.Contains)
	})
}

func poolHolds(p *model.Pool, b model.Block) bool { return ipam.Holds(p, b) }

// finishReleases deletes in the store what this node has given up, once its kernel has heard of that.
func (k *keeping) finishReleases(ctx context.Context) {
	for cidr, deleted := range k.keeper.letGo {
		listed := slices.ContainsFunc(k.c.Blocks, func(b model.Block) bool { return b.CIDR == cidr && b.Node == k.Config.Node })
		inKernel := k.state.input != nil && slices.ContainsFunc(k.state.input.Cluster.Blocks, func(b model.Block) bool {
			return b.CIDR == cidr && b.Node == k.Config.Node
		})
		switch {
		case deleted && !listed:
			delete(k.keeper.letGo, cidr)
		case inKernel:
			poke(k.kick)
		case !deleted:
			if err := k.deleteOwn(ctx, cidr); err != nil {
				k.issues = append(k.issues, k.storeProblem("block "+cidr.String(), err))
				continue
			}
			k.keeper.letGo[cidr] = true
			k.Log.Info("block released", "block", cidr)
		}
	}
}

// deleteOwn deletes a block in the store, if it is this node's there.
func (k *keeping) deleteOwn(ctx context.Context, cidr netip.Prefix) error {
	key := (&model.Block{CIDR: cidr}).Key()
	item, err := k.Store.Get(ctx, model.KindBlock, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if b, ok := item.Object.(*model.Block); !ok || b.Node != k.Config.Node {
		return nil
	}
	err = k.Store.Delete(ctx, model.KindBlock, key, item.Revision)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// keepOwn keeps the own blocks, except those that no pool has any more and no workload uses.
func (k *keeping) keepOwn(ctx context.Context) {
	for _, b := range k.own {
		p := k.c.Pool(b.Pool)
		if p == nil || !ipam.Has(p, b) {
			if !k.used(b) {
				continue
			}
			k.issues = append(k.issues, model.Problem{
				Code: "block-outside-pool", Severity: model.Warning, Subject: "block " + b.CIDR.String(),
				Detail: fmt.Sprintf("pool %q has no such block any more; it is kept while workloads use it", b.Pool),
				Next:   "heddle status, then restart the workloads in this block",
			})
		}
		if err := k.reclaim(ctx, &k.c, b); err != nil {
			k.issues = append(k.issues, model.Problem{
				Code: "block-lost", Severity: model.Failure, Subject: "block " + b.CIDR.String(), Detail: err.Error(),
				Next: "heddle status on both nodes; drain the workloads of one of them",
			})
			if errors.Is(err, store.ErrConflict) && !k.used(b) {
				continue
			}
		}
		k.keep = append(k.keep, b)
	}
}

// takeBack takes blocks that the store alone has as this node's. Of a pool of one block per node nothing is taken:
// its claim finds it.
func (k *keeping) takeBack(ctx context.Context) {
	for _, b := range k.c.Blocks {
		_, going := k.keeper.letGo[b.CIDR]
		p := k.c.Pool(b.Pool)
		if b.Node != k.Config.Node || going || p == nil || p.Blocks() == 1 || !ipam.Has(p, b) || k.holds(k.keep, b) || k.holds(k.own, b) {
			continue
		}
		item, err := k.Store.Get(ctx, model.KindBlock, b.Key())
		if err != nil {
			continue // the view is late, or the store away
		}
		if now, ok := item.Object.(*model.Block); ok && *now == b {
			k.Log.Info("block taken back: the store has it as this node's", "block", b.CIDR)
			k.keep = append(k.keep, b)
		}
	}
}

func (*keeping) holds(list []model.Block, b model.Block) bool {
	return slices.ContainsFunc(list, func(o model.Block) bool { return o.CIDR == b.CIDR })
}

// assigner is a store that knows of which pools nodes claim nothing, as somebody else says which block a node has.
type assigner interface{ Assigns(pool model.Pool) bool }

// claimable are the pools as nodes claim blocks of them: where somebody else says which block a node has, as Kubernetes
// does of the ranges that it gives out, and flanneld where it shares the store, a node has one.
func (a *Agent) claimable(pools []model.Pool) []model.Pool {
	s, some := a.Store.(assigner)
	if !some && a.Config.Store.Type != config.StoreFlannel {
		return pools
	}
	pools = slices.Clone(pools)
	for i := range pools {
		if !some || s.Assigns(pools[i]) {
			pools[i].MaxBlocks = 1
		}
	}
	return pools
}

// ofNode are the pools that this node claims blocks of.
func (k *keeping) ofNode() (pools []model.Pool) {
	for i := range k.c.Pools {
		p := &k.c.Pools[i]
		is, err := ipam.OfNode(p, k.labels, matches)
		if err != nil {
			k.issues = append(k.issues, model.Problem{
				Code: "pool-selector", Severity: model.Failure, Subject: fmt.Sprintf("pool %q", p.Name),
				Detail: "nodeSelector: " + err.Error() + "; the pool gives no more addresses", Next: "mend the pool's selector",
			})
		}
		if err == nil && is {
			pools = append(pools, *p)
		}
	}
	return pools
}

// claimFirst claims a block of the pools that no ADD shall wait for.
func (k *keeping) claimFirst(ctx context.Context) {
	pools := k.ofNode()
	if len(pools) == 0 && len(k.c.Pools) > 0 {
		k.issues = append(k.issues, model.Problem{
			Code: "no-pool-for-node", Severity: model.Failure, Subject: fmt.Sprintf("node %q", k.Config.Node),
			Detail: "every pool is disabled, not for workloads, or selects other nodes", Next: "heddle ipam show",
		})
	}
	for _, name := range ipam.Eager(pools) {
		p := k.c.Pool(name)
		if slices.ContainsFunc(k.keep, func(b model.Block) bool { return b.Pool == name && poolHolds(p, b) }) {
			continue
		}
		if err := k.claimOf(ctx, p, netip.Prefix{}); err != nil {
			k.issues = append(k.issues, k.storeProblem("pool "+name, err))
		}
	}
}

// claimOf claims one block more, or just one.
func (k *keeping) claimOf(ctx context.Context, p *model.Pool, just netip.Prefix) error {
	if err := ipam.MayClaim(p, k.keep, k.set.IPAM); err != nil {
		return err
	}
	b, err := k.claim(ctx, *p, just)
	if err != nil {
		return err
	}
	k.Log.Info("block claimed", "block", b.CIDR, "pool", p.Name)
	k.keep = append(k.keep, b)
	delete(k.keeper.letGo, b.CIDR) // it was this node's before
	return nil
}

// reclaim puts an own block back into the store when it is not there.
func (a *Agent) reclaim(ctx context.Context, c *model.Cluster, b model.Block) error {
	for i := range c.Blocks {
		if c.Blocks[i].CIDR == b.CIDR {
			if c.Blocks[i].Node == b.Node || b.Lender != "" && c.Blocks[i].For == b.Node {
				return nil
			}
			return fmt.Errorf("node %q holds it in the store: %w", c.Blocks[i].Node, store.ErrConflict)
		}
	}
	want := b
	if b.Lender != "" { // it is the lender's to say
		want.Node, want.Lender, want.For = b.Lender, "", b.Node
	}
	_, err := a.Store.Put(ctx, &want, 0)
	if errors.Is(err, store.ErrConflict) {
		item, gerr := a.Store.Get(ctx, model.KindBlock, b.Key())
		if got, ok := item.Object.(*model.Block); gerr == nil && ok && got.Node == b.Node {
			return nil // the view was late
		}
	}
	if err == nil {
		a.Log.Warn("block was missing in the store and is claimed again", "block", b.CIDR)
	}
	return err
}

// claim gets a block of the pool. When none is free, a block of a node that has been lost for longer
// than the grace time is freed first.
func (k *keeping) claim(ctx context.Context, p model.Pool, just netip.Prefix) (model.Block, error) {
	pick := func(taken []netip.Prefix, attempt int) (netip.Prefix, error) {
		if just.IsValid() {
			if slices.ContainsFunc(taken, just.Overlaps) {
				return just, fmt.Errorf("block %s: %w", just, errBlockTaken)
			}
			return just, nil
		}
		return ipam.PickBlock(p, taken, attempt, seed(k.id))
	}
	own := prefixes(k.keep)
	for cidr, deleted := range k.keeper.letGo {
		if !deleted {
			own = append(own, cidr)
		}
	}
	b, err := store.ClaimAnother(ctx, k.Store, k.Config.Node, p, own, pick)
	if !errors.Is(err, ipam.ErrPoolFull) {
		return b, err
	}
	withdrawn := k.snapshot().withdrawn
	for _, old := range k.c.Blocks {
		if old.Pool != p.Name || !withdrawn[old.Node] || k.alive(ctx, old.Node) {
			continue
		}
		item, gerr := k.Store.Get(ctx, model.KindBlock, old.Key())
		if gerr != nil || k.Store.Delete(ctx, model.KindBlock, old.Key(), item.Revision) != nil {
			continue
		}
		k.Log.Warn("block of a lost node is freed, as the pool is full", "block", old.CIDR, "node", old.Node)
		return store.ClaimAnother(ctx, k.Store, k.Config.Node, p, own, pick)
	}
	return b, err
}

var errBlockTaken = errors.New("another node has it, or a part of it")

// seed turns the node's id into a number, so that nodes that claim at once try different blocks.
func seed(id string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // never fails
	return h.Sum64()
}

// commit writes to the ledger which blocks are this node's, and has ADDs see it. No ADD is under way meanwhile:
// one might be taking an address of a block that goes.
func (k *keeping) commit(ctx context.Context) (changed bool) {
	if slices.Equal(k.keep, k.own) {
		return false
	}
	if slices.ContainsFunc(k.own, func(b model.Block) bool { return !k.holds(k.keep, b) }) {
		k.attaching.Lock()
		defer k.attaching.Unlock()
	}
	var gone []model.Block
	for _, b := range k.own {
		if k.holds(k.keep, b) {
			continue
		}
		if k.used(b) {
			k.keep = append(k.keep, b) // somebody came at the last moment
			continue
		}
		gone = append(gone, b)
	}
	text, err := json.Marshal(k.keep)
	if err == nil {
		err = k.ledger.SetMeta(ctx, metaBlocks, text)
	}
	if err != nil {
		k.issues = append(k.issues, model.Problem{Code: "ledger", Severity: model.Failure, Subject: "ledger", Detail: err.Error(), Next: "df -h " + k.Config.StateDir})
		return false
	}
	k.update(func(s *state) { s.blocks = k.keep })
	for _, b := range gone {
		if k.keeper.letGo == nil {
			k.keeper.letGo = map[netip.Prefix]bool{}
		}
		k.keeper.letGo[b.CIDR] = false
		delete(k.keeper.empty, b.CIDR)
	}
	if len(gone) > 0 {
		poke(k.register) // after the pass, they go from the store
	}
	return true
}
