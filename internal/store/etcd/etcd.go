// Package etcd is a store.Store in any etcd v3: one that somebody runs, or `heddle store`.
//
// Objects stand as JSON under <prefix>/<kind>/<key>, heartbeats under <prefix>/volatile/heartbeats,
// endpoints and resources under <prefix>/security/<kind>: so one watch can span all kinds that seldom
// change, and see their changes in one order, without being woken by those that change all the time or
// are very many; and one can span all that policy is about. Compare-and-swap is by etcd's ModRevision.
package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// An answer to List holds about pageBytes; the objects' sizes are not known before. A server looks at all
// keys that are left for each page, so that many small pages cost much.
const (
	pageBytes              = 4 << 20
	firstPage, biggestPage = 100, 20_000 // objects
)

// Store is the client of one etcd.
type Store struct {
	client    *clientv3.Client
	endpoints []string
	faults    *faults // of the connections to them
	prefix    string
	timeout   time.Duration
	log       *slog.Logger

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	watches sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	skipped map[string]int64 // etcd key of a bad object: revision that was logged
}

var _ store.Store = (*Store)(nil)

// New returns the store. It does not wait for a connection and does not fail when the store is down:
// requests then return ErrUnavailable, and watches begin when it is back.
func New(ctx context.Context, o Options) (*Store, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	f := &faults{}
	c, err := dial(ctx, o, f)
	if err != nil {
		return nil, err
	}
	s := &Store{client: c, endpoints: o.Endpoints, faults: f, prefix: o.Prefix, timeout: o.CallTimeout, log: o.Logger, skipped: map[string]int64{}}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s, nil
}

// Client is the connection, for layouts and tests that need more than the store's contract.
func (s *Store) Client() *clientv3.Client { return s.client }

// folder is where a kind is filed, with a slash at the end.
func (s *Store) folder(kind model.Kind) string {
	switch kind {
	case model.KindHeartbeat:
		return s.prefix + "/volatile/" + string(kind) + "/"
	case model.KindEndpoint, model.KindResource: // beyond pools, the last of those that a View spans
		return s.prefix + "/security/" + string(kind) + "/"
	}
	name := string(kind)
	if kind == model.KindSetting {
		name = "network" // between blocks and pools, which a View spans
	}
	return s.prefix + "/" + name + "/"
}

// Call runs one request of the client with the store's own time limit, until Close, and maps its error.
func (s *Store) Call(ctx context.Context, doing string, f func(context.Context) error) error {
	if s.ctx.Err() != nil {
		return fmt.Errorf("%s: %w: the store is closed", doing, store.ErrUnavailable)
	}
	ctx = withReason(ctx)
	c, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	return s.explain(ctx, doing, f(c))
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, kind model.Kind, key string) (store.Item, error) {
	if err := store.CheckKey(kind, key); err != nil {
		return store.Item{}, err
	}
	var resp *clientv3.GetResponse
	err := s.Call(ctx, "get "+string(kind)+" "+key, func(c context.Context) (err error) {
		resp, err = s.client.Get(c, s.folder(kind)+key)
		return err
	})
	if err != nil {
		return store.Item{}, err
	}
	if len(resp.Kvs) == 0 {
		return store.Item{}, fmt.Errorf("%s %q: %w", kind, key, store.ErrNotFound)
	}
	o, err := store.Decode(kind, key, resp.Kvs[0].Value)
	if err != nil {
		return store.Item{}, err
	}
	return store.Item{Object: o, Revision: store.Revision(resp.Kvs[0].ModRevision)}, nil
}

// List implements store.Store. It reads page by page, all at one revision.
func (s *Store) List(ctx context.Context, kinds ...model.Kind) ([]store.Item, store.Revision, error) {
	if err := store.CheckKinds(kinds); err != nil {
		return nil, 0, err
	}
	for attempt := 0; ; attempt++ {
		items, rev, err := s.ListAt(ctx, 0, kinds...)
		if attempt < 3 && isCompacted(err) {
			continue // history went away between two pages: begin again
		}
		return items, rev, err
	}
}

func isCompacted(err error) bool {
	return errors.Is(err, rpctypes.ErrCompacted)
}

// ListAt lists as List does, at a revision of which the store still has the history; 0 for the present one.
func (s *Store) ListAt(ctx context.Context, at store.Revision, kinds ...model.Kind) ([]store.Item, store.Revision, error) {
	var items []store.Item
	for _, kind := range kinds {
		rev, err := s.read(ctx, "list "+string(kind), s.folder(kind), at, func(kv *mvccpb.KeyValue) {
			if o := s.decode(kind, kv); o != nil {
				items = append(items, store.Item{Object: o, Revision: store.Revision(kv.ModRevision)})
			}
		})
		if err != nil {
			return nil, 0, err
		}
		at = rev
	}
	return items, at, nil
}

