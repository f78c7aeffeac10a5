package oracle

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var (
	someTiers  = []string{"first", "second", "last"}
	someOrders = []*float64{
		nil, nil, ptr(0.0), ptr(-1.0), ptr(1.0), ptr(999.5), ptr(1000.0), ptr(1000.0), ptr(1000.0000000001),
		ptr(1e6), ptr(1e300), ptr(-1e300), ptr(4294967296.0), ptr(9007199254740993.0),
	}
	someProtocols = []intstr.IntOrString{
		intstr.FromString("TCP"), intstr.FromString("TCP"), intstr.FromString("UDP"), intstr.FromString("SCTP"), intstr.FromInt32(6),
		intstr.FromString("ICMP"), intstr.FromString("ICMPv6"), intstr.FromString("UDPLite"), intstr.FromInt32(47), intstr.FromInt32(255), intstr.FromInt32(1),
	}
)

// calicoVersion is one of the two groups in which Calico's kinds are: they mean the same.
func (g *generator) calicoVersion() string {
	if g.once(10) {
		return "crd.projectcalico.org/v1"
	}
	return "projectcalico.org/v3"
}

// tier adds or changes a tier; now and then one of those that are always there.
func (g *generator) tier() {
	t := CalicoTier{
		TypeMeta:   metav1.TypeMeta{APIVersion: g.calicoVersion(), Kind: "Tier"},
		ObjectMeta: metav1.ObjectMeta{Name: pick(g, someTiers)},
	}
	t.Spec.Order = pick(g, someOrders)
	t.Spec.DefaultAction = pick(g, []string{"", "Deny", "Pass"})
	if g.once(10) {
		t.Name, t.Spec.Order, t.Spec.DefaultAction = "default", ptr(1e6), "Deny" // as it always is
	}
	put(&g.w.Tiers, t, func(a, b *CalicoTier) bool { return a.Name == b.Name })
}

// networkSet adds or changes a set, global or of a namespace.
func (g *generator) networkSet() {
	s := CalicoNetworkSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: g.calicoVersion(), Kind: "GlobalNetworkSet"},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("set%d", g.n(3)), Labels: g.labels()},
	}
	if g.once(2) {
		s.Kind, s.Namespace = "NetworkSet", g.usedNamespace()
	}
	s.Spec.Nets = g.calicoNets()
	put(&g.w.NetworkSets, s, func(a, b *CalicoNetworkSet) bool {
		return a.Kind == b.Kind && a.Namespace == b.Namespace && a.Name == b.Name
	})
}

// hostEndpoint adds or changes a host endpoint.
func (g *generator) hostEndpoint() {
	n := g.w.Nodes[0]
	if g.once(3) {
		n = pick(g, g.w.Nodes)
	}
	h := CalicoHostEndpoint{
		TypeMeta:   metav1.TypeMeta{APIVersion: g.calicoVersion(), Kind: "HostEndpoint"},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("host%d", g.n(3)), Labels: g.labels()},
	}
	h.Spec.Node = n.Name
	h.Spec.InterfaceName = pick(g, []string{"eth0", "*"})
	for _, a := range n.Addresses {
		if !g.once(4) {
			h.Spec.ExpectedIPs = append(h.Spec.ExpectedIPs, a.String())
		}
	}
	if g.once(2) {
		h.Spec.Ports = []CalicoNamedPort{{pick(g, somePortNames), intstr.FromString(pick(g, []string{"TCP", "UDP"})), pick(g, somePorts)}}
	}
	put(&g.w.HostEndpoints, h, func(a, b *CalicoHostEndpoint) bool { return a.Name == b.Name })
}

