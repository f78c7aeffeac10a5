// Package ledger is the node's own record, in two files (bbolt):
//
//   - the run file, normally in memory (/run): which workload holds which address, which addresses are cooling down
//     and which was given last. It is as good as its writer's page cache, and that is as good as need be: it outlives
//     the process, killed at any instruction, and not a power cut, after which there are no workloads.
//   - the state file, on disk: which addresses other nodes use, and what was last known of the cluster.
//
// Every write is in its file when the call returns, one of the state file also on its disk; a crash at any instruction
// leaves either the old state or the new one.
//
// Reads come from memory. Writers of the run file that come together share one commit; a lone writer does not wait
// for others. Only those wait for a disk who write to the state file, and who come right behind a change of what is lent.
package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrInUse: another process has the file open.
	ErrInUse = errors.New("in use")
	// ErrDamaged: the file's content makes no sense.
	ErrDamaged = errors.New("damaged")
	// ErrMissing: the run file was removed while workloads may hold what it had on record.
	ErrMissing = errors.New("missing")
	// ErrUnknown: there is no such workload.
	ErrUnknown = errors.New("unknown workload")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("ledger closed")
)

// Options are the settings of a ledger. The zero value is ready for use.
type Options struct {
	// CoolDown is how long an address rests after Release; 0 means ipam.DefaultCoolDown.
	CoolDown time.Duration
	// Taken tells of addresses that others than this ledger have given out; nil: none. They are passed
	// over. It is asked for each address that would be given out.
	Taken func(netip.Addr) bool
	// LockWait is how long Open waits for another process to let go of a file; 0 means 1 s.
	LockWait time.Duration
	// RunPath is the run file; empty: the state file's path and ".run".
	RunPath string
	// Boot names this boot of the machine; empty: as /proc/sys/kernel/random/boot_id says.
	Boot string
	// Attached tells whether a workload may have an interface on this machine; nil: it may.
	Attached func() bool
	// Log hears what Open had to give up; nil: nobody.
	Log *slog.Logger

	noSync  bool               // tests that cut the power themselves
	maxSize int                // bytes of a file; tests that fill the disk
	hook    func(point string) // tests that copy the files: "applied", "workloads committed", "lent committed"
}

// Ledger is an open ledger. It is safe for concurrent use.
type Ledger struct {
	path  string
	opts  Options
	state *bbolt.DB
	run   *bbolt.DB

	commits commits    // who writes next, but for meta values
	metas   sync.Mutex // held while one of those is written

	addresses *addresses // touched by the one who leads a commit only

	mu        sync.RWMutex // guards what follows: what is written, and the setting
	coolDown  time.Duration
	workloads map[string]model.Workload
	meta      map[string][]byte
	lent      map[netip.Addr]string // to which node
	sorted    []model.Workload      // of workloads, or nil when it must be made anew
}

// Ask is what a workload's addresses are taken of.
type Ask struct {
	// Blocks: one address of each family among them; the first block of the family with room gives it.
	Blocks []netip.Prefix
	// Fixed are just the addresses that it gets, each in one of Blocks; empty: any.
	Fixed []netip.Addr
	// Reserved are given to those only who ask for them in Fixed.
	Reserved []netip.Prefix
}

// Reserve is Take from any place in the blocks.
func (l *Ledger) Reserve(ctx context.Context, w model.Workload, blocks []netip.Prefix, now time.Time) (got model.Workload, existed bool, err error) {
	return l.Take(ctx, w, Ask{Blocks: blocks}, now)
}

// Take records w with the addresses that it asks for and returns it with Addresses set: Fixed, or one of each
// family that the blocks have, in the order in which the families first appear in them. A workload with the same
// key that is on record already is returned as it is, with existed true. On error nothing is recorded. Errors:
// *model.FieldError, *ipam.BlockFullError, *ipam.AddressInUseError.
func (l *Ledger) Take(ctx context.Context, w model.Workload, ask Ask, now time.Time) (got model.Workload, existed bool, err error) {
	if err := w.Validate(); err != nil {
		return model.Workload{}, false, err
	}
	if len(ask.Blocks) == 0 {
		return model.Workload{}, false, fmt.Errorf("workload %s: this node has no block yet to take an address from", &w)
	}
	err = l.commit(ctx, func(b *batch) error {
		if old, ok := b.workload(w.Key()); ok {
			got, existed = old, true
			return nil
		}
		picked, err := l.addresses.pick(b, ask, now)
		if err != nil {
			return fmt.Errorf("workload %s: %w", &w, err)
		}
		got = w
		got.Addresses = make([]netip.Addr, 0, len(picked))
		for _, p := range picked {
			got.Addresses = append(got.Addresses, p.addr)
			l.addresses.take(b, p, w.Key())
		}
		b.putWorkload(got)
		return nil
	})
	if err != nil {
		return model.Workload{}, false, err
	}
	return cloned(got), existed, nil
}

