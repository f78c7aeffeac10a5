package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// checkEvery is how often a watch asks whether the store is still the one that it knew: a store that
// was put back from a backup counts from a lower revision and would send nothing for a long time.
const checkEvery = 30 * time.Second

// Follower gets what happens in a range of keys. Its functions return false to end.
type Follower struct {
	// Changed gets the changes of one or several whole revisions, in order. Deletions hold the key only.
	Changed func(ctx context.Context, events []*clientv3.Event) bool
	// Resync tells that changes up to a revision may be missing; anew, that the store is not the one that
	// it was: it was replaced, or put back.
	Resync func(ctx context.Context, rev int64, anew bool) bool
}

// watch is one reader's watch.
type watch struct {
	Follower
	s           *Store
	first, last string
	from        int64 // everything up to this revision was delivered
	// cluster is the etcd cluster's id, 0 before the first answer.
	cluster uint64
}

// Follow starts to follow the keys from first up to, not including, last, after revision from, through
// outages and compactions. It calls ended when ctx ends, the store is closed or the follower had enough.
func (s *Store) Follow(ctx context.Context, from int64, first, last string, f Follower, ended func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("watch: %w: the store is closed", store.ErrUnavailable)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w := &watch{Follower: f, s: s, first: first, last: last, from: max(from, 0)}
	s.watches.Go(func() {
		defer ended()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.ctx, cancel)()
		w.run(ctx)
	})
	return nil
}

// Watch implements store.Store. The kinds are watched by one etcd watch over the span of their keys.
func (s *Store) Watch(ctx context.Context, from store.Revision, kinds ...model.Kind) (<-chan store.Event, error) {
	if err := store.CheckKinds(kinds); err != nil {
		return nil, err
	}
	kinds = slices.Clone(kinds)
	out := make(chan store.Event, 64)
	first, last := s.span(kinds)
	err := s.Follow(ctx, int64(from), first, last, Follower{
		Changed: func(ctx context.Context, events []*clientv3.Event) bool {
			for _, ev := range events {
				if e, ok := s.event(kinds, ev); ok && !Send(ctx, out, e) {
					return false
				}
			}
			return true
		},
		Resync: func(ctx context.Context, rev int64, anew bool) bool {
			return Send(ctx, out, store.Event{Type: store.EventResync, Revision: store.Revision(rev), Anew: anew})
		},
	}, func() { close(out) })
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Send delivers an event; false when ctx ended first.
func Send(ctx context.Context, out chan<- store.Event, e store.Event) bool {
	select {
	case out <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// span is the range of etcd keys that holds all kinds; what lies between is passed over.
func (s *Store) span(kinds []model.Kind) (first, last string) {
	for _, k := range kinds {
		f := s.folder(k)
		if first == "" || f < first {
			first = f
		}
		last = max(last, clientv3.GetPrefixRangeEnd(f))
	}
	return first, last
}

func (s *Store) event(kinds []model.Kind, ev *clientv3.Event) (store.Event, bool) {
	for _, k := range kinds {
		key, ok := strings.CutPrefix(string(ev.Kv.Key), s.folder(k))
		if !ok {
			continue
		}
		e := store.Event{Type: store.EventPut, Kind: k, Key: key, Revision: store.Revision(ev.Kv.ModRevision)}
		if ev.Type == clientv3.EventTypeDelete {
			e.Type = store.EventDelete
			return e, store.CheckKey(k, key) == nil
		}
		e.Object = s.decode(k, ev.Kv)
		return e, e.Object != nil
	}
	return store.Event{}, false
}

// errEnough ends a watch whose follower wants no more.
var errEnough = errors.New("the follower ended")

// run keeps a watch at the server for as long as ctx lasts.
func (w *watch) run(ctx context.Context) {
	for delay := time.Duration(0); ctx.Err() == nil; {
		if delay > 0 && !store.Pause(ctx, delay/2+rand.N(delay/2+1)) {
			return
		}
		began := time.Now()
		err := w.once(ctx)
		if ctx.Err() != nil || errors.Is(err, errEnough) {
			return
		}
		if time.Since(began) > 10*time.Second {
			delay = 0
		}
		delay = min(max(2*delay, 50*time.Millisecond), 3*time.Second)
		w.s.log.Debug("watch of the store begins again", "from", w.from, "reason", err)
	}
}

// once watches until the server, or a doubt about it, ends the watch.
func (w *watch) once(ctx context.Context) error {
	// Ends the server's watch when this one gives up, and with it its buffers.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch := w.s.client.Watch(clientv3.WithRequireLeader(ctx), w.first,
		clientv3.WithRange(w.last), clientv3.WithRev(w.from+1), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	check := time.NewTimer(checkEvery/2 + rand.N(checkEvery))
	defer check.Stop()
	for {
		select {
		case resp, ok := <-ch:
			if !ok {
				return context.Canceled
			}
			if resp.CompactRevision != 0 {
				return w.resync(ctx, fmt.Sprintf("history up to revision %d is gone", resp.CompactRevision))
			}
			if err := resp.Err(); err != nil {
				return err
			}
			if err := w.deliver(ctx, resp); err != nil {
				return err
			}
		case <-check.C:
			if err := w.check(ctx); err != nil {
				return err
			}
			check.Reset(checkEvery)
		}
	}
}

func (w *watch) deliver(ctx context.Context, resp clientv3.WatchResponse) error {
	if resp.Created {
		w.cluster = resp.Header.ClusterId
		if resp.Header.Revision < w.from {
			return w.resync(ctx, "the store is older than it was")
		}
	}
	if n := len(resp.Events); n > 0 {
		if !w.Changed(ctx, resp.Events) {
			return errEnough
		}
		w.from = resp.Events[n-1].Kv.ModRevision
	}
	if resp.IsProgressNotify() {
		w.from = max(w.from, resp.Header.Revision)
	}
	return nil
}

// present asks for the store's revision now.
func (w *watch) present(ctx context.Context) (rev int64, cluster uint64, err error) {
	err = w.s.Call(ctx, "ask for the revision", func(c context.Context) error {
		resp, err := w.s.client.Get(c, w.s.prefix, clientv3.WithCountOnly())
		if err == nil {
			rev, cluster = resp.Header.Revision, resp.Header.ClusterId
		}
		return err
	})
	return rev, cluster, err
}

// resync tells the reader to List again; the next attempt goes on from now. It always returns why.
func (w *watch) resync(ctx context.Context, reason string) error {
	rev, cluster, err := w.present(ctx)
	if err != nil {
		return err // the next attempt runs into the same compaction and comes back here
	}
	w.s.log.Info("the store must be read anew", "revision", rev, "reason", reason)
	if !w.Resync(ctx, rev, rev < w.from || w.cluster != 0 && cluster != w.cluster) {
		return errEnough
	}
	w.from, w.cluster = rev, cluster
	return fmt.Errorf("resync: %s", reason)
}

// check returns an error when the store is not the one that was watched: it was replaced, or put back.
func (w *watch) check(ctx context.Context) error {
	rev, cluster, err := w.present(ctx)
	switch {
	case err != nil:
		return nil //nolint:nilerr // unreachable now: the client reconnects, and the next check asks again
	case rev < w.from:
		return w.resync(ctx, "the store is older than it was")
	case w.cluster != 0 && cluster != w.cluster:
		return w.resync(ctx, "this is another store")
	}
	return nil
}