// calicoPolicy adds or changes a policy of Calico's; staged says whether one that is not in force.
func (g *generator) calicoPolicy(staged bool) {
	p := CalicoPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: g.calicoVersion(), Kind: "GlobalNetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: g.policyName()},
	}
	if g.once(2) {
		p.Kind, p.Namespace = "NetworkPolicy", g.usedNamespace()
	}
	if g.once(2) {
		p.Spec.Tier = pick(g, []string{"default", "nowhere"})
		if len(g.w.Tiers) > 0 && !g.once(6) {
			p.Spec.Tier = pick(g, g.w.Tiers).Name
		}
		if p.Spec.Tier != "default" {
			p.Name = p.Spec.Tier + "." + p.Name
		}
	}
	p.Spec.Order = pick(g, someOrders)
	if len(g.w.NetworkPolicies) > 0 && p.Namespace != "" && g.once(4) {
		o := pick(g, g.w.NetworkPolicies) // only the kind tells which of the two comes first
		p.Namespace, p.Name, p.Spec.Tier, p.Spec.Order = o.Namespace, o.Name, "", ptr(1000.0)
	}
	if !g.once(3) {
		p.Spec.Selector = g.selector()
	}
	if p.Kind == "GlobalNetworkPolicy" && g.once(3) {
		p.Spec.NamespaceSelector = g.namespaceText(false)
	}
	if g.once(6) {
		p.Spec.ServiceAccountSelector = g.accountText()
	}
	switch g.n(4) {
	case 0:
		p.Spec.Types = []string{"Ingress"}
	case 1:
		p.Spec.Types = []string{"Egress"}
	case 2:
		p.Spec.Types = []string{"Egress", "Ingress"}
	}
	if g.want(&p, "Ingress") {
		for range g.n(5) {
			p.Spec.Ingress = append(p.Spec.Ingress, g.calicoRule(p.Namespace, Ingress))
		}
	}
	if g.want(&p, "Egress") {
		for range g.n(5) {
			p.Spec.Egress = append(p.Spec.Egress, g.calicoRule(p.Namespace, Egress))
		}
	}
	if p.Kind == "GlobalNetworkPolicy" {
		g.hostMode(&p.Spec)
	}
	if staged {
		g.standFor(&p)
		p.Kind = "Staged" + p.Kind
		p.Spec.StagedAction = pick(g, []string{"", "Set", "Set", "Delete"})
		if p.Spec.StagedAction == "Delete" {
			p.Spec = CalicoPolicySpec{Tier: p.Spec.Tier, StagedAction: "Delete"}
		}
	}
	put(&g.w.CalicoPolicies, p, func(a, b *CalicoPolicy) bool {
		return a.Kind == b.Kind && a.Namespace == b.Namespace && a.Name == b.Name
	})
}

// hostMode lets some policies work at other points of a host's packet path.
func (g *generator) hostMode(s *CalicoPolicySpec) {
	if len(g.w.HostEndpoints) == 0 || g.once(3) {
		return
	}
	if g.once(2) {
		s.Selector = ""
	}
	if !g.once(4) {
		s.NamespaceSelector, s.ServiceAccountSelector = "", "" // what would keep hosts out
	}
	switch g.n(4) {
	case 0:
		s.DoNotTrack, s.ApplyOnForward = true, true
	case 1:
		s.PreDNAT, s.ApplyOnForward = true, true
		s.Types, s.Egress = []string{"Ingress"}, nil
	case 2:
		s.ApplyOnForward = true
	}
	for i := range s.Ingress {
		s.Ingress[i].Destination = onlyPorts(s.Ingress[i].Destination)
	}
	for i := range s.Egress {
		s.Egress[i].Source = onlyPorts(s.Egress[i].Source)
	}
}

// onlyPorts leaves what can be asked of the host's own end of any packet.
func onlyPorts(e CalicoEntity) CalicoEntity {
	numbers := func(ports []intstr.IntOrString) (left []intstr.IntOrString) {
		for _, p := range ports {
			if _, _, name := portText(p.StrVal); p.Type == intstr.Int || name == "" {
				left = append(left, p)
			}
		}
		return left
	}
	return CalicoEntity{Ports: numbers(e.Ports), NotPorts: numbers(e.NotPorts)}
}

// want: a policy has rules only for the directions that it names.
func (g *generator) want(p *CalicoPolicy, direction string) bool {
	for _, t := range p.Spec.Types {
		if t == direction {
			return true
		}
	}
	return len(p.Spec.Types) == 0
}

// standFor gives a policy that is to be staged the name of one in force, as often as not.
func (g *generator) standFor(p *CalicoPolicy) {
	for _, i := range g.r.Perm(len(g.w.CalicoPolicies)) {
		if o := &g.w.CalicoPolicies[i]; o.Kind == p.Kind && g.once(2) {
			p.Namespace, p.Name, p.Spec.Tier = o.Namespace, o.Name, o.Spec.Tier
			return
		}
	}
}

func (g *generator) stagedKubernetes() {
	p := StagedKubernetesPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: g.calicoVersion(), Kind: "StagedKubernetesNetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: g.usedNamespace(), Name: g.policyName()},
	}
	if len(g.w.NetworkPolicies) > 0 && !g.once(3) {
		o := pick(g, g.w.NetworkPolicies)
		p.Namespace, p.Name = o.Namespace, o.Name
	}
	p.Spec.NetworkPolicySpec = g.kubeSpec()
	p.Spec.StagedAction = pick(g, []string{"", "Set", "Set", "Delete"})
	if p.Spec.StagedAction == "Delete" {
		p.Spec = StagedKubernetesSpec{StagedAction: "Delete"}
	}
	put(&g.w.StagedKubernetes, p, func(a, b *StagedKubernetesPolicy) bool { return a.Namespace == b.Namespace && a.Name == b.Name })
}

