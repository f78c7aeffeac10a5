package storetest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

func watchMissesNothing(ctx context.Context, t *testing.T, s store.Store) {
	const n = 200
	half := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for i := range n {
			if i == n/2 {
				close(half)
			}
			if _, err := s.Put(ctx, Node(i), 0); err != nil {
				t.Error(err)
				return
			}
		}
	})
	<-half
	items, rev, err := s.List(ctx, model.KindNode)
	ok(t, err)
	seen := map[string]int{}
	for _, it := range items {
		seen[it.Object.Key()]++
	}
	ch, err := s.Watch(ctx, rev, model.KindNode)
	ok(t, err)
	for len(seen) < n {
		e := Next(t, ch)
		if e.Type != store.EventPut || e.Object == nil || e.Revision <= rev {
			t.Fatalf("event %+v after revision %d", e, rev)
		}
		rev = e.Revision
		if seen[e.Key]++; seen[e.Key] != 1 {
			t.Fatalf("%s was told twice", e.Key)
		}
	}
}

func watchInOrder(ctx context.Context, t *testing.T, s store.Store) {
	_, rev, err := s.List(ctx, model.KindPool)
	ok(t, err)
	ch, err := s.Watch(ctx, rev, model.KindPool, model.KindNode, model.KindBlock)
	ok(t, err)
	type step struct {
		kind model.Kind
		rev  store.Revision
	}
	var want []step
	add := func(o model.Object) { want = append(want, step{o.Kind(), put(ctx, t, s, o, store.AnyRevision)}) }
	add(Pool())
	for i := range 20 {
		add(Node(i))
		hb := &model.Heartbeat{Node: Node(i).Name, Renewed: time.Unix(1, 0), TTL: time.Second}
		put(ctx, t, s, hb, store.AnyRevision)
		add(Block(i, Node(i).Name))
		add(Node(0))
	}
	for i, w := range want {
		if e := Next(t, ch); e.Kind != w.kind || e.Revision != w.rev {
			t.Fatalf("event %d is %s at %d, want %s at %d", i, e.Kind, e.Revision, w.kind, w.rev)
		}
	}
	beats, err := s.Watch(ctx, rev, model.KindHeartbeat)
	ok(t, err)
	for i := range 20 {
		if e := Next(t, beats); e.Key != Node(i).Name || e.Kind != model.KindHeartbeat {
			t.Fatalf("heartbeat %d: %+v", i, e)
		}
	}
}

func watchDelete(ctx context.Context, t *testing.T, s store.Store) {
	rev := put(ctx, t, s, Node(1), 0)
	ch, err := s.Watch(ctx, rev, model.KindNode)
	ok(t, err)
	ok(t, s.Delete(ctx, model.KindNode, Node(1).Name, rev))
	e := Next(t, ch)
	if e.Type != store.EventDelete || e.Key != Node(1).Name || e.Object != nil || e.Revision <= rev {
		t.Fatalf("event %+v", e)
	}
}

// Ended waits until the watch's channel is closed.
func Ended(t *testing.T, ch <-chan store.Event) {
	t.Helper()
	deadline := time.After(Patience)
	for {
		select {
		case _, open := <-ch:
			if !open {
				return
			}
		case <-deadline:
			t.Fatal("the watch did not end")
		}
	}
}

func watchEndsWithContext(ctx context.Context, t *testing.T, s store.Store) {
	wctx, cancel := context.WithCancel(ctx)
	ch, err := s.Watch(wctx, 0, model.KindNode)
	ok(t, err)
	for i := range 300 { // more than any buffer: nobody reads
		put(ctx, t, s, Node(i), 0)
	}
	cancel()
	Ended(t, ch)
	if _, err := s.Watch(wctx, 0, model.KindNode); !errors.Is(err, context.Canceled) {
		t.Fatalf("watch with an ended context: %v", err)
	}
}

func closeEnds(ctx context.Context, t *testing.T, s store.Store) {
	ch, err := s.Watch(ctx, 0, model.KindNode)
	ok(t, err)
	put(ctx, t, s, Node(1), 0)
	ok(t, s.Close())
	Ended(t, ch)
	_, err = s.Get(ctx, model.KindNode, Node(1).Name)
	is(t, err, store.ErrUnavailable)
	_, err = s.Put(ctx, Node(2), 0)
	is(t, err, store.ErrUnavailable)
	_, err = s.Watch(ctx, 0, model.KindNode)
	is(t, err, store.ErrUnavailable)
	ok(t, s.Close())
}

func canceledContext(ctx context.Context, t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	_, err := s.Put(ctx, Node(1), 0)
	is(t, err, context.Canceled)
	_, _, err = s.List(ctx, model.KindNode)
	is(t, err, context.Canceled)
}

func listManyPages(ctx context.Context, t *testing.T, s store.Store) {
	const n = 1201
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				if _, err := s.Put(ctx, Block(i, Node(i).Name), 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	items, _, err := s.List(ctx, model.KindBlock)
	ok(t, err)
	if len(items) != n {
		t.Fatalf("%d objects, want %d", len(items), n)
	}
	for i := 1; i < n; i++ {
		if items[i-1].Object.Key() >= items[i].Object.Key() {
			t.Fatalf("%s before %s", items[i-1].Object.Key(), items[i].Object.Key())
		}
	}
}

func compactionResyncs(ctx context.Context, t *testing.T, s store.Store, compact func()) {
	rev := put(ctx, t, s, Node(1), 0)
	put(ctx, t, s, Node(2), 0)
	last := put(ctx, t, s, Node(3), 0)
	compact()
	ch, err := s.Watch(ctx, rev, model.KindNode)
	ok(t, err)
	e := Next(t, ch)
	if e.Type != store.EventResync || e.Object != nil || e.Revision < last {
		t.Fatalf("event %+v, want a resync at %d or later", e, last)
	}
	items, _, err := s.List(ctx, model.KindNode)
	ok(t, err)
	if len(items) != 3 {
		t.Fatalf("%d nodes, want 3", len(items))
	}
	r4 := put(ctx, t, s, Node(4), 0)
	if e := Next(t, ch); e.Type != store.EventPut || e.Revision != r4 {
		t.Fatalf("event %+v, want node 4 at %d", e, r4)
	}
}
