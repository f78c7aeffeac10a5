//go:build kube

package kube_test

import (
	"context"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/kube"
)

// TestSettingsAndPlacesInBGPAreTold as custom resources, labels and annotations come, change and go.
func TestSettingsAndPlacesInBGPAreTold(t *testing.T) {
	l := newLab(t)
	l.node(t, "node-1", "10.128.1.0/24")
	for plural, kind := range map[string]string{"ippools": "IPPool", "bgppeers": "BGPPeer", "ipamconfigs": "IPAMConfig"} {
		l.make(t, definitions, definition("crd.projectcalico.org", "v1", plural, kind, false))
	}
	pools := schema.GroupVersionResource{Group: "crd.projectcalico.org", Version: "v1", Resource: "ippools"}
	peers := schema.GroupVersionResource{Group: "crd.projectcalico.org", Version: "v1", Resource: "bgppeers"}
	until(t, "the kind to be served", func() bool {
		return l.create(pools, custom("crd.projectcalico.org/v1", "IPPool", "", "default", map[string]any{"cidr": "10.128.0.0/16"})) == nil
	})
	ctx := context.Background()
	s := l.open(t, kube.Options{Node: "node-1", Log: logOf(t)})
	// Without a net-conf.json, the IPPool is the network.
	v := store.NewView(s, logOf(t))
	runCtx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = v.Run(runCtx) }()
	defer func() { cancel(); <-done }()
	until(t, "the network", func() bool {
		c, synced := v.Snapshot()
		return synced && len(c.Settings) == 1 && len(c.Blocks) == 1 && c.Blocks[0].Pool == "default"
	})
	if has(t, s, model.KindResource, "IPPool.crd.projectcalico.org::default") {
		t.Error("an IPPool is told as a policy")
	}
	until(t, "the kind to be served", func() bool {
		peer := custom("crd.projectcalico.org/v1", "BGPPeer", "", "rack", map[string]any{"peerIP": "192.0.2.1"})
		peer["metadata"].(map[string]any)["annotations"] = map[string]any{"heddle.net/bfd": "true", "other": "x"}
		return l.create(peers, peer) == nil
	})
	const key = "BGPPeer.crd.projectcalico.org::rack"
	l.comes(t, s, model.KindSetting, key)
	it, err := s.Get(ctx, model.KindSetting, key)
	if want := `{"apiVersion":"crd.projectcalico.org/v1","kind":"BGPPeer","metadata":{"name":"rack","annotations":{"heddle.net/bfd":"true"}},"spec":{"peerIP":"192.0.2.1"}}`; err != nil || string(it.Object.(*model.Setting).Body) != want {
		t.Errorf("got %v, %v", it.Object, err)
	}
	if _, err := s.Put(ctx, it.Object, it.Revision); err == nil {
		t.Error("a setting can be written")
	}
	l.remove(t, peers, "", "rack")
	l.goes(t, s, model.KindSetting, key)

	if _, err := s.Put(ctx, &model.Node{Name: "node-1", ID: "1", Address4: netip.MustParseAddr("192.168.0.1")}, 0); err != nil {
		t.Fatal(err)
	}
	l.patch(t, nodes, "", "node-1", `{"metadata":{"labels":{"rack":"1"},"annotations":{"projectcalico.org/ASNumber":"65001","projectcalico.org/RouteReflectorClusterID":"244.0.0.1"}}}`)
	until(t, "labels and the place in BGP", func() bool {
		n, _ := getNode(t, s, "node-1")
		return n != nil && n.Labels["rack"] == "1" && n.ASN == 65001 && n.ClusterID.String() == "244.0.0.1"
	})
	l.patch(t, nodes, "", "node-1", `{"metadata":{"labels":{"rack":"2"},"annotations":{"projectcalico.org/ASNumber":null}}}`)
	until(t, "them to change", func() bool {
		n, _ := getNode(t, s, "node-1")
		return n != nil && n.Labels["rack"] == "2" && n.ASN == 0
	})
}
