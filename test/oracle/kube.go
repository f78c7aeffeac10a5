package oracle

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// kubePolicy is a NetworkPolicy of Kubernetes, read as its API reference says
// (kubernetes.io/docs/concepts/services-networking/network-policies).
type kubePolicy struct {
	name Ref
	spec *networkingv1.NetworkPolicySpec
}

func (k *kubePolicy) ref() Ref       { return k.name }
func (k *kubePolicy) tier() string   { return "default" }
func (k *kubePolicy) order() float64 { return 1000 }

// applies: without policyTypes a policy is about ingress, and about egress if it has rules for it.
func (k *kubePolicy) applies(d Direction) bool {
	if len(k.spec.PolicyTypes) == 0 {
		return d == Ingress || len(k.spec.Egress) > 0
	}
	want := networkingv1.PolicyTypeIngress
	if d == Egress {
		want = networkingv1.PolicyTypeEgress
	}
	return slices.Contains(k.spec.PolicyTypes, want)
}

func (k *kubePolicy) selects(_ *Oracle, t *thing) bool {
	return t.kind == "workload" && t.namespace == k.name.Namespace && kubeSelects(&k.spec.PodSelector, t.own)
}

func (k *kubePolicy) judge(o *Oracle, subject *thing, p *packet) (action, int, bool) {
	if p.direction == Ingress {
		for i, r := range k.spec.Ingress {
			if k.peers(o, r.From, p.remote) && kubePorts(o, r.Ports, p) {
				return actAllow, i, false
			}
		}
		return actNothing, 0, false
	}
	for i, r := range k.spec.Egress {
		if k.peers(o, r.To, p.remote) && kubePorts(o, r.Ports, p) {
			return actAllow, i, false
		}
	}
	// Traffic to the node that a pod runs on is always allowed, whatever the policy's list says.
	if n := o.world.node(subject.endpoint.Node); n != nil && slices.Contains(n.Addresses, p.remote) {
		return actAllow, -1, false
	}
	return actNothing, 0, false
}

// peers: an empty or missing list is everybody.
func (k *kubePolicy) peers(o *Oracle, peers []networkingv1.NetworkPolicyPeer, remote netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	for _, peer := range peers {
		if peer.IPBlock != nil {
			if kubeBlock(peer.IPBlock, remote) {
				return true
			}
			continue
		}
		for _, t := range o.things {
			if t.kind != "workload" || !t.at(remote) || t.namespace == "" {
				continue
			}
			if peer.NamespaceSelector == nil && t.namespace != k.name.Namespace {
				continue
			}
			if peer.NamespaceSelector != nil && !kubeSelects(peer.NamespaceSelector, o.world.namespaceLabels(t.namespace)) {
				continue
			}
			if peer.PodSelector != nil && !kubeSelects(peer.PodSelector, t.own) {
				continue
			}
			return true
		}
	}
	return false
}

func kubeBlock(b *networkingv1.IPBlock, remote netip.Addr) bool {
	if !netOf(b.CIDR).Contains(remote) {
		return false
	}
	for _, e := range b.Except {
		if netOf(e).Contains(remote) {
			return false
		}
	}
	return true
}

// kubePorts: an empty or missing list is every port of every protocol.
func kubePorts(o *Oracle, ports []networkingv1.NetworkPolicyPort, p *packet) bool {
	if len(ports) == 0 {
		return true
	}
	for _, port := range ports {
		protocol := corev1.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		if kubeProtocol(protocol) != p.protocol {
			continue
		}
		switch {
		case port.Port == nil:
			return true
		case port.Port.Type == intstr.String:
			// Kubernetes knows names of pods' ports only; Calico's host endpoints have them, too.
			for _, t := range o.things {
				if t.at(p.dst) && t.calls(port.Port.StrVal, p.protocol, p.dport) {
					return true
				}
			}
		case port.EndPort != nil:
			if port.Port.IntVal <= int32(p.dport) && int32(p.dport) <= *port.EndPort {
				return true
			}
		case port.Port.IntVal == int32(p.dport):
			return true
		}
	}
	return false
}

func kubeProtocol(p corev1.Protocol) uint8 {
	switch p {
	case corev1.ProtocolUDP:
		return 17
	case corev1.ProtocolSCTP:
		return 132
	}
	return 6
}

// kubeSelects: all requirements must hold; an empty selector selects everything.
func kubeSelects(s *metav1.LabelSelector, labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if value, has := labels[k]; !has || value != v {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		value, has := labels[r.Key]
		ok := false
		switch r.Operator {
		case metav1.LabelSelectorOpIn:
			ok = has && slices.Contains(r.Values, value)
		case metav1.LabelSelectorOpNotIn:
			ok = !has || !slices.Contains(r.Values, value)
		case metav1.LabelSelectorOpExists:
			ok = has
		case metav1.LabelSelectorOpDoesNotExist:
			ok = !has
		}
		if !ok {
			return false
		}
	}
	return true
}
