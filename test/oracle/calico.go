package oracle

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// calicoPolicy is one of Calico's four kinds of policy, read as its reference says. Where the reference
// leaves a question open, Calico itself answers it; such places are marked.
type calicoPolicy struct{ *CalicoPolicy }

func (c *calicoPolicy) ref() Ref {
	kind := c.Kind
	if strings.HasSuffix(kind, "NetworkPolicy") && !strings.Contains(kind, "Global") {
		kind += ".projectcalico.org" // Kubernetes has a kind of this name, too
	}
	return Ref{kind, c.Namespace, c.Name}
}

func (c *calicoPolicy) order() float64 { return orderOf(c.Spec.Order) }

func (c *calicoPolicy) tier() string {
	if c.Spec.Tier == "" {
		return "default"
	}
	return c.Spec.Tier
}

// applies: without types a policy is about the directions for which it has rules, and about ingress when it
// has none.
func (c *calicoPolicy) applies(d Direction) bool {
	if len(c.Spec.Types) > 0 {
		return slices.Contains(c.Spec.Types, map[Direction]string{Ingress: "Ingress", Egress: "Egress"}[d])
	}
	if d == Ingress {
		return len(c.Spec.Ingress) > 0 || len(c.Spec.Egress) == 0
	}
	return len(c.Spec.Egress) > 0
}

func (c *calicoPolicy) selects(o *Oracle, t *thing) bool {
	if t.kind == "set" {
		return false
	}
	// Calico: workloads know nothing of policies before tracking and before DNAT.
	if t.kind == "workload" && (c.Spec.DoNotTrack || c.Spec.PreDNAT) {
		return false
	}
	if c.Namespace != "" && t.namespace != c.Namespace {
		return false
	}
	if s := c.Spec.NamespaceSelector; s != "" && !o.inNamespaces(s, t) {
		return false
	}
	if s := c.Spec.ServiceAccountSelector; s != "" && !o.underAccounts(s, t) {
		return false
	}
	return c.Spec.Selector == "" || o.selector(c.Spec.Selector).matches(labelled{labels: t.labels, global: t.namespace == ""})
}

// inNamespaces: the thing is in one of the namespaces. Calico: what is in none has no labels of a namespace,
// so that global() finds it, and a negative test does, too.
func (o *Oracle) inNamespaces(selector string, t *thing) bool {
	if t.namespace == "" {
		return o.selector(selector).matches(labelled{global: true, outside: true})
	}
	labels := o.world.namespaceLabels(t.namespace)
	labels["projectcalico.org/name"] = t.namespace
	return o.selector(selector).matches(labelled{labels: labels})
}

// underAccounts: the thing runs under one of the service accounts. Calico: what runs under none has no labels
// of one.
func (o *Oracle) underAccounts(selector string, t *thing) bool {
	if t.account == "" {
		return o.selector(selector).matches(labelled{outside: true})
	}
	labels := map[string]string{}
	maps.Copy(labels, o.world.accountLabels(t.namespace, t.account))
	labels["projectcalico.org/name"] = t.account
	return o.selector(selector).matches(labelled{labels: labels})
}

func (c *calicoPolicy) judge(o *Oracle, _ *thing, p *packet) (action, int, bool) {
	rules := c.Spec.Ingress
	if p.direction == Egress {
		rules = c.Spec.Egress
	}
	logged := false
	for i := range rules {
		r := &rules[i]
		if !c.matches(o, r, p) {
			continue
		}
		switch r.Action {
		case "Allow":
			return actAllow, i, logged
		case "Deny":
			return actDeny, i, logged
		case "Pass":
			return actPass, i, logged
		}
		logged = true
	}
	return actNothing, 0, logged
}

func (c *calicoPolicy) matches(o *Oracle, r *CalicoRule, p *packet) bool {
	if r.IPVersion != nil && (*r.IPVersion == 4) != p.remote.Is4() {
		return false
	}
	if r.Protocol != nil && calicoProtocol(*r.Protocol) != p.protocol {
		return false
	}
	if r.NotProtocol != nil && calicoProtocol(*r.NotProtocol) == p.protocol {
		return false
	}
	if r.ICMP != nil && !r.ICMP.matches(p) {
		return false
	}
	if r.NotICMP != nil && r.NotICMP.matches(p) {
		return false
	}
	return c.end(o, &r.Source, p.src, p.sport, p, false) && c.end(o, &r.Destination, p.dst, p.dport, p, true)
}

func (i *CalicoICMP) matches(p *packet) bool {
	if i.Type != nil && *i.Type != int(p.dport>>8) {
		return false
	}
	return i.Code == nil || *i.Code == int(p.dport&0xff)
}

