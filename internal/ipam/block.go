package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// DefaultCoolDown is how long an address rests after its workload is gone, so that neither the
// peers' neighbour tables nor connection tracking take the next owner for the last one.
const DefaultCoolDown = 30 * time.Second

// ErrBlockFull is what a *BlockFullError is, for errors.Is.
var ErrBlockFull = errors.New("block full")

// BlockFullError says that a block has no address to give now.
type BlockFullError struct {
	Block   netip.Prefix
	Used    int       // addresses that workloads hold
	Cooling int       // addresses that rest
	Until   time.Time // when the first of them may be used again; zero when none rests
}

func (e *BlockFullError) Error() string {
	s := fmt.Sprintf("block %s: no free address: %d in use", e.Block, e.Used)
	if e.Cooling == 0 {
		return s
	}
	return fmt.Sprintf("%s, %d cooling down, the first until %s", s, e.Cooling, e.Until.UTC().Format(time.RFC3339))
}

// Is makes errors.Is(err, ErrBlockFull) true.
func (e *BlockFullError) Is(target error) bool { return target == ErrBlockFull }

// ErrAddressInUse is what an *AddressInUseError is, for errors.Is.
var ErrAddressInUse = errors.New("address in use")

// AddressInUseError says that an address that was asked for by name is another's.
type AddressInUseError struct {
	Addr  netip.Addr
	Owner string // as a person calls it
}

func (e *AddressInUseError) Error() string {
	return fmt.Sprintf("address %s belongs to %s", e.Addr, e.Owner)
}

// Is makes errors.Is(err, ErrAddressInUse) true.
func (e *AddressInUseError) Is(target error) bool { return target == ErrAddressInUse }

// State is one block's addresses: each is free, in use, or cooling. The block's first address (its
// network, which a VXLAN device holds), the second (the bridge's) and the last of an IPv4 block (its
// broadcast) are never given out.
type State struct {
	Block netip.Prefix
	// Last is the address given out last; the search for the next begins after it, so that an
	// address comes round again as late as can be. Zero: none yet.
	Last netip.Addr
	// Used holds the owner's key of every address in use.
	Used map[netip.Addr]string
	// Cooling holds when an address was released.
	Cooling map[netip.Addr]time.Time
}

// NewState is a block nobody lives in.
func NewState(block netip.Prefix) State {
	return State{Block: block.Masked(), Used: map[netip.Addr]string{}, Cooling: map[netip.Addr]time.Time{}}
}

// Clone is a copy that shares nothing.
func (s State) Clone() State {
	s.Used, s.Cooling = maps.Clone(s.Used), maps.Clone(s.Cooling)
	return s
}

// Range is the first and the last address that may be given out; ok is false when there is none. A single address is
// one that another node lends.
func Range(block netip.Prefix) (first, end netip.Addr, ok bool) {
	block = block.Masked()
	if block.IsSingleIP() {
		return block.Addr(), block.Addr(), true
	}
	top := last(block)
	if block.Addr().Is4() {
		top = top.Prev()
	}
	first = block.Addr().Next().Next()
	ok = first.IsValid() && block.Contains(first) && block.Contains(top) && !top.Less(first)
	return first, top, ok
}

// Gateway is the block's own address on the node's bridge: the second of the block.
func Gateway(block netip.Prefix) netip.Addr { return block.Masked().Addr().Next() }

