package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/heddle-net/heddle/internal/model"
)

// commits lines up writers. The first to come leads: it writes all that wait, itself among them, in
// one transaction, and hands the lead to the first that came meanwhile. A change of what is lent, which is of both
// files, is written by itself.
type commits struct {
	mu      sync.Mutex
	waiting []*change
	leading bool
	closed  bool
	idle    sync.Cond // signals the end of leading
}

// change is one caller's wish.
type change struct {
	ctx   context.Context
	lends bool // of the state file too
	apply func(*batch) error
	err   error
	turn  chan bool // true: done; false: lead
}

// commit runs apply in a transaction of the run file and returns when that is written. apply either changes nothing
// and returns an error, or changes memory and batch alike. A change that has begun is waited for, also
// when ctx ends: the caller always knows what became of it.
func (l *Ledger) commit(ctx context.Context, apply func(*batch) error) error {
	return l.enqueue(&change{ctx: ctx, apply: apply, turn: make(chan bool, 1)})
}

// commitLent is commit for a change of both files, which is on disk when it returns.
//
// The run file is written first, the state file decides. A crash in between leaves of a Lend that its address was the
// last that was given: it is free, and nobody was told that it is lent. Of a Returned it leaves that its address rests
// and is lent all the same: the agent finds it lent to a node that has given it back, and calls Returned again. The
// other way round Returned would leave an address that is free and does not rest. And as a change of both files is over
// before the next change of an address begins, no crash leaves one that is lent in the one file and a workload's in the
// other.
func (l *Ledger) commitLent(ctx context.Context, apply func(*batch) error) error {
	return l.enqueue(&change{ctx: ctx, lends: true, apply: apply, turn: make(chan bool, 1)})
}

func (l *Ledger) enqueue(c *change) error {
	q := &l.commits
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	q.waiting = append(q.waiting, c)
	follow := q.leading
	q.leading = true
	q.mu.Unlock()
	if follow && <-c.turn {
		return c.err
	}

	q.mu.Lock()
	n := 1 // c itself
	for !c.lends && n < len(q.waiting) && !q.waiting[n].lends {
		n++
	}
	together := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	q.mu.Unlock()
	l.write(together)
	q.mu.Lock()
	if len(q.waiting) > 0 {
		q.waiting[0].turn <- false
	} else {
		q.leading = false
		q.idle.Broadcast()
	}
	q.mu.Unlock()
	for _, other := range together {
		if other != c {
			other.turn <- true
		}
	}
	return c.err
}

// Close waits for writes under way, refuses further ones and lets go of the files.
func (l *Ledger) Close() error {
	q := &l.commits
	q.mu.Lock()
	q.closed = true
	for q.leading {
		q.idle.Wait()
	}
	q.mu.Unlock()
	l.metas.Lock()
	defer l.metas.Unlock()
	return l.closeFiles()
}

func (l *Ledger) closeFiles() error {
	var errs []error
	for _, db := range []*bbolt.DB{l.run, l.state} { // the state file's lock goes last
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// write makes one transaction of the changes. When it fails, all of them fail, and memory is read
// from disk anew.
func (l *Ledger) write(together []*change) {
	err := l.writeTx(together)
	if err == nil {
		return
	}
	err = fmt.Errorf("ledger %w", err)
	if again := l.load(); again != nil {
		err = fmt.Errorf("%w; reading it again: %w", err, again)
	}
	for _, c := range together {
		if c.err == nil {
			c.err = err
		}
	}
}

func (l *Ledger) writeTx(together []*change) error {
	b := &batch{l: l, workloads: map[string]*model.Workload{}, lent: map[netip.Addr]string{}}
	for _, f := range []*part{{db: l.run, path: l.opts.RunPath}, {db: l.state, path: l.path}} {
		if f.db == l.state && !together[0].lends {
			break
		}
		tx, err := f.db.Begin(true)
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		defer tx.Rollback() //nolint:errcheck // after Commit it says that the transaction is over
		f.tx = tx
		b.parts = append(b.parts, f)
	}
	for _, c := range together {
		if c.err = c.ctx.Err(); c.err == nil {
			c.err = c.apply(b)
		}
		if b.err != nil {
			return b.err
		}
	}
	l.at("applied")
	for i, f := range b.parts {
		if !f.dirty {
			continue
		}
		if err := f.tx.Commit(); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		l.at([]string{"workloads committed", "lent committed"}[i])
	}
	b.publish()
	return nil
}

func (l *Ledger) at(point string) {
	if l.opts.hook != nil {
		l.opts.hook(point)
	}
}

// batch is a transaction under way: what later changes of the same commit must see already, and what
// readers see only when it is written.
type batch struct {
	l         *Ledger
	parts     []*part                    // of the run file, and of the state file when it is for what is lent
	workloads map[string]*model.Workload // nil: deleted
	lent      map[netip.Addr]string      // "": not any more
	err       error                      // the first failure to write; it fails the whole batch
}

// part is one file's transaction.
type part struct {
	path  string
	db    *bbolt.DB
	tx    *bbolt.Tx
	dirty bool
}

func (b *batch) workload(key string) (model.Workload, bool) {
	if w, ok := b.workloads[key]; ok {
		if w == nil {
			return model.Workload{}, false
		}
		return cloned(*w), true
	}
	return b.l.Get(key)
}

func (b *batch) putWorkload(w model.Workload) {
	value, err := json.Marshal(w)
	if err != nil {
		b.fail(err)
		return
	}
	b.workloads[w.Key()] = &w
	b.put(workloadPrefix+w.Key(), value)
}

func (b *batch) deleteWorkload(key string) {
	b.workloads[key] = nil
	b.put(workloadPrefix+key, nil)
}

// put writes a record of the run file, or removes it when value is nil.
func (b *batch) put(key string, value []byte) { b.write(b.parts[0], key, value) }

// lend writes down to which node an address is lent, in the state file; "": to none any more.
func (b *batch) lend(addr netip.Addr, node string) {
	b.lent[addr] = node
	var value []byte
	if node != "" {
		value = []byte(node)
	}
	b.write(b.parts[1], lentPrefix+addr.String(), value)
}

func (b *batch) write(f *part, key string, value []byte) {
	f.dirty = true
	records := f.tx.Bucket([]byte(recordsBucket))
	var err error
	if value == nil {
		err = records.Delete([]byte(key))
	} else {
		err = records.Put([]byte(key), value)
	}
	if err != nil {
		b.fail(fmt.Errorf("%s: %w", f.path, err))
	}
}

func (b *batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// publish shows readers what is written now.
func (b *batch) publish() {
	l := b.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, w := range b.workloads {
		if w == nil {
			delete(l.workloads, k)
		} else {
			l.workloads[k] = cloned(*w)
		}
		l.sorted = nil
	}
	for addr, node := range b.lent {
		if node == "" {
			delete(l.lent, addr)
		} else {
			l.lent[addr] = node
		}
	}
}
