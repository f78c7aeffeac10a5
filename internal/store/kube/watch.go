package kube

import (
	"cmp"
	"context"
	"slices"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// Watch implements store.Store. A reader that is further behind than the history gets an EventResync.
func (c *catalog) Watch(ctx context.Context, from store.Revision, kinds ...model.Kind) (<-chan store.Event, error) {
	if err := store.CheckKinds(kinds); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	out := make(chan store.Event, 64)
	c.readers.Go(func() {
		defer close(out)
		c.follow(ctx, from, slices.Clone(kinds), out)
	})
	return out, nil
}

// next returns what came after revision from, up to which revision that reaches, whether something between is
// forgotten, and a channel that is closed when there is more.
func (c *catalog) next(from store.Revision) (changes []change, upTo store.Revision, lost bool, grown <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if from < c.forgotten {
		return nil, c.revision, true, c.grown
	}
	i, _ := slices.BinarySearchFunc(c.changes, from+1, func(c change, r store.Revision) int { return cmp.Compare(c.revision, r) })
	return slices.Clone(c.changes[i:]), max(from, c.revision), false, c.grown
}

func (c *catalog) follow(ctx context.Context, from store.Revision, kinds []model.Kind, out chan<- store.Event) {
	send := func(e store.Event) bool {
		select {
		case out <- e:
			return true
		case <-ctx.Done():
		case <-c.done:
		}
		return false
	}
	for {
		changes, upTo, lost, grown := c.next(from)
		if lost && !send(store.Event{Type: store.EventResync, Revision: upTo}) {
			return
		}
		for _, c := range changes {
			if !slices.Contains(kinds, c.kind) {
				continue
			}
			e := store.Event{Type: store.EventPut, Kind: c.kind, Key: c.key, Object: c.object, Revision: c.revision}
			if c.object == nil {
				e.Type = store.EventDelete
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
		case <-c.done:
			return
		}
	}
}

// close ends all readers and waits for them.
func (c *catalog) close() {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.done)
	}
	c.mu.Unlock()
	c.readers.Wait()
}
