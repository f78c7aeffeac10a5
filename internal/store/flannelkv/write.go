package flannelkv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/etcd"
)

// attempts bounds how often a write is tried when other keys than its own changed meanwhile.
const attempts = 50

// Put implements store.Store. Pools come from the configuration: one that it holds already is taken,
// any other is ErrUnsupported (see PutConfig). A node's blocks need the node first, since its address
// stands beside them, and the IPv4 block before the IPv6 one, since its key begins with that.
func (s *Store) Put(ctx context.Context, o model.Object, at store.Revision) (store.Revision, error) {
	if _, err := store.Encode(o); err != nil {
		return 0, err
	}
	switch o := o.(type) {
	case *model.Endpoint, *model.Resource:
		return s.inner.Put(ctx, o, at)
	case *model.Heartbeat:
		rev, err := s.inner.Put(ctx, o, at)
		if err == nil {
			err = s.renew(ctx, o.Node)
		}
		return rev, err
	case *model.Pool:
		return s.putPool(ctx, o, at)
	case *model.Node:
		return s.retry(ctx, func(st *state, _ int64) (*write, error) { return st.putNode(o, at) })
	case *model.Block:
		return s.retry(ctx, func(st *state, rev int64) (*write, error) { return st.putBlock(o, at, rev) })
	}
	return 0, fmt.Errorf("%s %q: %w", o.Kind(), o.Key(), store.ErrUnsupported)
}

// Delete implements store.Store. Deleting a block deletes the node's whole subnet, both families;
// deleting a node also its subnets, except for reservations. A flanneld's node goes with its blocks.
func (s *Store) Delete(ctx context.Context, kind model.Kind, key string, at store.Revision) error {
	if err := store.CheckKey(kind, key); err != nil {
		return err
	}
	if besides(kind) {
		return s.inner.Delete(ctx, kind, key, at)
	}
	_, err := s.retry(ctx, func(st *state, _ int64) (*write, error) {
		it, ok := st.item(id{kind, key})
		switch {
		case !ok && at == store.AnyRevision:
			return nil, nil
		case !ok:
			return nil, fmt.Errorf("%s %q: %w", kind, key, store.ErrNotFound)
		case at != store.AnyRevision && at != it.Revision:
			return nil, fmt.Errorf("%s %q: %w", kind, key, store.ErrConflict)
		}
		return st.delete(kind, key)
	})
	return err
}

// write is one transaction.
type write struct {
	conds []clientv3.Cmp
	ops   []clientv3.Op
	// create is a key to make with a lease of its own, when not empty.
	create, value string
	// done is the answer when there is nothing to write.
	done store.Revision
}

// unchanged makes the write depend on a key.
func (w *write) unchanged(key string, rev int64) {
	w.conds = append(w.conds, etcd.Unchanged(key, store.Revision(rev))...)
}

// retry reads everything, lets decide make a write of it, and tries again when something that the write
// depends on changed meanwhile. A conflict with the caller's own revision is decide's to find.
func (s *Store) retry(ctx context.Context, decide func(st *state, rev int64) (*write, error)) (store.Revision, error) {
	for attempt := range attempts {
		st, rev, err := s.load(ctx, 0)
		if err != nil {
			return 0, err
		}
		w, err := decide(st, rev)
		if err != nil || w == nil {
			return 0, err
		}
		if len(w.ops) == 0 && w.create == "" {
			return w.done, nil
		}
		newRev, ok, err := s.commit(ctx, w)
		if err != nil || ok {
			return newRev, err
		}
		if !store.Pause(ctx, rand.N(time.Duration(min(attempt+1, 10))*3*time.Millisecond)) {
			return 0, ctx.Err()
		}
	}
	return 0, fmt.Errorf("%s: %w %d times", s.prefix, store.ErrConflict, attempts)
}

func (s *Store) commit(ctx context.Context, w *write) (rev store.Revision, ok bool, err error) {
	var lease clientv3.LeaseID
	err = s.inner.Call(ctx, "write under "+s.prefix, func(c context.Context) error {
		if w.create != "" {
			g, err := s.client.Grant(c, int64(leaseTTL.Seconds()))
			if err != nil {
				return err
			}
			lease = g.ID
			w.ops = append(w.ops, clientv3.OpPut(w.create, w.value, clientv3.WithLease(lease)))
		}
		resp, err := s.client.Txn(c).If(w.conds...).Then(w.ops...).Commit()
		if err == nil {
			rev, ok = store.Revision(resp.Header.Revision), resp.Succeeded
		}
		return err
	})
	if err == nil && !ok && lease != 0 {
		// Nothing hangs on it. When this fails it ends by itself, later.
		_ = s.inner.Call(ctx, "revoke lease", func(c context.Context) error {
			_, err := s.client.Revoke(c, lease)
			return err
		})
	}
	return rev, ok, err
}

