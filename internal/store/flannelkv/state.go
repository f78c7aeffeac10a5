package flannelkv

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// id names an object of the store.
type id struct {
	kind model.Kind
	key  string
}

// subnet is one key under subnets/: the blocks of one node.
type subnet struct {
	key     string // the whole etcd key
	v4, v6  netip.Prefix
	lease   flannel.Lease
	rev     int64
	leaseID clientv3.LeaseID // 0: a reservation, which never ends
}

func (n *subnet) blocks() []netip.Prefix {
	if n.v6.IsValid() {
		return []netip.Prefix{n.v4, n.v6}
	}
	return []netip.Prefix{n.v4}
}

// foreign is the name of the flanneld that holds the subnet: flannel-192-168-0-4.
func (n *subnet) foreign() string {
	a := n.lease.PublicIP
	if !a.IsValid() {
		a = n.lease.PublicIPv6
	}
	return "flannel-" + strings.NewReplacer(".", "-", ":", "-").Replace(a.StringExpanded())
}

func (n *subnet) addrs() []netip.Addr {
	return valid(n.lease.PublicIP, n.lease.PublicIPv6)
}

func valid(addrs ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() })
}

func publics(n *model.Node) []netip.Addr { return valid(n.Public(model.IPv4), n.Public(model.IPv6)) }

type node struct {
	*model.Node
	rev int64
}

// state is what the keys say at one revision. The objects of the store follow from it.
type state struct {
	s       *Store
	pools   []model.Pool
	poolRev int64
	nodes   map[string]node
	subnets map[string]*subnet // by etcd key
	// Where to look for what depends on a change.
	nodeAt   map[netip.Addr]string             // registered node by public address
	subnetAt map[netip.Addr]map[string]*subnet // subnets by public address, then by key
	named    map[string]map[string]*subnet     // subnets by foreign name, then by key
	holder   map[netip.Prefix]*subnet          // subnets by block
	touched  map[id]bool                       // objects that may have changed
}

func (s *Store) newState() *state {
	return &state{
		s: s, nodes: map[string]node{}, subnets: map[string]*subnet{}, nodeAt: map[netip.Addr]string{},
		subnetAt: map[netip.Addr]map[string]*subnet{}, named: map[string]map[string]*subnet{},
		holder: map[netip.Prefix]*subnet{}, touched: map[id]bool{},
	}
}

// load reads everything at a revision, 0 for now.
func (s *Store) load(ctx context.Context, rev int64) (*state, int64, error) {
	for attempt := 0; ; attempt++ {
		st, at, err := s.loadOnce(ctx, rev)
		if rev == 0 && attempt < 3 && errors.Is(err, rpctypes.ErrCompacted) {
			continue // history went away between two pages
		}
		return st, at, err
	}
}

