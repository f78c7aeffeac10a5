package oracle

import (
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// kubeSelector is a label selector of Kubernetes, often empty.
func (g *generator) kubeSelector() metav1.LabelSelector {
	var s metav1.LabelSelector
	if g.once(3) {
		return s
	}
	if !g.once(3) {
		s.MatchLabels = map[string]string{pick(g, someKeys): pick(g, someValues)}
	}
	for range g.n(3) {
		r := metav1.LabelSelectorRequirement{Key: pick(g, someKeys), Operator: pick(g, []metav1.LabelSelectorOperator{
			metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist,
		})}
		if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
			for range 1 + g.n(3) {
				r.Values = append(r.Values, pick(g, someValues))
			}
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s
}

func (g *generator) namespaceSelector() metav1.LabelSelector {
	if g.once(3) {
		return metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": pick(g, someNamespaces)}}
	}
	return g.kubeSelector()
}

// kubePolicy adds or changes a NetworkPolicy.
func (g *generator) kubePolicy() {
	p := networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: g.usedNamespace(), Name: g.policyName()},
		Spec:       g.kubeSpec(),
	}
	put(&g.w.NetworkPolicies, p, func(a, b *networkingv1.NetworkPolicy) bool { return a.Namespace == b.Namespace && a.Name == b.Name })
}

func (g *generator) policyName() string { return fmt.Sprintf("p%d", g.n(12)) }

// usedNamespace is most often one in which a workload runs.
func (g *generator) usedNamespace() string {
	if len(g.w.Endpoints) > 0 && !g.once(5) {
		if n := pick(g, g.w.Endpoints).Namespace; n != "" {
			return n
		}
	}
	return pick(g, someNamespaces)
}

func (g *generator) kubeSpec() networkingv1.NetworkPolicySpec {
	s := networkingv1.NetworkPolicySpec{PodSelector: g.kubeSelector()}
	switch g.n(5) {
	case 0:
		s.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	case 1:
		s.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	case 2:
		s.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	for range g.n(4) {
		s.Ingress = append(s.Ingress, networkingv1.NetworkPolicyIngressRule{From: g.kubePeers(), Ports: g.kubePorts()})
	}
	for range g.n(4) {
		s.Egress = append(s.Egress, networkingv1.NetworkPolicyEgressRule{To: g.kubePeers(), Ports: g.kubePorts()})
	}
	return s
}

func (g *generator) kubePeers() []networkingv1.NetworkPolicyPeer {
	var peers []networkingv1.NetworkPolicyPeer
	if g.once(8) {
		return []networkingv1.NetworkPolicyPeer{} // empty is as absent
	}
	for range g.n(4) {
		var p networkingv1.NetworkPolicyPeer
		switch g.n(4) {
		case 0:
			p.PodSelector = ptr(g.kubeSelector())
		case 1:
			p.NamespaceSelector = ptr(g.namespaceSelector())
		case 2:
			p.PodSelector, p.NamespaceSelector = ptr(g.kubeSelector()), ptr(g.namespaceSelector())
		case 3:
			n := g.net()
			p.IPBlock = &networkingv1.IPBlock{CIDR: n.String()}
			for range g.n(3) {
				if e, ok := g.within(n); ok {
					p.IPBlock.Except = append(p.IPBlock.Except, e.String())
				}
			}
		}
		peers = append(peers, p)
	}
	return peers
}

func (g *generator) kubePorts() []networkingv1.NetworkPolicyPort {
	var ports []networkingv1.NetworkPolicyPort
	if g.once(2) {
		return nil
	}
	for range g.n(4) {
		var p networkingv1.NetworkPolicyPort
		if !g.once(3) {
			p.Protocol = ptr(g.kubeProtocol())
		}
		switch first, last := g.portRange(); g.n(5) {
		case 0:
		case 1, 2:
			p.Port = ptr(intstr.FromString(pick(g, somePortNames)))
		case 3:
			p.Port = ptr(intstr.FromInt32(int32(first)))
		case 4:
			p.Port, p.EndPort = ptr(intstr.FromInt32(int32(first))), ptr(int32(last))
		}
		ports = append(ports, p)
	}
	return ports
}

// portRange is two ports in order, perhaps equal, 1 to 65535.
func (g *generator) portRange() (first, last uint16) {
	first, last = pick(g, somePorts), pick(g, somePorts)
	if g.once(4) {
		last = uint16(1 + g.n(65535))
	}
	return min(first, last), max(first, last)
}

// clusterPolicy adds or changes a ClusterNetworkPolicy. Priorities are few, so that they are often equal.
func (g *generator) clusterPolicy() {
	p := v1alpha2.ClusterNetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "policy.networking.k8s.io/v1alpha2", Kind: "ClusterNetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: g.policyName()},
	}
	p.Spec.Tier = pick(g, []v1alpha2.Tier{v1alpha2.AdminTier, v1alpha2.BaselineTier})
	p.Spec.Priority = pick(g, []int32{0, 0, 1, 500, 999, 1000, 1000})
	if g.once(2) {
		p.Spec.Subject.Namespaces = ptr(g.namespaceSelector())
	} else {
		p.Spec.Subject.Pods = g.namespacedPod()
	}
	for range g.n(4) {
		r := v1alpha2.ClusterNetworkPolicyIngressRule{Action: g.clusterAction()}
		for range 1 + g.n(2) {
			peer := g.clusterPeer()
			r.From = append(r.From, v1alpha2.ClusterNetworkPolicyIngressPeer{Namespaces: peer.Namespaces, Pods: peer.Pods})
		}
		r.Protocols = g.clusterProtocols(false)
		p.Spec.Ingress = append(p.Spec.Ingress, r)
	}
	for range g.n(4) {
		r := v1alpha2.ClusterNetworkPolicyEgressRule{Action: g.clusterAction()}
		networks := false
		for range 1 + g.n(2) {
			peer := g.clusterPeer()
			if g.once(2) {
				networks = true
				peer = v1alpha2.ClusterNetworkPolicyEgressPeer{Networks: []v1alpha2.CIDR{v1alpha2.CIDR(g.net().String())}}
				if n := v1alpha2.CIDR(g.net().String()); n != peer.Networks[0] && g.once(2) {
					peer.Networks = append(peer.Networks, n)
				}
			}
			r.To = append(r.To, peer)
		}
		r.Protocols = g.clusterProtocols(networks)
		p.Spec.Egress = append(p.Spec.Egress, r)
	}
	put(&g.w.ClusterPolicies, p, func(a, b *v1alpha2.ClusterNetworkPolicy) bool { return a.Name == b.Name })
}

