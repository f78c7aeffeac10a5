package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// Settings are what counts for all pools.
type Settings struct {
	model.IPAM
	// Reserved are ranges whose addresses only those get who ask for them by name.
	Reserved []netip.Prefix
	// CoolDown is how long a released address rests.
	CoolDown time.Duration
}

// Match tells whether a selector, as its author wrote it, matches labels. An empty one matches all. It is the
// caller's, so that this package knows no language of selectors.
type Match func(selector string, labels map[string]string) (bool, error)

// OfNode reports whether a node with the labels claims blocks of the pool.
func OfNode(p *model.Pool, labels map[string]string, match Match) (bool, error) {
	if p.Disabled || !p.For(model.UseWorkload) {
		return false, nil
	}
	return match(p.NodeSelector, labels)
}

// Eager are those of a node's pools of which it claims a first block before anybody asks for an address: every
// pool of one block per node; of the others of a family the first that any workload may use, or, when there is
// none, just the first. The rest is claimed on demand.
func Eager(ofNode []model.Pool) []string {
	var names []string
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		var general, some string
		for i := range ofNode {
			p := &ofNode[i]
			switch {
			case p.Family() != f:
			case p.Blocks() == 1:
				names = append(names, p.Name)
				general = p.Name
			case p.NamespaceSelector == "" && !p.Manual && general == "":
				general = p.Name
			case some == "":
				some = p.Name
			}
		}
		if general == "" {
			general = some
		}
		if general != "" && !slices.Contains(names, general) {
			names = append(names, general)
		}
	}
	return names
}

// OfWorkload are the pools that a workload may have addresses from, in their order. node and namespace are
// labels. Pools that it names count whatever selectors say; a pool that it names and cannot have is a
// *model.FieldError. A selector that cannot be read matches nobody.
func OfWorkload(pools []model.Pool, node, namespace map[string]string, wishes *model.Wishes, match Match) ([]model.Pool, error) {
	if wishes == nil {
		wishes = &model.Wishes{}
	}
	if len(wishes.Addresses) > 0 {
		return ofAddresses(pools, wishes.Addresses)
	}
	var may []model.Pool
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if names := wishes.Pools(f); len(names) > 0 {
			named, err := ofNames(pools, f, names)
			if err != nil {
				return nil, err
			}
			may = append(may, named...)
			continue
		}
		for i := range pools {
			p := &pools[i]
			if p.Family() != f || p.Manual {
				continue
			}
			here, err := OfNode(p, node, match)
			if err == nil && here {
				here, err = match(p.NamespaceSelector, namespace)
			}
			if err == nil && here {
				may = append(may, *p)
			}
		}
	}
	return may, nil
}

// ofNames finds pools by name or range, in the order in which they are wished.
func ofNames(pools []model.Pool, f model.Family, names []string) ([]model.Pool, error) {
	var named []model.Pool
	for _, name := range names {
		refuse := func(want string) error {
			return &model.FieldError{Noun: "workload", Field: fmt.Sprintf("ipv%dpools", f), Value: name, Want: want}
		}
		i := slices.IndexFunc(pools, func(p model.Pool) bool { return p.Name == name || p.CIDR.String() == name })
		switch {
		case i < 0:
			return nil, refuse("the name or the range of a pool")
		case pools[i].Family() != f:
			return nil, refuse("a pool of " + f.String() + " addresses")
		}
		if why := closed(&pools[i]); why != "" {
			return nil, refuse("a pool that gives addresses to workloads: this one " + why)
		}
		named = append(named, pools[i])
	}
	return named, nil
}

// ofAddresses finds the pools of addresses that a workload asks for.
func ofAddresses(pools []model.Pool, addrs []netip.Addr) ([]model.Pool, error) {
	var found []model.Pool
	for _, a := range addrs {
		refuse := func(want string) error {
			return &model.FieldError{Noun: "workload", Field: "address", Value: a.String(), Want: want}
		}
		i := slices.IndexFunc(pools, func(p model.Pool) bool { return p.CIDR.Contains(a) })
		if i < 0 {
			return nil, refuse("an address in one of the network's pools")
		}
		p := &pools[i]
		if why := closed(p); why != "" {
			return nil, refuse(fmt.Sprintf("an address in a pool that gives some to workloads: pool %q %s", p.Name, why))
		}
		if block := BlockOf(p, a); !Given(block, a) {
			return nil, refuse(fmt.Sprintf("another address: the first two of a block, and the last of an IPv4 block, are no workload's, and %s is the block", block))
		}
		if !slices.ContainsFunc(found, func(q model.Pool) bool { return q.Name == p.Name }) {
			found = append(found, *p)
		}
	}
	return found, nil
}

// closed says why no workload gets an address of the pool; "" when some may.
func closed(p *model.Pool) string {
	switch {
	case p.Disabled:
		return "is disabled"
	case !p.For(model.UseWorkload):
		return fmt.Sprintf("is for %v", p.Uses)
	}
	return ""
}

// BlockOf is the block of the pool that holds an address of it.
func BlockOf(p *model.Pool, a netip.Addr) netip.Prefix {
	return netip.PrefixFrom(a, p.BlockSize).Masked()
}

// Holds reports whether a block is one that the pool has now: of its size and in its range.
func Holds(p *model.Pool, b model.Block) bool {
	return p.BlockSize == b.CIDR.Bits() && p.CIDR.Contains(b.CIDR.Addr())
}

// Has reports whether a node may use a block of its own now: one that the pool has, or a single address that is lent.
func Has(p *model.Pool, b model.Block) bool {
	return Holds(p, b) || b.Lender != "" && p.CIDR.Contains(b.CIDR.Addr())
}

// Low reports whether so few addresses are left of a node's blocks of a pool, of which each has size, that it
// should claim the next block: then an ADD seldom waits for one.
func Low(free, size uint64) bool { return free <= max(1, min(8, size/4)) }

// Spare reports whether a node with so many free addresses in its other blocks of a pool can do without one that
// is empty. Far from Low, so that no block comes and goes with every workload.
func Spare(freeElsewhere, size uint64) bool { return freeElsewhere > 2*max(1, min(8, size/4)) }

// BlocksFullError says why a node that has used up its blocks of a pool gets no further one.
type BlocksFullError struct {
	Pool string
	Have int
	Why  string // the setting that stops it
}

func (e *BlocksFullError) Error() string {
	return fmt.Sprintf("pool %q: this node has %d blocks of it and claims no more: %s", e.Pool, e.Have, e.Why)
}

// MayClaim tells whether a node that owns blocks claims one more of the pool; the error is a *BlocksFullError.
func MayClaim(p *model.Pool, own []model.Block, s model.IPAM) error {
	ofPool, ofFamily := 0, 0
	for _, b := range own {
		if b.Pool == p.Name && Holds(p, b) {
			ofPool++
		}
		if b.Family() == p.Family() && b.Lender == "" {
			ofFamily++
		}
	}
	refuse := func(have int, why string) error { return &BlocksFullError{Pool: p.Name, Have: have, Why: why} }
	switch {
	case ofPool >= p.Blocks():
		return refuse(ofPool, fmt.Sprintf("the pool allows %d per node", p.Blocks()))
	case ofPool > 0 && !s.AutoAllocate:
		return refuse(ofPool, "autoAllocateBlocks is false")
	case s.MaxBlocksPerHost > 0 && ofFamily >= s.MaxBlocksPerHost:
		return refuse(ofPool, fmt.Sprintf("maxBlocksPerHost is %d, and it has %d %s blocks", s.MaxBlocksPerHost, ofFamily, p.Family()))
	}
	return nil
}
