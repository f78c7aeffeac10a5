//go:build kube

package kube_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/kube"
	"github.com/heddle-net/heddle/internal/store/storetest"
)

func getNode(t testing.TB, s store.Store, name string) (*model.Node, store.Revision) {
	t.Helper()
	it, err := s.Get(context.Background(), model.KindNode, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return it.Object.(*model.Node), it.Revision
}

// TestFlanneldAndHeddleSeeEachOther by the annotations that each of them writes.
func TestFlanneldAndHeddleSeeEachOther(t *testing.T) {
	l := newLab(t)
	l.node(t, "ours", "10.128.1.0/24")
	l.node(t, "theirs", "10.128.2.0/24")
	l.node(t, "nobody", "10.128.3.0/24")
	s := l.open(t, kube.Options{Node: "ours", Pools: []model.Pool{pool()}, Log: logOf(t)})
	ctx := context.Background()
	// As flanneld 0.28 writes it.
	flanneld := `{"metadata":{"annotations":{"flannel.alpha.coreos.com/kube-subnet-manager":"true","flannel.alpha.coreos.com/backend-type":"vxlan",
		"flannel.alpha.coreos.com/backend-data":"{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:09\"}","flannel.alpha.coreos.com/public-ip":"192.168.0.9"}}}`
	l.patch(t, nodes, "", "theirs", flanneld, "status")
	l.comes(t, s, model.KindNode, "theirs")
	n, _ := getNode(t, s, "theirs")
	if n.Address4.String() != "192.168.0.9" || n.VTEP4 != "02:00:00:00:00:09" || !slices.Equal(n.Accepts, []model.Path{model.PathVXLAN}) {
		t.Errorf("the flanneld is seen as %+v", n)
	}
	if n, _ := getNode(t, s, "nobody"); n != nil {
		t.Errorf("a node that nobody runs on is seen as %+v", n)
	}
	items, _, err := s.List(ctx, model.KindBlock)
	if err != nil || len(items) != 3 {
		t.Errorf("blocks: %v, %v", items, err)
	}
	me := &model.Node{Name: "ours", ID: "1", Address4: netip.MustParseAddr("192.168.0.1"), VTEP4: "02:00:00:00:00:01", Accepts: []model.Path{model.PathVXLAN}}
	rev, err := s.Put(ctx, me, 0)
	if err != nil {
		t.Fatal(err)
	}
	a := l.get(t, nodes, "", "ours").GetAnnotations()
	for key, want := range map[string]string{
		"flannel.alpha.coreos.com/kube-subnet-manager": "true", "flannel.alpha.coreos.com/backend-type": "vxlan",
		"flannel.alpha.coreos.com/backend-data": `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`, "flannel.alpha.coreos.com/public-ip": "192.168.0.1",
		"flannel.alpha.coreos.com/public-ipv6": "", "flannel.alpha.coreos.com/backend-v6-data": "",
	} {
		if a[key] != want {
			t.Errorf("%s is %q, want %q", key, a[key], want)
		}
	}
	// A flanneld takes the machine over, and Heddle takes it back.
	l.patch(t, nodes, "", "ours", flanneld, "status")
	until(t, "the flanneld", func() bool { n, _ := getNode(t, s, "ours"); return n != nil && n.Version == "flanneld" })
	_, now := getNode(t, s, "ours")
	if _, err := s.Put(ctx, me, rev); !errors.Is(err, store.ErrConflict) {
		t.Errorf("put at the revision before: %v", err)
	}
	if _, err := s.Put(ctx, me, now); err != nil {
		t.Fatal(err)
	}
	if n, _ := getNode(t, s, "ours"); n == nil || n.ID != "1" {
		t.Errorf("taken back: %+v", n)
	}
	// What Heddle says goes, what others say and the Node object stay.
	l.patch(t, nodes, "", "ours", `{"metadata":{"annotations":{"mine":"yes"}}}`)
	if err := s.Delete(ctx, model.KindNode, "ours", store.AnyRevision); err != nil {
		t.Fatal(err)
	}
	for key := range l.get(t, nodes, "", "ours").GetAnnotations() {
		if strings.HasPrefix(key, "heddle.net/") || strings.HasPrefix(key, "flannel.") {
			t.Errorf("after Delete, annotation %s is there", key)
		}
	}
	if l.get(t, nodes, "", "ours").GetAnnotations()["mine"] != "yes" {
		t.Error("Delete took somebody else's annotation")
	}
	if err := s.Delete(ctx, model.KindNode, "theirs", store.AnyRevision); !errors.Is(err, store.ErrUnsupported) {
		t.Errorf("deleting a flanneld: %v", err)
	}
	if _, err := s.Put(ctx, &model.Node{Name: "stranger", Address4: me.Address4}, 0); !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "--node") {
		t.Errorf("put of a node without a Node object: %v", err)
	}
	l.patch(t, nodes, "", "nobody", `{"metadata":{"annotations":{"heddle.net/node":"{\"name\":\"ours\",\"address4\":\"192.168.0.66\"}"}}}`)
	l.patch(t, nodes, "", "theirs", `{"metadata":{"annotations":null}}`)
	l.goes(t, s, model.KindNode, "theirs")
	if n, _ := getNode(t, s, "nobody"); n != nil {
		t.Errorf("an annotation in another's name is taken: %+v", n)
	}
}

