package flannelkv

import (
	"cmp"
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/etcd"
)

// watch turns changes of keys into changes of objects: one key may change several objects (a subnet is
// two blocks and perhaps a node), or none.
type watch struct {
	s     *Store
	kinds []model.Kind
	from  int64
	out   chan store.Event
	st    *state // what the keys say; nil before the first reading
	told  map[id]model.Object
}

// Watch implements store.Store. Events of one revision come deletions first.
func (s *Store) Watch(ctx context.Context, from store.Revision, kinds ...model.Kind) (<-chan store.Event, error) {
	if err := store.CheckKinds(kinds); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan store.Event, 64)
	var parts sync.WaitGroup
	ended := func() { cancel(); parts.Done() }
	var others, shared []model.Kind
	for _, k := range kinds {
		switch {
		case unheld(k):
		case besides(k):
			others = append(others, k)
		default:
			shared = append(shared, k)
		}
	}
	if len(others) > 0 {
		events, err := s.inner.Watch(ctx, from, others...)
		if err != nil {
			cancel()
			return nil, err
		}
		parts.Go(func() {
			for e := range events {
				if !etcd.Send(ctx, out, e) {
					break
				}
			}
			cancel()
			for range events { // until it is closed
			}
		})
	}
	if len(shared) > 0 {
		w := &watch{s: s, kinds: shared, from: int64(from), out: out}
		first, last := s.span()
		parts.Add(1)
		if err := s.inner.Follow(ctx, w.from, first, last, etcd.Follower{Changed: w.changed, Resync: w.resync}, ended); err != nil {
			ended()
			return nil, err
		}
	}
	if len(others)+len(shared) == 0 {
		parts.Go(func() { <-ctx.Done() })
	}
	go func() {
		parts.Wait()
		cancel()
		close(out)
	}()
	return out, nil
}

// begin reads what the keys said at the revision from which the reader watches.
func (w *watch) begin(ctx context.Context) bool {
	if w.from == 0 {
		w.take(w.s.newState())
		return true
	}
	for {
		st, _, err := w.s.load(ctx, w.from)
		switch {
		case err == nil:
			w.take(st)
			return true
		case errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, rpctypes.ErrFutureRev):
			return w.resync(ctx, 0, errors.Is(err, rpctypes.ErrFutureRev))
		}
		if !store.Pause(ctx, time.Second) {
			return false
		}
	}
}

func (w *watch) take(st *state) {
	w.st, w.told = st, map[id]model.Object{}
	for _, kind := range w.kinds {
		for _, k := range st.ids(kind) {
			if it, ok := st.item(k); ok {
				w.told[k] = it.Object
			}
		}
	}
	clear(st.touched)
}

func (w *watch) changed(ctx context.Context, events []*clientv3.Event) bool {
	if w.st == nil && !w.begin(ctx) {
		return false
	}
	for i := 0; i < len(events); {
		rev := events[i].Kv.ModRevision
		for ; i < len(events) && events[i].Kv.ModRevision == rev; i++ {
			if rev <= w.from {
				continue // the reading was newer
			}
			if events[i].Type == clientv3.EventTypeDelete {
				w.st.unset(string(events[i].Kv.Key))
			} else {
				w.st.set(events[i].Kv)
			}
		}
		if !w.tell(ctx, store.Revision(rev)) {
			return false
		}
	}
	return true
}

// tell sends what the changes of one revision made of the objects.
func (w *watch) tell(ctx context.Context, rev store.Revision) bool {
	var list []store.Event
	for k := range w.st.touched {
		if !slices.Contains(w.kinds, k.kind) {
			continue
		}
		before, was := w.told[k]
		it, is := w.st.item(k)
		switch {
		case is && (!was || !reflect.DeepEqual(before, it.Object) || it.Revision == rev):
			w.told[k] = it.Object
			it, _ = w.st.item(k) // the reader's own
			list = append(list, store.Event{Type: store.EventPut, Kind: k.kind, Key: k.key, Object: it.Object, Revision: rev})
		case was && !is:
			delete(w.told, k)
			list = append(list, store.Event{Type: store.EventDelete, Kind: k.kind, Key: k.key, Revision: rev})
		}
	}
	clear(w.st.touched)
	slices.SortFunc(list, func(a, b store.Event) int {
		return cmp.Or(-cmp.Compare(a.Type, b.Type), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
	for _, e := range list {
		if !etcd.Send(ctx, w.out, e) {
			return false
		}
	}
	return true
}

func (w *watch) resync(ctx context.Context, _ int64, anew bool) bool {
	for {
		st, rev, err := w.s.load(ctx, 0)
		if err == nil {
			w.take(st)
			w.from = rev
			return etcd.Send(ctx, w.out, store.Event{Type: store.EventResync, Revision: store.Revision(rev), Anew: anew})
		}
		if !store.Pause(ctx, time.Second) {
			return false
		}
	}
}
