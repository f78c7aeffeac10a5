// Package flannelkv is a store.Store over Flannel's etcd layout, so that Heddle agents and flanneld
// share one network: <prefix>/config is the pools, <prefix>/subnets/<key> a node's blocks and how it is
// reached. What has no place there (nodes as Heddle knows them, heartbeats, what policy is about) stands
// under <prefix>/x-heddle, where flanneld does not look.
//
// As Flannel does, it tells nodes apart by their public address: a subnet belongs to the registered
// node that has its PublicIP, or else to a flanneld, which is shown as a node named after that address.
// Taking over a host from flanneld, or giving it back, keeps its subnet.
package flannelkv

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/etcd"
)

const (
	// leaseTTL is flanneld's own: a subnet is free again when nobody renewed it for so long.
	leaseTTL = 24 * time.Hour
	// renewEvery is how often a heartbeat also renews the subnet's lease.
	renewEvery = time.Hour
	// side is where flanneld does not look. It sorts after config and subnets, so that one watch can span
	// all three, and what changes all the time (side/volatile) is beyond its end.
	side = "/x-heddle"
)

// Store is a network that may be shared with flanneld.
type Store struct {
	inner  *etcd.Store // under side: nodes, and all kinds that are besides
	client *clientv3.Client
	prefix string
	log    *slog.Logger

	mu      sync.Mutex
	renewed map[string]time.Time // node: when its subnet's lease was last renewed here
	skipped map[string]int64     // etcd key of something bad: revision that was logged
}

var _ store.Store = (*Store)(nil)

// New returns the store; Options.Prefix is Flannel's, /coreos.com/network when empty. It waits for
// nobody, as etcd.New does.
func New(ctx context.Context, o etcd.Options) (*Store, error) {
	if o.Prefix == "" {
		o.Prefix = flannel.DefaultPrefix
	}
	s := &Store{prefix: o.Prefix, log: o.Logger, renewed: map[string]time.Time{}, skipped: map[string]int64{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	o.Prefix += side
	inner, err := etcd.New(ctx, o)
	if err != nil {
		return nil, err
	}
	s.inner, s.client = inner, inner.Client()
	return s, nil
}

// Client is the connection, for tests that play flanneld.
func (s *Store) Client() *clientv3.Client { return s.client }

func (s *Store) configKey() string          { return s.prefix + "/" + flannel.ConfigKey }
func (s *Store) subnets() string            { return s.prefix + "/" + flannel.SubnetsKey + "/" }
func (s *Store) nodeFolder() string         { return s.prefix + side + "/" + string(model.KindNode) + "/" }
func (s *Store) nodeKey(name string) string { return s.nodeFolder() + name }

// span is the range of keys that holds config, nodes and subnets.
func (s *Store) span() (first, last string) {
	return s.configKey(), clientv3.GetPrefixRangeEnd(s.nodeFolder())
}

// besides reports whether Flannel's layout says nothing of a kind, so that it is filed as in any etcd.
func besides(kind model.Kind) bool {
	return kind == model.KindHeartbeat || kind == model.KindEndpoint || kind == model.KindResource
}

// unheld reports whether there is no place for a kind: Flannel's network is its net-conf.json and no more.
func unheld(kind model.Kind) bool { return kind == model.KindSetting }

// PutConfig files a net-conf.json as the network's configuration, for Heddle and flanneld alike. One
// that Heddle cannot carry is refused.
func (s *Store) PutConfig(ctx context.Context, netConf []byte) error {
	if _, err := flannel.ParseNetConf(netConf); err != nil {
		return err
	}
	return s.inner.Call(ctx, "put "+s.configKey(), func(c context.Context) error {
		_, err := s.client.Put(c, s.configKey(), string(netConf))
		return err
	})
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, kind model.Kind, key string) (store.Item, error) {
	if err := store.CheckKey(kind, key); err != nil {
		return store.Item{}, err
	}
	if besides(kind) {
		return s.inner.Get(ctx, kind, key)
	}
	st, _, err := s.load(ctx, 0)
	if err != nil {
		return store.Item{}, err
	}
	if it, ok := st.item(id{kind, key}); ok {
		return it, nil
	}
	return store.Item{}, fmt.Errorf("%s %q: %w", kind, key, store.ErrNotFound)
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, kinds ...model.Kind) ([]store.Item, store.Revision, error) {
	if err := store.CheckKinds(kinds); err != nil {
		return nil, 0, err
	}
	kinds = slices.DeleteFunc(slices.Clone(kinds), unheld)
	if len(kinds) > 0 && !slices.ContainsFunc(kinds, func(k model.Kind) bool { return !besides(k) }) {
		return s.inner.List(ctx, kinds...)
	}
	st, rev, err := s.load(ctx, 0)
	if err != nil {
		return nil, 0, err
	}
	var items []store.Item
	for _, kind := range kinds {
		if besides(kind) {
			others, _, err := s.inner.ListAt(ctx, store.Revision(rev), kind)
			if err != nil {
				return nil, 0, err
			}
			items = append(items, others...)
			continue
		}
		for _, k := range st.ids(kind) {
			if it, ok := st.item(k); ok {
				items = append(items, it)
			}
		}
	}
	return items, store.Revision(rev), nil
}

// Keys implements store.Store.
func (s *Store) Keys(ctx context.Context, kind model.Kind, prefix string) ([]store.KeyRevision, error) {
	if err := store.CheckKey(kind, cmp.Or(prefix, "any")); err != nil {
		return nil, err
	}
	if besides(kind) {
		return s.inner.Keys(ctx, kind, prefix)
	}
	items, _, err := s.List(ctx, kind)
	var keys []store.KeyRevision
	for _, it := range items {
		if strings.HasPrefix(it.Object.Key(), prefix) {
			keys = append(keys, store.KeyRevision{Key: it.Object.Key(), Revision: it.Revision})
		}
	}
	return keys, err
}

// Close implements store.Store.
func (s *Store) Close() error { return s.inner.Close() }
