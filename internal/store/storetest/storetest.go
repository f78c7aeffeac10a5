// Package storetest is the contract of store.Store as one test suite: every store runs it.
package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// Patience is how long the suite waits for what must come.
const Patience = 20 * time.Second

// Maker returns a store without objects; it is closed by the suite.
type Maker func(t *testing.T) store.Store

type promise struct {
	name string
	run  func(ctx context.Context, t *testing.T, s store.Store)
}

// nodePromises hold for every layout: they file nodes only, and blocks of nodes that are there.
var nodePromises = []promise{
	{"ListIsSortedAndOfOneKind", listSorted},
	{"PutKeepsToTheRevisionSeen", putKeepsToRevision},
	{"DeleteKeepsToTheRevisionSeen", deleteKeepsToRevision},
	{"CountersLoseNoIncrement", countersLoseNothing},
	{"InvalidObjectIsRefused", invalidRefused},
	{"KeyCannotLeaveItsKind", keyCannotLeave},
	{"WatchMissesNothingAfterList", watchMissesNothing},
	{"WatchTellsOfDeletion", watchDelete},
	{"WatchEndsWithItsContext", watchEndsWithContext},
	{"CloseEndsWatchesAndRequests", closeEnds},
	{"CanceledContextIsRefused", canceledContext},
	{"EndpointsAndResourcesAreFiled", policyFiled},
	{"EndpointsAndResourcesAreWatchedInOneOrder", watchPolicy},
	{"KeysAreThoseOfAPrefix", keysOfPrefix},
	{"ListOfSeveralKindsIsOfOneRevision", listAtOneRevision},
}

var otherPromises = []promise{
	{"ObjectComesBackAsItWasPut", objectComesBack},
	{"OneOfManyWritersWins", oneWinner},
	{"WatchIsInOrderAcrossKinds", watchInOrder},
	{"ListIsNotBoundedByAPage", listManyPages},
}

// Run runs the whole contract. compact, when not nil, makes the store that Maker made last forget its
// history up to now.
func Run(t *testing.T, mk Maker, compact func(t *testing.T, s store.Store)) {
	run(t, mk, compact, slices.Concat(otherPromises, blockPromises, nodePromises))
}

// RunNodes runs what holds also for a layout that makes pools and blocks from something else.
func RunNodes(t *testing.T, mk Maker, compact func(t *testing.T, s store.Store)) {
	run(t, mk, compact, nodePromises)
}

func run(t *testing.T, mk Maker, compact func(t *testing.T, s store.Store), promises []promise) {
	open := func(t *testing.T) (context.Context, store.Store) {
		ctx, cancel := context.WithTimeout(context.Background(), 3*Patience)
		t.Cleanup(cancel)
		s := mk(t)
		t.Cleanup(func() { _ = s.Close() })
		return ctx, s
	}
	for _, c := range promises {
		t.Run(c.name, func(t *testing.T) {
			ctx, s := open(t)
			c.run(ctx, t, s)
		})
	}
	if compact != nil {
		t.Run("CompactionAsksToListAgain", func(t *testing.T) {
			ctx, s := open(t)
			compactionResyncs(ctx, t, s, func() { compact(t, s) })
		})
	}
}

// Node makes a valid node.
func Node(i int) *model.Node {
	return &model.Node{Name: fmt.Sprintf("node-%05d", i), Address4: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Version: "1"}
}

// poolOf is the name of the pool of Block: some layouts give it one of their own.
func poolOf(s store.Store) string {
	if n, ok := s.(interface{ PoolName() string }); ok {
		return n.PoolName()
	}
	return Pool().Name
}

// Block makes a valid block of pool "a", 10.128.0.0/9 in /24s.
func Block(i int, node string) *model.Block {
	return &model.Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 + byte(i>>8), byte(i), 0}), 24), Pool: "a", Node: node}
}

// Pool makes the pool of Block.
func Pool() *model.Pool {
	return &model.Pool{Name: "a", CIDR: netip.MustParsePrefix("10.128.0.0/9"), BlockSize: 24, Path: model.PathDirect, Encap: model.EncapNever}
}

