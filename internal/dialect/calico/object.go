package calico

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

// Object returns what a resource means: a *policy.Policy, *policy.Tier, *policy.NetworkSet or
// *policy.HostEndpoint. Errors are *model.FieldError.
func Object(r *model.Resource) (policy.Object, error) {
	o, err := decode(r)
	if err != nil {
		return nil, err
	}
	meant, err := mean(place{noun: r.String()}, o)
	if err != nil {
		return nil, err // not what mean returned: that may be a nil pointer of some type
	}
	return meant, nil
}

func mean(at place, o object) (policy.Object, error) {
	switch o := o.(type) {
	case *NetworkPolicy:
		return networkPolicy(at, o)
	case *GlobalNetworkPolicy:
		return globalNetworkPolicy(at, o)
	case *StagedNetworkPolicy:
		return stagedNetworkPolicy(at, o)
	case *StagedGlobalNetworkPolicy:
		return stagedGlobalNetworkPolicy(at, o)
	case *StagedKubernetesNetworkPolicy:
		return stagedKubernetesNetworkPolicy(at, o)
	case *Tier:
		return tier(at, o)
	case *NetworkSet:
		return networkSet(at, &o.Meta, o.Spec)
	case *GlobalNetworkSet:
		return networkSet(at, &o.Meta, o.Spec)
	case *HostEndpoint:
		return hostEndpoint(at, o)
	}
	return nil, fmt.Errorf("%s: decoded as %T", at.noun, o) // a kind that decode knows and this does not
}

// ref names an object. Calico's NetworkPolicy gets its group behind it, to be told from that of Kubernetes.
func (m *Meta) ref() policy.Ref {
	kind := m.Kind
	if kind == "NetworkPolicy" || kind == "StagedNetworkPolicy" {
		kind += "." + Group
	}
	return policy.Ref{Kind: kind, Namespace: m.Namespace, Name: m.Name}
}

// order is that of a tier or policy. JSON has neither infinities nor NaN, and what a float64 cannot hold was
// refused when it was read.
func order(o *float64) float64 {
	if o == nil {
		return policy.NoOrder
	}
	return *o
}

// tier keeps the tiers that are always there as they are, like Calico.
func tier(at place, o *Tier) (*policy.Tier, error) {
	if why := validation.IsDNS1123Label(o.Name); len(why) > 0 {
		return nil, at.field("metadata.name").bad(o.Name, "the name of a tier: at most 63 lower-case letters, digits and -")
	}
	t := &policy.Tier{Name: o.Name, Order: order(o.Spec.Order), Default: policy.Deny}
	builtins := policy.BuiltinTiers()
	i := slices.IndexFunc(builtins, func(b policy.Tier) bool { return b.Name == o.Name })
	if i >= 0 {
		t.Default = builtins[i].Default
	}
	given := at.field("spec.defaultAction")
	switch o.Spec.DefaultAction {
	case "":
	case "Deny":
		t.Default = policy.Deny
	case "Pass":
		t.Default = policy.Pass
	default:
		return nil, given.bad(o.Spec.DefaultAction, "Deny or Pass")
	}
	if i < 0 {
		return t, nil
	}
	if t.Order != builtins[i].Order {
		value := any("")
		if o.Spec.Order != nil {
			value = *o.Spec.Order
		}
		return nil, at.field("spec.order").bad(value, fmt.Sprintf("%.0f, which tier %s always has", builtins[i].Order, o.Name))
	}
	if t.Default != builtins[i].Default {
		want := "Deny"
		if builtins[i].Default == policy.Pass {
			want = "Pass"
		}
		return nil, given.bad(o.Spec.DefaultAction, want+", which tier "+o.Name+" always has")
	}
	return t, nil
}

