package flannelkv

import (
	"cmp"
	"net/netip"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// ids lists the objects of a kind, sorted by key.
func (st *state) ids(kind model.Kind) []id {
	seen := map[id]bool{}
	switch kind {
	case model.KindPool:
		for _, p := range st.pools {
			seen[id{kind, p.Name}] = true
		}
	case model.KindNode:
		for name := range st.nodes {
			seen[id{kind, name}] = true
		}
		for name := range st.named {
			seen[id{kind, name}] = true
		}
	case model.KindBlock:
		for p := range st.holder {
			seen[id{kind, (&model.Block{CIDR: p}).Key()}] = true
		}
	}
	list := make([]id, 0, len(seen))
	for k := range seen {
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b id) int { return cmp.Compare(a.key, b.key) })
	return list
}

// item makes one object from the keys; false when there is none.
func (st *state) item(k id) (store.Item, bool) {
	var o model.Object
	var rev int64
	switch k.kind {
	case model.KindPool:
		for _, p := range st.pools {
			if p.Name == k.key {
				o, rev = &p, st.poolRev
			}
		}
	case model.KindNode:
		o, rev = st.node(k.key)
	case model.KindBlock:
		o, rev = st.block(k.key)
	}
	if rev == 0 {
		return store.Item{}, false
	}
	return store.Item{Object: o, Revision: store.Revision(rev)}, true
}

func (st *state) node(name string) (model.Object, int64) {
	if n, ok := st.nodes[name]; ok {
		c := *n.Node
		return &c, n.rev
	}
	// A flanneld, with the subnet that it wrote last. A reservation that nobody has taken yet names no
	// backend: it holds addresses, and is no node.
	var last *subnet
	for _, sub := range st.named[name] {
		if st.owner(sub) == name && sub.lease.BackendType != "" && (last == nil || sub.rev > last.rev) {
			last = sub
		}
	}
	if last == nil {
		return nil, 0
	}
	l := last.lease
	n := &model.Node{Name: name, Address4: l.PublicIP, Address6: l.PublicIPv6, Version: "flanneld"}
	if l.VTEP != nil {
		n.VTEP4 = l.VTEP.MAC
	}
	if l.VTEPv6 != nil {
		n.VTEP6 = l.VTEPv6.MAC
	}
	if n.VTEP4 != "" || n.VTEP6 != "" {
		n.Accepts, n.Sends = []model.Path{model.PathVXLAN}, []model.Path{model.PathVXLAN}
	}
	return n, last.rev
}

func (st *state) block(key string) (model.Object, int64) {
	p, err := blockPrefix(key)
	sub := st.holder[p]
	if err != nil || sub == nil {
		return nil, 0
	}
	return &model.Block{CIDR: p, Pool: st.poolOf(p), Node: st.owner(sub)}, sub.rev
}

// blockPrefix reads a block's key, which both families spell as a subnet's key does.
func blockPrefix(key string) (netip.Prefix, error) {
	if p, _, err := flannel.ParseSubnetKey(key); err == nil {
		return p, nil
	}
	_, p, err := flannel.ParseSubnetKey("0.0.0.0-1&" + key)
	return p, err
}

// poolOf names the pool of a block; the one of its family when the configuration is not there or holds
// it no more.
func (st *state) poolOf(p netip.Prefix) string {
	for _, pool := range st.pools {
		if pool.CIDR.Contains(p.Addr()) {
			return pool.Name
		}
	}
	if p.Addr().Is4() {
		return flannel.PoolName
	}
	return flannel.PoolName6
}

// skip says once per revision that a key's value is no good.
func (s *Store) skip(kv *mvccpb.KeyValue, reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.skipped[string(kv.Key)] != kv.ModRevision {
		s.skipped[string(kv.Key)] = kv.ModRevision
		s.log.Warn("key in the store left out", "key", string(kv.Key), "revision", kv.ModRevision, "reason", reason)
	}
}
