package oracle

import (
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// clusterPolicy is a ClusterNetworkPolicy, read as the comments of its API say.
type clusterPolicy struct{ *v1alpha2.ClusterNetworkPolicy }

func (c *clusterPolicy) ref() Ref       { return Ref{"ClusterNetworkPolicy", "", c.Name} }
func (c *clusterPolicy) order() float64 { return float64(c.Spec.Priority) }

func (c *clusterPolicy) tier() string {
	if c.Spec.Tier == v1alpha2.BaselineTier {
		return "kube-baseline"
	}
	return "kube-admin"
}

// applies: a policy without rules for a direction does not affect it.
func (c *clusterPolicy) applies(d Direction) bool {
	if d == Ingress {
		return len(c.Spec.Ingress) > 0
	}
	return len(c.Spec.Egress) > 0
}

func (c *clusterPolicy) selects(o *Oracle, t *thing) bool {
	if t.kind != "workload" || t.namespace == "" {
		return false
	}
	if n := c.Spec.Subject.Namespaces; n != nil {
		return kubeSelects(n, o.world.namespaceLabels(t.namespace))
	}
	return podsSelect(o, c.Spec.Subject.Pods, t)
}

func podsSelect(o *Oracle, pods *v1alpha2.NamespacedPod, t *thing) bool {
	return pods != nil && t.kind == "workload" && t.namespace != "" &&
		kubeSelects(&pods.NamespaceSelector, o.world.namespaceLabels(t.namespace)) && kubeSelects(&pods.PodSelector, t.own)
}

func (c *clusterPolicy) judge(o *Oracle, _ *thing, p *packet) (action, int, bool) {
	if p.direction == Ingress {
		for i, r := range c.Spec.Ingress {
			unknown, match := false, false
			for _, from := range r.From {
				unknown = unknown || from.Namespaces == nil && from.Pods == nil
				match = match || c.peer(o, &v1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: from.Namespaces, Pods: from.Pods}, p)
			}
			if a := clusterAction(o, r.Action, unknown, match, r.Protocols, p); a != actNothing {
				return a, i, false
			}
		}
		return actNothing, 0, false
	}
	for i, r := range c.Spec.Egress {
		unknown, match := false, false
		for _, to := range r.To {
			unknown = unknown || to.Namespaces == nil && to.Pods == nil && len(to.Networks) == 0
			match = match || c.peer(o, &to, p)
		}
		if a := clusterAction(o, r.Action, unknown, match, r.Protocols, p); a != actNothing {
			return a, i, false
		}
	}
	return actNothing, 0, false
}

// clusterAction is what a rule does. A peer that is not known fails closed: an Accept rule then matches
// nothing, any other is as if it denied everything.
func clusterAction(o *Oracle, a v1alpha2.ClusterNetworkPolicyRuleAction, unknown, match bool,
	protocols []v1alpha2.ClusterNetworkPolicyProtocol, p *packet,
) action {
	if unknown {
		if a == v1alpha2.ClusterNetworkPolicyRuleActionAccept {
			return actNothing
		}
		return actDeny
	}
	if !match || !clusterProtocols(o, protocols, p) {
		return actNothing
	}
	switch a {
	case v1alpha2.ClusterNetworkPolicyRuleActionAccept:
		return actAllow
	case v1alpha2.ClusterNetworkPolicyRuleActionPass:
		return actPass
	}
	return actDeny
}

func (c *clusterPolicy) peer(o *Oracle, peer *v1alpha2.ClusterNetworkPolicyEgressPeer, p *packet) bool {
	for _, t := range o.things {
		if t.kind != "workload" || t.namespace == "" || !t.at(p.remote) {
			continue
		}
		if peer.Namespaces != nil && kubeSelects(peer.Namespaces, o.world.namespaceLabels(t.namespace)) {
			return true
		}
		if podsSelect(o, peer.Pods, t) {
			return true
		}
	}
	for _, n := range peer.Networks {
		if netOf(string(n)).Contains(p.remote) {
			return true
		}
	}
	return false
}

// clusterProtocols: without a list every packet matches.
func clusterProtocols(o *Oracle, protocols []v1alpha2.ClusterNetworkPolicyProtocol, p *packet) bool {
	if len(protocols) == 0 {
		return true
	}
	for _, q := range protocols {
		switch {
		case q.TCP != nil:
			if p.protocol == 6 && clusterPort(q.TCP.DestinationPort, p.dport) {
				return true
			}
		case q.UDP != nil:
			if p.protocol == 17 && clusterPort(q.UDP.DestinationPort, p.dport) {
				return true
			}
		case q.SCTP != nil:
			if p.protocol == 132 && clusterPort(q.SCTP.DestinationPort, p.dport) {
				return true
			}
		case q.DestinationNamedPort != "":
			for _, t := range o.things {
				if t.at(p.dst) && t.calls(q.DestinationNamedPort, p.protocol, p.dport) {
					return true
				}
			}
		}
	}
	return false
}

func clusterPort(want *v1alpha2.Port, port uint16) bool {
	switch {
	case want == nil:
		return true
	case want.Range != nil:
		return want.Range.Start <= int32(port) && int32(port) <= want.Range.End
	}
	return want.Number == int32(port)
}
