package ledger

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
)

// addresses is what the records say of addresses, in the form in which ipam wants it. Blocks come up
// when they are first asked for; they may overlap, since a block's size may change over the years.
type addresses struct {
	coolDown time.Duration
	taken    func(netip.Addr) bool // nil: none
	owner    map[netip.Addr]string
	cooling  map[netip.Addr]time.Time // when it was released
	last     map[netip.Prefix]netip.Addr
	blocks   map[netip.Prefix]*block
}

// block is a block's state, and when it was last settled.
type block struct {
	ipam.State
	settled time.Time
}

// settleEvery keeps the forgetting of rested addresses from costing every Reserve a walk.
const settleEvery = time.Second

// pick is an address and the block it is of.
type pick struct {
	block netip.Prefix
	addr  netip.Addr
}

func newAddresses(coolDown time.Duration) *addresses {
	return &addresses{
		coolDown: coolDown,
		owner:    map[netip.Addr]string{},
		cooling:  map[netip.Addr]time.Time{},
		last:     map[netip.Prefix]netip.Addr{},
		blocks:   map[netip.Prefix]*block{},
	}
}

// fixed chooses the addresses that are asked for. It takes none. Who asks for one by name gets it also while it
// rests or is reserved.
func (a *addresses) fixed(b *batch, ask Ask, now time.Time) ([]pick, error) {
	picked := make([]pick, 0, len(ask.Fixed))
	for _, addr := range ask.Fixed {
		i := slices.IndexFunc(ask.Blocks, func(p netip.Prefix) bool { return p.Contains(addr) })
		if i < 0 || !ipam.Given(ask.Blocks[i], addr) {
			return nil, &model.FieldError{Noun: "ledger", Field: "address", Value: addr.String(), Want: fmt.Sprintf("one that workloads may have in %v", ask.Blocks)}
		}
		if owner, used := a.owner[addr]; used {
			if w, ok := b.workload(owner); ok {
				owner = fmt.Sprintf("workload %s of this node", &w)
			}
			return nil, &ipam.AddressInUseError{Addr: addr, Owner: owner}
		}
		if a.taken != nil && a.taken(addr) {
			return nil, &ipam.AddressInUseError{Addr: addr, Owner: "another plugin's container on this node"}
		}
		p := ask.Blocks[i].Masked()
		a.block(b, p, now)
		picked = append(picked, pick{p, addr})
	}
	return picked, nil
}

// pick chooses one address of each family that blocks have. It takes none.
func (a *addresses) pick(b *batch, ask Ask, now time.Time) ([]pick, error) {
	if len(ask.Fixed) > 0 {
		return a.fixed(b, ask, now)
	}
	var (
		order  []model.Family
		found  = map[model.Family]pick{}
		failed = map[model.Family]error{}
	)
	for _, p := range ask.Blocks {
		if !p.IsValid() {
			return nil, &model.FieldError{Noun: "ledger", Field: "block", Value: p.String(), Want: "a network address with its prefix length"}
		}
		f := model.FamilyOf(p.Addr())
		if _, known := failed[f]; !known {
			if _, ok := found[f]; !ok {
				order = append(order, f)
			}
		}
		if _, ok := found[f]; ok {
			continue
		}
		addr, err := a.untaken(a.block(b, p.Masked(), now), now, ask.Reserved)
		switch {
		case err == nil:
			found[f] = pick{p.Masked(), addr}
		case failed[f] == nil:
			failed[f] = err
		default:
			failed[f] = fmt.Errorf("%w; %w", failed[f], err)
		}
	}
	picked := make([]pick, 0, len(order))
	for _, f := range order {
		p, ok := found[f]
		if !ok {
			return nil, failed[f]
		}
		picked = append(picked, p)
	}
	return picked, nil
}

