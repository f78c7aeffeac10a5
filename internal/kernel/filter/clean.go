package filter

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/policy"
)

// globalBarrier is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const globalBarrier = 1

// noBarrier is longer than any packet takes through the chains, for kernels without membarrier(2).
const noBarrier = 100 * time.Millisecond

// grace waits until every packet that is on its way through chains now has left them. A packet goes through
// the chains of a hook inside a read-side section of RCU, and a global membarrier(2) is a grace period of it:
// 4 to 30 ms.
func grace() {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, globalBarrier, 0, 0); errno != 0 {
		time.Sleep(noBarrier)
	}
}

// remains are the numbers of which the kernel still holds entries that a difference left behind.
type remains struct {
	rows map[policy.Row]struct{}
	keys map[policy.RowKey]struct{}
}

// lock is for calls that may not meet remains.
func (d *Driver) lock() {
	d.mu.Lock()
	for len(d.remains) > 0 {
		d.cleaned.Wait()
	}
}

// leaves tells whether a difference gives a number a meaning while entries of its old one are there.
func (d *Driver) leaves(delta *policy.Delta) bool {
	for r := range d.remains {
		for k := range delta.Rows.Put {
			if _, is := r.keys[k]; is {
				return true
			}
		}
		for row := range delta.Base.Put {
			if _, is := r.rows[row]; is {
				return true
			}
		}
		for k := range delta.L4.Put {
			if _, is := r.rows[k.Row]; is {
				return true
			}
		}
	}
	return false
}

// clean takes out what a change left behind: rows, which no packet reaches that came after the change, and
// then their entries, which no packet reaches that came after that. It goes on while the caller does; calls
// that lock wait for it, Close too.
func (d *Driver) clean(delta *policy.Delta, c *change) {
	if len(c.left)+len(c.stale) == 0 {
		return
	}
	r := &remains{rows: map[policy.Row]struct{}{}, keys: delta.Rows.Del}
	for row := range delta.Base.Del {
		r.rows[row] = struct{}{}
	}
	for k := range delta.L4.Del {
		r.rows[k.Row] = struct{}{}
	}
	d.remains[r] = struct{}{}
	go func() {
		for _, old := range []contents{c.left, c.stale} {
			if len(old) == 0 {
				continue
			}
			grace()
			d.mu.Lock()
			if d.known { // else the next Apply sees to it
				if err := d.transact(func(m *message) error { return d.replace(m, old, nil) }); err != nil {
					d.log.Warn("entries that nothing leads to were not taken out; the next comparison does it", "error", err)
				}
			}
			d.unlock()
		}
		d.mu.Lock()
		delete(d.remains, r)
		d.cleaned.Broadcast()
		d.mu.Unlock()
	}()
}
