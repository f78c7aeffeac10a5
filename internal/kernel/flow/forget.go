package flow

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

var _ kernel.Forgetter = (*Driver)(nil)

// Of linux/rtnetlink.h.
const rtaDst = 1

// ForgetUDP implements kernel.Forgetter.
func (d *Driver) ForgetUDP(ctx context.Context, stale func(kernel.Tracked) bool) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	local, err := d.localAddresses(ctx)
	if err != nil {
		return 0, fmt.Errorf("own addresses: %w", err)
	}
	table, err := dial(ctx, d.ns, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("connection tracking: %w", err)
	}
	defer table.close()
	settle()
	c := &cut{Driver: d, ctx: ctx}
	var e entry
	err = table.dump(ctGet, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, func(data []byte) error {
		if !parseEntry(data, &e) || e.orig.protocol != unix.IPPROTO_UDP {
			return nil
		}
		if stale(kernel.Tracked{Dst: e.orig.dst, To: e.reply.src}) && within(local, e.orig.dst.Addr()) {
			c.add(&e)
		}
		return nil
	})
	if err != nil || len(c.batch) == 0 {
		return 0, wrapTracking(err)
	}
	err = table.ask(ctDelete, unix.NLM_F_ACK, len(c.batch),
		func(i int, b []byte) []byte { return c.batch[i].appendKey(b) },
		func(i int, _ []byte, err error) {
			switch {
			case err == nil:
				c.ended++
			case !errors.Is(err, unix.ENOENT): // otherwise it ended by itself
				c.note(fmt.Errorf("flow %s: %w", flowName(c.batch[i].flow()), err))
			}
		})
	return c.ended, wrapTracking(errors.Join(err, c.first))
}

func wrapTracking(err error) error {
	if err != nil {
		return fmt.Errorf("connection tracking: %w", err)
	}
	return nil
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// localAddresses are those that the kernel takes for the node's own: what `fib daddr type local` of nft tells.
func (d *Driver) localAddresses(ctx context.Context) ([]netip.Prefix, error) {
	routes, err := dial(ctx, d.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer routes.close()
	var out []netip.Prefix
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		body := make([]byte, unix.SizeofRtMsg)
		body[0] = family
		err := routes.dump(unix.RTM_GETROUTE, body, func(data []byte) error {
			if p, ok := localRoute(data); ok {
				out = append(out, p)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// localRoute reads a route's destination, if packets to it are for the node itself.
func localRoute(data []byte) (netip.Prefix, bool) {
	if len(data) < unix.SizeofRtMsg {
		return netip.Prefix{}, false
	}
	bits, kind := int(data[1]), data[7]
	if kind != unix.RTN_LOCAL {
		return netip.Prefix{}, false
	}
	for attr, value := range attributes(data[unix.SizeofRtMsg:]) {
		if a, ok := netip.AddrFromSlice(value); attr == rtaDst && ok && bits <= a.BitLen() {
			return netip.PrefixFrom(a, bits), true
		}
	}
	return netip.Prefix{}, false
}