func (g *generator) clusterAction() v1alpha2.ClusterNetworkPolicyRuleAction {
	return pick(g, []v1alpha2.ClusterNetworkPolicyRuleAction{
		v1alpha2.ClusterNetworkPolicyRuleActionAccept, v1alpha2.ClusterNetworkPolicyRuleActionDeny, v1alpha2.ClusterNetworkPolicyRuleActionPass,
	})
}

func (g *generator) namespacedPod() *v1alpha2.NamespacedPod {
	return &v1alpha2.NamespacedPod{NamespaceSelector: g.namespaceSelector(), PodSelector: g.kubeSelector()}
}

func (g *generator) clusterPeer() v1alpha2.ClusterNetworkPolicyEgressPeer {
	if g.once(2) {
		return v1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: ptr(g.namespaceSelector())}
	}
	return v1alpha2.ClusterNetworkPolicyEgressPeer{Pods: g.namespacedPod()}
}

func (g *generator) clusterProtocols(networks bool) []v1alpha2.ClusterNetworkPolicyProtocol {
	var all []v1alpha2.ClusterNetworkPolicyProtocol
	if g.once(2) {
		return nil
	}
	for range 1 + g.n(3) {
		port := &v1alpha2.Port{Number: int32(pick(g, somePorts))}
		if first, last := g.portRange(); g.once(2) && first < last {
			port = &v1alpha2.Port{Range: &v1alpha2.PortRange{Start: int32(first), End: int32(last)}}
		}
		var p v1alpha2.ClusterNetworkPolicyProtocol
		switch kind := g.n(4); {
		case kind == 0 && !networks:
			p.DestinationNamedPort = pick(g, somePortNames) // networks have no named ports
		case kind == 1:
			p.UDP = &v1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case kind == 2:
			p.SCTP = &v1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
		default:
			p.TCP = &v1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		}
		all = append(all, p)
	}
	return all
}
