package kube

import (
	"fmt"
	"net/netip"

	cnpv1 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/selector"
)

// maxPriority is the last priority of a ClusterNetworkPolicy, which is the lowest.
const maxPriority = 1000

// clusterNetworkPolicy reads a ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2.
func clusterNetworkPolicy(a at, c *cnpv1.ClusterNetworkPolicy) (*policy.Policy, error) {
	spec, p := a.field("spec"), &policy.Policy{
		Ref:            policy.Ref{Kind: "ClusterNetworkPolicy", Name: c.Name},
		Order:          float64(c.Spec.Priority),
		AppliesIngress: len(c.Spec.Ingress) > 0,
		AppliesEgress:  len(c.Spec.Egress) > 0,
	}
	switch c.Spec.Tier {
	case cnpv1.AdminTier:
		p.Tier = policy.AdminTier
	case cnpv1.BaselineTier:
		p.Tier = policy.BaselineTier
	default:
		return nil, spec.field("tier").bad(c.Spec.Tier, "Admin or Baseline")
	}
	if c.Spec.Priority < 0 || c.Spec.Priority > maxPriority {
		return nil, spec.field("priority").bad(c.Spec.Priority, fmt.Sprintf("0..%d", maxPriority))
	}
	var err error
	if p.Subject, err = cnpSubject(spec.field("subject"), c.Spec.Subject); err != nil {
		return nil, err
	}
	for i, r := range c.Spec.Ingress {
		rules, err := cnpRule(spec.field("ingress").item(i), "from", ingress, i, asEgress(r))
		if err != nil {
			return nil, err
		}
		p.Ingress = append(p.Ingress, rules...)
	}
	for i, r := range c.Spec.Egress {
		rules, err := cnpRule(spec.field("egress").item(i), "to", egress, i, r)
		if err != nil {
			return nil, err
		}
		p.Egress = append(p.Egress, rules...)
	}
	return p, nil
}

// asEgress spells a rule for ingress as one for egress, which can say all that it can.
func asEgress(r cnpv1.ClusterNetworkPolicyIngressRule) cnpv1.ClusterNetworkPolicyEgressRule {
	to := make([]cnpv1.ClusterNetworkPolicyEgressPeer, 0, len(r.From))
	for _, p := range r.From {
		to = append(to, cnpv1.ClusterNetworkPolicyEgressPeer{Namespaces: p.Namespaces, Pods: p.Pods})
	}
	return cnpv1.ClusterNetworkPolicyEgressRule{Name: r.Name, Action: r.Action, To: to, Protocols: r.Protocols}
}

func cnpSubject(a at, s cnpv1.ClusterNetworkPolicySubject) (selector.Selector, error) {
	switch {
	case (s.Namespaces == nil) == (s.Pods == nil):
		return selector.Selector{}, a.bad(s, "namespaces or pods, one of them")
	case s.Namespaces != nil:
		return inNamespaces(a.field("namespaces"), s.Namespaces, a, nil)
	}
	return namespacedPods(a.field("pods"), s.Pods)
}

func namespacedPods(a at, p *cnpv1.NamespacedPod) (selector.Selector, error) {
	return inNamespaces(a.field("namespaceSelector"), &p.NamespaceSelector, a.field("podSelector"), &p.PodSelector)
}

// cnpRule reads one rule. One that is not understood fails closed, whatever else is in it.
func cnpRule(a at, peersField string, d direction, index int, r cnpv1.ClusterNetworkPolicyEgressRule) ([]policy.Rule, error) {
	var action policy.Action
	switch r.Action {
	case cnpv1.ClusterNetworkPolicyRuleActionAccept:
		action = policy.Allow
	case cnpv1.ClusterNetworkPolicyRuleActionDeny:
		action = policy.Deny
	case cnpv1.ClusterNetworkPolicyRuleActionPass:
		action = policy.Pass
	default:
		return nil, a.field("action").bad(r.Action, "Accept, Deny or Pass")
	}
	if len(r.To) == 0 {
		return nil, a.field(peersField).bad(nil, "at least one peer")
	}
	understood := true
	var sides []policy.Side
	for i, p := range r.To {
		side, ok, err := cnpPeer(a.field(peersField).item(i), p)
		if err != nil {
			return nil, err
		}
		understood = understood && ok
		sides = append(sides, side)
	}
	protocols := l4List(anyL4)
	if len(r.Protocols) > 0 {
		protocols = nil
	}
	for i, p := range r.Protocols {
		ok, err := cnpProtocol(a.field("protocols").item(i), p, &protocols)
		if err != nil {
			return nil, err
		}
		understood = understood && ok
	}
	switch {
	case understood:
		return expand(d, action, index, sides, protocols), nil
	case action == policy.Allow:
		return nil, nil
	}
	return expand(d, policy.Deny, index, []policy.Side{{}}, anyL4), nil
}

