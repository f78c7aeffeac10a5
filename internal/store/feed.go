package store

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// What was written together comes together: after a change a Feed waits gatherGap for another one, and for so
// long as they come, up to gatherMost in all.
const (
	gatherGap  = 300 * time.Microsecond
	gatherMost = 5 * time.Millisecond
)

// KindKey names an object.
type KindKey struct {
	Kind model.Kind
	Key  string
}

// Batch is news of the store: no object is in it twice, so its order means nothing.
type Batch struct {
	// Whole means that Items are all there is: what is not among them is gone.
	Whole   bool
	Items   []Item
	Deleted []KindKey // empty when Whole
	// Revision is that of a state of the store which the reader has reached with this batch, at least.
	Revision Revision
}

// Feed reads the objects of some kinds once and then tells what changes, through outages and compactions
// of the store. It keeps no objects, only their keys and revisions: after an interruption it tells what
// differs.
type Feed struct {
	store Store
	log   *slog.Logger
	kinds []model.Kind

	// known are the revisions of what was told; nil when a whole list must be told.
	known map[model.Kind]map[string]Revision
	last  Revision // of what was told

	mu  sync.Mutex
	err error // why the store cannot be followed now
}

// NewFeed returns a feed of the kinds. log may be nil.
func NewFeed(s Store, log *slog.Logger, kinds ...model.Kind) *Feed {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Feed{store: s, log: log, kinds: kinds}
}

// Run gives take all objects as one whole batch, and then every change, until ctx ends or the store is
// closed. take is never called twice at a time. A feed runs once.
func (f *Feed) Run(ctx context.Context, take func(Batch)) error {
	const lowest, highest = 100 * time.Millisecond, 5 * time.Second
	delay := lowest
	for {
		began := time.Now()
		err := f.follow(ctx, take)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > 2*highest {
			delay = lowest
		}
		f.fail(err)
		f.log.Warn("the store cannot be followed; what was known stays", "reason", err, "retryIn", delay)
		if !Pause(ctx, delay/2+rand.N(delay/2)) {
			return nil
		}
		delay = min(2*delay, highest)
	}
}

// Err tells why the store could not be read or followed when that was last tried; nil once it could.
func (f *Feed) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *Feed) fail(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
}

// follow reads everything and then every change, until the watch ends.
func (f *Feed) follow(ctx context.Context, take func(Batch)) error {
	read, err := f.read(ctx, take)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := f.store.Watch(ctx, read, f.kinds...)
	if err != nil {
		return err
	}
	for e := range events {
		var resync bool
		if e.Type != EventResync {
			e, resync = f.tell(e, events, read, take)
			if !resync {
				continue
			}
		}
		// Changes may be missing. The watch goes on from there, and repeats at worst what is read now.
		if e.Anew {
			f.known = nil
		}
		if read, err = f.reread(ctx, take); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the watch ended", ErrUnavailable)
}

// reread reads with patience: the watch is there, only the lists are missing.
func (f *Feed) reread(ctx context.Context, take func(Batch)) (Revision, error) {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
		read, err := f.read(ctx, take)
		if err == nil || ctx.Err() != nil {
			return read, err
		}
		f.fail(err)
		f.log.Warn("the store cannot be read anew", "reason", err, "retryIn", delay)
		if !Pause(ctx, delay/2+rand.N(delay/2)) {
			return 0, ctx.Err()
		}
	}
}

// read lists everything and tells it: whole the first time, later only what differs from what was told.
func (f *Feed) read(ctx context.Context, take func(Batch)) (Revision, error) {
	items, read, err := f.store.List(ctx, f.kinds...)
	if err != nil {
		return 0, err
	}
	now := map[model.Kind]map[string]Revision{}
	for _, k := range f.kinds {
		now[k] = map[string]Revision{}
	}
	for _, it := range items {
		now[it.Object.Kind()][it.Object.Key()] = it.Revision
	}
	b := Batch{Items: items, Revision: read}
	if b.Whole = f.known == nil; !b.Whole {
		b.Items = slices.DeleteFunc(items, func(it Item) bool {
			rev, told := f.known[it.Object.Kind()][it.Object.Key()]
			return told && rev == it.Revision
		})
		for k, keys := range f.known {
			for key := range keys {
				if _, is := now[k][key]; !is {
					b.Deleted = append(b.Deleted, KindKey{k, key})
				}
			}
		}
	}
	f.known, f.last = now, read
	f.fail(nil)
	take(b)
	return read, nil
}

// tell gives take the first change and those that come with it. When a resync follows them, it returns
// that and true.
func (f *Feed) tell(e Event, events <-chan Event, read Revision, take func(Batch)) (resync Event, is bool) {
	b, news := Batch{}, map[KindKey]Item{}
	add := func(e Event) {
		b.Revision = max(b.Revision, e.Revision)
		if e.Revision > read { // else the list was read after this change
			news[KindKey{e.Kind, e.Key}] = Item{e.Object, e.Revision}
		}
	}
	add(e)
	began, gap := time.Now(), time.NewTimer(gatherGap)
	defer gap.Stop()
	for more := true; more && !is && time.Since(began) < gatherMost; {
		select {
		case e, open := <-events:
			switch {
			case !open:
				more = false
			case e.Type == EventResync:
				resync, is = e, true
			default:
				add(e)
				gap.Reset(gatherGap)
			}
		case <-gap.C:
			more = false
		}
	}
	for k, it := range news {
		if it.Object == nil {
			delete(f.known[k.Kind], k.Key)
			b.Deleted = append(b.Deleted, k)
		} else {
			f.known[k.Kind][k.Key] = it.Revision
			b.Items = append(b.Items, it)
		}
	}
	if len(news) > 0 || b.Revision > f.last {
		f.last = b.Revision
		take(b)
	}
	return resync, is
}
