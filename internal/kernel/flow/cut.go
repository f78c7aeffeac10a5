package flow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

// batchSize is how many flows are ended together: what bounds the memory that Cut takes, about 2 MiB, and how
// often a workload's namespace is entered.
const batchSize = 4096

// resetWait bounds how long a batch waits for its resets.
const resetWait = 128 * time.Millisecond

// Cut ends every tracked flow for which denied says true, as kernel.Flows describes. The rules that deny them must
// be in force before; what they let in earlier is waited for. For TCP the sockets of both ends are destroyed first, in the
// workloads' namespaces or this one, while the tracked connection still lets their resets through to the other
// end, wherever that is; then the kernel is told to forget the entry.
//
// An end without a socket to destroy hears nothing: one elsewhere whose reset got lost, one whose workload has a TCP of
// its own, every one where the kernel lacks CONFIG_INET_DIAG_DESTROY. Then, if policy allows the other direction, its next
// packet from there makes the kernel track the stream anew (nf_conntrack_tcp_loose); only rules that answer packets from amid
// an untracked stream with a reset end it. The sockets of MPTCP outlive their subflows by net.mptcp.close_timeout.
//
// A flow that was expected (an FTP data connection) is ended when it and the one it belongs to are denied. A flow
// that cannot be ended does not keep the others: the error names the first, and how many there were.
func (d *Driver) Cut(ctx context.Context, denied func(kernel.Flow) bool, netns func(netip.Addr) *os.File) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	table, err := dial(ctx, d.ns, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("connection tracking: %w", err)
	}
	defer table.close()
	edit, err := dial(ctx, d.ns, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("connection tracking: %w", err)
	}
	defer edit.close()
	c := &cut{Driver: d, ctx: ctx, edit: edit, denied: denied, netns: netns}

	settle()
	var e entry
	err = table.dump(ctGet, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, func(data []byte) error {
		if !parseEntry(data, &e) {
			return nil
		}
		if yes, err := c.judge(&e); err != nil || !yes {
			return err
		}
		c.add(&e)
		if len(c.batch) < batchSize {
			return nil
		}
		return c.finish()
	})
	if err == nil {
		err = c.finish()
	}
	if err != nil {
		return c.ended, fmt.Errorf("connection tracking: %w", err)
	}
	if c.failed > 0 {
		return c.ended, fmt.Errorf("%d times a flow was not ended as it should, first: %w", c.failed, c.first)
	}
	return c.ended, nil
}

// settle waits until every packet that was judged by rules of before has left the hooks, and so its flow is in
// the table: one that came a moment before the rules changed would be missed otherwise. That is what the kernel calls
// a grace period, and the system call's first command is to wait for one. Where it is refused (nohz_full)
// the moment stays, of some microseconds.
func settle() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
}

// cut is one call of Cut.
type cut struct {
	*Driver
	ctx    context.Context
	edit   *conn
	denied func(kernel.Flow) bool
	netns  func(netip.Addr) *os.File

	batch  []entry
	ended  int
	failed int
	first  error
}

// judge tells whether an entry is to be ended. An expected flow was let in because of its master, whatever the rules say
// to its own ports.
func (c *cut) judge(e *entry) (bool, error) {
	if !c.denied(e.flow()) {
		return false, nil
	}
	if e.master == nil {
		return true, nil
	}
	master := entry{family: e.family, key: e.master, zone: e.zone}
	yes := true
	err := c.edit.ask(ctGet, 0, 1, func(_ int, b []byte) []byte { return master.appendKey(b) },
		func(_ int, data []byte, err error) {
			var m entry
			if err == nil && parseEntry(data, &m) {
				yes = c.denied(m.flow())
			}
		})
	return yes, err
}

// add takes an entry into the batch.
func (c *cut) add(e *entry) {
	kept := *e
	kept.key, kept.id, kept.zone = bytes.Clone(e.key), bytes.Clone(e.id), bytes.Clone(e.zone)
	kept.master = nil
	c.batch = append(c.batch, kept)
}

// finish ends the flows of the batch. The error is one after which nothing more can be done.
func (c *cut) finish() error {
	if len(c.batch) == 0 {
		return nil
	}
	reset, err := c.destroySockets()
	if err != nil {
		return err
	}
	if err := c.awaitResets(reset); err != nil {
		return err
	}
	err = c.edit.ask(ctDelete, unix.NLM_F_ACK, len(c.batch),
		func(i int, b []byte) []byte { return c.batch[i].appendKey(b) },
		func(i int, _ []byte, err error) {
			switch {
			case err == nil:
				c.ended++
			case errors.Is(err, unix.ENOENT): // it ended by itself
			default:
				c.note(fmt.Errorf("flow %s: %w", flowName(c.batch[i].flow()), err))
			}
		})
	c.batch = c.batch[:0]
	return err
}

// awaitResets waits until the resets that destroyed sockets sent have passed the entries: one that finds none is
// a new flow, and denied. Most have by the time the socket is gone, but there are shapers and busy softirqs. A reset that
// is ahead of what the other end has acknowledged leaves the entry open, until that end's next packet is answered by
// one that fits. So this waits for about a round trip, and not for ever: while the entry is there, whoever can
// forge packets in the workload can use it.
func (c *cut) awaitResets(open []int) error {
	for wait := time.Millisecond; len(open) > 0; wait *= 2 {
		var still []int
		err := c.edit.ask(ctGet, 0, len(open),
			func(i int, b []byte) []byte { return c.batch[open[i]].appendKey(b) },
			func(i int, data []byte, err error) {
				var e entry
				if err == nil && parseEntry(data, &e) && bytes.Equal(e.id, c.batch[open[i]].id) && e.tcpState != ctStateClose {
					still = append(still, open[i])
				}
			})
		if err != nil {
			return err
		}
		if open = still; len(open) == 0 || wait > resetWait/2 {
			return nil
		}
		time.Sleep(wait)
	}
	return nil
}

// note remembers an error about one flow or workload.
func (c *cut) note(err error) {
	if c.failed++; c.first == nil {
		c.first = err
	}
}

func flowName(f kernel.Flow) string {
	return fmt.Sprintf("%s to %s protocol %d", f.Src, f.Dst, f.Protocol)
}