// cnpPeer reads one peer. It is not understood when not exactly one field is set, or one that asks for what
// policies here do not know: labels of nodes, and the addresses behind names.
func cnpPeer(a at, p cnpv1.ClusterNetworkPolicyEgressPeer) (side policy.Side, understood bool, err error) {
	if cnpPeerFields(p) != 1 {
		return side, false, nil
	}
	var s selector.Selector
	switch {
	case p.Namespaces != nil:
		s, err = inNamespaces(a.field("namespaces"), p.Namespaces, a, nil)
	case p.Pods != nil:
		s, err = namespacedPods(a.field("pods"), p.Pods)
	case p.Networks != nil:
		side.Nets = []netip.Prefix{}
		for i, text := range p.Networks {
			net, err := cidr(a.field("networks").item(i), string(text))
			if err != nil {
				return side, false, err
			}
			side.Nets = append(side.Nets, net)
		}
		if len(side.Nets) == 0 {
			return side, false, a.field("networks").bad(p.Networks, "at least one network")
		}
		return side, true, nil
	default:
		return side, false, nil
	}
	side.Selector = &s
	return side, true, err
}

// cnpPeerFields is how many fields are set.
func cnpPeerFields(p cnpv1.ClusterNetworkPolicyEgressPeer) int {
	n := 0
	for _, set := range []bool{p.Namespaces != nil, p.Pods != nil, p.Nodes != nil, p.Networks != nil, p.DomainNames != nil} {
		if set {
			n++
		}
	}
	return n
}

// cnpProtocol reads one entry of protocols. A named port without a protocol is of whichever protocol the pod says.
func cnpProtocol(a at, p cnpv1.ClusterNetworkPolicyProtocol, to *l4List) (understood bool, err error) {
	var found []l4
	var port *cnpv1.Port
	name := ""
	if p.TCP != nil {
		found, port, name = append(found, l4{protocol: tcp}), p.TCP.DestinationPort, "tcp"
	}
	if p.UDP != nil {
		found, port, name = append(found, l4{protocol: udp}), p.UDP.DestinationPort, "udp"
	}
	if p.SCTP != nil {
		found, port, name = append(found, l4{protocol: sctp}), p.SCTP.DestinationPort, "sctp"
	}
	if p.DestinationNamedPort != "" {
		found = append(found, l4{protocol: policy.AnyProtocol})
	}
	switch {
	case len(found) != 1:
		return false, nil
	case p.DestinationNamedPort != "":
		to.add(policy.AnyProtocol, &policy.Port{Name: p.DestinationNamedPort})
		return true, nil
	case port == nil || (port.Number == 0) == (port.Range == nil):
		return false, nil
	}
	a = a.field(name).field("destinationPort")
	var one policy.Port
	if port.Range == nil {
		one.First, err = portNumber(a.field("number"), port.Number)
		one.Last = one.First
	} else {
		a = a.field("range")
		if one.First, err = portNumber(a.field("start"), port.Range.Start); err != nil {
			return false, err
		}
		if one.Last, err = portNumber(a.field("end"), port.Range.End); err != nil {
			return false, err
		}
		if one.Last <= one.First {
			return false, a.field("end").bad(one.Last, fmt.Sprintf("more than start, %d", one.First))
		}
	}
	to.add(found[0].protocol, &one)
	return true, err
}