// Endpoint makes a valid endpoint of a node.
func Endpoint(i int, node string) *model.Endpoint {
	return &model.Endpoint{
		Node: node, Link: fmt.Sprintf("hd%012x", i), Namespace: fmt.Sprintf("ns-%d", i%100), Name: fmt.Sprintf("web-%d", i),
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 128 + byte(i>>16), byte(i >> 8), byte(i)})},
		Labels:    map[string]string{"app": fmt.Sprintf("app-%d", i%50), "tier": "web"},
	}
}

// Resource makes a valid resource.
func Resource(i int) *model.Resource {
	name := fmt.Sprintf("policy-%d", i)
	return &model.Resource{
		APIVersion: "networking.k8s.io/v1", Type: "NetworkPolicy", Namespace: "dev", Name: name,
		Body: json.RawMessage(fmt.Sprintf(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"namespace":"dev","name":%q},"spec":{"podSelector":{}}}`, name)),
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func put(ctx context.Context, t *testing.T, s store.Store, o model.Object, at store.Revision) store.Revision {
	t.Helper()
	rev, err := s.Put(ctx, o, at)
	ok(t, err)
	return rev
}

// Next waits for one event.
func Next(t *testing.T, ch <-chan store.Event) store.Event {
	t.Helper()
	select {
	case e, open := <-ch:
		if !open {
			t.Fatal("the watch ended")
		}
		return e
	case <-time.After(Patience):
		t.Fatal("no event came")
	}
	return store.Event{}
}

func objectComesBack(ctx context.Context, t *testing.T, s store.Store) {
	_, err := s.Get(ctx, model.KindNode, "node-00001")
	is(t, err, store.ErrNotFound)
	n := Node(1)
	n.Accepts = []model.Path{model.PathVXLAN}
	n.VTEP4 = "02:00:00:00:00:01"
	hb := &model.Heartbeat{Node: n.Name, Renewed: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), TTL: time.Minute}
	for _, o := range []model.Object{n, Pool(), Block(1, n.Name), hb} {
		rev := put(ctx, t, s, o, 0)
		it, err := s.Get(ctx, o.Kind(), o.Key())
		ok(t, err)
		if it.Revision != rev || fmt.Sprint(it.Object) != fmt.Sprint(o) {
			t.Fatalf("got %v at %d, want %v at %d", it.Object, it.Revision, o, rev)
		}
	}
	it, err := s.Get(ctx, model.KindNode, n.Name)
	ok(t, err)
	it.Object.(*model.Node).Version = "scribbled"
	again, err := s.Get(ctx, model.KindNode, n.Name)
	ok(t, err)
	if again.Object.(*model.Node).Version != "1" {
		t.Fatal("a reader's change of its copy reached the store")
	}
}

func listSorted(ctx context.Context, t *testing.T, s store.Store) {
	items, rev0, err := s.List(ctx, model.KindNode)
	ok(t, err)
	if len(items) != 0 {
		t.Fatalf("new store holds %d nodes", len(items))
	}
	for _, i := range []int{3, 1, 2} {
		put(ctx, t, s, Node(i), 0)
		b := Block(i, Node(i).Name)
		b.Pool = poolOf(s)
		put(ctx, t, s, b, 0)
	}
	items, rev, err := s.List(ctx, model.KindNode)
	ok(t, err)
	if len(items) != 3 || items[0].Object.Key() != "node-00001" || items[2].Object.Key() != "node-00003" {
		t.Fatalf("list: %v", items)
	}
	if rev <= rev0 || rev < items[0].Revision {
		t.Fatalf("revision %d after %d", rev, rev0)
	}
}

func putKeepsToRevision(ctx context.Context, t *testing.T, s store.Store) {
	n := Node(1)
	r1 := put(ctx, t, s, n, 0)
	_, err := s.Put(ctx, n, 0)
	is(t, err, store.ErrConflict)
	r2 := put(ctx, t, s, n, r1)
	if r2 <= r1 {
		t.Fatalf("revision went from %d to %d", r1, r2)
	}
	_, err = s.Put(ctx, n, r1)
	is(t, err, store.ErrConflict)
	put(ctx, t, s, n, store.AnyRevision)
	_, err = s.Put(ctx, Node(2), r2)
	is(t, err, store.ErrConflict)
	put(ctx, t, s, Node(3), store.AnyRevision)
}

func deleteKeepsToRevision(ctx context.Context, t *testing.T, s store.Store) {
	n := Node(1)
	is(t, s.Delete(ctx, n.Kind(), n.Key(), 5), store.ErrNotFound)
	ok(t, s.Delete(ctx, n.Kind(), n.Key(), store.AnyRevision))
	r1 := put(ctx, t, s, n, 0)
	r2 := put(ctx, t, s, n, r1)
	is(t, s.Delete(ctx, n.Kind(), n.Key(), r1), store.ErrConflict)
	ok(t, s.Delete(ctx, n.Kind(), n.Key(), r2))
	_, err := s.Get(ctx, n.Kind(), n.Key())
	is(t, err, store.ErrNotFound)
	is(t, s.Delete(ctx, n.Kind(), n.Key(), r2), store.ErrNotFound)
	put(ctx, t, s, n, 0)
	ok(t, s.Delete(ctx, n.Kind(), n.Key(), store.AnyRevision))
}

func oneWinner(ctx context.Context, t *testing.T, s store.Store) {
	oneMakes(ctx, t, s, 32, func(i int) model.Object { return Block(1, Node(i).Name) })
}

// oneMakes has many make an object of one name at once.
func oneMakes(ctx context.Context, t *testing.T, s store.Store, writers int, object func(i int) model.Object) {
	t.Helper()
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			_, err := s.Put(ctx, object(i), 0)
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, store.ErrConflict):
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d writers won, want 1", won.Load())
	}
}

func countersLoseNothing(ctx context.Context, t *testing.T, s store.Store) {
	n := Node(1)
	n.Version = "0"
	put(ctx, t, s, n, 0)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for done := 0; done < 10; {
				it, err := s.Get(ctx, model.KindNode, n.Name)
				if err != nil {
					t.Error(err)
					return
				}
				o := it.Object.(*model.Node)
				var v int
				_, _ = fmt.Sscan(o.Version, &v)
				o.Version = fmt.Sprint(v + 1)
				if _, err = s.Put(ctx, o, it.Revision); err == nil {
					done++
				} else if !errors.Is(err, store.ErrConflict) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	it, err := s.Get(ctx, model.KindNode, n.Name)
	ok(t, err)
	if v := it.Object.(*model.Node).Version; v != "40" {
		t.Fatalf("40 increments made %s", v)
	}
}

func invalidRefused(ctx context.Context, t *testing.T, s store.Store) {
	_, err := s.Put(ctx, &model.Node{Name: "No Name"}, 0)
	var fe *model.FieldError
	if !errors.As(err, &fe) || fe.Field != "name" {
		t.Fatalf("error %v, want a FieldError about name", err)
	}
	items, _, err := s.List(ctx, model.KindNode)
	ok(t, err)
	if len(items) != 0 {
		t.Fatalf("the refused object is there: %v", items)
	}
}

func keyCannotLeave(ctx context.Context, t *testing.T, s store.Store) {
	put(ctx, t, s, Node(1), 0)
	b := Block(1, "node-00001")
	b.Pool = poolOf(s)
	put(ctx, t, s, b, 0)
	for _, key := range []string{"", "../blocks/10.128.1.0-24", "a/b", "..", "a\x00b"} {
		if _, err := s.Get(ctx, model.KindNode, key); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("get %q: %v, want a refusal", key, err)
		}
		if err := s.Delete(ctx, model.KindNode, key, store.AnyRevision); err == nil {
			t.Errorf("delete %q was not refused", key)
		}
	}
	if _, _, err := s.List(ctx, "secrets"); err == nil {
		t.Error("an unknown kind was not refused")
	}
}