func (s *Store) putPool(ctx context.Context, p *model.Pool, at store.Revision) (store.Revision, error) {
	it, err := s.Get(ctx, model.KindPool, p.Name)
	if err != nil {
		return 0, fmt.Errorf("pool %q: %w: write net-conf.json to %s", p.Name, store.ErrUnsupported, s.configKey())
	}
	have := *it.Object.(*model.Pool)
	have.Masquerade = p.Masquerade // each node's own business in Flannel
	switch {
	case !have.Equal(p):
		return 0, fmt.Errorf("pool %q: %w: change net-conf.json in %s", p.Name, store.ErrUnsupported, s.configKey())
	case at != store.AnyRevision && at != it.Revision:
		return 0, fmt.Errorf("pool %q: %w", p.Name, store.ErrConflict)
	}
	return it.Revision, nil
}

// putNode files a node, and its address and VXLAN devices beside its blocks.
func (st *state) putNode(n *model.Node, at store.Revision) (*write, error) {
	old := st.nodes[n.Name]
	if at != store.AnyRevision && int64(at) != old.rev {
		return nil, fmt.Errorf("node %q: %w", n.Name, store.ErrConflict)
	}
	for _, a := range publics(n) {
		if other, ok := st.nodeAt[a]; ok && other != n.Name {
			return nil, &model.FieldError{Noun: fmt.Sprintf("node %q", n.Name), Field: "address", Value: a.String(), Want: fmt.Sprintf("an address that node %q has not: Flannel tells nodes apart by it", other)}
		}
	}
	data, err := store.Encode(n)
	if err != nil {
		return nil, err
	}
	w := &write{}
	w.unchanged(st.s.nodeKey(n.Name), old.rev)
	w.ops = append(w.ops, clientv3.OpPut(st.s.nodeKey(n.Name), string(data)))
	subnets := st.owned(n)
	if old.Node != nil {
		for _, sub := range st.owned(old.Node) {
			if !containsKey(subnets, sub.key) {
				subnets = append(subnets, sub)
			}
		}
	}
	for _, sub := range subnets {
		value, err := st.value(n, sub.v6.IsValid())
		if err != nil {
			return nil, err
		}
		now, err := sub.lease.Marshal()
		if err == nil && string(now) == value {
			continue
		}
		w.unchanged(sub.key, sub.rev)
		w.ops = append(w.ops, clientv3.OpPut(sub.key, value, clientv3.WithIgnoreLease()))
	}
	return w, nil
}

func containsKey(list []*subnet, key string) bool {
	for _, s := range list {
		if s.key == key {
			return true
		}
	}
	return false
}

// value is what stands beside a node's blocks, for flanneld to read.
func (st *state) value(n *model.Node, dual bool) (string, error) {
	l := flannel.Lease{PublicIP: n.Public(model.IPv4)}
	if dual || !l.PublicIP.IsValid() {
		l.PublicIPv6 = n.Public(model.IPv6)
	}
	if len(st.pools) > 0 {
		switch p := st.pools[0]; p.Path {
		case model.PathVXLAN:
			l.BackendType = "vxlan"
			if n.VTEP4 != "" {
				l.VTEP = &flannel.VTEP{VNI: p.VXLAN.VNI, MAC: n.VTEP4}
			}
			if n.VTEP6 != "" && dual {
				l.VTEPv6 = &flannel.VTEP{VNI: p.VXLAN.VNI, MAC: n.VTEP6}
			}
		case model.PathDirect:
			l.BackendType = "host-gw"
		default:
			l.BackendType = "alloc"
		}
	}
	b, err := l.Marshal()
	return string(b), err
}

