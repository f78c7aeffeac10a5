// Package memory is a store.Store in memory: for tests, and as the plainest statement of what a
// store promises. Nothing of it survives the process.
package memory

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

type id struct {
	kind model.Kind
	key  string
}

// value is an object's JSON form: readers get copies of their own.
type value struct {
	data     []byte
	revision store.Revision
}

type change struct {
	id
	data     []byte // nil: deleted
	revision store.Revision
}

// Store is the store in memory.
type Store struct {
	mu        sync.Mutex
	revision  store.Revision
	compacted store.Revision // history up to here is forgotten
	objects   map[id]value
	history   []change
	grown     chan struct{} // closed and replaced at each change
	closed    bool
	done      chan struct{} // closed by Close
	watches   sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// New returns an empty store, at revision 1 as etcd has it.
func New() *Store {
	return &Store{
		revision: 1,
		objects:  map[id]value{},
		grown:    make(chan struct{}),
		done:     make(chan struct{}),
	}
}

func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.closed {
		return fmt.Errorf("%w: the store is closed", store.ErrUnavailable)
	}
	return nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, kind model.Kind, key string) (store.Item, error) {
	if err := store.CheckKey(kind, key); err != nil {
		return store.Item{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return store.Item{}, err
	}
	v, ok := s.objects[id{kind, key}]
	if !ok {
		return store.Item{}, fmt.Errorf("%s %q: %w", kind, key, store.ErrNotFound)
	}
	o, err := store.Decode(kind, key, v.data)
	return store.Item{Object: o, Revision: v.revision}, err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, kinds ...model.Kind) ([]store.Item, store.Revision, error) {
	if err := store.CheckKinds(kinds); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return nil, 0, err
	}
	var items []store.Item
	for k, v := range s.objects {
		if !slices.Contains(kinds, k.kind) {
			continue
		}
		o, err := store.Decode(k.kind, k.key, v.data)
		if err != nil {
			return nil, 0, err
		}
		items = append(items, store.Item{Object: o, Revision: v.revision})
	}
	slices.SortFunc(items, func(a, b store.Item) int {
		x, y := a.Object, b.Object
		return cmp.Or(cmp.Compare(slices.Index(kinds, x.Kind()), slices.Index(kinds, y.Kind())), cmp.Compare(x.Key(), y.Key()))
	})
	return items, s.revision, nil
}

// Keys implements store.Store.
func (s *Store) Keys(ctx context.Context, kind model.Kind, prefix string) ([]store.KeyRevision, error) {
	if err := store.CheckKey(kind, cmp.Or(prefix, "any")); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	var keys []store.KeyRevision
	for k, v := range s.objects {
		if k.kind == kind && strings.HasPrefix(k.key, prefix) {
			keys = append(keys, store.KeyRevision{Key: k.key, Revision: v.revision})
		}
	}
	slices.SortFunc(keys, func(a, b store.KeyRevision) int { return cmp.Compare(a.Key, b.Key) })
	return keys, nil
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, o model.Object, at store.Revision) (store.Revision, error) {
	data, err := store.Encode(o)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return 0, err
	}
	k := id{o.Kind(), o.Key()}
	if at != store.AnyRevision && s.objects[k].revision != at {
		return 0, fmt.Errorf("%s %q: %w", k.kind, k.key, store.ErrConflict)
	}
	s.append(change{id: k, data: data})
	return s.revision, nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, kind model.Kind, key string, at store.Revision) error {
	if err := store.CheckKey(kind, key); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return err
	}
	k := id{kind, key}
	v, ok := s.objects[k]
	switch {
	case !ok && at == store.AnyRevision:
		return nil
	case !ok:
		return fmt.Errorf("%s %q: %w", kind, key, store.ErrNotFound)
	case at != store.AnyRevision && at != v.revision:
		return fmt.Errorf("%s %q: %w", kind, key, store.ErrConflict)
	}
	s.append(change{id: k})
	return nil
}

// append makes a change the newest one and wakes the watches.
func (s *Store) append(c change) {
	s.revision++
	c.revision = s.revision
	s.history = append(s.history, c)
	if c.data == nil {
		delete(s.objects, c.id)
	} else {
		s.objects[c.id] = value{c.data, c.revision}
	}
	close(s.grown)
	s.grown = make(chan struct{})
}

// Compact forgets history up to and with rev: a watch that still needed it gets an EventResync.
func (s *Store) Compact(rev store.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rev = min(rev, s.revision)
	if rev <= s.compacted {
		return
	}
	s.compacted = rev
	i, _ := slices.BinarySearchFunc(s.history, rev+1, func(c change, r store.Revision) int { return cmp.Compare(c.revision, r) })
	s.history = slices.Clone(s.history[i:])
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, from store.Revision, kinds ...model.Kind) (<-chan store.Event, error) {
	if err := store.CheckKinds(kinds); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	wanted := map[model.Kind]bool{}
	for _, k := range kinds {
		wanted[k] = true
	}
	out := make(chan store.Event, 64)
	s.watches.Add(1)
	go func() {
		defer s.watches.Done()
		defer close(out)
		s.follow(ctx, from, wanted, out)
	}()
	return out, nil
}

// next returns what came after revision `from`, up to which revision that reaches, and a channel
// that is closed when there is more.
func (s *Store) next(from store.Revision) ([]change, store.Revision, bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if from < s.compacted {
		return nil, s.revision, true, s.grown
	}
	i, _ := slices.BinarySearchFunc(s.history, from+1, func(c change, r store.Revision) int { return cmp.Compare(c.revision, r) })
	return slices.Clone(s.history[i:]), max(from, s.revision), false, s.grown
}

func (s *Store) follow(ctx context.Context, from store.Revision, wanted map[model.Kind]bool, out chan<- store.Event) {
	send := func(e store.Event) bool {
		select {
		case out <- e:
			return true
		case <-ctx.Done():
		case <-s.done:
		}
		return false
	}
	for {
		changes, upTo, lost, grown := s.next(from)
		if lost && !send(store.Event{Type: store.EventResync, Revision: upTo}) {
			return
		}
		for _, c := range changes {
			if !wanted[c.kind] {
				continue
			}
			e := store.Event{Type: store.EventDelete, Kind: c.kind, Key: c.key, Revision: c.revision}
			if c.data != nil {
				o, err := store.Decode(c.kind, c.key, c.data)
				if err != nil {
					continue
				}
				e.Type, e.Object = store.EventPut, o
			}
			if !send(e) {
				return
			}
		}
		from = upTo
		select {
		case <-grown:
		case <-ctx.Done():
			return
		case <-s.done:
			return
		}
	}
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	s.watches.Wait()
	return nil
}
