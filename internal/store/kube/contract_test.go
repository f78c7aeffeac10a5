//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/kube"
	"github.com/heddle-net/heddle/internal/store/storetest"
)

// makeNodes makes Node objects as kubelet and kube-controller-manager do.
func (l *lab) makeNodes(t testing.TB, names []string, cidr func(i int) []string) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(8)
	for i, name := range names {
		g.Go(func() error {
			n := &corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidr(i)}}
			if len(n.Spec.PodCIDRs) > 0 {
				n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
			}
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.1.%d.%d", i>>8, i&255)}}
			return l.create(nodes, n)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// node makes one Node object.
func (l *lab) node(t testing.TB, name string, cidrs ...string) {
	t.Helper()
	l.makeNodes(t, []string{name}, func(int) []string { return cidrs })
}

// TestContract runs what every store promises of nodes, against Node objects that are there.
func TestContract(t *testing.T) {
	l := newLab(t)
	var names []string
	for i := range 301 {
		names = append(names, storetest.Node(i).Name)
	}
	l.makeNodes(t, names, func(i int) []string { return []string{storetest.Block(i, "").CIDR.String()} })
	storetest.RunCluster(t, func(t *testing.T) store.Store {
		all, err := l.admin.Resource(nodes).List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range all.Items {
			if n.GetAnnotations()[kube.NodeAnnotation] != "" {
				l.patch(t, nodes, "", n.GetName(), `{"metadata":{"annotations":null}}`)
			}
		}
		s := l.open(t, kube.Options{Node: names[0], Pools: []model.Pool{*storetest.Pool()}})
		if _, _, err := s.List(context.Background(), model.KindNode); err != nil {
			t.Fatal(err)
		}
		return s
	}, func(_ *testing.T, s store.Store) { s.(*kube.Store).Forget() })
}
