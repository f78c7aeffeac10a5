package flannelkv_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/embedded"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/internal/store/flannelkv"
	"github.com/heddle-net/heddle/internal/store/storetest"
	"github.com/heddle-net/heddle/internal/store/storetest/etcdproc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	netConf4 = `{"Network":"10.128.0.0/9","SubnetLen":24,"SubnetMin":"10.128.0.0","Backend":{"Type":"vxlan"}}`
	netConfD = `{"Network":"10.128.0.0/9","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fd00:128::/48","Backend":{"Type":"vxlan"}}`
)

// server runs an etcd: Debian's where it is installed, else our own.
func server(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err == nil {
		p := etcdproc.Debian(t)
		p.Start(t)
		p.WaitReady(t)
		return p.URL
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", etcdproc.FreePort(t))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- embedded.Run(ctx, embedded.Options{DataDir: t.TempDir() + "/store", Listen: []string{url}})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return url
}

// network is a store with Flannel's names, for the contract suite.
type network struct {
	*flannelkv.Store
	prefix string
}

func (network) PoolName() string { return flannel.PoolName }

var prefixes atomic.Int64

func open(t *testing.T, url, prefix, conf string) network {
	t.Helper()
	if prefix == "" {
		prefix = fmt.Sprintf("/coreos.com/network%d", prefixes.Add(1))
	}
	s, err := flannelkv.New(context.Background(), etcd.Options{Endpoints: []string{url}, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if conf != "" {
		ok(t, s.PutConfig(context.Background(), []byte(conf)))
	}
	return network{s, prefix}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// flanneld writes a subnet as flanneld does: create-only, with a lease (ttl 0: a reservation).
func (n network) flanneld(t *testing.T, key, value string, ttl int64) bool {
	t.Helper()
	ctx := limited(t)
	var opts []clientv3.OpOption
	if ttl > 0 {
		g, err := n.Client().Grant(ctx, ttl)
		ok(t, err)
		opts = append(opts, clientv3.WithLease(g.ID))
	}
	k := n.prefix + "/subnets/" + key
	resp, err := n.Client().Txn(ctx).If(clientv3.Compare(clientv3.Version(k), "=", 0)).Then(clientv3.OpPut(k, value, opts...)).Commit()
	ok(t, err)
	return resp.Succeeded
}

// subnets are the keys and values that flanneld sees.
func (n network) subnets(t *testing.T) map[string]string {
	t.Helper()
	resp, err := n.Client().Get(limited(t), n.prefix+"/subnets/", clientv3.WithPrefix())
	ok(t, err)
	m := map[string]string{}
	for _, kv := range resp.Kvs {
		m[strings.TrimPrefix(string(kv.Key), n.prefix+"/subnets/")] = string(kv.Value)
	}
	return m
}

func heddle(name, addr string) *model.Node {
	return &model.Node{Name: name, ID: "id-" + name, Address4: netip.MustParseAddr(addr), VTEP4: "0a:00:00:00:00:01", Accepts: []model.Path{model.PathVXLAN}, Sends: []model.Path{model.PathVXLAN}}
}

func block(cidr, pool, node string) *model.Block {
	return &model.Block{CIDR: netip.MustParsePrefix(cidr), Pool: pool, Node: node}
}

func TestFlannelLayoutKeepsTheContractForNodes(t *testing.T) {
	url := server(t)
	storetest.RunNodes(t, func(t *testing.T) store.Store { return open(t, url, "", netConf4) }, func(t *testing.T, s store.Store) {
		n := s.(network)
		_, rev, err := n.List(limited(t), model.KindNode)
		ok(t, err)
		_, err = n.Client().Compact(limited(t), int64(rev), clientv3.WithCompactPhysical())
		ok(t, err)
	})
}

func TestNodeAndItsBlocksAreOneKeyThatFlanneldUnderstands(t *testing.T) {
	n := open(t, server(t), "", netConfD)
	ctx := limited(t)
	a := heddle("a", "192.168.0.4")
	a.Address6 = netip.MustParseAddr("fd00:1::4")
	_, err := n.Put(ctx, block("10.128.1.0/24", flannel.PoolName, "a"), 0)
	var fe *model.FieldError
	if !errors.As(err, &fe) || fe.Field != "node" {
		t.Fatalf("block of an unknown node: %v", err)
	}
	_, err = n.Put(ctx, a, 0)
	ok(t, err)
	_, err = n.Put(ctx, block("10.128.1.0/24", flannel.PoolName, "a"), 0)
	ok(t, err)
	_, err = n.Put(ctx, block("fd00:128:0:1::/64", flannel.PoolName6, "a"), 0)
	ok(t, err)
	got := n.subnets(t)
	const want = `{"PublicIP":"192.168.0.4","PublicIPv6":"fd00:1::4","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}}`
	if len(got) != 1 || got["10.128.1.0-24&fd00:128:0:1::-64"] != want {
		t.Fatalf("flanneld sees %v\nwant %s", got, want)
	}
	// A new MAC and a new address reach the same key; its lease stays.
	it, err := n.Get(ctx, model.KindNode, "a")
	ok(t, err)
	a.VTEP4, a.VTEP6, a.Address4 = "0a:00:00:00:00:02", "0a:00:00:00:00:06", netip.MustParseAddr("192.168.0.5")
	_, err = n.Put(ctx, a, it.Revision)
	ok(t, err)
	v := n.subnets(t)["10.128.1.0-24&fd00:128:0:1::-64"]
	if !strings.Contains(v, `"192.168.0.5"`) || !strings.Contains(v, `"0a:00:00:00:00:02"`) || !strings.Contains(v, `"BackendV6Data":{"VNI":1,"VtepMAC":"0a:00:00:00:00:06"}`) {
		t.Fatalf("flanneld sees %s", v)
	}
	resp, err := n.Client().Get(ctx, n.prefix+"/subnets/", clientv3.WithPrefix())
	ok(t, err)
	ttl, err := n.Client().TimeToLive(ctx, clientv3.LeaseID(resp.Kvs[0].Lease))
	ok(t, err)
	if ttl.GrantedTTL != 24*3600 {
		t.Fatalf("the subnet's lease lasts %d s, want a day", ttl.GrantedTTL)
	}
	blocks, _, err := n.List(ctx, model.KindBlock)
	ok(t, err)
	if len(blocks) != 2 || *blocks[0].Object.(*model.Block) != *block("10.128.1.0/24", flannel.PoolName, "a") || *blocks[1].Object.(*model.Block) != *block("fd00:128:0:1::/64", flannel.PoolName6, "a") {
		t.Fatalf("blocks: %v", blocks)
	}
	nodes, _, err := n.List(ctx, model.KindNode)
	ok(t, err)
	if len(nodes) != 1 || nodes[0].Object.(*model.Node).ID != "id-a" {
		t.Fatalf("nodes: %v", nodes)
	}
	ok(t, n.Delete(ctx, model.KindNode, "a", store.AnyRevision))
	if got := n.subnets(t); len(got) != 0 {
		t.Fatalf("after its node left, flanneld sees %v", got)
	}
}

func TestFlanneldIsANodeWithBlocks(t *testing.T) {
	n := open(t, server(t), "", netConf4)
	ctx := limited(t)
	_, rev, err := n.List(ctx, model.KindNode)
	ok(t, err)
	ch, err := n.Watch(ctx, rev, model.KindNode, model.KindBlock, model.KindPool)
	ok(t, err)
	n.flanneld(t, "10.128.7.0-24", `{"PublicIP":"192.168.0.16","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}`, 60)
	n.flanneld(t, "10.128.8.0-24", `{"PublicIP":"192.168.0.17"}`, 0) // a reservation: no node
	check := func(o model.Object) {
		t.Helper()
		switch o := o.(type) {
		case *model.Node:
			if o.Name != "flannel-192-168-0-16" || o.Address4.String() != "192.168.0.16" || o.VTEP4 != "aa:bb:cc:dd:ee:ff" || !o.AcceptsPath(model.PathVXLAN) {
				t.Fatalf("node %+v", o)
			}
			ok(t, o.Validate())
		case *model.Block:
			if *o != *block("10.128.7.0/24", flannel.PoolName, "flannel-192-168-0-16") && *o != *block("10.128.8.0/24", flannel.PoolName, "flannel-192-168-0-17") {
				t.Fatalf("block %+v", o)
			}
			ok(t, o.Validate())
		}
	}
	for range 3 {
		check(storetest.Next(t, ch).Object)
	}
	for kind, want := range map[model.Kind]int{model.KindNode: 1, model.KindBlock: 2, model.KindPool: 1} {
		items, _, err := n.List(ctx, kind)
		ok(t, err)
		if len(items) != want {
			t.Fatalf("%d %s, want %d", len(items), kind, want)
		}
		for _, it := range items {
			check(it.Object)
		}
	}
	// A Heddle agent on that host takes the flanneld's subnet over, with its place in the network.
	b, err := n.Put(ctx, heddle("b", "192.168.0.16"), 0)
	ok(t, err)
	var told []string
	for range 3 {
		e := storetest.Next(t, ch)
		told = append(told, fmt.Sprintf("%d %s %s", e.Type, e.Kind, e.Key))
		if e.Revision != b {
			t.Errorf("event %+v, want all at %d", e, b)
		}
	}
	if fmt.Sprint(told) != "[1 nodes flannel-192-168-0-16 0 blocks 10.128.7.0-24 0 nodes b]" {
		t.Fatalf("told %q", told)
	}
	got, err := store.Claim(ctx, n, "b", model.Pool{Name: flannel.PoolName, CIDR: netip.MustParsePrefix("10.128.0.0/16"), BlockSize: 24}, func([]netip.Prefix, int) (netip.Prefix, error) {
		return netip.Prefix{}, errors.New("asked for another block")
	})
	if err != nil || got.CIDR.String() != "10.128.7.0/24" {
		t.Fatalf("claimed %+v, %v; want the subnet that flanneld had", got, err)
	}
	if v := n.subnets(t)["10.128.7.0-24"]; !strings.Contains(v, "0a:00:00:00:00:01") {
		t.Fatalf("the subnet's key still says %s", v)
	}
}

func TestClaimsOfHeddleAndFlanneldExcludeEachOther(t *testing.T) {
	n := open(t, server(t), "", netConfD)
	ctx := limited(t)
	const agents = 12
	for i := range agents {
		node := storetest.Node(i)
		node.Address6 = netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", i+1))
		_, err := n.Put(ctx, node, 0)
		ok(t, err)
	}
	pick := func(family model.Family) func([]netip.Prefix, int) (netip.Prefix, error) {
		return func(taken []netip.Prefix, _ int) (netip.Prefix, error) {
			for i := 1; ; i++ { // always the lowest: everybody wants the same
				p := netip.MustParsePrefix(fmt.Sprintf("10.128.%d.0/24", i))
				if family == model.IPv6 {
					p = netip.MustParsePrefix(fmt.Sprintf("fd00:128:0:%x::/64", i))
				}
				free := true
				for _, q := range taken {
					free = free && !q.Overlaps(p)
				}
				if free {
					return p, nil
				}
			}
		}
	}
	var wg sync.WaitGroup
	for i := range agents {
		wg.Go(func() {
			for _, c := range []struct {
				pool   string
				family model.Family
			}{{flannel.PoolName, model.IPv4}, {flannel.PoolName6, model.IPv6}} {
				if _, err := store.Claim(ctx, n, storetest.Node(i).Name, model.Pool{Name: c.pool}, pick(c.family)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() { // flanneld, dual stack: its own pair makes its key another one
		for i := 20; i > 0; i-- {
			taken := false
			for k := range n.subnets(t) {
				taken = taken || strings.HasPrefix(k, fmt.Sprintf("10.128.%d.0-24", i)) || strings.HasSuffix(k, fmt.Sprintf("&fd00:128:0:%x::-64", i))
			}
			if !taken && i%2 == 0 && i > 14 {
				n.flanneld(t, fmt.Sprintf("10.128.%d.0-24&fd00:128:0:%x::-64", i, i), fmt.Sprintf(`{"PublicIP":"192.168.0.%d","PublicIPv6":null,"BackendType":"host-gw"}`, i), 600)
			}
		}
	})
	wg.Wait()
	seen := map[netip.Prefix]string{}
	for k := range n.subnets(t) {
		v4, v6, err := flannel.ParseSubnetKey(k)
		ok(t, err)
		for _, p := range []netip.Prefix{v4, v6} {
			if other, twice := seen[p]; twice {
				t.Errorf("%s is in %s and in %s", p, other, k)
			}
			seen[p] = k
		}
	}
	if len(seen) < 2*agents {
		t.Fatalf("%d blocks, want %d or more", len(seen), 2*agents)
	}
}

func TestHeartbeatRenewsTheSubnetButNotAReservation(t *testing.T) {
	n := open(t, server(t), "", netConf4)
	ctx := limited(t)
	n.flanneld(t, "10.128.7.0-24", `{"PublicIP":"192.168.0.4"}`, 600)
	n.flanneld(t, "10.128.8.0-24", `{"PublicIP":"192.168.0.5"}`, 0)
	for _, node := range []*model.Node{heddle("a", "192.168.0.4"), heddle("b", "192.168.0.5")} {
		_, err := n.Put(ctx, node, 0)
		ok(t, err)
	}
	resp, err := n.Client().Get(ctx, n.prefix+"/subnets/10.128.7.0-24")
	ok(t, err)
	lease := clientv3.LeaseID(resp.Kvs[0].Lease)
	if lease == 0 {
		t.Fatal("registering the node took the lease away")
	}
	left := func() int64 {
		t.Helper()
		l, err := n.Client().TimeToLive(ctx, lease)
		ok(t, err)
		return l.TTL
	}
	for deadline := time.Now().Add(storetest.Patience); left() >= 599; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the lease does not run")
		}
	}
	before := left()
	for _, name := range []string{"a", "b"} {
		_, err = n.Put(ctx, &model.Heartbeat{Node: name, Renewed: time.Now(), TTL: time.Minute}, store.AnyRevision)
		ok(t, err)
	}
	if after := left(); after <= before {
		t.Fatalf("%d s were left, then %d", before, after)
	}
	resp, err = n.Client().Get(ctx, n.prefix+"/subnets/10.128.8.0-24")
	ok(t, err)
	if resp.Kvs[0].Lease != 0 {
		t.Fatal("the reservation got a lease")
	}
}

func TestPoolsComeFromTheConfigurationAndFollowIt(t *testing.T) {
	n := open(t, server(t), "", "")
	ctx := limited(t)
	items, rev, err := n.List(ctx, model.KindPool)
	ok(t, err)
	if len(items) != 0 {
		t.Fatalf("pools without a configuration: %v", items)
	}
	ch, err := n.Watch(ctx, rev, model.KindPool)
	ok(t, err)
	_, err = n.Put(ctx, storetest.Pool(), 0)
	if !errors.Is(err, store.ErrUnsupported) || !strings.Contains(err.Error(), n.prefix+"/config") {
		t.Fatalf("put pool: %v", err)
	}
	ok(t, n.PutConfig(ctx, []byte(netConf4)))
	p := storetest.Next(t, ch).Object.(*model.Pool)
	if p.Name != flannel.PoolName || p.Encap != model.EncapAlways {
		t.Fatalf("pool %+v", p)
	}
	p.Masquerade = true
	_, err = n.Put(ctx, p, store.AnyRevision)
	ok(t, err) // it says what the configuration says
	if err := n.PutConfig(ctx, []byte(`{"Network":"10.128.0.0/9","Backend":{"Type":"ipsec"}}`)); err == nil {
		t.Fatal("a backend that Heddle cannot carry was taken")
	}
	_, err = n.Client().Put(ctx, n.prefix+"/config", "{") // by somebody else
	ok(t, err)
	ok(t, n.PutConfig(ctx, []byte(strings.Replace(netConf4, "vxlan", "host-gw", 1))))
	if p := storetest.Next(t, ch).Object.(*model.Pool); p.Path != model.PathDirect {
		t.Fatalf("pool %+v, want the next good configuration", p)
	}
}

func TestTwoNodesCannotShareAnAddress(t *testing.T) {
	n := open(t, server(t), "", netConf4)
	_, err := n.Put(limited(t), heddle("a", "192.168.0.4"), 0)
	ok(t, err)
	_, err = n.Put(limited(t), heddle("b", "192.168.0.4"), 0)
	var fe *model.FieldError
	if !errors.As(err, &fe) || fe.Field != "address" {
		t.Fatalf("error %v, want one about address", err)
	}
}

func TestPolicyIsBeyondWhatTheNetworksWatchSpans(t *testing.T) {
	n := open(t, server(t), "", netConf4)
	ctx := limited(t)
	for _, o := range []model.Object{storetest.Endpoint(1, "node-1"), storetest.Resource(1)} {
		_, err := n.Put(ctx, o, 0)
		ok(t, err)
		key := n.prefix + "/x-heddle/security/" + string(o.Kind()) + "/" + o.Key()
		resp, err := n.Client().Get(ctx, key)
		ok(t, err)
		if len(resp.Kvs) != 1 {
			t.Errorf("%s is not there", key)
		}
		if end := clientv3.GetPrefixRangeEnd(n.prefix + "/x-heddle/nodes/"); key < end {
			t.Errorf("%s is before %s", key, end)
		}
	}
}