func (s *Store) loadOnce(ctx context.Context, rev int64) (*state, int64, error) {
	st := s.newState()
	from, last := s.span()
	for {
		var resp *clientv3.GetResponse
		err := s.inner.Call(ctx, "read "+s.prefix, func(c context.Context) (err error) {
			resp, err = s.client.Get(c, from, clientv3.WithRange(last), clientv3.WithLimit(500), clientv3.WithRev(rev))
			return err
		})
		if err != nil {
			return nil, 0, err
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			st.set(kv)
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return st, rev, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// set takes a key's new value.
func (st *state) set(kv *mvccpb.KeyValue) {
	key := string(kv.Key)
	switch {
	case key == st.s.configKey():
		pools, err := flannel.ParseNetConf(kv.Value)
		if err != nil {
			st.s.skip(kv, err) // the pools that were good stay
			return
		}
		st.touchPools()
		st.pools, st.poolRev = pools, kv.ModRevision
		st.touchPools()
	case strings.HasPrefix(key, st.s.subnets()):
		v4, v6, err := flannel.ParseSubnetKey(strings.TrimPrefix(key, st.s.subnets()))
		var lease flannel.Lease
		if err == nil {
			lease, err = flannel.ParseLease(kv.Value)
		}
		if err != nil {
			st.s.skip(kv, err)
			return
		}
		st.dropSubnet(key)
		st.addSubnet(&subnet{key, v4, v6, lease, kv.ModRevision, clientv3.LeaseID(kv.Lease)})
	case strings.HasPrefix(key, st.s.nodeFolder()):
		name := strings.TrimPrefix(key, st.s.nodeFolder())
		o, err := store.Decode(model.KindNode, name, kv.Value)
		if err != nil {
			st.s.skip(kv, err)
			return
		}
		st.dropNode(name)
		st.addNode(node{o.(*model.Node), kv.ModRevision})
	}
}

// unset takes a key's deletion.
func (st *state) unset(key string) {
	switch {
	case key == st.s.configKey():
		st.touchPools()
		st.pools, st.poolRev = nil, 0
	case strings.HasPrefix(key, st.s.subnets()):
		st.dropSubnet(key)
	case strings.HasPrefix(key, st.s.nodeFolder()):
		st.dropNode(strings.TrimPrefix(key, st.s.nodeFolder()))
	}
}

func (st *state) addSubnet(n *subnet) {
	st.subnets[n.key] = n
	for _, a := range n.addrs() {
		if st.subnetAt[a] == nil {
			st.subnetAt[a] = map[string]*subnet{}
		}
		st.subnetAt[a][n.key] = n
	}
	if st.named[n.foreign()] == nil {
		st.named[n.foreign()] = map[string]*subnet{}
	}
	st.named[n.foreign()][n.key] = n
	for _, b := range n.blocks() {
		st.holder[b] = n
	}
	st.touchSubnet(n)
}

func (st *state) dropSubnet(key string) {
	n := st.subnets[key]
	if n == nil {
		return
	}
	st.touchSubnet(n)
	delete(st.subnets, key)
	for _, a := range n.addrs() {
		delete(st.subnetAt[a], key)
	}
	delete(st.named[n.foreign()], key)
	for _, b := range n.blocks() {
		if st.holder[b] == n {
			delete(st.holder, b)
		}
	}
}

func (st *state) addNode(n node) {
	st.nodes[n.Name] = n
	for _, a := range publics(n.Node) {
		st.nodeAt[a] = n.Name
	}
	st.touchNode(n)
}

func (st *state) dropNode(name string) {
	n, ok := st.nodes[name]
	if !ok {
		return
	}
	st.touchNode(n)
	delete(st.nodes, name)
	for _, a := range publics(n.Node) {
		if st.nodeAt[a] == name {
			delete(st.nodeAt, a)
		}
	}
	st.touchNode(n) // its subnets are a flanneld's now
}

func (st *state) touchNode(n node) {
	st.touched[id{model.KindNode, n.Name}] = true
	for _, a := range publics(n.Node) {
		for _, sub := range st.subnetAt[a] {
			st.touchSubnet(sub)
		}
	}
}

func (st *state) touchSubnet(n *subnet) {
	st.touched[id{model.KindNode, st.owner(n)}] = true
	st.touched[id{model.KindNode, n.foreign()}] = true
	for _, p := range n.blocks() {
		b := model.Block{CIDR: p}
		st.touched[id{model.KindBlock, b.Key()}] = true
	}
}

func (st *state) touchPools() {
	for _, p := range st.pools {
		st.touched[id{model.KindPool, p.Name}] = true
	}
}

// owner is the node that a subnet belongs to.
func (st *state) owner(n *subnet) string {
	for _, a := range n.addrs() {
		if name, ok := st.nodeAt[a]; ok {
			return name
		}
	}
	return n.foreign()
}

// owned are the subnets of a registered node, sorted by key.
func (st *state) owned(n *model.Node) []*subnet {
	var list []*subnet
	for _, a := range publics(n) {
		for _, sub := range st.subnetAt[a] {
			if !slices.Contains(list, sub) {
				list = append(list, sub)
			}
		}
	}
	slices.SortFunc(list, func(a, b *subnet) int { return cmp.Compare(a.key, b.key) })
	return list
}
