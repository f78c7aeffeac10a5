package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/selector"
	"github.com/heddle-net/heddle/internal/store/ledger"
)

// matches is ipam.Match in Calico's language.
func matches(text string, labels map[string]string) (bool, error) {
	if text == "" {
		return true, nil
	}
	s, err := selector.Parse(text)
	if err != nil {
		return false, err
	}
	return s.Matches(selector.Map(labels)), nil
}

// wishes are what a workload asks of its addresses. What people wrote on its pod goes before what the runtime says
// to every workload of the network.
func (a *Agent) wishes(w *model.Workload) *model.Wishes {
	said, asked := a.policy.Wishes(w), w.Wishes
	switch {
	case said == nil:
		return asked
	case asked == nil:
		return said
	}
	all := *asked
	if len(said.Addresses) > 0 {
		all.Addresses = said.Addresses
	}
	if len(said.Pools4) > 0 {
		all.Pools4 = said.Pools4
	}
	if len(said.Pools6) > 0 {
		all.Pools6 = said.Pools6
	}
	if said.MAC != "" {
		all.MAC = said.MAC
	}
	all.Floating = append(slices.Clone(all.Floating), said.Floating...)
	all.Invalid = said.Invalid
	return &all
}

// checkWishes refuses what nobody can fulfil, whatever pools there are.
func checkWishes(w *model.Workload) error {
	if w.Wishes == nil {
		return nil
	}
	if err := w.Wishes.Validate(); err != nil {
		return cni.Errorf(cni.CodeInvalidConfig, "workload %s: %v", w, err)
	}
	if len(w.Wishes.Floating) > 0 {
		return cni.Errorf(cni.CodeUnsupportedField, "%v", &model.FieldError{
			Noun: "workload " + w.String(), Field: "floating address", Value: fmt.Sprint(w.Wishes.Floating), Want: "none: heddle has no floating addresses yet",
		})
	}
	return nil
}

// placeRounds bounds how often an ADD gets another block and is overtaken by others that fill it.
const placeRounds = 20

// place reserves the workload's addresses, and claims blocks for them where need be. Without an error, attaching is
// held for reading, and the caller lets go of it. The snapshot is one whose plan has the addresses' blocks.
func (a *Agent) place(ctx context.Context, w model.Workload, lap func(string)) (got model.Workload, existed bool, s state, err error) {
	for range placeRounds {
		a.attaching.RLock()
		lap("locked")
		s = a.snapshot()
		var next []*blockAsk
		if got, existed, next, err = a.placeNow(ctx, &s, w); err == nil {
			return got, existed, s, nil
		}
		a.attaching.RUnlock()
		if len(next) == 0 {
			return w, false, s, err
		}
		if err = a.awaitOne(ctx, next, err); err != nil {
			return w, false, s, err
		}
		lap("claimed")
	}
	return w, false, s, cni.Errorf(cni.CodeTryAgainLater, "workload %s: every new block was full at once: %v", &w, err)
}

