package store

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/heddle-net/heddle/internal/model"
)

// View keeps pools, nodes, blocks and settings of the store at hand: read once, then followed by one watch. It
// outlives outages of the store; what it knew stays. Heartbeats are not in it: they would wake every node
// each time that any node shows a sign of life.
type View struct {
	feed    *Feed
	changed chan struct{}

	mu      sync.Mutex
	synced  bool
	objects map[KindKey]model.Object
	// revision is that of the store's state which the view has reached, at least.
	revision Revision
	built    *model.Cluster // nil when objects changed since
}

// NewView returns a view that is empty until Run has read the store. log may be nil.
func NewView(s Store, log *slog.Logger) *View {
	return &View{feed: NewFeed(s, log, model.KindPool, model.KindNode, model.KindBlock, model.KindSetting), changed: make(chan struct{}, 1)}
}

// Run keeps the view current until ctx ends, or until the store is closed.
func (v *View) Run(ctx context.Context) error { return v.feed.Run(ctx, v.take) }

func (v *View) take(b Batch) {
	v.mu.Lock()
	if b.Whole {
		v.objects = make(map[KindKey]model.Object, len(b.Items))
	}
	for _, it := range b.Items {
		v.objects[KindKey{it.Object.Kind(), it.Object.Key()}] = it.Object
	}
	for _, k := range b.Deleted {
		delete(v.objects, k)
	}
	v.synced, v.built, v.revision = true, nil, b.Revision
	v.mu.Unlock()
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// Err tells why the store could not be read or followed when that was last tried; nil once it could.
func (v *View) Err() error { return v.feed.Err() }

// Changed gets a value after one or many changes of pools, nodes, blocks or settings.
func (v *View) Changed() <-chan struct{} { return v.changed }

// Revision is that of a state of the store which the next Snapshot has reached, at least: it holds what
// was written at or before it.
func (v *View) Revision() Revision {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.revision
}

// Snapshot returns the cluster as last seen, sorted, and whether the store was ever read. Snapshots
// share their memory until something changes: read them, do not write to them.
func (v *View) Snapshot() (model.Cluster, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.built == nil {
		c := &model.Cluster{}
		for _, o := range v.objects {
			switch o := o.(type) {
			case *model.Pool:
				c.Pools = append(c.Pools, *o)
			case *model.Node:
				c.Nodes = append(c.Nodes, *o)
			case *model.Block:
				c.Blocks = append(c.Blocks, *o)
			case *model.Setting:
				c.Settings = append(c.Settings, *o)
			}
		}
		c.Sort()
		v.built = c
	}
	// Full slices: an append by one reader makes a copy of its own.
	return model.Cluster{Pools: slices.Clip(v.built.Pools), Nodes: slices.Clip(v.built.Nodes), Blocks: slices.Clip(v.built.Blocks), Settings: slices.Clip(v.built.Settings)}, v.synced
}
