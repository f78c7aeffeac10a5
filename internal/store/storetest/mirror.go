package storetest

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// Mirror is a reader of a store.Feed that keeps what it was told. Its zero value is one to which nothing
// was told.
type Mirror struct {
	mu      sync.Mutex
	Objects map[store.KindKey]model.Object // see Do
	// Batches counts all batches, Wholes the whole ones.
	Batches, Wholes int

	revision store.Revision
	told     map[store.KindKey]store.Revision
}

// Do runs f while no batch is taken.
func (m *Mirror) Do(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// Take is for Feed.Run.
func (m *Mirror) Take(t testing.TB, b store.Batch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Batches++
	if b.Whole {
		m.Wholes++
		m.Objects, m.told = map[store.KindKey]model.Object{}, map[store.KindKey]store.Revision{}
	}
	if m.Objects == nil {
		t.Errorf("the first batch is not whole: %+v", b)
		return
	}
	if b.Whole && len(b.Deleted) > 0 {
		t.Errorf("a whole batch deletes: %v", b.Deleted)
	}
	if b.Revision < m.revision && !b.Whole {
		t.Errorf("revision %d after %d", b.Revision, m.revision)
	}
	m.revision = b.Revision
	seen := map[store.KindKey]bool{}
	once := func(k store.KindKey) {
		if seen[k] {
			t.Errorf("%v is in one batch twice", k)
		}
		seen[k] = true
	}
	for _, it := range b.Items {
		k := store.KindKey{Kind: it.Object.Kind(), Key: it.Object.Key()}
		once(k)
		if m.told[k] >= it.Revision {
			t.Errorf("%v is told at revision %d after %d", k, it.Revision, m.told[k])
		}
		m.Objects[k], m.told[k] = it.Object, it.Revision
	}
	for _, k := range b.Deleted {
		once(k)
		delete(m.Objects, k)
	}
}

// Wait waits until the mirror holds what the store does, of these kinds: three times Patience, as a watch
// looks only now and then whether the store was put back.
func (m *Mirror) Wait(t testing.TB, s store.Store, kinds ...model.Kind) {
	t.Helper()
	for end := time.Now().Add(3 * Patience); ; time.Sleep(2 * time.Millisecond) {
		want := map[store.KindKey]model.Object{}
		var err error
		for _, k := range kinds {
			var items []store.Item
			items, _, e := s.List(context.Background(), k)
			if e != nil {
				err = e
			}
			for _, it := range items {
				want[store.KindKey{Kind: k, Key: it.Object.Key()}] = it.Object
			}
		}
		same, said := false, ""
		m.Do(func() {
			same = err == nil && m.Objects != nil && reflect.DeepEqual(m.Objects, want)
			said = fmt.Sprintf("the reader holds %d objects, the store %d (%v)", len(m.Objects), len(want), err)
		})
		if same {
			return
		}
		if time.Now().After(end) {
			t.Fatal(said)
		}
	}
}
