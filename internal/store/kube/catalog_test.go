package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

func newTestCatalog(t *testing.T) *catalog {
	t.Helper()
	c := newCatalog("a", slog.New(slog.DiscardHandler))
	c.looked = true
	t.Cleanup(func() {
		c.close()
		goleak.VerifyNone(t)
	})
	return c
}

func locked(c *catalog, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func ranges(s ...string) (out []netip.Prefix) {
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

func netPool(t *testing.T, c *catalog) model.Pool {
	t.Helper()
	p := model.Pool{
		Name: "flannel", CIDR: netip.MustParsePrefix("10.244.0.0/16"), BlockSize: 24, Path: model.PathDirect, Encap: model.EncapNever,
		Min: netip.MustParseAddr("10.244.1.0"), Max: netip.MustParseAddr("10.244.255.0"),
	}
	if _, err := c.putPool(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func get[T model.Object](t *testing.T, c *catalog, kind model.Kind, key string) (T, store.Revision) {
	t.Helper()
	it, err := c.Get(context.Background(), kind, key)
	if errors.Is(err, store.ErrNotFound) {
		var none T
		return none, 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return it.Object.(T), it.Revision
}

// TestWhatDidNotChangeIsNoEvent: Kubernetes touches objects all the time.
func TestWhatDidNotChangeIsNoEvent(t *testing.T) {
	c := newTestCatalog(t)
	x := newTexts()
	was := c.revision
	put := func(change func()) {
		p := aPod()
		if change != nil {
			p.Labels["app"] = "other"
		}
		th := x.reducePod(p)
		locked(c, func() { c.set(th.key, th.object) })
	}
	put(nil)
	first := c.revision
	put(nil)
	if first != was+1 || c.revision != first {
		t.Errorf("revisions %d, %d, %d: want one change", was, first, c.revision)
	}
	put(func() {})
	if c.revision != first+1 {
		t.Errorf("another label made %d changes", c.revision-first)
	}
	n := reduceNode(aNode())
	n.node.said.node = `{"name":"a","address4":"192.168.0.1"}`
	locked(c, func() { c.takeNode("a", n.node) })
	rev := c.revision
	again := *n.node
	again.version, again.unavailable = "10", "True/x"
	locked(c, func() { c.takeNode("a", &again) })
	if c.revision != rev || c.nodes["a"].version != "10" {
		t.Error("a kubelet's status is a change of the node")
	}
	written := again
	written.said.written = "now"
	locked(c, func() { c.takeNode("a", &written) })
	if c.revision != rev+1 {
		t.Errorf("a write that says the same once more made %d changes: it must be seen as one", c.revision-rev)
	}
}

func TestReaderThatIsBehindIsAskedToListAgain(t *testing.T) {
	c := newTestCatalog(t)
	for i := range 3 * history {
		e := &model.Endpoint{Node: "a", Namespace: "x", Name: "p", UID: fmt.Sprint(i)}
		locked(c, func() { c.set(e.Key(), e) })
	}
	if len(c.changes) > 2*history {
		t.Errorf("%d changes are kept", len(c.changes))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	events, err := c.Watch(ctx, 1, model.KindEndpoint)
	if err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Type != store.EventResync || e.Revision != c.revision {
		t.Errorf("event %+v, want a resync at %d", e, c.revision)
	}
	from := c.revision - history/2
	events, err = c.Watch(ctx, from, model.KindEndpoint)
	if err != nil {
		t.Fatal(err)
	}
	for i := range history / 2 {
		if e := <-events; e.Type != store.EventPut || e.Revision != from+store.Revision(i)+1 {
			t.Fatalf("event %d is %+v", i, e)
		}
	}
}

// TestPoolHasTheSizeThatKubernetesGives, not that of the net-conf.json, which does not count there.
func TestPoolHasTheSizeThatKubernetesGives(t *testing.T) {
	c := newTestCatalog(t)
	filed := netPool(t, c)
	p, rev := get[*model.Pool](t, c, model.KindPool, "flannel")
	if !p.Equal(&filed) {
		t.Errorf("before the node is known: %+v", p)
	}
	if again, err := c.putPool(filed, rev); err != nil || again != rev {
		t.Errorf("the same once more: %d, %v; want %d", again, err, rev)
	}
	locked(c, func() { c.takeNode("b", &nodeFacts{ranges: ranges("10.244.64.0/20")}) })
	if p, _ := get[*model.Pool](t, c, model.KindPool, "flannel"); p.BlockSize != 24 {
		t.Errorf("another node's block makes it /%d", p.BlockSize)
	}
	locked(c, func() { c.takeNode("a", &nodeFacts{ranges: ranges("10.244.16.0/20")}) })
	p, now := get[*model.Pool](t, c, model.KindPool, "flannel")
	if p.BlockSize != 20 || p.Min.IsValid() || p.Validate() != nil || now <= rev {
		t.Errorf("got %+v at %d", p, now)
	}
	if again, err := c.putPool(filed, now); err != nil || again != now {
		t.Errorf("the same once more: %d, %v; want %d", again, err, now)
	}
	if _, err := c.putPool(filed, rev); !errors.Is(err, store.ErrConflict) {
		t.Errorf("put at an old revision: %v", err)
	}
	if err := c.deletePool("flannel", now); err != nil {
		t.Error(err)
	}
	if p, _ := get[*model.Pool](t, c, model.KindPool, "flannel"); p != nil {
		t.Errorf("a deleted pool is there: %+v", p)
	}
}

func TestBlocksAreThePodCIDRsInPools(t *testing.T) {
	c := newTestCatalog(t)
	locked(c, func() {
		c.takeNode("b", &nodeFacts{ranges: ranges("10.244.2.0/24", "192.168.0.0/24")})
		c.takeNode("c", &nodeFacts{ranges: ranges("10.244.3.0/24")})
	})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := c.List(ctx, model.KindPool, model.KindBlock); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("blocks are listed before there is any pool: %v", err)
	}
	netPool(t, c)
	holder := func(key string) string {
		if b, _ := get[*model.Block](t, c, model.KindBlock, key); b != nil {
			return b.Pool + " " + b.Node
		}
		return ""
	}
	for key, want := range map[string]string{"10.244.2.0-24": "flannel b", "10.244.3.0-24": "flannel c", "192.168.0.0-24": ""} {
		if got := holder(key); got != want {
			t.Errorf("%s is of %q, want %q", key, got, want)
		}
	}
	// Two with the same: every agent must name the same one.
	locked(c, func() { c.takeNode("a", &nodeFacts{ranges: ranges("10.244.3.0/24")}) })
	if got := holder("10.244.3.0-24"); got != "flannel a" {
		t.Errorf("of two it is %q's, want the first by name", got)
	}
	locked(c, func() { c.dropNode("a") })
	if got := holder("10.244.3.0-24"); got != "flannel c" {
		t.Errorf("after the first went, it is %q's", got)
	}
	locked(c, func() { c.dropNode("c") })
	if got := holder("10.244.3.0-24"); got != "" || len(c.holders) != 2 {
		t.Errorf("a block without a node is %q's; %d ranges are known", got, len(c.holders))
	}
}

func TestBlockIsTakenOnlyFromKubernetes(t *testing.T) {
	c := newTestCatalog(t)
	netPool(t, c)
	locked(c, func() {
		c.takeNode("a", &nodeFacts{ranges: ranges("10.244.1.0/24")})
		c.takeNode("b", &nodeFacts{})
		c.takeNode("o", &nodeFacts{ranges: ranges("10.0.0.0/24")})
	})
	for _, tt := range []struct {
		cidr, node string
		want       error
		says       string
	}{
		{"10.244.1.0/24", "a", nil, ""},
		{"10.244.1.0/24", "b", store.ErrConflict, `node "a" has it`},
		{"10.244.9.0/24", "a", store.ErrConflict, "has given node \"a\" 10.244.1.0/24"}, // it was another, before
		{"10.244.9.0/24", "b", store.ErrUnsupported, "--pod-network-cidr"},
		{"10.244.9.0/24", "o", store.ErrUnsupported, "10.0.0.0/24, which is not in pool"},
		{"10.244.9.0/24", "x", store.ErrUnsupported, "no Node object"},
	} {
		b := &model.Block{CIDR: netip.MustParsePrefix(tt.cidr), Pool: "flannel", Node: tt.node}
		var err error
		locked(c, func() { _, err = c.putBlock(b, 0) })
		if !errors.Is(err, tt.want) || tt.says != "" && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s for %s: %v; want %v that says %q", tt.cidr, tt.node, err, tt.want, tt.says)
		}
	}
}

// TestListingAnewTellsOnlyWhatDiffers: after an outage, and when the server's data was put back.
func TestListingAnewTellsOnlyWhatDiffers(t *testing.T) {
	s := &Store{catalog: newTestCatalog(t), poke: make(chan struct{}, 1)}
	src := &source{kind: model.KindResource, prefix: prefixOf("networking.k8s.io/v1", "NetworkPolicy")}
	policy := func(name, body string) *thin {
		r := &model.Resource{APIVersion: "networking.k8s.io/v1", Type: "NetworkPolicy", Namespace: "x", Name: name, Body: []byte(body)}
		return &thin{namespace: "x", name: name, key: r.Key(), object: r}
	}
	other := &model.Resource{APIVersion: "crd.projectcalico.org/v1", Type: "NetworkPolicy", Namespace: "x", Name: "a", Body: []byte("{}")}
	locked(s.catalog, func() {
		s.set(other.Key(), other)
		s.replace(src, []*thin{policy("a", "1"), policy("b", "1"), policy("c", "1")})
	})
	from := s.revision
	events, err := s.Watch(context.Background(), from, model.KindResource)
	if err != nil {
		t.Fatal(err)
	}
	locked(s.catalog, func() { s.replace(src, []*thin{policy("a", "1"), policy("b", "2"), policy("d", "1")}) })
	want := []string{"1 NetworkPolicy.networking.k8s.io:x:c", "0 NetworkPolicy.networking.k8s.io:x:b", "0 NetworkPolicy.networking.k8s.io:x:d"}
	if int(s.revision-from) != len(want) {
		t.Fatalf("%d changes, want %v", s.revision-from, want)
	}
	if s.objects[model.KindResource][other.Key()].object == nil {
		t.Error("what another source told of is gone")
	}
	for _, w := range want {
		if e := <-events; fmt.Sprint(int(e.Type), " ", e.Key) != w {
			t.Errorf("event %+v, want %s", e, w)
		}
	}
}

// TestKindThatIsServedNoMoreIsForgotten, and what its stream still tells changes nothing.
func TestKindThatIsServedNoMoreIsForgotten(t *testing.T) {
	s := &Store{catalog: newTestCatalog(t), poke: make(chan struct{}, 1)}
	src := &source{kind: model.KindResource, prefix: "Tier.crd.projectcalico.org:", cancel: func() {}}
	s.sources = []*source{src}
	k := &sink{s, src}
	tier := func(name string) *thin {
		r := &model.Resource{APIVersion: "crd.projectcalico.org/v1", Type: "Tier", Name: name, Body: []byte("{}")}
		return &thin{name: name, key: r.Key(), object: r}
	}
	if err := k.Replace([]any{tier("a"), tier("b")}, "1"); err != nil || !src.synced || len(s.objects[model.KindResource]) != 2 {
		t.Fatalf("%v: %v", err, s.objects[model.KindResource])
	}
	s.stop(src)
	if err := errors.Join(k.Add(tier("c")), k.Replace([]any{tier("d")}, "2")); err != nil {
		t.Fatal(err)
	}
	if n := len(s.objects[model.KindResource]); n != 0 || len(s.sources) != 0 {
		t.Errorf("%d objects, %d sources", n, len(s.sources))
	}
}

// TestListWaitsForAllThatItNeeds, and no longer: policies that are not known yet must not count as none.
func TestListWaitsForAllThatItNeeds(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*catalog, *source)
		says   string // why nothing can be listed; empty: it can
	}{
		"all is known":            {func(*catalog, *source) {}, ""},
		"a source has not told":   {func(_ *catalog, s *source) { s.synced = false }, "has not told of all policies"},
		"a source cannot be read": {func(_ *catalog, s *source) { s.synced, s.err = false, errors.New("refused") }, "refused"},
		"it could be read once":   {func(_ *catalog, s *source) { s.err = errors.New("refused") }, ""},
		"a kind is refused":       {func(_ *catalog, s *source) { s.synced, s.denied = false, true }, ""},
		"what another kind needs": {func(_ *catalog, s *source) { s.synced, s.kind = false, model.KindEndpoint }, ""},
		"kinds are not known":     {func(c *catalog, _ *source) { c.looked = false }, "which kinds"},
		"nobody tells of kinds":   {func(c *catalog, _ *source) { c.looked, c.lookErr = false, errors.New("refused") }, "refused"},
		"services are named":      {func(c *catalog, _ *source) { c.services = true }, "names services"},
		"services are known":      {func(c *catalog, _ *source) { c.services, c.sliced = true, true }, ""},
	} {
		cat := newCatalog("a", slog.New(slog.DiscardHandler))
		src := &source{kind: model.KindResource, synced: true}
		src.resource.Resource = "policies"
		cat.looked, cat.sources = true, []*source{src}
		c.change(cat, src)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		_, _, err := cat.List(ctx, model.KindResource)
		cancel()
		switch {
		case c.says == "" && err != nil, c.says != "" && (!errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		cat.close()
	}
}

// Kubernetes' blocks are in the pools that IPPools make, as in those that were filed.
func TestBlocksAreInIPPools(t *testing.T) {
	c := newTestCatalog(t)
	src := &source{kind: model.KindSetting, prefix: prefixOf("crd.projectcalico.org/v1", "IPPool")}
	s := &Store{catalog: c}
	setting := func(name, spec string) *thin {
		r := model.Resource{APIVersion: "crd.projectcalico.org/v1", Type: "IPPool", Name: name, Body: []byte(`{"apiVersion":"crd.projectcalico.org/v1","kind":"IPPool","metadata":{"name":"` + name + `"},"spec":` + spec + `}`)}
		return &thin{name: name, key: r.Key(), object: &model.Setting{Resource: r}}
	}
	locked(c, func() { c.takeNode("n1", &nodeFacts{ranges: ranges("10.9.1.0/24")}) })
	blocks := func(want string) {
		t.Helper()
		c.mu.Lock()
		defer c.mu.Unlock()
		got := ""
		for _, v := range c.objects[model.KindBlock] {
			b := v.object.(*model.Block)
			got += b.Pool + " " + b.CIDR.String() + " " + b.Node
		}
		if got != want {
			t.Errorf("blocks %q, want %q", got, want)
		}
	}
	blocks("")
	locked(c, func() {
		s.replace(src, []*thin{setting("a", `{"cidr":"10.8.0.0/16"}`), setting("b", `{"cidr":"10.9.0.0/16"}`)})
	})
	blocks("b 10.9.1.0/24 n1")
	locked(c, func() { s.take(src, setting("a", `{"cidr":"nonsense"}`), false) })
	blocks("b 10.9.1.0/24 n1")
	if m := c.missing([]model.Kind{model.KindPool, model.KindBlock}); m != nil {
		t.Errorf("with an IPPool: %v", m)
	}
	locked(c, func() { s.take(src, setting("b", `{"cidr":"10.9.0.0/16"}`), true) })
	blocks("")
	locked(c, func() { s.take(src, setting("b", `{"cidr":"10.9.0.0/16"}`), false) })
	blocks("b 10.9.1.0/24 n1")
	locked(c, func() { s.replace(src, nil) })
	blocks("")
	if m := c.missing([]model.Kind{model.KindPool, model.KindBlock}); m == nil {
		t.Error("without any pool: nothing is missing")
	}
}

// What people change of a Node object is told, also when the agent there says nothing new.
func TestLabelsAndPlaceInBGPOfANodeAreTold(t *testing.T) {
	c := newTestCatalog(t)
	facts := &nodeFacts{said: said{node: `{"name":"n1","address4":"192.168.0.1"}`}}
	for _, change := range []func(*nodeFacts){
		func(f *nodeFacts) { f.labels = map[string]string{"rack": "1"} },
		func(f *nodeFacts) { f.labels = map[string]string{"rack": "2"} },
		func(f *nodeFacts) { f.asn = 65001 },
		func(f *nodeFacts) { f.cluster = netip.MustParseAddr("244.0.0.1") },
	} {
		now := *facts
		change(&now)
		facts = &now
		locked(c, func() { c.takeNode("n1", facts) })
		n, _ := get[*model.Node](t, c, model.KindNode, "n1")
		if n.Labels["rack"] != facts.labels["rack"] || n.ASN != facts.asn || n.ClusterID != facts.cluster {
			t.Errorf("got %+v, want %+v", n, facts)
		}
	}
}
