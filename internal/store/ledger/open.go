package ledger

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
)

// The file: a bucket of records (small, written with every change) and one of meta values (which may
// be large, so that they live apart). Record keys:
//
//	w/<container id>/<interface>   JSON of model.Workload
//	c/<address>                    when it was released: nanoseconds since 1970, big endian
//	b/<block>                      the address given out last
//	l/<address>                    the node that it is lent to
const (
	recordsBucket  = "records"
	metaBucket     = "meta"
	formatBucket   = "heddle-ledger-1" // its name is the format's version
	workloadPrefix = "w/"
	coolingPrefix  = "c/"
	blockPrefix    = "b/"
	lentPrefix     = "l/"
)

// Open opens the ledger, or makes one when there is no file. The folder must exist. Errors: ErrInUse
// when another process holds it (after Options.LockWait), ErrDamaged when it makes no sense; both name
// the file and what to do.
func Open(path string, opts Options) (*Ledger, error) {
	if opts.CoolDown == 0 {
		opts.CoolDown = ipam.DefaultCoolDown
	}
	if opts.LockWait == 0 {
		opts.LockWait = time.Second
	}
	if err := create(path, opts); err != nil {
		return nil, fmt.Errorf("ledger %s: %w", path, err)
	}
	l := &Ledger{path: path, opts: opts, coolDown: opts.CoolDown}
	l.commits.idle.L = &l.commits.mu
	// bbolt reads free pages in a goroutine of its own, whose panic on a damaged page nobody could
	// catch. So the pages are read here first.
	err := guarded(func() error { return l.open(true) })
	if err == nil {
		err = l.db.Close()
	}
	if err == nil {
		err = guarded(func() error { return l.open(false) })
	}
	if err != nil {
		if l.db != nil {
			_ = l.db.Close()
		}
		return nil, explain(path, err)
	}
	return l, nil
}

func (l *Ledger) open(readOnly bool) error {
	db, err := bbolt.Open(l.path, 0o600, boltOptions(l.opts, readOnly))
	if err != nil {
		return err
	}
	l.db = db
	return l.load()
}

// boltOptions: the list of free pages is made at Open rather than written with every commit.
func boltOptions(opts Options, readOnly bool) *bbolt.Options {
	return &bbolt.Options{
		Timeout:        opts.LockWait,
		ReadOnly:       readOnly,
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
		NoSync:         opts.noSync,
		MaxSize:        opts.maxSize,
		NoStatistics:   true,
	}
}

// create makes an empty ledger under another name and links it to its own, so that a crash leaves no
// half of one, and two who create at once get the same.
func create(path string, opts Options) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tmp := fmt.Sprintf("%s.new-%d", path, os.Getpid())
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(tmp, 0o600, boltOptions(opts, false))
	if err != nil {
		return err
	}
	defer os.Remove(tmp) // a left-over harms nobody
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{formatBucket, recordsBucket, metaBucket} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp, path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close() // nothing was written through it
	return dir.Sync()
}

// guarded turns what a damaged file does to its reader, a panic or a fault in the mapped memory, into
// ErrDamaged.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return f()
}

// load reads the whole file into memory.
func (l *Ledger) load() error {
	a := newAddresses(l.CoolDown())
	a.taken = l.opts.Taken
	workloads, meta, lent := map[string]model.Workload{}, map[string][]byte{}, map[netip.Addr]string{}
	err := l.db.View(func(tx *bbolt.Tx) error {
		records, metas := tx.Bucket([]byte(recordsBucket)), tx.Bucket([]byte(metaBucket))
		if tx.Bucket([]byte(formatBucket)) == nil || records == nil || metas == nil {
			return fmt.Errorf("%w: not a ledger, or one of another version of heddle", ErrDamaged)
		}
		err := records.ForEach(func(k, v []byte) error {
			if err := readRecord(a, workloads, lent, string(k), v); err != nil {
				return fmt.Errorf("%w: record %q: %w", ErrDamaged, k, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return metas.ForEach(func(k, v []byte) error {
			meta[string(k)] = bytes.Clone(v)
			return nil
		})
	})
	if err != nil {
		return err
	}
	l.addresses = a
	l.mu.Lock()
	defer l.mu.Unlock()
	l.workloads, l.meta, l.lent, l.sorted = workloads, meta, lent, nil
	return nil
}

func readRecord(a *addresses, workloads map[string]model.Workload, lent map[netip.Addr]string, key string, value []byte) error {
	if name, ok := strings.CutPrefix(key, workloadPrefix); ok {
		var w model.Workload
		if err := json.Unmarshal(value, &w); err != nil {
			return err
		}
		if w.Key() != name {
			return fmt.Errorf("it holds workload %q", w.Key())
		}
		for _, addr := range w.Addresses {
			if other, used := a.owner[addr]; used {
				return fmt.Errorf("address %s belongs to %q already", addr, other)
			}
			a.owner[addr] = name
		}
		workloads[name] = w
		return nil
	}
	if name, ok := strings.CutPrefix(key, coolingPrefix); ok {
		addr, err := netip.ParseAddr(name)
		if err != nil {
			return err
		}
		if len(value) != 8 {
			return fmt.Errorf("%d bytes: want 8", len(value))
		}
		a.cooling[addr] = time.Unix(0, int64(binary.BigEndian.Uint64(value))) //nolint:gosec // bits as they are
		return nil
	}
	if name, ok := strings.CutPrefix(key, blockPrefix); ok {
		p, err := netip.ParsePrefix(name)
		if err != nil {
			return err
		}
		a.last[p], err = netip.ParseAddr(string(value))
		return err
	}
	if name, ok := strings.CutPrefix(key, lentPrefix); ok {
		addr, err := netip.ParseAddr(name)
		if err != nil {
			return err
		}
		if other, used := a.owner[addr]; used {
			return fmt.Errorf("address %s belongs to %q already", addr, other)
		}
		lent[addr] = string(value)
		a.owner[addr] = lentTo(lent[addr])
		return nil
	}
	return errors.New("unknown kind of record")
}

// explain names the file, and what to do.
func explain(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("ledger %s: %w: %s holds it; one node runs one heddle agent: stop the other first", path, ErrInUse, holder(path))
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum),
		errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrInvalidMapping):
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("ledger %s: %w: put a copy back, or remove this node's pods, move the file away and start the agent again: "+
			"without the file it is not known which addresses pods hold", path, err)
	}
	return fmt.Errorf("ledger %s: %w", path, err)
}

// holder names the process that has the file locked, as /proc/locks knows it (proc(5)).
func holder(path string) string {
	const somebody = "another process"
	info, err := os.Stat(path)
	if err != nil {
		return somebody
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return somebody
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return somebody
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE 708 00:13:16692 0 EOF
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != file {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			return fmt.Sprintf("process %d", pid)
		}
	}
	return somebody
}