// putBlock claims a block. The write depends on all subnets together: another one that overlaps cannot
// slip in between, whatever its key, and whoever writes it.
func (st *state) putBlock(b *model.Block, at store.Revision, rev int64) (*write, error) {
	conflict := fmt.Errorf("block %s: %w", b.CIDR, store.ErrConflict)
	noun := fmt.Sprintf("block %s", b.CIDR)
	n, ok := st.nodes[b.Node]
	if !ok {
		return nil, &model.FieldError{Noun: noun, Field: "node", Value: b.Node, Want: "a node that registered before: its address stands beside the block"}
	}
	if sub := st.holder[b.CIDR]; sub != nil {
		if st.owner(sub) != b.Node || (at != store.AnyRevision && int64(at) != sub.rev) {
			return nil, conflict
		}
		return &write{done: store.Revision(sub.rev)}, nil
	}
	if at > 0 {
		return nil, conflict
	}
	if want := st.poolOf(b.CIDR); want != b.Pool {
		return nil, &model.FieldError{Noun: noun, Field: "pool", Value: b.Pool, Want: want + ", which holds it"}
	}
	for p := range st.holder {
		if p.Overlaps(b.CIDR) {
			return nil, conflict
		}
	}
	w := &write{conds: []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(st.s.subnets()), "<", rev+1).WithPrefix()}}
	w.unchanged(st.s.nodeKey(b.Node), n.rev)
	dual := b.Family() == model.IPv6
	value, err := st.value(n.Node, dual)
	if err != nil {
		return nil, err
	}
	if !dual {
		if len(st.owned(n.Node)) > 0 {
			return nil, fmt.Errorf("%s: %w: Flannel's layout has one block per node and family", noun, store.ErrUnsupported)
		}
		w.create, w.value = st.s.subnets()+flannel.FormatSubnetKey(b.CIDR, netip.Prefix{}), value
		return w, nil
	}
	mine := st.owned(n.Node)
	if len(mine) != 1 || mine[0].v6.IsValid() {
		return nil, fmt.Errorf("%s: %w: in Flannel's layout an IPv6 block goes with the node's one IPv4 block, which is claimed before", noun, store.ErrUnsupported)
	}
	key := st.s.subnets() + flannel.FormatSubnetKey(mine[0].v4, b.CIDR)
	w.ops = append(w.ops, clientv3.OpDelete(mine[0].key), clientv3.OpPut(key, value, clientv3.WithLease(mine[0].leaseID)))
	return w, nil
}

func (st *state) delete(kind model.Kind, key string) (*write, error) {
	w := &write{}
	drop := func(sub *subnet) {
		w.unchanged(sub.key, sub.rev)
		w.ops = append(w.ops, clientv3.OpDelete(sub.key))
	}
	switch kind {
	case model.KindBlock:
		p, err := blockPrefix(key)
		if err != nil {
			return nil, err
		}
		drop(st.holder[p])
		return w, nil
	case model.KindNode:
		n, ok := st.nodes[key]
		if !ok {
			return nil, fmt.Errorf("node %q: %w: a flanneld's node goes when its blocks do", key, store.ErrUnsupported)
		}
		w.unchanged(st.s.nodeKey(key), n.rev)
		w.ops = append(w.ops, clientv3.OpDelete(st.s.nodeKey(key)))
		for _, sub := range st.owned(n.Node) {
			if sub.leaseID != 0 {
				drop(sub)
			}
		}
		return w, nil
	}
	return nil, fmt.Errorf("%s %q: %w: change net-conf.json in %s", kind, key, store.ErrUnsupported, st.s.configKey())
}

// renew keeps a node's subnets for another leaseTTL, at most every renewEvery.
func (s *Store) renew(ctx context.Context, name string) error {
	s.mu.Lock()
	fresh := time.Since(s.renewed[name]) < renewEvery
	s.mu.Unlock()
	if fresh {
		return nil
	}
	st, _, err := s.load(ctx, 0)
	if err != nil {
		return err
	}
	n, ok := st.nodes[name]
	if !ok {
		return nil
	}
	mine := st.owned(n.Node)
	for _, sub := range mine {
		if sub.leaseID == 0 {
			continue // a reservation
		}
		err := s.inner.Call(ctx, "renew "+sub.key, func(c context.Context) error {
			_, err := s.client.KeepAliveOnce(c, sub.leaseID)
			return err
		})
		if err != nil {
			return err
		}
	}
	if len(mine) > 0 {
		s.mu.Lock()
		s.renewed[name] = time.Now()
		s.mu.Unlock()
	}
	return nil
}