// untaken picks the first address that nobody else has given out. Those that are passed over count as in
// use for this search alone: whoever has them may let go of them at any time.
func (a *addresses) untaken(s *block, now time.Time, reserved []netip.Prefix) (netip.Addr, error) {
	search, passed := s.State, false
	for {
		addr, err := search.Pick(now, a.coolDown, reserved...)
		if err != nil || a.taken == nil || !a.taken(addr) {
			return addr, err
		}
		if !passed {
			search, passed = search.Clone(), true
		}
		search.Take(addr, "another's")
	}
}

// block is the state of p, settled of late.
func (a *addresses) block(b *batch, p netip.Prefix, now time.Time) *block {
	s := a.blocks[p]
	if s == nil {
		s = &block{State: ipam.NewState(p)}
		s.Last = a.last[p]
		for addr, owner := range a.owner {
			if p.Contains(addr) {
				s.Used[addr] = owner
			}
		}
		for addr, released := range a.cooling {
			if p.Contains(addr) {
				s.Cooling[addr] = released
			}
		}
		a.blocks[p] = s
	}
	if since := now.Sub(s.settled); since >= 0 && since < settleEvery {
		return s
	}
	s.settled = now
	freed, moved := s.Settle(now, a.coolDown)
	for _, addr := range freed {
		a.cool(b, addr, time.Time{})
	}
	for _, addr := range moved {
		a.cool(b, addr, now)
	}
	return s
}

// cool records when addr was released, in memory and in the batch; the zero time forgets it.
func (a *addresses) cool(b *batch, addr netip.Addr, released time.Time) {
	var value []byte
	if released.IsZero() {
		delete(a.cooling, addr)
	} else {
		a.cooling[addr] = released
		value = binary.BigEndian.AppendUint64(nil, uint64(released.UnixNano())) //nolint:gosec // bits as they are
	}
	for p, s := range a.blocks {
		if !p.Contains(addr) {
			continue
		}
		if released.IsZero() {
			delete(s.Cooling, addr)
		} else {
			s.Cooling[addr] = released
		}
	}
	b.put(coolingPrefix+addr.String(), value)
}

// take gives a picked address to owner.
func (a *addresses) take(b *batch, p pick, owner string) {
	if _, cooled := a.cooling[p.addr]; cooled {
		a.cool(b, p.addr, time.Time{})
	}
	a.owner[p.addr] = owner
	for q, s := range a.blocks {
		if q == p.block {
			s.Take(p.addr, owner)
		} else if q.Contains(p.addr) {
			s.Used[p.addr] = owner
		}
	}
	a.last[p.block] = p.addr
	b.put(blockPrefix+p.block.String(), []byte(p.addr.String()))
}

// usage counts a block's addresses.
func (a *addresses) usage(b *batch, p netip.Prefix, reserved []netip.Prefix, now time.Time) ipam.Use {
	if s := a.blocks[p.Masked()]; s != nil {
		s.settled = time.Time{} // what has rested counts as free
	}
	s := a.block(b, p.Masked(), now)
	u := ipam.Use{Block: p.Masked(), Size: ipam.Size(p, reserved...), Used: len(s.Used), Cooling: len(s.Cooling)}
	held := uint64(0) // of those that count: a reserved address may be in use all the same
	for addr := range s.Used {
		held += counts(p, addr, reserved)
	}
	for addr := range s.Cooling {
		held += counts(p, addr, reserved)
	}
	u.Free = u.Size - min(u.Size, held)
	return u
}

func counts(block netip.Prefix, addr netip.Addr, reserved []netip.Prefix) uint64 {
	if !ipam.Given(block, addr) || slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return 0
	}
	return 1
}

// release lets addr cool down, if owner holds it.
func (a *addresses) release(b *batch, addr netip.Addr, owner string, now time.Time) {
	if a.owner[addr] != owner {
		return
	}
	delete(a.owner, addr)
	for p, s := range a.blocks {
		if p.Contains(addr) {
			s.Release(addr, owner, now)
		}
	}
	a.cool(b, addr, now)
}
