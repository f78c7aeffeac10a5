//go:build kube

package kube_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store/kube"
	"github.com/heddle-net/heddle/internal/store/storetest"
	"github.com/heddle-net/heddle/test/harness"
)

// TestBlocksOfANodeThatIsGoneAreReleased by `heddle ipam release`, and by nothing before it: what the node's pods have
// stays theirs when its Node object is deleted by mistake.
func TestBlocksOfANodeThatIsGoneAreReleased(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	l.node(t, "node-1", "10.128.1.0/24")
	l.node(t, "node-2", "10.128.2.0/24")
	l.make(t, definitions, definition("crd.projectcalico.org", "v1", "ippools", "IPPool", false))
	l.serveBlocks(t)
	pools := schema.GroupVersionResource{Group: "crd.projectcalico.org", Version: "v1", Resource: "ippools"}
	until(t, "the kind to be served", func() bool {
		return l.create(pools, custom("crd.projectcalico.org/v1", "IPPool", "", "free", map[string]any{"cidr": "10.64.0.0/16", "blockSize": int64(26)})) == nil
	})
	s := l.open(t, kube.Options{Node: "node-1", Pools: []model.Pool{pool()}})
	served(t, s)
	for i, name := range []string{"node-1", "node-2"} {
		n := &model.Node{Name: name, ID: name, Address4: netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)})}
		if _, err := s.Put(ctx, n, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Put(ctx, storetest.FreeBlock(i, name), 0); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "release.yaml")
	if err := os.WriteFile(config, []byte("store: {type: kubernetes, kubeconfig: "+l.kubeconfig+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	heddle := func(code int, args ...string) string {
		t.Helper()
		args = append([]string{"ipam"}, append(args, "--config", config, "--run-dir", dir)...)
		out, err := exec.Command(harness.Build(t).Heddle, args...).CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() != code || err == nil && code != 0 {
			t.Fatalf("heddle %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	if out := heddle(0, "check"); !strings.Contains(out, "all fits") {
		t.Errorf("check: %s", out)
	}
	if out := heddle(0, "show"); !strings.Contains(out, "10.64.0.64/26  free") {
		t.Errorf("show: %s", out)
	}
	l.remove(t, nodes, "", "node-2")
	l.goes(t, s, model.KindNode, "node-2")
	if out := heddle(1, "check"); !strings.Contains(out, "orphan  block 10.64.0.64/26") || strings.Contains(out, "stray") {
		t.Errorf("check: %s", out)
	}
	if !has(t, s, model.KindBlock, "10.64.0.64-26") {
		t.Error("the block is gone by itself")
	}
	if out := heddle(0, "release"); !strings.Contains(out, "released: block 10.64.0.64/26") {
		t.Errorf("release: %s", out)
	}
	l.goes(t, s, model.KindBlock, "10.64.0.64-26")
	if !has(t, s, model.KindBlock, "10.64.0.0-26") {
		t.Error("the block of the node that is there is gone as well")
	}
}