// Pick names the address that the next workload gets and changes nothing. now is the wall clock,
// coolDown how long a released address rests; addresses in reserved are passed over. The error is a
// *BlockFullError.
func (s State) Pick(now time.Time, coolDown time.Duration, reserved ...netip.Prefix) (netip.Addr, error) {
	first, end, ok := Range(s.Block)
	if ok {
		// Among as many addresses as are in use or cooling, and one more, there is a free one, if the
		// block has one at all. A reserved range is left in one step, and met at most twice.
		size := sizeOf(first, end)
		tries := min(size, uint64(len(s.Used))+uint64(len(s.Cooling))+2*uint64(len(reserved))+1)
		a := s.Last
		for range tries {
			if !a.IsValid() || a.Less(first) || !a.Less(end) {
				a = first
			} else {
				a = a.Next()
			}
			if beyond := leave(a, reserved); beyond.IsValid() {
				a = beyond
				continue
			}
			if _, used := s.Used[a]; used {
				continue
			}
			if released, cooling := s.Cooling[a]; cooling && rests(released, now, coolDown) {
				continue
			}
			return a, nil
		}
	}
	full := &BlockFullError{Block: s.Block, Used: len(s.Used)}
	for _, released := range s.Cooling {
		if !rests(released, now, coolDown) {
			continue
		}
		full.Cooling++
		if until := released.Add(coolDown); full.Until.IsZero() || until.Before(full.Until) {
			full.Until = until
		}
	}
	return netip.Addr{}, full
}

// leave is the last address of the widest range that holds a; the zero Addr when none does.
func leave(a netip.Addr, ranges []netip.Prefix) netip.Addr {
	var beyond netip.Addr
	for _, p := range ranges {
		if p.Contains(a) {
			if end := last(p); !beyond.IsValid() || beyond.Less(end) {
				beyond = end
			}
		}
	}
	return beyond
}

// sizeOf is how many addresses there are from first to end, both included, or 2^62 when there are more.
func sizeOf(first, end netip.Addr) uint64 {
	return numberOf(end).sub(numberOf(first)).capped(1<<62-1) + 1
}

// Size is how many addresses of a block may be given out, or 2^62 when there are more. What is reserved does
// not count; ranges in it may overlap.
func Size(block netip.Prefix, reserved ...netip.Prefix) uint64 {
	first, end, ok := Range(block)
	if !ok {
		return 0
	}
	n := sizeOf(first, end)
	inside := make([]netip.Prefix, 0, len(reserved))
	for _, p := range reserved {
		if p.IsValid() && p.Overlaps(block) {
			inside = append(inside, p.Masked())
		}
	}
	slices.SortFunc(inside, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	var counted netip.Addr // up to here
	for _, p := range inside {
		from, to := p.Addr(), last(p)
		if from.Less(first) {
			from = first
		}
		if end.Less(to) {
			to = end
		}
		if counted.IsValid() && !counted.Less(from) || to.Less(from) {
			continue // inside the one before: of two prefixes that overlap one holds the other
		}
		counted = to
		n -= min(n, sizeOf(from, to))
	}
	return n
}

// Given reports whether an address of the block may be a workload's.
func Given(block netip.Prefix, a netip.Addr) bool {
	first, end, ok := Range(block)
	return ok && !a.Less(first) && !end.Less(a) && a.Is4() == first.Is4()
}

// Take records that owner has addr from now on.
func (s *State) Take(addr netip.Addr, owner string) {
	delete(s.Cooling, addr)
	s.Used[addr] = owner
	s.Last = addr
}

// Release lets addr rest from now on, if owner holds it; else nothing changes.
func (s *State) Release(addr netip.Addr, owner string, now time.Time) bool {
	if got, ok := s.Used[addr]; !ok || got != owner {
		return false
	}
	delete(s.Used, addr)
	s.Cooling[addr] = now
	return true
}

// Settle forgets addresses that have rested and mends what a clock set back would leave resting for
// long: a release in the future counts as one of now. It returns the addresses that are free again,
// and those whose release was moved to now.
func (s *State) Settle(now time.Time, coolDown time.Duration) (freed, moved []netip.Addr) {
	for a, released := range s.Cooling {
		switch {
		case now.Before(released):
			s.Cooling[a] = now
			moved = append(moved, a)
		case !rests(released, now, coolDown):
			delete(s.Cooling, a)
			freed = append(freed, a)
		}
	}
	return freed, moved
}

// rests: a release that lies in the future (the clock was set back) rests, until Settle moves it.
func rests(released, now time.Time, coolDown time.Duration) bool { return now.Sub(released) < coolDown }
