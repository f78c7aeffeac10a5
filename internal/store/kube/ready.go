package kube

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-net/heddle/internal/model"
)

// Reasons of the condition NetworkUnavailable.
const (
	reasonUp   = "HeddleIsUp"
	reasonDown = "HeddleIsNotReady"
)

// NetworkReady implements store.Readier by the condition NetworkUnavailable. As with flanneld, a node whose
// network was up never loses the condition again: its pods go on, and the kubelet asks the plugin itself whether
// more can be added. Only where the condition already keeps pods away does it get the reason.
func (s *Store) NetworkReady(ctx context.Context, node string, why error) error {
	if err := s.await(ctx, model.KindNode); err != nil {
		return err
	}
	unavailable := ""
	if f := s.nodes[node]; f != nil {
		unavailable = f.unavailable
	}
	s.mu.Unlock()
	now := metav1.Now()
	c := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, LastHeartbeatTime: now, LastTransitionTime: now}
	status, _, _ := strings.Cut(unavailable, "/")
	switch {
	case why == nil && unavailable == string(corev1.ConditionFalse)+"/"+reasonUp:
		return nil
	case why == nil:
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, reasonUp, "Heddle is running on this node"
	case status == string(corev1.ConditionTrue):
		c.Status, c.Reason, c.Message = corev1.ConditionTrue, reasonDown, short(why.Error())
	default:
		return nil
	}
	patch := map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{c}}}
	if _, err := s.patch(ctx, node, types.StrategicMergePatchType, patch); err != nil {
		return fmt.Errorf("condition %s: %w", c.Type, s.failed(ctx, node, err))
	}
	return nil
}

// short bounds a message that everybody who lists nodes gets.
func short(s string) string {
	if len(s) > 500 {
		s = s[:500] + "…"
	}
	return s
}
