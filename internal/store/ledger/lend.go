package ledger

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/ipam"
)

// lentTo is whose an address is that another node uses.
func lentTo(node string) string { return fmt.Sprintf("node %q, to which it is lent", node) }

// Lend records that another node uses an address of the block from now on; once more for the same node changes
// nothing. Errors: *ipam.AddressInUseError, also while the address rests or is reserved.
func (l *Ledger) Lend(ctx context.Context, block netip.Prefix, addr netip.Addr, node string, reserved []netip.Prefix, now time.Time) error {
	return l.commitLent(ctx, func(b *batch) error {
		a := l.addresses
		owner, used := a.owner[addr]
		switch s := a.block(b, block.Masked(), now); {
		case used && owner == lentTo(node):
			return nil
		case used:
			return &ipam.AddressInUseError{Addr: addr, Owner: owner}
		case !ipam.Given(block, addr), slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(addr) }):
			return &ipam.AddressInUseError{Addr: addr, Owner: "nobody: it is reserved"}
		case !s.Cooling[addr].IsZero():
			return &ipam.AddressInUseError{Addr: addr, Owner: "nobody: it rests"}
		case a.taken != nil && a.taken(addr):
			return &ipam.AddressInUseError{Addr: addr, Owner: "another plugin's container"}
		}
		a.take(b, pick{block.Masked(), addr}, lentTo(node))
		b.lend(addr, node)
		return nil
	})
}

// Returned records that a node does not use an address any more that was lent to it. It rests from now on.
func (l *Ledger) Returned(ctx context.Context, addr netip.Addr, node string, now time.Time) error {
	return l.commitLent(ctx, func(b *batch) error {
		if l.addresses.owner[addr] != lentTo(node) {
			return nil
		}
		l.addresses.release(b, addr, lentTo(node), now)
		b.lend(addr, "")
		return nil
	})
}

// Lent are the addresses that others use, with the node that each is lent to.
func (l *Ledger) Lent() map[netip.Addr]string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return maps.Clone(l.lent)
}
