package kube

import (
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-net/heddle/internal/policy"
)

// impliedIndex is the Index of what a NetworkPolicy allows without being asked: traffic to the node of the pod.
const impliedIndex = -1

// networkPolicy reads a NetworkPolicy of networking.k8s.io/v1.
func networkPolicy(a at, np *networkingv1.NetworkPolicy) (*policy.Policy, error) {
	spec, p := a.field("spec"), &policy.Policy{
		Ref:   policy.Ref{Kind: "NetworkPolicy", Namespace: np.Namespace, Name: np.Name},
		Tier:  policy.DefaultTier,
		Order: policy.KubernetesOrder,
	}
	var err error
	if p.Subject, err = inNamespace(spec.field("podSelector"), np.Namespace, &np.Spec.PodSelector); err != nil {
		return nil, err
	}
	types := np.Spec.PolicyTypes
	if len(types) > 2 {
		return nil, spec.field("policyTypes").bad(types, "at most Ingress and Egress")
	}
	for i, t := range types {
		switch t {
		case networkingv1.PolicyTypeIngress:
			p.AppliesIngress = true
		case networkingv1.PolicyTypeEgress:
			p.AppliesEgress = true
		default:
			return nil, spec.field("policyTypes").item(i).bad(t, "Ingress or Egress")
		}
	}
	if len(types) == 0 {
		p.AppliesIngress, p.AppliesEgress = true, len(np.Spec.Egress) > 0
	}
	for i, r := range np.Spec.Ingress {
		rules, err := allow(spec.field("ingress").item(i), "from", np.Namespace, ingress, i, r.From, r.Ports)
		if err != nil {
			return nil, err
		}
		p.Ingress = append(p.Ingress, rules...)
	}
	for i, r := range np.Spec.Egress {
		rules, err := allow(spec.field("egress").item(i), "to", np.Namespace, egress, i, r.To, r.Ports)
		if err != nil {
			return nil, err
		}
		p.Egress = append(p.Egress, rules...)
	}
	// Rules for a direction that the policy does not isolate are checked and have no effect.
	if !p.AppliesIngress {
		p.Ingress = nil
	}
	if p.AppliesEgress {
		p.Egress = append(p.Egress, expand(egress, policy.Allow, impliedIndex, []policy.Side{{OwnNode: true}}, anyL4)...)
	} else {
		p.Egress = nil
	}
	return p, nil
}

// allow reads one rule. Without peers it is about everybody, without ports about every packet.
func allow(a at, peersField, namespace string, d direction, index int, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) ([]policy.Rule, error) {
	var sides []policy.Side
	var nets []netip.Prefix // of all peers that are a network without exceptions
	for i, p := range peers {
		side, err := netpolPeer(a.field(peersField).item(i), namespace, p)
		if err != nil {
			return nil, err
		}
		if side.Nets != nil && side.NotNets == nil {
			nets = append(nets, side.Nets...)
			continue
		}
		sides = append(sides, side)
	}
	if nets != nil {
		sides = append(sides, policy.Side{Nets: nets})
	}
	if len(peers) == 0 {
		sides = []policy.Side{{}}
	}
	protocols := l4List(anyL4)
	if len(ports) > 0 {
		protocols = nil
	}
	for i, p := range ports {
		if err := netpolPort(a.field("ports").item(i), p, &protocols); err != nil {
			return nil, err
		}
	}
	return expand(d, policy.Allow, index, sides, protocols), nil
}

// netpolPeer reads one peer: pods of the policy's own namespace, of the namespaces that are selected, or a network.
func netpolPeer(a at, namespace string, p networkingv1.NetworkPolicyPeer) (policy.Side, error) {
	switch {
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		return policy.Side{}, a.bad(p, "ipBlock or selectors, not both")
	case p.IPBlock != nil:
		return ipBlock(a.field("ipBlock"), p.IPBlock)
	case p.NamespaceSelector != nil:
		s, err := inNamespaces(a.field("namespaceSelector"), p.NamespaceSelector, a.field("podSelector"), p.PodSelector)
		return policy.Side{Selector: &s}, err
	case p.PodSelector != nil:
		s, err := inNamespace(a.field("podSelector"), namespace, p.PodSelector)
		return policy.Side{Selector: &s}, err
	}
	return policy.Side{}, a.bad(p, "podSelector, namespaceSelector, both, or ipBlock")
}

// ipBlock reads a network with what is excepted from it.
func ipBlock(a at, b *networkingv1.IPBlock) (policy.Side, error) {
	net, err := cidr(a.field("cidr"), b.CIDR)
	if err != nil {
		return policy.Side{}, err
	}
	side := policy.Side{Nets: []netip.Prefix{net}}
	for i, text := range b.Except {
		a := a.field("except").item(i)
		except, err := cidr(a, text)
		if err != nil {
			return policy.Side{}, err
		}
		if except.Bits() <= net.Bits() || !net.Contains(except.Addr()) {
			return policy.Side{}, a.bad(text, fmt.Sprintf("a part of cidr %s", net))
		}
		side.NotNets = append(side.NotNets, except)
	}
	return side, nil
}

// netpolPort reads one port: all of a protocol, a number, a range, or a name.
func netpolPort(a at, p networkingv1.NetworkPolicyPort, to *l4List) error {
	proto, err := protocol(a.field("protocol"), p.Protocol)
	if err != nil {
		return err
	}
	end := a.field("endPort")
	switch {
	case p.Port == nil:
		if p.EndPort != nil {
			return end.bad(*p.EndPort, "a numeric port with it")
		}
		to.add(int(proto), nil)
		return nil
	case p.Port.Type == intstr.String:
		if p.EndPort != nil {
			return end.bad(*p.EndPort, "a numeric port with it")
		}
		if why := validation.IsValidPortName(p.Port.StrVal); len(why) > 0 {
			return a.field("port").bad(p.Port.StrVal, "a port's number, or its name: "+why[0])
		}
		to.add(int(proto), &policy.Port{Name: p.Port.StrVal})
		return nil
	}
	first, err := portNumber(a.field("port"), p.Port.IntVal)
	if err != nil {
		return err
	}
	last := first
	if p.EndPort != nil {
		if last, err = portNumber(end, *p.EndPort); err != nil {
			return err
		}
		if last < first {
			return end.bad(last, fmt.Sprintf("at least port, %d", first))
		}
	}
	to.add(int(proto), &policy.Port{First: first, Last: last})
	return nil
}