func (g *generator) calicoRule(namespace string, d Direction) CalicoRule {
	r := CalicoRule{Action: pick(g, []string{"Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Log"})}
	family := 0
	if g.once(6) {
		family = pick(g, []int{4, 6})
		r.IPVersion = ptr(family)
	}
	switch g.n(6) {
	case 0, 1, 2:
		r.Protocol = ptr(pick(g, someProtocols))
	case 3:
		r.NotProtocol = ptr(pick(g, someProtocols))
	case 4:
		name := pick(g, []string{"ICMP", "ICMPv6"})
		if family != 0 {
			name = map[int]string{4: "ICMP", 6: "ICMPv6"}[family]
		}
		r.Protocol = ptr(intstr.FromString(name))
		if g.once(3) {
			r.NotICMP = g.icmp()
		} else {
			r.ICMP = g.icmp()
		}
	}
	for _, p := range []*intstr.IntOrString{r.Protocol, r.NotProtocol} {
		if p != nil && (calicoProtocol(*p) == 1 && family == 6 || calicoProtocol(*p) == 58 && family == 4) {
			r.IPVersion = nil // each has its own ICMP
		}
	}
	if family == 0 {
		family = pick(g, []int{4, 6}) // networks of one rule are of one family
	}
	ports := r.Protocol != nil && hasPorts(calicoProtocol(*r.Protocol))
	// The local end is seldom asked for more than a port.
	g.entity(&r.Source, d == Ingress || g.once(5), ports && g.once(4), family)
	g.entity(&r.Destination, d == Egress || g.once(5), ports && !g.once(3), family)
	if g.once(7) {
		service := &CalicoService{Name: pick(g, someServices), Namespace: pick(g, someNamespaces)}
		if len(g.w.EndpointSlices) > 0 && !g.once(4) {
			s := pick(g, g.w.EndpointSlices)
			service.Name, service.Namespace = s.Labels["kubernetes.io/service-name"], s.Namespace
		}
		if d == Egress {
			r.Protocol, r.NotProtocol, r.ICMP, r.NotICMP = nil, nil, nil, nil
			r.Source.Ports, r.Source.NotPorts = nil, nil
			r.Destination = CalicoEntity{Services: service}
		} else {
			r.Source = CalicoEntity{Services: service, Ports: r.Source.Ports, NotPorts: r.Source.NotPorts}
		}
		if namespace != "" && g.once(3) {
			service.Namespace = ""
		}
	}
	return r
}

func (g *generator) icmp() *CalicoICMP {
	i := &CalicoICMP{Type: ptr(pick(g, []int{0, 3, 8, 128, 129, 254}))}
	if g.once(2) {
		i.Code = ptr(pick(g, []int{0, 1, 3, 255}))
	}
	return i
}

// entity fills in what is asked of one end of a packet.
func (g *generator) entity(e *CalicoEntity, who, ports bool, family int) {
	if who && !g.once(5) {
		if g.once(2) {
			e.Selector = g.selector()
		}
		if g.once(5) {
			e.NotSelector = g.selector()
		}
		if g.once(4) {
			e.NamespaceSelector = g.namespaceText(true)
		}
		if g.once(6) {
			a := &CalicoServiceAccounts{}
			if g.once(2) {
				a.Names = []string{pick(g, someAccounts), pick(g, someAccounts)}
			} else {
				a.Selector = g.accountText()
			}
			e.ServiceAccounts = a
		}
		if g.once(4) {
			e.Nets = g.netsOf(family)
		}
		if g.once(5) {
			e.NotNets = g.netsOf(family)
		}
	}
	if ports {
		if !g.once(4) {
			e.Ports = g.calicoPorts()
		}
		if g.once(2) {
			e.NotPorts = g.calicoPorts()
		}
	}
}

// netsOf are networks of one family.
func (g *generator) netsOf(family int) []string {
	var nets []string
	for range 1 + g.n(3) {
		n := g.net()
		for range 20 {
			if n.Addr().Is4() == (family == 4) {
				break
			}
			n = g.net()
		}
		if n.Addr().Is4() == (family == 4) {
			nets = append(nets, n.String())
		}
	}
	return nets
}

// calicoNets are networks of both families, some of them single addresses, some with bits that do not count.
func (g *generator) calicoNets() []string {
	var nets []string
	for range g.n(4) {
		n := g.net()
		switch a := g.addr(); {
		case g.once(5):
			nets = append(nets, a.String())
		case g.once(5) && a.Is4() == n.Addr().Is4():
			nets = append(nets, fmt.Sprintf("%s/%d", a, n.Bits()))
		default:
			nets = append(nets, n.String())
		}
	}
	return nets
}

func (g *generator) calicoPorts() []intstr.IntOrString {
	var ports []intstr.IntOrString
	for range 1 + g.n(3) {
		switch first, last := g.portRange(); g.n(5) {
		case 0, 1:
			ports = append(ports, intstr.FromString(pick(g, somePortNames)))
		case 2:
			ports = append(ports, intstr.FromString(fmt.Sprintf("%d:%d", first, last)))
		default:
			ports = append(ports, intstr.FromInt32(int32(first)))
		}
	}
	return ports
}