// end judges one end of the packet: everything that is asked of it must hold.
func (c *calicoPolicy) end(o *Oracle, e *CalicoEntity, addr netip.Addr, port uint16, p *packet, destination bool) bool {
	if len(e.Nets) > 0 && !inNets(e.Nets, addr) {
		return false
	}
	if inNets(e.NotNets, addr) {
		return false
	}
	// Calico: a rule with networks, also negative ones, is for their IP version only.
	if len(e.NotNets) > 0 && netOf(e.NotNets[0]).Addr().Is4() != addr.Is4() {
		return false
	}
	if s := e.Services; s != nil {
		namespace := s.Namespace
		if namespace == "" {
			namespace = c.Namespace
		}
		// At the destination the service's protocols and ports count, too.
		var l4 *packet
		if destination {
			l4 = p
		}
		if !o.world.serves(namespace, s.Name, addr, l4) {
			return false
		}
	}
	// Calico: in a policy of a namespace any selector, also a negative one, keeps to what is in scope.
	if e.Selector != "" || e.NamespaceSelector != "" || e.ServiceAccounts != nil || c.Namespace != "" && e.NotSelector != "" {
		if !c.somebody(o, e, addr) {
			return false
		}
	}
	if e.NotSelector != "" {
		for _, t := range o.things {
			if t.at(addr) && o.selector(e.NotSelector).matches(labelled{labels: t.labels, global: t.namespace == ""}) {
				return false
			}
		}
	}
	if len(e.Ports) > 0 && !o.inPorts(e.Ports, addr, port, p.protocol) {
		return false
	}
	if len(e.NotPorts) > 0 && (!hasPorts(p.protocol) || o.inPorts(e.NotPorts, addr, port, p.protocol)) {
		return false
	}
	return true
}

// somebody: a workload, a network set or a host endpoint that has the address is in scope and is selected.
func (c *calicoPolicy) somebody(o *Oracle, e *CalicoEntity, addr netip.Addr) bool {
	for _, t := range o.things {
		if !t.at(addr) {
			continue
		}
		switch {
		case e.NamespaceSelector != "":
			if !o.inNamespaces(e.NamespaceSelector, t) {
				continue
			}
		case c.Namespace != "":
			if t.namespace != c.Namespace {
				continue
			}
		}
		if e.Selector != "" && !o.selector(e.Selector).matches(labelled{labels: t.labels, global: t.namespace == ""}) {
			continue
		}
		if a := e.ServiceAccounts; a != nil {
			if len(a.Names) > 0 && (t.account == "" || !slices.Contains(a.Names, t.account)) {
				continue
			}
			if a.Selector != "" && !o.underAccounts(a.Selector, t) {
				continue
			}
		}
		return true
	}
	return false
}

func inNets(nets []string, addr netip.Addr) bool {
	for _, n := range nets {
		if netOf(n).Contains(addr) {
			return true
		}
	}
	return false
}

func (o *Oracle) inPorts(ports []intstr.IntOrString, addr netip.Addr, port uint16, protocol uint8) bool {
	if !hasPorts(protocol) {
		return false
	}
	for _, want := range ports {
		if want.Type == intstr.Int {
			if want.IntVal == int32(port) {
				return true
			}
			continue
		}
		if first, last, name := portText(want.StrVal); name == "" {
			if first <= port && port <= last {
				return true
			}
			continue
		}
		for _, t := range o.things {
			if t.at(addr) && t.calls(want.StrVal, protocol, port) {
				return true
			}
		}
	}
	return false
}

// portText reads "80", "80:90" or a name.
func portText(text string) (first, last uint16, name string) {
	a, b, isRange := strings.Cut(text, ":")
	if !isRange {
		b = a
	}
	low, err := strconv.ParseUint(a, 10, 16)
	high, err2 := strconv.ParseUint(b, 10, 16)
	if err != nil || err2 != nil {
		return 0, 0, text
	}
	return uint16(low), uint16(high), ""
}

func hasPorts(protocol uint8) bool { return protocol == 6 || protocol == 17 || protocol == 132 }

// calicoProtocol reads a protocol by name or number.
func calicoProtocol(p intstr.IntOrString) uint8 {
	if p.Type == intstr.Int {
		return uint8(p.IntVal)
	}
	names := map[string]uint8{"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPv6": 58, "UDPLite": 136}
	number, ok := names[p.StrVal]
	if !ok {
		panic(fmt.Sprintf("no protocol of Calico's: %q", p.StrVal))
	}
	return number
}

// selector reads a selector's text, once.
func (o *Oracle) selector(text string) *expr {
	e, ok := o.selectors[text]
	if !ok {
		var err error
		if e, err = parseSelector(text); err != nil {
			panic(err)
		}
		o.selectors[text] = e
	}
	return e
}