func networkSet(at place, m *Meta, spec NetworkSetSpec) (*policy.NetworkSet, error) {
	labels, err := ownLabels(at.field("metadata.labels"), m.Labels)
	if err != nil {
		return nil, err
	}
	s := &policy.NetworkSet{Ref: m.ref(), Labels: labels}
	for i, text := range spec.Nets {
		n, err := at.field("spec.nets").item(i).looseNetwork(text)
		if err != nil {
			return nil, err
		}
		s.Nets = append(s.Nets, n)
	}
	return s, nil
}

// ownLabels holds labels to the rules of Kubernetes, and keeps those to Heddle that say where something is.
func ownLabels(at place, labels map[string]string) (map[string]string, error) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		switch {
		case key == policy.LabelNamespace, key == policy.LabelOrchestrator, key == policy.LabelServiceAccount,
			strings.HasPrefix(key, policy.PrefixNamespace), strings.HasPrefix(key, policy.PrefixServiceAcct):
			return nil, at.bad(key, "another label: this one is not given by people")
		}
		if why := validation.IsQualifiedName(key); len(why) > 0 {
			return nil, at.bad(key, "a label's key: "+why[0])
		}
		if why := validation.IsValidLabelValue(labels[key]); len(why) > 0 {
			return nil, at.field(key).bad(labels[key], "a label's value: "+why[0])
		}
	}
	return labels, nil
}

// defaultAllow is the profile of the host endpoints that Calico makes by itself.
const defaultAllow = "projectcalico-default-allow"

func hostEndpoint(at place, o *HostEndpoint) (*policy.HostEndpoint, error) {
	labels, err := ownLabels(at.field("metadata.labels"), o.Labels)
	if err != nil {
		return nil, err
	}
	spec, in := o.Spec, at.field("spec")
	if !model.ValidName(spec.Node) {
		return nil, in.field("node").bad(spec.Node, "a node's name")
	}
	if spec.InterfaceName == "" && len(spec.ExpectedIPs) == 0 {
		return nil, in.field("interfaceName").bad("", "an interface's name or *, or else expectedIPs to find it by")
	}
	if name := spec.InterfaceName; name != "" && name != "*" && (!model.ValidIfName(name) || strings.Contains(name, "*")) {
		return nil, in.field("interfaceName").bad(spec.InterfaceName, "an interface's name, or *")
	}
	for i, p := range spec.Profiles {
		if p != defaultAllow || spec.InterfaceName != "*" {
			return nil, in.field("profiles").item(i).bad(p, "no profiles, or "+defaultAllow+" where interfaceName is *: write a policy instead")
		}
	}
	h := &policy.HostEndpoint{Ref: o.ref(), Node: spec.Node, Interface: spec.InterfaceName, Labels: labels}
	if h.Expected, err = addresses(in.field("expectedIPs"), spec.ExpectedIPs); err != nil {
		return nil, err
	}
	for i, p := range spec.Ports {
		port, err := endpointPort(in.field("ports").item(i), p)
		if err != nil {
			return nil, err
		}
		h.Ports = append(h.Ports, port)
	}
	return h, nil
}

func addresses(at place, texts []string) ([]netip.Addr, error) {
	var list []netip.Addr
	for i, text := range texts {
		a, err := at.item(i).address(text)
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}

func endpointPort(at place, p EndpointPort) (policy.NamedPort, error) {
	if !validPortName(p.Name) {
		return policy.NamedPort{}, at.field("name").bad(p.Name, wantPortName)
	}
	protocol, err := protocolNumber(at.field("protocol"), &p.Protocol)
	if err != nil {
		return policy.NamedPort{}, err
	}
	if !hasPorts(protocol) {
		return policy.NamedPort{}, at.field("protocol").bad(string(p.Protocol), "TCP, UDP or SCTP")
	}
	if p.Port < 1 || p.Port > 65535 {
		return policy.NamedPort{}, at.field("port").bad(p.Port, "1..65535")
	}
	return policy.NamedPort{Name: p.Name, Protocol: uint8(protocol), Port: uint16(p.Port)}, nil
}
