//go:build kube

package kube_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/kube"
	"github.com/heddle-net/heddle/internal/store/storetest"
)

// follow keeps a mirror of what a store tells of endpoints and resources.
func follow(t *testing.T, s store.Store, kinds ...model.Kind) *storetest.Mirror {
	t.Helper()
	m := &storetest.Mirror{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- store.NewFeed(s, nil, kinds...).Run(ctx, func(b store.Batch) { m.Take(t, b) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m
}

func (l *lab) endpoints(t testing.TB) (keys []string) {
	t.Helper()
	list, err := l.admin.Resource(pods).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		keys = append(keys, "node-1:"+p.GetNamespace()+":"+p.GetName())
	}
	slices.Sort(keys)
	return keys
}

// agree waits until a mirror holds just the pods that the API server has.
func (l *lab) agree(t testing.TB, m *storetest.Mirror) {
	t.Helper()
	want := strings.Join(l.endpoints(t), " ")
	until(t, want, func() bool {
		var got []string
		m.Do(func() {
			for k := range m.Objects {
				if k.Kind == model.KindEndpoint {
					got = append(got, k.Key)
				}
			}
		})
		slices.Sort(got)
		return strings.Join(got, " ") == want
	})
}

// TestOutageLosesNothing: the API server is killed, and comes back; a store that starts meanwhile waits for it.
func TestOutageLosesNothing(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	for i := range 5 {
		l.make(t, pods, pod("default", fmt.Sprint("p", i), "node-1", fmt.Sprint("10.128.1.", 2+i), nil))
	}
	s := l.open(t, kube.Options{Node: "node-1", Pools: []model.Pool{pool()}, Log: logOf(t)})
	m := follow(t, s, model.KindEndpoint, model.KindResource)
	l.agree(t, m)
	n := storetest.Node(1)
	n.Name = "node-1"
	ctx := context.Background()
	rev, err := s.Put(ctx, n, 0)
	if err != nil {
		t.Fatal(err)
	}
	beat := &model.Heartbeat{Node: "node-1", TTL: time.Second}
	l.server.Kill()
	until(t, "the outage to be noticed", func() bool {
		_, err := s.Put(ctx, beat, store.AnyRevision)
		return errors.Is(err, store.ErrUnavailable)
	})
	if _, err := s.Put(ctx, n, rev); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a write meanwhile: %v", err)
	}
	if items, _, err := s.List(ctx, model.KindEndpoint, model.KindBlock, model.KindNode, model.KindPool); err != nil || len(items) != 8 {
		t.Errorf("what was known: %d objects, %v", len(items), err)
	}
	late := l.open(t, kube.Options{Node: "node-1"})
	if _, _, err := late.List(ctx, model.KindEndpoint); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a list of a store that never saw the server: %v", err)
	}
	p := pool()
	if _, err := late.Put(ctx, &p, 0); err != nil {
		t.Errorf("pools need no server: %v", err)
	}
	if items, _, err := late.List(ctx, model.KindPool); err != nil || len(items) != 1 {
		t.Errorf("pools need no server: %v, %v", items, err)
	}
	l.server.Start(t)
	l.waitReady(t)
	l.make(t, pods, pod("default", "after", "node-1", "10.128.1.9", nil))
	l.remove(t, pods, "default", "p0")
	l.agree(t, m)
	l.agree(t, follow(t, late, model.KindEndpoint))
	until(t, "the end of the outage", func() bool {
		_, err := s.Put(ctx, beat, store.AnyRevision)
		return errors.Is(err, store.ErrUnsupported)
	})
	if _, err := s.Put(ctx, n, rev); err != nil {
		t.Errorf("a write after it: %v", err)
	}
}

// TestChangesBehindACompactionAreEvents: a store that was cut off comes back to a server that forgot the history.
func TestChangesBehindACompactionAreEvents(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	for i := range 5 {
		l.make(t, pods, pod("default", fmt.Sprint("p", i), "node-1", fmt.Sprint("10.128.1.", 2+i), nil))
	}
	w, s := l.over(t, kube.Options{Node: "node-1", Log: logOf(t)})
	m := follow(t, s, model.KindEndpoint, model.KindResource)
	l.agree(t, m)
	w.cut()
	l.remove(t, pods, "default", "p1")
	l.patch(t, pods, "default", "p2", `{"metadata":{"labels":{"a":"b"}}}`)
	for i := range 20 {
		l.make(t, pods, pod("default", fmt.Sprint("q", i), "node-1", fmt.Sprint("10.128.1.", 20+i), nil))
	}
	l.compact(t)
	l.server.Kill() // its memory of the history goes too
	l.server.Start(t)
	l.waitReady(t)
	w.mend()
	l.agree(t, m)
	until(t, "the label", func() bool {
		same := false
		m.Do(func() {
			e, _ := m.Objects[store.KindKey{Kind: model.KindEndpoint, Key: "node-1:default:p2"}].(*model.Endpoint)
			same = e != nil && e.Labels["a"] == "b"
		})
		return same
	})
	if m.Wholes != 1 {
		t.Errorf("%d whole lists were told: want one, and then what differs", m.Wholes)
	}
}