// Usage counts the addresses of blocks, in their order.
func (l *Ledger) Usage(ctx context.Context, blocks, reserved []netip.Prefix, now time.Time) ([]ipam.Use, error) {
	usage := make([]ipam.Use, 0, len(blocks))
	err := l.commit(ctx, func(b *batch) error {
		for _, p := range blocks {
			usage = append(usage, l.addresses.usage(b, p, reserved, now))
		}
		return nil
	})
	return usage, err
}

// SetCoolDown changes how long an address rests, also of those that rest already. 0: not at all.
func (l *Ledger) SetCoolDown(ctx context.Context, d time.Duration) error {
	if d == l.CoolDown() {
		return nil
	}
	return l.commit(ctx, func(*batch) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.coolDown, l.addresses.coolDown = d, d
		return nil
	})
}

// Release takes the workload off the record; its addresses cool down from now on. The workload as it
// was is returned, with ok true; ok is false when there was none, which is no error.
func (l *Ledger) Release(ctx context.Context, key string, now time.Time) (w model.Workload, ok bool, err error) {
	if _, ok := l.Get(key); !ok {
		return model.Workload{}, false, ctx.Err()
	}
	err = l.commit(ctx, func(b *batch) error {
		w, ok = b.workload(key)
		if !ok {
			return nil
		}
		for _, a := range w.Addresses {
			l.addresses.release(b, a, key, now)
		}
		b.deleteWorkload(key)
		return nil
	})
	if err != nil {
		return model.Workload{}, false, err
	}
	return w, ok, nil
}

// Update replaces what is on record of a workload. Its addresses cannot change; an unknown key is
// ErrUnknown.
func (l *Ledger) Update(ctx context.Context, w model.Workload) error {
	if err := w.Validate(); err != nil {
		return err
	}
	w = cloned(w)
	return l.commit(ctx, func(b *batch) error {
		old, ok := b.workload(w.Key())
		if !ok {
			return fmt.Errorf("workload %s: %w", &w, ErrUnknown)
		}
		if !slices.Equal(old.Addresses, w.Addresses) {
			return fmt.Errorf("workload %s: addresses %v: want those on record, %v", &w, w.Addresses, old.Addresses)
		}
		b.putWorkload(w)
		return nil
	})
}

// Get returns the workload with the key (model.Workload.Key), if there is one.
func (l *Ledger) Get(key string) (model.Workload, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	w, ok := l.workloads[key]
	return cloned(w), ok
}

// List returns all workloads, sorted by key.
func (l *Ledger) List() []model.Workload {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sorted == nil {
		l.sorted = slices.SortedFunc(maps.Values(l.workloads), func(a, b model.Workload) int { return cmp.Compare(a.Key(), b.Key()) })
	}
	out := make([]model.Workload, len(l.sorted))
	for i, w := range l.sorted {
		out[i] = cloned(w)
	}
	return out
}

// ByContainer returns the container's workloads, sorted by key.
func (l *Ledger) ByContainer(id string) []model.Workload {
	all := l.List()
	return slices.DeleteFunc(all, func(w model.Workload) bool { return w.ContainerID != id })
}

// Meta returns what SetMeta filed under the key; nil when there is nothing.
func (l *Ledger) Meta(key string) []byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return bytes.Clone(l.meta[key])
}

// SetMeta files a value (the node's id, a cached snapshot of the cluster) under a key that is not
// empty; a nil value removes it. A value that is there already costs no write.
func (l *Ledger) SetMeta(ctx context.Context, key string, value []byte) error {
	if key == "" {
		return &model.FieldError{Noun: "ledger", Field: "meta key", Want: "a name"}
	}
	l.mu.RLock()
	same := value != nil && l.meta[key] != nil && bytes.Equal(l.meta[key], value)
	l.mu.RUnlock()
	if same {
		return ctx.Err()
	}
	value = bytes.Clone(value)
	l.metas.Lock()
	defer l.metas.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	err := l.state.Update(func(tx *bbolt.Tx) error {
		if value == nil {
			return tx.Bucket([]byte(metaBucket)).Delete([]byte(key))
		}
		return tx.Bucket([]byte(metaBucket)).Put([]byte(key), value)
	})
	switch {
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return ErrClosed
	case err != nil:
		return fmt.Errorf("ledger %s: %w", l.path, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if value == nil {
		delete(l.meta, key)
	} else {
		l.meta[key] = value
	}
	return nil
}

// Path is the state file's name.
func (l *Ledger) Path() string { return l.path }

// CoolDown is how long an address rests.
func (l *Ledger) CoolDown() time.Duration {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.coolDown
}

func cloned(w model.Workload) model.Workload {
	w.Addresses = slices.Clone(w.Addresses)
	return w
}