// read visits all keys that begin with a text, in their order, as they are at one revision, which it
// returns: the one that is asked for, or the present one for 0.
func (s *Store) read(ctx context.Context, doing, from string, at store.Revision, visit func(*mvccpb.KeyValue), opts ...clientv3.OpOption) (store.Revision, error) {
	end, rev := clientv3.GetPrefixRangeEnd(from), int64(at)
	for page := firstPage; ; {
		var resp *clientv3.GetResponse
		err := s.Call(ctx, doing, func(c context.Context) (err error) {
			resp, err = s.client.Get(c, from, append(opts, clientv3.WithRange(end), clientv3.WithLimit(int64(page)), clientv3.WithRev(rev))...)
			return err
		})
		if err != nil {
			return 0, err
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		size := 1
		for _, kv := range resp.Kvs {
			size += len(kv.Key) + len(kv.Value)
			visit(kv)
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return store.Revision(rev), nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		page = min(max(len(resp.Kvs)*pageBytes/size, 1), 4*page, biggestPage)
	}
}

// Keys implements store.Store.
func (s *Store) Keys(ctx context.Context, kind model.Kind, prefix string) ([]store.KeyRevision, error) {
	if err := store.CheckKey(kind, cmp.Or(prefix, "any")); err != nil {
		return nil, err
	}
	for attempt := 0; ; attempt++ {
		var keys []store.KeyRevision
		_, err := s.read(ctx, "list keys of "+string(kind), s.folder(kind)+prefix, 0, func(kv *mvccpb.KeyValue) {
			key := strings.TrimPrefix(string(kv.Key), s.folder(kind))
			if store.CheckKey(kind, key) == nil {
				keys = append(keys, store.KeyRevision{Key: key, Revision: store.Revision(kv.ModRevision)})
			}
		}, clientv3.WithKeysOnly())
		if attempt < 3 && isCompacted(err) {
			continue
		}
		return keys, err
	}
}

// decode returns nil for an object that is no good, and says so once per revision of it.
func (s *Store) decode(kind model.Kind, kv *mvccpb.KeyValue) model.Object {
	key := strings.TrimPrefix(string(kv.Key), s.folder(kind))
	o, err := store.Decode(kind, key, kv.Value)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.skipped, string(kv.Key))
		return o
	}
	if s.skipped[string(kv.Key)] != kv.ModRevision {
		s.skipped[string(kv.Key)] = kv.ModRevision
		s.log.Warn("object in the store left out", "key", string(kv.Key), "revision", kv.ModRevision, "reason", err)
	}
	return nil
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, o model.Object, at store.Revision) (store.Revision, error) {
	data, err := store.Encode(o)
	if err != nil {
		return 0, err
	}
	key := s.folder(o.Kind()) + o.Key()
	var resp *clientv3.TxnResponse
	err = s.Call(ctx, "put "+string(o.Kind())+" "+o.Key(), func(c context.Context) (err error) {
		resp, err = s.client.Txn(c).If(Unchanged(key, at)...).Then(clientv3.OpPut(key, string(data))).Commit()
		return err
	})
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return 0, fmt.Errorf("%s %q: %w", o.Kind(), o.Key(), store.ErrConflict)
	}
	return store.Revision(resp.Header.Revision), nil
}

// Unchanged is the condition that a key is still at a revision; none for AnyRevision.
func Unchanged(key string, at store.Revision) []clientv3.Cmp {
	switch {
	case at == store.AnyRevision:
		return nil
	case at == 0:
		return []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}
	}
	return []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", int64(at))}
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, kind model.Kind, key string, at store.Revision) error {
	if err := store.CheckKey(kind, key); err != nil {
		return err
	}
	k := s.folder(kind) + key
	var resp *clientv3.TxnResponse
	err := s.Call(ctx, "delete "+string(kind)+" "+key, func(c context.Context) (err error) {
		resp, err = s.client.Txn(c).If(Unchanged(k, at)...).Then(clientv3.OpDelete(k)).
			Else(clientv3.OpGet(k, clientv3.WithCountOnly())).Commit()
		return err
	})
	switch {
	case err != nil:
		return err
	case at == store.AnyRevision:
		return nil
	case !resp.Succeeded && resp.Responses[0].GetResponseRange().Count > 0:
		return fmt.Errorf("%s %q: %w", kind, key, store.ErrConflict)
	case !resp.Succeeded || resp.Responses[0].GetResponseDeleteRange().Deleted == 0:
		return fmt.Errorf("%s %q: %w", kind, key, store.ErrNotFound)
	}
	return nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if !first {
		return nil
	}
	s.cancel()
	err := s.client.Close()
	s.watches.Wait()
	if err != nil && s.client.Ctx().Err() == nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}
