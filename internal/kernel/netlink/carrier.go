package netlink

import (
	"context"
	"fmt"
	"time"
)

// carrierWait bounds the wait until a new veth carries packets; the kernel's link watch normally says
// so within a millisecond.
const carrierWait = 5 * time.Second

// awaitCarrier returns when the host end is operational, and forwarding if it is a bridge's port: the
// kernel gets there by a work queue, after both ends are up.
func awaitCarrier(ctx context.Context, c *conn, host *link) error {
	ctx, cancel := context.WithTimeout(ctx, carrierWait)
	defer cancel()
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		l, err := c.link(host.name)
		if err != nil {
			return err
		}
		if l == nil || l.index != host.index {
			return fmt.Errorf("link %s: removed by somebody while it came up", host.name)
		}
		if l.operState == operUp && (l.master == 0 || l.portState == portForwarding) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("link %s: no carrier: state %d, bridge port state %d: %w", host.name, l.operState, l.portState, ctx.Err())
		case <-time.After(pause):
		}
	}
}
