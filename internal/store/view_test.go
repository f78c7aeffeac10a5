package store_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/memory"
	"github.com/heddle-net/heddle/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running starts the view and ends it with the test.
func running(t *testing.T, s store.Store) *store.View {
	t.Helper()
	v := store.NewView(s, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = s.Close()
	})
	return v
}

// until waits for a snapshot that pleases, woken by Changed alone.
func until(t *testing.T, v *store.View, good func(model.Cluster, bool) bool) model.Cluster {
	t.Helper()
	deadline := time.After(storetest.Patience)
	for {
		c, synced := v.Snapshot()
		if good(c, synced) {
			return c
		}
		select {
		case <-v.Changed():
		case <-deadline:
			t.Fatalf("the view stays at %d pools, %d nodes, %d blocks, synced %v", len(c.Pools), len(c.Nodes), len(c.Blocks), synced)
		}
	}
}

func mustPut(t *testing.T, s store.Store, o model.Object) store.Revision {
	t.Helper()
	rev, err := s.Put(context.Background(), o, store.AnyRevision)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestViewFollowsTheStoreSorted(t *testing.T) {
	s := memory.New()
	mustPut(t, s, storetest.Pool())
	mustPut(t, s, storetest.Node(7))
	v := running(t, s)
	until(t, v, func(c model.Cluster, synced bool) bool { return synced && len(c.Pools) == 1 && len(c.Nodes) == 1 })
	for _, i := range []int{9, 3, 5} {
		mustPut(t, s, storetest.Node(i))
		mustPut(t, s, storetest.Block(i, storetest.Node(i).Name))
	}
	c := until(t, v, func(c model.Cluster, _ bool) bool { return len(c.Nodes) == 4 && len(c.Blocks) == 3 })
	sorted := model.Cluster{Pools: slices.Clone(c.Pools), Nodes: slices.Clone(c.Nodes), Blocks: slices.Clone(c.Blocks)}
	sorted.Sort()
	if !reflect.DeepEqual(c, sorted) {
		t.Fatalf("not sorted: %v", c)
	}
	if err := s.Delete(context.Background(), model.KindNode, storetest.Node(7).Name, store.AnyRevision); err != nil {
		t.Fatal(err)
	}
	until(t, v, func(c model.Cluster, _ bool) bool { return len(c.Nodes) == 3 })
	if len(c.Nodes) != 4 {
		t.Fatal("an older snapshot changed")
	}
}

func TestViewReadsAnewAfterCompaction(t *testing.T) {
	s := memory.New()
	mustPut(t, s, storetest.Node(0))
	v := running(t, &flaky{Store: s})
	until(t, v, func(c model.Cluster, _ bool) bool { return len(c.Nodes) == 1 })
	for i := range 500 {
		rev := mustPut(t, s, storetest.Node(i))
		if i%7 == 0 { // faster than the watch, often
			s.Compact(rev)
		}
		if i%5 == 0 {
			if err := s.Delete(context.Background(), model.KindNode, storetest.Node(i).Name, store.AnyRevision); err != nil {
				t.Fatal(err)
			}
		}
	}
	until(t, v, func(c model.Cluster, _ bool) bool {
		return len(c.Nodes) == 400 && c.Nodes[0].Name == storetest.Node(1).Name
	})
}

// flaky fails every second List, as a store in trouble does.
type flaky struct {
	store.Store
	calls int
}

func (f *flaky) List(ctx context.Context, kinds ...model.Kind) ([]store.Item, store.Revision, error) {
	if f.calls++; f.calls%5 == 1 {
		return nil, 0, store.ErrUnavailable
	}
	return f.Store.List(ctx, kinds...)
}

func TestHeartbeatsWakeNobody(t *testing.T) {
	s := memory.New()
	mustPut(t, s, storetest.Node(1))
	v := running(t, s)
	until(t, v, func(_ model.Cluster, synced bool) bool { return synced })
	select {
	case <-v.Changed():
	default:
	}
	mustPut(t, s, &model.Heartbeat{Node: storetest.Node(1).Name, Renewed: time.Unix(5, 0), TTL: time.Minute})
	select {
	case <-v.Changed():
		t.Fatal("a heartbeat woke the reader")
	case <-time.After(100 * time.Millisecond):
	}
}

func TestSnapshotIsBuiltOnlyAfterAChange(t *testing.T) {
	s := memory.New()
	for i := range 1000 {
		mustPut(t, s, storetest.Node(i))
		mustPut(t, s, storetest.Block(i, storetest.Node(i).Name))
	}
	v := running(t, s)
	until(t, v, func(c model.Cluster, _ bool) bool { return len(c.Blocks) == 1000 })
	if n := testing.AllocsPerRun(100, func() { _, _ = v.Snapshot() }); n != 0 {
		t.Fatalf("%v allocations for a snapshot without a change", n)
	}
	c, _ := v.Snapshot()
	_ = append(c.Nodes, model.Node{Name: "mine"})
	if d, _ := v.Snapshot(); len(d.Nodes) != 1000 {
		t.Fatal("a reader's append reached the view")
	}
}

// down is a store that cannot be reached until it is told otherwise.
type down struct {
	store.Store
	up atomic.Bool
}

func (d *down) List(ctx context.Context, kinds ...model.Kind) ([]store.Item, store.Revision, error) {
	if !d.up.Load() {
		return nil, 0, fmt.Errorf("list %s: %w: connection refused", kinds, store.ErrUnavailable)
	}
	return d.Store.List(ctx, kinds...)
}

func TestViewTellsWhyItCouldNotReadUntilItCan(t *testing.T) {
	s := &down{Store: memory.New()}
	v := running(t, s)
	for end := time.Now().Add(storetest.Patience); v.Err() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no error though the store was never reached")
		}
	}
	if err := v.Err(); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v, want the store's own", err)
	}
	s.up.Store(true)
	until(t, v, func(_ model.Cluster, synced bool) bool { return synced })
	if err := v.Err(); err != nil {
		t.Errorf("error %v though the store was read", err)
	}
}