func hosts(addrs []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, len(addrs))
	for i, a := range addrs {
		out[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return out
}

// placeNow takes addresses of the blocks that are there. When they do not suffice, next are the blocks of which
// one more would.
func (a *Agent) placeNow(ctx context.Context, s *state, w model.Workload) (got model.Workload, existed bool, next []*blockAsk, err error) {
	if s.plan == nil || s.input == nil {
		return w, false, nil, cni.Errorf(cni.CodeTryAgainLater, "%v", errStarting)
	}
	w.Attachment, w.MTU = a.Config.Attachment, s.plan.MTU
	if old, had := a.ledger.Get(w.Key()); had { // what is on record stays, whatever became of the pools
		got, existed, err = a.reserve(ctx, w, ledger.Ask{Blocks: hosts(old.Addresses)})
		return got, existed, nil, err
	}
	pools, ask, err := a.choose(ctx, s, &w)
	if err != nil {
		return w, false, nil, err
	}
	if next, err = a.lacking(s, pools, ask); next != nil || err != nil {
		return w, false, next, err
	}
	if w.MAC != "" {
		defer a.keys.lock("mac " + w.MAC)()
		for _, o := range a.ledger.List() {
			if o.MAC == w.MAC {
				return w, false, nil, cni.Errorf(cni.CodeTryAgainLater, "workload %s: MAC %s: workload %s has it on this node", &w, w.MAC, &o)
			}
		}
	}
	got, existed, err = a.reserve(ctx, w, ask)
	several := func(p model.Pool) bool { return p.Blocks() > 1 }
	if err == nil && slices.ContainsFunc(pools, several) {
		poke(a.register) // which claims ahead
	}
	if errors.Is(err, ipam.ErrAddressInUse) {
		return w, false, nil, cni.Errorf(cni.CodeTryAgainLater, "%v", err)
	}
	var full *ipam.BlockFullError
	if !errors.As(err, &full) {
		return got, existed, nil, err
	}
	for i := range pools {
		if p := &pools[i]; p.Family() == model.FamilyOf(full.Block.Addr()) && several(*p) {
			next = append(next, &blockAsk{pool: p.Name, tried: ask.Blocks})
		}
	}
	if len(next) == 0 {
		err = blockFull(err)
	}
	return w, false, next, err
}

// choose says which pools the workload may have addresses of, and what to ask of this node's blocks.
func (a *Agent) choose(ctx context.Context, s *state, w *model.Workload) (pools []model.Pool, ask ledger.Ask, err error) {
	var labels map[string]string
	if n := s.input.Cluster.Node(a.Config.Node); n != nil {
		labels = n.Labels
	}
	pools, err = ipam.OfWorkload(a.claimable(s.input.Cluster.Pools), labels, a.policy.NamespaceLabels(w.Namespace), w.Wishes, matches)
	if err != nil {
		return nil, ask, cni.Errorf(cni.CodeInvalidConfig, "workload %s: %v", w, err)
	}
	if len(pools) == 0 && len(s.input.Cluster.Pools) > 0 {
		return nil, ask, fmt.Errorf("workload %s: no pool gives addresses to it on this node: `heddle ipam show` lists what pools select", w)
	}
	own, err := inUse(s.input.Cluster, applied(s.blocks, s.input))
	if err != nil {
		return nil, ask, err
	}
	set := a.ipamSettings()
	if err := a.ledger.SetCoolDown(ctx, set.CoolDown); err != nil {
		return nil, ask, err
	}
	ask.Reserved = set.Reserved
	if w.Wishes != nil {
		ask.Fixed = w.Wishes.Addresses
	}
	for i := range pools {
		for _, b := range own {
			if b.Pool == pools[i].Name {
				ask.Blocks = append(ask.Blocks, b.CIDR)
			}
		}
	}
	slices.SortStableFunc(ask.Blocks, func(x, y netip.Prefix) int { // what is lent comes last
		switch {
		case x.IsSingleIP() == y.IsSingleIP():
			return 0
		case x.IsSingleIP():
			return 1
		}
		return -1
	})
	return pools, ask, nil
}

// lacking are the blocks without which there is no use in looking: those around addresses that are asked for, and one of
// a family of which the workload may have an address and this node has no block yet.
func (a *Agent) lacking(s *state, pools []model.Pool, ask ledger.Ask) ([]*blockAsk, error) {
	for _, addr := range ask.Fixed {
		if slices.ContainsFunc(ask.Blocks, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			continue
		}
		i := slices.IndexFunc(pools, func(p model.Pool) bool { return p.CIDR.Contains(addr) })
		block := ipam.BlockOf(&pools[i], addr)
		for _, b := range s.input.Cluster.Blocks {
			if !b.CIDR.Overlaps(block) || b.Node == a.Config.Node || b.CIDR.IsSingleIP() && b.CIDR.Addr() != addr {
				continue
			}
			err := fmt.Errorf("address %s: it is in block %s of node %q", addr, b.CIDR, b.Node)
			why := a.noLoans(&pools[i])
			if why == "" && poolHolds(&pools[i], b) {
				return []*blockAsk{{pool: pools[i].Name, just: netip.PrefixFrom(addr, addr.BitLen()), of: b.Node}}, err
			}
			if why == "" {
				why = "which has it already"
			}
			return nil, cni.Errorf(cni.CodeInvalidConfig, "%v; %s: run the workload there, or ask for another address", err, why)
		}
		return []*blockAsk{{pool: pools[i].Name, just: block}}, fmt.Errorf("address %s: this node does not have its block %s", addr, block)
	}
	if len(ask.Fixed) > 0 {
		return nil, nil
	}
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if slices.ContainsFunc(ask.Blocks, func(p netip.Prefix) bool { return model.FamilyOf(p.Addr()) == f }) {
			continue
		}
		var next []*blockAsk
		for i := range pools {
			if p := &pools[i]; p.Family() == f && p.Blocks() > 1 {
				next = append(next, &blockAsk{pool: p.Name})
			}
		}
		if next != nil {
			return next, fmt.Errorf("this node has no block yet to take an %s address from", f)
		}
	}
	return nil, nil
}

// awaitOne waits for the first of the blocks that can be had.
func (a *Agent) awaitOne(ctx context.Context, next []*blockAsk, why error) error {
	for _, q := range next {
		err := a.awaitBlock(ctx, q)
		if err == nil {
			return nil
		}
		var later *cni.Error
		if errors.As(err, &later) {
			return err
		}
		why = fmt.Errorf("%w; %w", why, err)
	}
	if resting(why) {
		return cni.Errorf(cni.CodeTryAgainLater, "%v", why)
	}
	return why
}

// blockFull says what to do about full blocks of pools that have one per node.
func blockFull(err error) error {
	if resting(err) {
		return cni.Errorf(cni.CodeTryAgainLater, "%v", err)
	}
	return fmt.Errorf("%w: `heddle status` shows whose; a shorter SubnetLen gives every node more", err)
}

// resting tells whether a full block will have an address soon.
func resting(err error) bool {
	switch e := err.(type) { //nolint:errorlint // every error of the tree is looked at
	case *ipam.BlockFullError:
		return e.Cooling > 0
	case interface{ Unwrap() error }:
		return resting(e.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), resting)
	}
	return false
}
