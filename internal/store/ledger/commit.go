package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/heddle-net/heddle/internal/model"
)

// commits lines up writers. The first to come leads: it writes all that wait, itself among them, in
// one transaction, and hands the lead to the first that came meanwhile.
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
	apply func(*batch) error
	err   error
	turn  chan bool // true: done; false: lead
}

// commit runs apply in a transaction and returns when that is on disk. apply either changes nothing
// and returns an error, or changes memory and batch alike. A change that has begun is waited for, also
// when ctx ends: the caller always knows what became of it.
func (l *Ledger) commit(ctx context.Context, apply func(*batch) error) error {
	c := &change{ctx: ctx, apply: apply, turn: make(chan bool, 1)}
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
	together := q.waiting
	q.waiting = nil
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

// Close waits for writes under way, refuses further ones and lets go of the file.
func (l *Ledger) Close() error {
	q := &l.commits
	q.mu.Lock()
	q.closed = true
	for q.leading {
		q.idle.Wait()
	}
	q.mu.Unlock()
	return l.db.Close()
}

// write makes one transaction of the changes. When it fails, all of them fail, and memory is read
// from disk anew.
func (l *Ledger) write(together []*change) {
	err := l.writeTx(together)
	if err == nil {
		return
	}
	err = fmt.Errorf("ledger %s: %w", l.path, err)
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
	tx, err := l.db.Begin(true)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it says that the transaction is over
	b := &batch{l: l, tx: tx, workloads: map[string]*model.Workload{}, meta: map[string][]byte{}, lent: map[netip.Addr]string{}}
	for _, c := range together {
		if c.err = c.ctx.Err(); c.err == nil {
			c.err = c.apply(b)
		}
		if b.err != nil {
			return b.err
		}
	}
	l.at("applied")
	if !b.dirty {
		return nil
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	l.at("committed")
	b.publish()
	return nil
}

func (l *Ledger) at(point string) {
	if l.opts.hook != nil {
		l.opts.hook(point)
	}
}

// batch is a transaction under way: what later changes of the same commit must see already, and what
// readers see only when it is on disk.
type batch struct {
	l         *Ledger
	tx        *bbolt.Tx
	workloads map[string]*model.Workload // nil: deleted
	meta      map[string][]byte          // nil: deleted
	lent      map[netip.Addr]string      // "": not any more
	dirty     bool
	err       error // the first failure to write; it fails the whole batch
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
	b.put(recordsBucket, workloadPrefix+w.Key(), value)
}

func (b *batch) deleteWorkload(key string) {
	b.workloads[key] = nil
	b.put(recordsBucket, workloadPrefix+key, nil)
}

func (b *batch) putMeta(key string, value []byte) {
	b.meta[key] = value
	b.put(metaBucket, key, value)
}

// put writes a record, or removes it when value is nil.
func (b *batch) put(bucket, key string, value []byte) {
	b.dirty = true
	records := b.tx.Bucket([]byte(bucket))
	if value == nil {
		b.fail(records.Delete([]byte(key)))
		return
	}
	b.fail(records.Put([]byte(key), value))
}

func (b *batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// publish shows readers what is on disk now.
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
	for k, v := range b.meta {
		if v == nil {
			delete(l.meta, k)
		} else {
			l.meta[k] = v
		}
	}
}