func (l *lab) compact(t testing.TB) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{l.etcd.URL}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := c.Get(ctx, "x")
	if err == nil {
		_, err = c.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestServerThatWasPutBack: its data is older than what the store has seen. What was made since is gone.
func TestServerThatWasPutBack(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	l.make(t, pods, pod("default", "old", "node-1", "10.128.1.2", nil))
	s := l.open(t, kube.Options{Node: "node-1", Pools: []model.Pool{pool()}, Log: logOf(t)})
	m := follow(t, s, model.KindEndpoint, model.KindResource)
	l.agree(t, m)
	data := l.etcd.Args[slices.Index(l.etcd.Args, "--data-dir")+1]
	backup := filepath.Join(t.TempDir(), "backup")
	restart := func(between func()) {
		t.Helper()
		l.server.Kill()
		l.etcd.Stop()
		between()
		l.etcd.Start(t)
		l.server.Start(t)
		l.waitReady(t)
	}
	restart(func() {
		if err := os.CopyFS(backup, os.DirFS(data)); err != nil {
			t.Fatal(err)
		}
	})
	for i := range 30 {
		l.make(t, pods, pod("default", fmt.Sprint("new", i), "node-1", fmt.Sprint("10.128.1.", 20+i), nil))
	}
	l.remove(t, pods, "default", "old")
	l.agree(t, m)
	n := &model.Node{Name: "node-1", Address4: netip.MustParseAddr("10.1.0.1")}
	if _, err := s.Put(context.Background(), n, 0); err != nil {
		t.Fatal(err)
	}
	restart(func() {
		if err := os.RemoveAll(data); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(data, os.DirFS(backup)); err != nil {
			t.Fatal(err)
		}
	})
	l.agree(t, m)
	l.goes(t, s, model.KindNode, "node-1")
	if _, err := s.Put(context.Background(), n, 0); err != nil {
		t.Errorf("the node cannot be written again: %v", err)
	}
}

// TestServerThatHangsIsNoticed: nothing comes over the connections that there are, or nobody answers on new ones.
func TestServerThatHangsIsNoticed(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	ctx := context.Background()
	for name, known := range map[string]bool{"while it is followed": true, "before": false} {
		t.Run(name, func(t *testing.T) {
			w, config := l.wired(t)
			if !known {
				w.freeze()
			}
			s := l.open(t, kube.Options{Kubeconfig: config, Node: "node-1", Pools: []model.Pool{pool()}, Log: logOf(t)})
			m := follow(t, s, model.KindEndpoint)
			if known {
				if _, _, err := s.List(ctx, model.KindNode, model.KindEndpoint); err != nil {
					t.Fatal(err)
				}
				w.freeze()
			}
			begin := time.Now()
			until(t, "the silence to be noticed", func() bool {
				_, err := s.Put(ctx, &model.Heartbeat{Node: "node-1", TTL: time.Second}, store.AnyRevision)
				return errors.Is(err, store.ErrUnavailable)
			})
			t.Logf("noticed after %s", time.Since(begin).Round(time.Second))
			l.make(t, pods, pod("default", fmt.Sprint("known-", known), "node-1", "10.128.1.9", nil))
			w.thaw()
			l.agree(t, m)
		})
	}
}

// TestStartAmidChurnMissesNothing: stores that start while pods come and go hold in the end what is there.
func TestStartAmidChurnMissesNothing(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	var mirrors []*storetest.Mirror
	for i := range 400 {
		l.make(t, pods, pod("default", fmt.Sprint("p", i), "node-1", fmt.Sprintf("10.128.%d.%d", 1+i/200, 1+i%200), map[string]string{"n": fmt.Sprint(i)}))
		if i%3 == 2 {
			l.remove(t, pods, "default", fmt.Sprint("p", i-1))
		}
		if i%40 == 0 {
			mirrors = append(mirrors, follow(t, l.open(t, kube.Options{Node: "node-1"}), model.KindEndpoint))
		}
	}
	for _, m := range mirrors {
		l.agree(t, m)
	}
}

// TestSmallestRights are enough, and a kind that is refused holds nobody up for long.
func TestSmallestRights(t *testing.T) {
	l := newLab(t)
	rbac := func(resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: resource}
	}
	rule := func(group, resource string, verbs ...any) any {
		return map[string]any{"apiGroups": []any{group}, "resources": []any{resource}, "verbs": verbs}
	}
	l.make(t, rbac("clusterroles"), map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": map[string]any{"name": "heddle"},
		"rules": []any{
			rule("", "nodes", "get", "list", "watch"), rule("", "nodes/status", "patch"), rule("", "pods", "list", "watch"),
			rule("", "namespaces", "list", "watch"), rule("networking.k8s.io", "networkpolicies", "list", "watch"),
		},
	})
	l.make(t, rbac("clusterrolebindings"), map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": map[string]any{"name": "heddle"},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "heddle"},
		"subjects": []any{map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "agent"}},
	})
	l.make(t, definitions, definition("policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies", "ClusterNetworkPolicy", false))
	l.serveBlocks(t)
	l.node(t, "node-1", "10.128.1.0/24")
	s := l.open(t, kube.Options{Kubeconfig: l.agentConfig, Node: "node-1", Pools: []model.Pool{pool()}, Log: logOf(t)})
	ctx := context.Background()
	n := &model.Node{Name: "node-1", Address4: netip.MustParseAddr("10.1.0.1")}
	until(t, "the node to be written", func() bool {
		_, err := s.Put(ctx, n, store.AnyRevision)
		return err == nil
	})
	if err := s.NetworkReady(ctx, "node-1", nil); err != nil {
		t.Error(err)
	}
	var last error
	until(t, "a first list", func() bool {
		_, _, last = s.List(ctx, model.KindPool, model.KindNode, model.KindBlock, model.KindEndpoint, model.KindResource)
		return last == nil
	})
	l.make(t, networkPolicies, netpol("default", "deny"))
	l.comes(t, s, model.KindResource, "NetworkPolicy.networking.k8s.io:default:deny")
	if _, err := s.Put(ctx, storetest.FreeBlock(1, "node-1"), 0); !errors.Is(err, store.ErrUnsupported) || !strings.Contains(err.Error(), "ClusterRole") {
		t.Errorf("a claim without the right: %v", err)
	}
}
