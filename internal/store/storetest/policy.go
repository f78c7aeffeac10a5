package storetest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

func policyFiled(ctx context.Context, t *testing.T, s store.Store) {
	for _, o := range []model.Object{Endpoint(1, "node-00001"), Resource(1)} {
		rev := put(ctx, t, s, o, 0)
		_, err := s.Put(ctx, o, 0)
		is(t, err, store.ErrConflict)
		it, err := s.Get(ctx, o.Kind(), o.Key())
		ok(t, err)
		if it.Revision != rev || fmt.Sprint(it.Object) != fmt.Sprint(o) {
			t.Fatalf("got %v at %d, want %v at %d", it.Object, it.Revision, o, rev)
		}
		items, at, err := s.List(ctx, o.Kind())
		ok(t, err)
		if len(items) != 1 || items[0].Object.Key() != o.Key() || at < rev {
			t.Fatalf("list: %v at %d", items, at)
		}
		is(t, s.Delete(ctx, o.Kind(), o.Key(), rev+1), store.ErrConflict)
		ok(t, s.Delete(ctx, o.Kind(), o.Key(), rev))
		_, err = s.Get(ctx, o.Kind(), o.Key())
		is(t, err, store.ErrNotFound)
	}
}

func watchPolicy(ctx context.Context, t *testing.T, s store.Store) {
	_, rev, err := s.List(ctx, model.KindEndpoint)
	ok(t, err)
	ch, err := s.Watch(ctx, rev, model.KindEndpoint, model.KindResource)
	ok(t, err)
	cluster, err := s.Watch(ctx, rev, model.KindPool, model.KindNode, model.KindBlock)
	ok(t, err)
	for i := range 10 {
		put(ctx, t, s, Resource(i), 0)
		put(ctx, t, s, Endpoint(i, "node-00001"), 0)
		ok(t, s.Delete(ctx, model.KindResource, Resource(i).Key(), store.AnyRevision))
	}
	put(ctx, t, s, Node(1), 0)
	for i := range 10 {
		for _, want := range []store.Event{
			{Type: store.EventPut, Kind: model.KindResource, Key: Resource(i).Key()},
			{Type: store.EventPut, Kind: model.KindEndpoint, Key: Endpoint(i, "node-00001").Key()},
			{Type: store.EventDelete, Kind: model.KindResource, Key: Resource(i).Key()},
		} {
			if e := Next(t, ch); e.Type != want.Type || e.Kind != want.Kind || e.Key != want.Key {
				t.Fatalf("event %+v, want %+v", e, want)
			}
		}
	}
	if e := Next(t, cluster); e.Kind != model.KindNode {
		t.Fatalf("the watch of the cluster tells %+v", e)
	}
}

func keysOfPrefix(ctx context.Context, t *testing.T, s store.Store) {
	const n = 1100 // more than a first page
	want := []store.KeyRevision{}
	for i := range n {
		e := Endpoint(i, "node-1")
		want = append(want, store.KeyRevision{Key: e.Key(), Revision: put(ctx, t, s, e, 0)})
	}
	put(ctx, t, s, Endpoint(1, "node-10"), 0)
	put(ctx, t, s, Endpoint(1, "node-0"), 0)
	put(ctx, t, s, Node(1), 0)
	for prefix, want := range map[string][]store.KeyRevision{"node-1:": want, "node-10:hd": {{}}, "node-2": nil} {
		got, err := s.Keys(ctx, model.KindEndpoint, prefix)
		ok(t, err)
		if len(want) == 1 && len(got) == 1 && got[0].Key == Endpoint(1, "node-10").Key() {
			continue
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d keys that begin with %s, want %d with their revisions", len(got), prefix, len(want))
		}
	}
	all, err := s.Keys(ctx, model.KindEndpoint, "")
	ok(t, err)
	if len(all) != n+2 {
		t.Errorf("%d keys, want %d", len(all), n+2)
	}
	if nodes, err := s.Keys(ctx, model.KindNode, ""); err != nil || len(nodes) != 1 || nodes[0].Key != Node(1).Name {
		t.Errorf("keys of nodes: %v, %v", nodes, err)
	}
	if _, err := s.Keys(ctx, model.KindNode, "../"); err == nil {
		t.Error("a prefix that leaves its kind was not refused")
	}
}

// listAtOneRevision has an endpoint and then a resource carry the same number while somebody lists them.
func listAtOneRevision(ctx context.Context, t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(ctx)
	written := make(chan error, 1)
	go func() {
		for i := 0; ctx.Err() == nil; i++ {
			e, r := Endpoint(1, "node-1"), Resource(1)
			e.Labels["number"], r.Body = strconv.Itoa(i), []byte(strconv.Itoa(i))
			for _, o := range []model.Object{e, r} {
				if _, err := s.Put(ctx, o, store.AnyRevision); err != nil && ctx.Err() == nil {
					written <- err
					return
				}
			}
		}
		written <- nil
	}()
	for numbers := []int{-1, -1}; numbers[1] < 300; {
		items, _, err := s.List(ctx, model.KindEndpoint, model.KindPool, model.KindNode, model.KindBlock, model.KindHeartbeat, model.KindResource)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			switch o := it.Object.(type) {
			case *model.Endpoint:
				numbers[0], err = strconv.Atoi(o.Labels["number"])
			case *model.Resource:
				numbers[1], err = strconv.Atoi(string(o.Body))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if ahead := numbers[0] - numbers[1]; ahead < 0 || ahead > 1 {
			t.Fatalf("the endpoint is of change %d, the resource of change %d: one list is of two states", numbers[0], numbers[1])
		}
	}
	cancel()
	if err := <-written; err != nil {
		t.Error(err)
	}
}