// TestKubeletsWritesAreNoConflict: it writes to the same object all the time.
func TestKubeletsWritesAreNoConflict(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	s := l.open(t, kube.Options{Node: "node-1", Pools: []model.Pool{pool()}, Log: logOf(t)})
	ctx, cancel := context.WithCancel(context.Background())
	var kubelet sync.WaitGroup
	defer kubelet.Wait()
	defer cancel()
	var writes atomic.Int32
	kubelet.Go(func() {
		for ; store.Pause(ctx, 100*time.Millisecond); writes.Add(1) { // a real one does so every few seconds
			l.patch(t, nodes, "", "node-1", fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","message":"%d"}]}}`, writes.Load()), "status")
		}
	})
	n := storetest.Node(1)
	n.Name = "node-1"
	rev := store.Revision(0)
	for i := 0; i < 30 || writes.Load() < 10; i++ {
		n.Version = fmt.Sprint(i)
		now, err := s.Put(ctx, n, rev)
		if err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
		if got, at := getNode(t, s, "node-1"); now <= rev || at != now || got.Version != n.Version {
			t.Fatalf("write %d at %d is seen as %s at %d", i, now, got.Version, at)
		}
		rev = now
	}
}

// TestOrderOfAnnouncements: of a sender that announces and a receiver that withdraws, at least one sees the
// other's write when its own has returned. A lost packet is what it costs otherwise.
func TestOrderOfAnnouncements(t *testing.T) {
	l := newLab(t)
	l.node(t, "sender", "10.128.1.0/24")
	l.node(t, "receiver", "10.128.2.0/24")
	ctx := context.Background()
	a := l.open(t, kube.Options{Node: "sender", Pools: []model.Pool{pool()}})
	b := l.open(t, kube.Options{Node: "receiver", Pools: []model.Pool{pool()}})
	x, y := storetest.Node(1), storetest.Node(2)
	x.Name, y.Name = "sender", "receiver"
	both := 0
	for round := range 60 {
		x.Sends, y.Accepts = nil, []model.Path{model.PathVXLAN}
		if _, err := a.Put(ctx, x, store.AnyRevision); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Put(ctx, y, store.AnyRevision); err != nil {
			t.Fatal(err)
		}
		until(t, "both to see each other", func() bool {
			r, _ := getNode(t, a, "receiver")
			s, _ := getNode(t, b, "sender")
			return r != nil && s != nil && len(r.Accepts) == 1 && len(s.Sends) == 0
		})
		var seesAccept, seesSend bool
		var wg sync.WaitGroup
		wg.Go(func() {
			n := *x
			n.Sends = []model.Path{model.PathVXLAN}
			if _, err := a.Put(ctx, &n, store.AnyRevision); err != nil {
				t.Error(err)
			}
			r, _ := getNode(t, a, "receiver")
			seesAccept = len(r.Accepts) == 1
		})
		wg.Go(func() {
			n := *y
			n.Accepts = nil
			if _, err := b.Put(ctx, &n, store.AnyRevision); err != nil {
				t.Error(err)
			}
			s, _ := getNode(t, b, "sender")
			seesSend = len(s.Sends) == 1
		})
		wg.Wait()
		if seesAccept && !seesSend {
			t.Fatalf("round %d: the sender sees a path that is accepted, the receiver sees no sender", round)
		}
		if !seesAccept && seesSend {
			both++
		}
	}
	t.Logf("in %d of 60 rounds each saw the other's write", both)
}

func TestNetworkUnavailableGoesWhenReady(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1")
	l.node(t, "node-2")
	s := l.open(t, kube.Options{Node: "node-1"})
	ctx := context.Background()
	condition := func(node string) string {
		list, _ := l.get(t, nodes, "", node).Object["status"].(map[string]any)["conditions"].([]any)
		for _, c := range list {
			if m := c.(map[string]any); m["type"] == "NetworkUnavailable" {
				return fmt.Sprint(m["status"], " ", m["reason"], " ", m["message"])
			}
		}
		return ""
	}
	ready := func(node string, why error, want string) {
		t.Helper()
		if err := s.NetworkReady(ctx, node, why); err != nil {
			t.Fatal(err)
		}
		if got := condition(node); got != want {
			t.Errorf("condition %q, want %q", got, want)
		}
	}
	why := errors.New("no block")
	ready("node-1", why, "") // a node without the condition is not cut off
	ready("node-1", nil, "False HeddleIsUp Heddle is running on this node")
	version := l.get(t, nodes, "", "node-1").GetResourceVersion()
	until(t, "the condition", func() bool {
		if err := s.NetworkReady(ctx, "node-1", nil); err != nil {
			t.Fatal(err)
		}
		was := version
		version = l.get(t, nodes, "", "node-1").GetResourceVersion()
		return was == version // what is known to be there is not written again
	})
	ready("node-1", why, "False HeddleIsUp Heddle is running on this node")
	// A cloud's controller keeps pods away from a node until its network is up.
	l.patch(t, nodes, "", "node-2", `{"status":{"conditions":[{"type":"Ready","status":"True"},{"type":"NetworkUnavailable","status":"True","reason":"NoRouteCreated"}]}}`, "status")
	until(t, "the reason", func() bool {
		if err := s.NetworkReady(ctx, "node-2", why); err != nil {
			t.Fatal(err)
		}
		return condition("node-2") == "True HeddleIsNotReady no block"
	})
	ready("node-2", nil, "False HeddleIsUp Heddle is running on this node")
	if err := s.NetworkReady(ctx, "node-3", nil); err == nil {
		t.Error("a node that is not there is ready")
	}
}
