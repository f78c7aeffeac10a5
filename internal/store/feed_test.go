package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/memory"
	"github.com/heddle-net/heddle/internal/store/storetest"
)

// fed is what a reader makes of a feed's batches.
type fed struct {
	storetest.Mirror
	before func(store.Batch) // called with each batch before it is taken
}

// feeding starts a feed of endpoints and resources and ends it with the test.
func feeding(t *testing.T, s store.Store, before func(store.Batch)) *fed {
	t.Helper()
	m := &fed{before: before}
	ctx, cancel := context.WithCancel(context.Background())
	f := store.NewFeed(s, nil, model.KindEndpoint, model.KindResource)
	done := make(chan error, 1)
	go func() {
		done <- f.Run(ctx, func(b store.Batch) {
			if m.before != nil {
				m.before(b)
			}
			m.Take(t, b)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m
}

func mustDelete(t *testing.T, s store.Store, o model.Object) {
	t.Helper()
	if err := s.Delete(context.Background(), o.Kind(), o.Key(), store.AnyRevision); err != nil {
		t.Fatal(err)
	}
}

func TestFeedsReaderHasWhatTheStoreHasThroughCompactionsAndFailures(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's
			s := memory.New()
			for i := range 50 {
				mustPut(t, s, storetest.Endpoint(i, "node-1"))
			}
			m := feeding(t, &flaky{Store: s}, func(store.Batch) {
				if r := rand.N(3); r == 0 { // a slow reader: the watch falls behind, and history goes
					time.Sleep(rand.N(3 * time.Millisecond))
				}
			})
			for i := range 2000 {
				var o model.Object = storetest.Endpoint(r.IntN(100), "node-1")
				if r.IntN(3) == 0 {
					o = storetest.Resource(r.IntN(20))
				}
				if r.IntN(3) == 0 {
					mustDelete(t, s, o)
				} else {
					if e, is := o.(*model.Endpoint); is {
						e.Labels["version"] = fmt.Sprint(i)
					}
					rev := mustPut(t, s, o)
					if r.IntN(20) == 0 {
						s.Compact(rev)
					}
				}
				if i%100 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			m.Wait(t, s, model.KindEndpoint, model.KindResource)
		})
	}
}

func TestAfterCompactionOnlyWhatDiffersIsTold(t *testing.T) {
	s := memory.New()
	for i := range 100 {
		mustPut(t, s, storetest.Endpoint(i, "node-1"))
	}
	var gate sync.Mutex // who holds it stops the reader
	var batches []store.Batch
	m := feeding(t, s, func(b store.Batch) {
		gate.Lock()
		defer gate.Unlock()
		batches = append(batches, b)
	})
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	for i := range 10 { // the reader is told of these
		e := storetest.Endpoint(50+i, "node-1")
		e.Labels["version"] = "told"
		mustPut(t, s, e)
		mustDelete(t, s, storetest.Endpoint(60+i, "node-1"))
		m.Wait(t, s, model.KindEndpoint, model.KindResource)
	}
	gate.Lock()
	told := len(batches)
	// It stands still with one change in its hands, and more than any buffer behind it.
	var last store.Revision
	for i := range 500 {
		e := storetest.Endpoint(1, "node-1")
		e.Labels["version"] = fmt.Sprint(i)
		last = mustPut(t, s, e)
		if i == 0 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	mustDelete(t, s, storetest.Endpoint(2, "node-1"))
	mustPut(t, s, storetest.Resource(1))
	s.Compact(last + 2)
	gate.Unlock()
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	gate.Lock()
	defer gate.Unlock()
	if !batches[0].Whole || len(batches[0].Items) != 100 {
		t.Errorf("first batch: whole %v with %d items, want all 100", batches[0].Whole, len(batches[0].Items))
	}
	for _, b := range batches[told:] {
		if b.Whole || len(b.Items) > 2 || len(b.Deleted) > 1 {
			t.Errorf("batch %+v: want no more than what differs", b)
		}
	}
}

func TestChangesWrittenTogetherComeTogether(t *testing.T) {
	s := memory.New()
	batches := 0
	m := feeding(t, s, func(store.Batch) { batches++ })
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	const n = 5000
	for i := range n {
		mustPut(t, s, storetest.Endpoint(i, "node-1"))
	}
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	m.Do(func() {
		if batches > n/10 {
			t.Errorf("%d changes came in %d batches", n, batches)
		}
	})
}

func TestFeedKeepsNoObjects(t *testing.T) {
	s := memory.New()
	for i := range 100 {
		mustPut(t, s, storetest.Endpoint(i, "node-1"))
	}
	told := make(chan []weak.Pointer[model.Endpoint], 2)
	f := store.NewFeed(s, nil, model.KindEndpoint)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- f.Run(ctx, func(b store.Batch) {
			var list []weak.Pointer[model.Endpoint]
			for _, it := range b.Items {
				list = append(list, weak.Make(it.Object.(*model.Endpoint)))
			}
			told <- list
		})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	first := <-told
	mustPut(t, s, storetest.Endpoint(1000, "node-1"))
	second := <-told
	for end := time.Now().Add(storetest.Patience); ; time.Sleep(time.Millisecond) {
		runtime.GC()
		kept := 0
		for _, p := range append(first, second...) {
			if p.Value() != nil {
				kept++
			}
		}
		if kept == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d objects that were told are still in memory", kept, len(first)+len(second))
		}
	}
}

// besideLists changes endpoints and resources after they were listed and before they are watched.
type besideLists struct {
	store.Store
	done bool
}

func (b *besideLists) List(ctx context.Context, kinds ...model.Kind) ([]store.Item, store.Revision, error) {
	items, rev, err := b.Store.List(ctx, kinds...)
	if b.done || err != nil {
		return items, rev, err
	}
	b.done = true
	changed := storetest.Resource(1)
	changed.Body = []byte(`{"changed":true}`)
	for _, o := range []model.Object{storetest.Endpoint(2, "node-1"), storetest.Resource(1), changed} {
		if _, err := b.Put(ctx, o, store.AnyRevision); err != nil {
			return nil, 0, err
		}
	}
	return items, rev, b.Delete(ctx, model.KindEndpoint, storetest.Endpoint(1, "node-1").Key(), store.AnyRevision)
}

func TestFeedLosesNoChangeAfterItsListAndTellsNoneTwice(t *testing.T) {
	s := memory.New()
	mustPut(t, s, storetest.Endpoint(1, "node-1"))
	m := feeding(t, &besideLists{Store: s}, nil)
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	mustPut(t, s, storetest.Endpoint(3, "node-1"))
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	m.Do(func() {
		if len(m.Objects) != 3 {
			t.Errorf("%v", m.Objects)
		}
	})
}

func TestBatchHoldsTheNewestOfAnObject(t *testing.T) {
	s := memory.New()
	m := feeding(t, s, nil)
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	e := storetest.Endpoint(1, "node-1")
	for i := range 300 {
		e.Labels["version"] = fmt.Sprint(i)
		mustPut(t, s, e)
		if i%3 == 0 {
			mustDelete(t, s, e)
		}
	}
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	m.Do(func() {
		got := m.Objects[store.KindKey{Kind: e.Kind(), Key: e.Key()}]
		if !reflect.DeepEqual(got, model.Object(e)) {
			t.Errorf("got %v, want %v", got, e)
		}
	})
}
