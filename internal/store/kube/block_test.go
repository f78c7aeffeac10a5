//go:build kube

package kube_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/kube"
	"github.com/heddle-net/heddle/internal/store/storetest"
)

var blocks = schema.GroupVersionResource{Group: "heddle.net", Version: "v1", Resource: "blocks"}

// blockDefinition is the CustomResourceDefinition as people apply it.
func blockDefinition(t testing.TB) map[string]any {
	t.Helper()
	f, err := os.Open("../../../deploy/heddle.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	d := yaml.NewYAMLOrJSONDecoder(f, 4096)
	for {
		var u unstructured.Unstructured
		if err := d.Decode(&u); errors.Is(err, io.EOF) {
			t.Fatal("deploy/heddle.yaml has no CustomResourceDefinition")
		} else if err != nil {
			t.Fatal(err)
		}
		if u.GetKind() == "CustomResourceDefinition" {
			return u.Object
		}
	}
}

// serveBlocks makes the definition, and waits until Blocks can be made.
func (l *lab) serveBlocks(t testing.TB) {
	t.Helper()
	l.make(t, definitions, blockDefinition(t))
	until(t, "Blocks to be served", func() bool {
		_, err := l.admin.Resource(blocks).List(context.Background(), metav1.ListOptions{})
		return err == nil
	})
}

// served waits until a store follows Blocks.
func served(t testing.TB, s *kube.Store) {
	t.Helper()
	until(t, "Blocks to be followed", func() bool {
		b := storetest.FreeBlock(1000, "node-1")
		_, err := s.Put(context.Background(), b, 7) // nothing is at 7
		return errors.Is(err, store.ErrConflict)
	})
}

// TestBlockContract runs what every store promises of blocks that nodes claim, of a pool that Kubernetes gives nothing
// out of.
func TestBlockContract(t *testing.T) {
	l := newLab(t)
	var names []string
	for i := range 40 {
		names = append(names, storetest.Node(i).Name)
	}
	l.makeNodes(t, append(names, "node-1"), func(i int) []string { return []string{storetest.Block(i, "").CIDR.String()} })
	l.serveBlocks(t)
	storetest.RunBlocks(t, func(t *testing.T) store.Store {
		ctx := context.Background()
		if err := l.admin.Resource(blocks).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if l.get(t, nodes, "", n).GetAnnotations()[kube.NodeAnnotation] != "" {
				l.patch(t, nodes, "", n, `{"metadata":{"annotations":null}}`)
			}
		}
		s := l.open(t, kube.Options{Node: names[0], Pools: []model.Pool{*storetest.Pool()}})
		served(t, s)
		if _, _, err := s.List(ctx, model.KindNode, model.KindBlock); err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// TestBlocksComeAndGoWithTheirDefinition: without it a claim says what to apply, and podCIDRs are served as ever.
func TestBlocksComeAndGoWithTheirDefinition(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	l.node(t, "node-2", "10.128.2.0/24")
	ctx := context.Background()
	open := func(node string) *kube.Store {
		return l.open(t, kube.Options{Node: node, Pools: []model.Pool{pool()}, Log: logOf(t)})
	}
	s, other := open("node-1"), open("node-2")
	given := &model.Block{CIDR: netip.MustParsePrefix("10.128.1.0/24"), Pool: "a", Node: "node-1"}
	rev, err := s.Put(ctx, given, 0)
	if err != nil {
		t.Fatalf("the podCIDR: %v", err)
	}
	b := storetest.FreeBlock(5, "node-1")
	if _, err := s.Put(ctx, b, 0); !errors.Is(err, store.ErrUnsupported) || !strings.Contains(err.Error(), "kubectl apply -f deploy/heddle.yaml") {
		t.Fatalf("without the definition: %v", err)
	}
	l.serveBlocks(t)
	served(t, s)
	mine, err := s.Put(ctx, b, 0)
	if err != nil {
		t.Fatal(err)
	}
	if u := l.get(t, blocks, "", "10.64.1.64-26"); u.Object["spec"].(map[string]any)["node"] != "node-1" {
		t.Errorf("the object says %v", u.Object)
	}
	l.comes(t, other, model.KindBlock, b.Key())
	// What else changes of the object is no change of the block, and the block can still be given back.
	l.patch(t, blocks, "", "10.64.1.64-26", `{"metadata":{"labels":{"seen":"yes"}}}`)
	if _, err := s.Put(ctx, b, 0); !errors.Is(err, store.ErrConflict) {
		t.Errorf("claimed twice: %v", err)
	}
	until(t, "the block to be given back", func() bool {
		err := s.Delete(ctx, model.KindBlock, b.Key(), mine)
		if err != nil && !errors.Is(err, store.ErrConflict) {
			t.Fatal(err)
		}
		return err == nil
	})
	l.goes(t, other, model.KindBlock, b.Key())
	if _, err := other.Put(ctx, storetest.FreeBlock(5, "node-2"), 0); err != nil {
		t.Fatalf("by another node: %v", err)
	}
	if _, err := s.Put(ctx, storetest.FreeBlock(6, "nobody"), 0); !errors.Is(err, store.ErrUnsupported) || !strings.Contains(err.Error(), "no Node object") {
		t.Errorf("of a node that does not exist: %v", err)
	}
	// Made anew by somebody else, it is another one, also when it says the same.
	was, _ := s.Get(ctx, model.KindBlock, b.Key())
	l.remove(t, blocks, "", "10.64.1.64-26")
	u := map[string]any{"apiVersion": "heddle.net/v1", "kind": "Block", "metadata": map[string]any{"name": "10.64.1.64-26"}, "spec": map[string]any{"cidr": "10.64.1.64/26", "pool": "free", "node": "node-2"}}
	l.make(t, blocks, u)
	until(t, "the new one", func() bool {
		now, err := s.Get(ctx, model.KindBlock, b.Key())
		return err == nil && now.Revision > was.Revision
	})
	if err := s.Delete(ctx, model.KindBlock, b.Key(), was.Revision); !errors.Is(err, store.ErrConflict) {
		t.Errorf("deleted as it was before: %v", err)
	}
	l.remove(t, definitions, "", "blocks.heddle.net")
	l.goes(t, s, model.KindBlock, b.Key())
	until(t, "the refusal", func() bool {
		_, err := s.Put(ctx, b, 0)
		return errors.Is(err, store.ErrUnsupported)
	})
	if now, err := s.Put(ctx, given, 0); err != nil || now != rev {
		t.Errorf("the podCIDR: %d, was %d: %v", now, rev, err)
	}
	// And it comes again while everybody runs.
	l.serveBlocks(t)
	served(t, s)
	if _, err := s.Put(ctx, b, 0); err != nil {
		t.Error(err)
	}
}

// TestBlockIsNeverOfWhatKubernetesGives, whether it has given it already or may do so later.
func TestBlockIsNeverOfWhatKubernetesGives(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	l.node(t, "node-2", "10.50.2.0/24")
	l.make(t, definitions, definition("crd.projectcalico.org", "v1", "ippools", "IPPool", false))
	l.serveBlocks(t)
	pools := schema.GroupVersionResource{Group: "crd.projectcalico.org", Version: "v1", Resource: "ippools"}
	for name, cidr := range map[string]string{"holds": "10.50.0.0/16", "free": "10.64.0.0/16"} {
		until(t, "the kind to be served", func() bool {
			return l.create(pools, custom("crd.projectcalico.org/v1", "IPPool", "", name, map[string]any{"cidr": cidr})) == nil
		})
	}
	ctx := context.Background()
	s := l.open(t, kube.Options{Node: "node-1", Pools: []model.Pool{pool()}, Log: logOf(t)})
	served(t, s)
	for _, key := range []string{"holds", "free"} {
		l.comes(t, s, model.KindSetting, "IPPool.crd.projectcalico.org::"+key)
	}
	for _, tt := range []struct {
		cidr, pool string
		given      bool
	}{
		{"10.128.9.0/26", "a", true},     // of the net-conf.json, and nobody has it yet
		{"10.128.9.0/26", "free", true},  // whatever it is called
		{"10.50.9.0/26", "holds", true},  // of a pool that holds a podCIDR
		{"10.64.9.0/26", "free", false},  // of one that holds none
		{"10.70.9.0/26", "other", false}, // of none, as when the pool went while the block is in use
	} {
		cidr := netip.MustParsePrefix(tt.cidr)
		rev, err := s.Put(ctx, &model.Block{CIDR: cidr, Pool: tt.pool, Node: "node-1"}, 0)
		if _, aerr := l.admin.Resource(blocks).Get(ctx, strings.ReplaceAll(tt.cidr, "/", "-"), metav1.GetOptions{}); (err != nil) != tt.given || (aerr != nil) != tt.given {
			t.Errorf("%s of %s: %d, %v; object: %v", tt.cidr, tt.pool, rev, err, aerr)
		}
	}
	assigns := func(cidr, name string) bool {
		return s.Assigns(model.Pool{Name: name, CIDR: netip.MustParsePrefix(cidr)})
	}
	if !assigns("10.128.0.0/9", "a") || !assigns("10.50.0.0/16", "holds") || assigns("10.64.0.0/16", "free") {
		t.Error("it does not know which pools nodes claim blocks of")
	}
	// Somebody widened what Kubernetes gives out: its word goes before ours.
	const key = "10.64.9.0-26"
	l.comes(t, s, model.KindBlock, key)
	l.node(t, "node-3", "10.64.9.0/24")
	l.goes(t, s, model.KindBlock, key)
	l.comes(t, s, model.KindBlock, "10.64.9.0-24")
	if !assigns("10.64.0.0/16", "free") {
		t.Error("a pool that holds a podCIDR by now is still claimed of")
	}
	l.remove(t, nodes, "", "node-3")
	l.comes(t, s, model.KindBlock, key)
}

// TestBlocksOfTwoSizesAreApart: when a pool's blockSize changes, agents claim by both for a while.
func TestBlocksOfTwoSizesAreApart(t *testing.T) {
	l := newLab(t)
	const agents = 6
	var names []string
	for i := range agents {
		names = append(names, storetest.Node(i).Name)
	}
	l.makeNodes(t, append(names, "node-1"), func(i int) []string { return []string{storetest.Block(i, "").CIDR.String()} })
	l.serveBlocks(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var stores []*kube.Store
	for _, n := range names {
		s := l.open(t, kube.Options{Node: n, Pools: []model.Pool{*storetest.Pool()}})
		served(t, s)
		stores = append(stores, s)
	}
	var all []netip.Prefix
	for round := range 8 {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i, s := range stores {
			wg.Go(func() {
				p := *storetest.FreePool()
				p.BlockSize = 26 - 2*(i%2)
				b, err := store.ClaimAnother(ctx, s, names[i], p, all, func(taken []netip.Prefix, attempt int) (netip.Prefix, error) {
					return ipam.PickBlock(p, taken, attempt, uint64(round*agents+i))
				})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
				all = append(slices.Clone(all), b.CIDR)
			})
		}
		wg.Wait()
	}
	if len(all) != 8*agents {
		t.Fatalf("%d claims", len(all))
	}
	list, err := l.admin.Resource(blocks).List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) != len(all) {
		t.Errorf("%d Blocks of %d claims: %v", len(list.Items), len(all), err)
	}
	for i := range all {
		for _, o := range all[:i] {
			if o.Overlaps(all[i]) {
				t.Errorf("%s and %s are both claimed", o, all[i])
			}
		}
	}
}

// TestNewsOfBlocksAreTheWholeTruthAfterAnOutage: what came and went while the API server was away.
func TestNewsOfBlocksAreTheWholeTruthAfterAnOutage(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	l.serveBlocks(t)
	ctx := context.Background()
	s := l.open(t, kube.Options{Node: "node-1", Pools: []model.Pool{pool()}, Log: logOf(t)})
	served(t, s)
	for i := range 3 {
		if _, err := s.Put(ctx, storetest.FreeBlock(i, "node-1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	l.server.Kill()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := s.Put(ctx, storetest.FreeBlock(7, "node-1"), 0); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("while the server is away: %v", err)
	}
	if items, _, err := s.List(ctx, model.KindBlock); err != nil || len(items) != 4 {
		t.Errorf("what was known is not: %v, %v", items, err)
	}
	l.server.Start(t)
	l.waitReady(t)
	l.remove(t, blocks, "", "10.64.0.0-26")
	l.goes(t, s, model.KindBlock, storetest.FreeBlock(0, "").Key())
	until(t, "a claim", func() bool {
		_, err := s.Put(context.Background(), storetest.FreeBlock(8, "node-1"), 0)
		return err == nil
	})
}
