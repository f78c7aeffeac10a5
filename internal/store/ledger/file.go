package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Both files have a bucket whose name is the format's version, and a bucket of records; the state file has one
// of meta values besides (which may be large, so that they live apart). Record keys of the run file:
//
//	w/<container id>/<interface>   JSON of model.Workload
//	c/<address>                    when it was released: nanoseconds since 1970, big endian
//	b/<block>                      the address given out last
//
// and of the state file:
//
//	l/<address>                    the node that it is lent to
//
// The bucket of the format holds, as "boot", during which boot of the machine the run file was begun
// (/proc/sys/kernel/random/boot_id): the run file says it of itself, the state file of the run file that belongs to it.
// In format 1 one file, the state file, had all records.
const (
	stateFormat    = "heddle-ledger-2"
	oldFormat      = "heddle-ledger-1"
	runFormat      = "heddle-workloads-1"
	bootKey        = "boot"
	recordsBucket  = "records"
	metaBucket     = "meta"
	workloadPrefix = "w/"
	coolingPrefix  = "c/"
	blockPrefix    = "b/"
	lentPrefix     = "l/"
)

// image is all that a file says.
type image struct {
	old     bool   // of format 1
	boot    string // "": none was written down
	records []record
	meta    map[string][]byte
}

type record struct {
	key   string
	value []byte
}

// stateOptions: the list of free pages is made at Open rather than written with every commit.
func (o *Options) stateOptions() bbolt.Options {
	return bbolt.Options{
		Timeout: o.LockWait, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
		NoSync: o.noSync, NoGrowSync: o.noSync, MaxSize: o.maxSize, NoStatistics: true,
	}
}

// runOptions: nothing is synced. What the page cache holds outlives the death of this process at any instruction:
// bbolt writes pages that nobody refers to, and then one page, with a checksum, that refers to them; the next
// process reads both in the order in which they were written. A power cut does not keep that order, and may leave any
// mixture of pages; but then the network namespaces that the records speak of are gone too, and Open takes nothing of a
// file of an earlier boot but the records that it can read. So there is nothing to sync for, also where the folder is
// on a disk.
func (o *Options) runOptions() bbolt.Options {
	b := o.stateOptions()
	b.NoSync, b.NoGrowSync = true, true
	return b
}

// openFile opens a file that is there, and reads it.
func openFile(path string, opts bbolt.Options, formats ...string) (*bbolt.DB, *image, error) {
	// bbolt reads free pages in a goroutine of its own, whose panic on a damaged page nobody could catch. So the
	// pages are read here first.
	opts.ReadOnly = true
	db, _, err := readFile(path, opts, formats...)
	if err != nil {
		return nil, nil, err
	}
	if err := db.Close(); err != nil {
		return nil, nil, err
	}
	opts.ReadOnly = false
	return readFile(path, opts, formats...)
}

// readFile is openFile for a file that is not written to, if opts say so; the lock lasts until Close.
func readFile(path string, opts bbolt.Options, formats ...string) (db *bbolt.DB, im *image, err error) {
	if info, err := os.Stat(path); err != nil {
		return nil, nil, err
	} else if info.Size() == 0 { // bbolt would begin a new one
		return nil, nil, fmt.Errorf("%w: it is empty", ErrDamaged)
	}
	err = guarded(func() (err error) {
		if db, err = bbolt.Open(path, 0o600, &opts); err == nil {
			im, err = read(db, formats)
		}
		return err
	})
	switch {
	case err == nil:
		return db, im, nil
	case db != nil:
		_ = db.Close()
	}
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		err = fmt.Errorf("%w: %s holds it; one node runs one heddle agent: stop the other first", ErrInUse, holder(path))
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum),
		errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrInvalidMapping):
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil, nil, err
}

// read reads the whole file. Each record makes sense by itself and beside the others.
func read(db *bbolt.DB, formats []string) (*image, error) {
	im := &image{meta: map[string][]byte{}}
	err := db.View(func(tx *bbolt.Tx) error {
		var format *bbolt.Bucket
		for _, name := range formats {
			if b := tx.Bucket([]byte(name)); b != nil {
				format, im.old = b, name == oldFormat
			}
		}
		records := tx.Bucket([]byte(recordsBucket))
		if format == nil || records == nil {
			return fmt.Errorf("%w: not a ledger, or one of another version of heddle", ErrDamaged)
		}
		im.boot = string(format.Get([]byte(bootKey)))
		c := newContent()
		err := records.ForEach(func(k, v []byte) error {
			r := record{string(k), bytes.Clone(v)}
			im.records = append(im.records, r)
			return c.add(r)
		})
		if metas := tx.Bucket([]byte(metaBucket)); err == nil && metas != nil {
			err = metas.ForEach(func(k, v []byte) error {
				im.meta[string(k)] = bytes.Clone(v)
				return nil
			})
		}
		return err
	})
	return im, err
}

// write makes a file of what im says, under the name of path with an ending, and returns that name. The caller gives
// it its own name, so that a crash leaves no half of one.
func (im *image) write(path, ending string, opts bbolt.Options, format string) (tmp string, err error) {
	tmp = path + ending
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	db, err := bbolt.Open(tmp, 0o600, &opts)
	if err != nil {
		return "", err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{format, recordsBucket, metaBucket} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		for _, r := range im.records {
			if err := tx.Bucket([]byte(recordsBucket)).Put([]byte(r.key), r.value); err != nil {
				return err
			}
		}
		if im.boot == "" {
			return nil
		}
		return tx.Bucket([]byte(format)).Put([]byte(bootKey), []byte(im.boot))
	})
	return tmp, errors.Join(err, db.Close())
}

// createState makes an empty state file when there is none. Two who create at once get the same.
func createState(path string, opts bbolt.Options) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tmp, err := (&image{}).write(path, fmt.Sprintf(".new-%d", os.Getpid()), opts, stateFormat)
	if err != nil {
		return err
	}
	defer os.Remove(tmp) // a left-over harms nobody
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
