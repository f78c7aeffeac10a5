package ledger

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/heddle-net/heddle/internal/ipam"
)

// BootIDFile holds a text that the kernel makes at each boot (proc_sys_kernel(5)).
const BootIDFile = "/proc/sys/kernel/random/boot_id"

// Open opens the ledger whose state file has the path, or makes one when there is none. The folders of both files must
// exist. Errors: ErrInUse when another process holds one of them (after Options.LockWait), ErrDamaged when one makes no
// sense, ErrMissing when the run file was removed under workloads; all name the file and what to do.
func Open(path string, opts Options) (*Ledger, error) {
	if err := opts.complete(path); err != nil {
		return nil, fmt.Errorf("ledger %s: %w", path, err)
	}
	l := &Ledger{path: path, opts: opts, coolDown: opts.CoolDown}
	l.commits.idle.L = &l.commits.mu
	if err := createState(path, opts.stateOptions()); err != nil {
		return nil, fmt.Errorf("ledger %s: %w", path, err)
	}
	var (
		state *image
		err   error
	)
	// The lock of the state file is held from here on: whoever has it may replace the run file.
	if l.state, state, err = openFile(path, opts.stateOptions(), oldFormat, stateFormat); err != nil {
		return nil, explain(path, "put a copy back, or remove this node's pods, move the file away and start the agent again", err)
	}
	if err := l.openRun(state); err != nil {
		return nil, errors.Join(explain(opts.RunPath, "reboot the machine, or remove this node's pods and start the agent again", err), l.closeFiles())
	}
	if state.old || state.boot != opts.Boot {
		// The run file comes first: its records have left the state file, or its boot stands there, only when it is
		// whole. A crash in between makes the next Open do the same again.
		if err := guarded(l.settle); err != nil {
			return nil, errors.Join(fmt.Errorf("ledger %s: %w", path, err), l.closeFiles())
		}
	}
	l.meta = state.meta
	return l, nil
}

// complete fills in what was left empty.
func (o *Options) complete(path string) error {
	if o.CoolDown == 0 {
		o.CoolDown = ipam.DefaultCoolDown
	}
	if o.LockWait == 0 {
		o.LockWait = time.Second
	}
	if o.RunPath == "" {
		o.RunPath = path + ".run"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Boot != "" {
		return nil
	}
	boot, err := os.ReadFile(BootIDFile)
	if o.Boot = strings.TrimSpace(string(boot)); err == nil && o.Boot == "" {
		err = fmt.Errorf("%s: empty: want the boot's id", BootIDFile)
	}
	return err
}

// openRun opens the run file, after it has begun a new one if need be.
func (l *Ledger) openRun(state *image) error {
	path, boot := l.opts.RunPath, l.opts.Boot
	options := l.opts.runOptions()
	options.ReadOnly = true
	old, run, err := readFile(path, options, runFormat)
	missing, damaged := errors.Is(err, os.ErrNotExist), errors.Is(err, ErrDamaged)
	switch {
	case err != nil && !missing && !damaged:
		return err
	case missing || damaged:
		run = &image{}
	default:
		defer func() { _ = old.Close() }() // nothing was written through it
	}
	switch {
	case run.boot == boot && !state.old: // of this boot: it is gone on with as it is
		if err := old.Close(); err != nil { // which lets go of the lock
			return err
		}
	case l.lost(state, damaged):
		if err == nil {
			err = fmt.Errorf("%w: in its place is one of an earlier boot", ErrMissing)
		} else if missing {
			err = fmt.Errorf("%w: it was removed since this machine was started", ErrMissing)
		}
		return err
	default:
		if damaged {
			aside := path + ".damaged"
			l.opts.Log.Warn("a damaged ledger of workloads is put aside, as none of those lives any more", "file", aside, "error", err)
			if err := os.Rename(path, aside); err != nil {
				return err
			}
		}
		if err := l.beginRun(state.records, run.records); err != nil {
			return err
		}
	}
	if l.run, _, err = openFile(path, l.opts.runOptions(), runFormat); err != nil {
		return err
	}
	return l.load()
}

// lost tells whether the file that knew which addresses workloads hold, now, is not there any more. A state file of
// format 1 knows it itself; a reboot ends all network namespaces, and with no interface of a workload on this
// machine (its pods were deleted; or it is a container that was started anew, and the kernel below it was not), nobody
// holds an address.
func (l *Ledger) lost(state *image, damaged bool) bool {
	if state.old || state.boot != l.opts.Boot && (state.boot != "" || !damaged) {
		return false
	}
	return l.opts.Attached == nil || l.opts.Attached()
}

// beginRun makes a run file of this boot that holds the records of the state file (in format 1: all of them) and of the
// run file that was. Where two of them give an address to two, the state file is believed: a run file of an earlier
// boot may have lost its last writes to a power cut, and beside a state file of format 1 it is from before a
// downgrade. An old run file is not written to, since a power cut may have left anything of it.
func (l *Ledger) beginRun(lists ...[]record) error {
	im := &image{boot: l.opts.Boot}
	seen, c := map[string]bool{}, newContent()
	for _, r := range slices.Concat(lists...) {
		if seen[r.key] {
			continue
		}
		seen[r.key] = true
		if err := c.add(r); err != nil {
			l.opts.Log.Warn("a record of a workload that cannot live any more is dropped", "file", l.opts.RunPath, "error", err)
			continue
		}
		if !strings.HasPrefix(r.key, lentPrefix) {
			im.records = append(im.records, r)
		}
	}
	tmp, err := im.write(l.opts.RunPath, ".new", l.opts.runOptions(), runFormat)
	if err != nil {
		return err
	}
	return os.Rename(tmp, l.opts.RunPath)
}

// settle writes into the state file that the run file is of this boot, and drops the records that it has now. An older
// heddle refuses the file from then on, rather than believe that no address is used.
func (l *Ledger) settle() error {
	return l.state.Update(func(tx *bbolt.Tx) error {
		if tx.Bucket([]byte(oldFormat)) != nil {
			if err := tx.DeleteBucket([]byte(oldFormat)); err != nil {
				return err
			}
		}
		format, err := tx.CreateBucketIfNotExists([]byte(stateFormat))
		if err != nil {
			return err
		}
		records, drop := tx.Bucket([]byte(recordsBucket)), [][]byte(nil)
		err = records.ForEach(func(k, _ []byte) error {
			if !strings.HasPrefix(string(k), lentPrefix) {
				drop = append(drop, slices.Clone(k))
			}
			return nil
		})
		for _, k := range drop {
			err = errors.Join(err, records.Delete(k))
		}
		return errors.Join(err, format.Put([]byte(bootKey), []byte(l.opts.Boot)))
	})
}

// load reads the records of both files into memory.
func (l *Ledger) load() error {
	c := newContent()
	for _, db := range []*bbolt.DB{l.state, l.run} {
		err := db.View(func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte(recordsBucket)).ForEach(func(k, v []byte) error {
				if key := string(k); db == l.run || strings.HasPrefix(key, lentPrefix) { // the state file may be of format 1 still
					return c.add(record{key, v})
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	l.addresses = c.addresses(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.workloads, l.lent, l.sorted = c.workloads, c.lent, nil
	return nil
}

// explain names the file, and what to do.
func explain(path, wayOut string, err error) error {
	if errors.Is(err, ErrDamaged) || errors.Is(err, ErrMissing) {
		return fmt.Errorf("ledger %s: %w: %s: without the file it is not known which addresses pods hold", path, err, wayOut)
	}
	return fmt.Errorf("ledger %s: %w", path, err)
}
