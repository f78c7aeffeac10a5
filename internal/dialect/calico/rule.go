package calico

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/selector"
)

// The protocols that Calico knows by name.
var protocols = map[Protocol]int{"TCP": 6, "UDP": 17, "SCTP": 132, "UDPLite": 136, "ICMP": icmpv4, "ICMPv6": icmpv6}

const icmpv4, icmpv6 = 1, 58

// hasPorts reports whether ports mean something, as Calico has it: UDPLite does not count.
func hasPorts(protocol int) bool { return protocol == 6 || protocol == 17 || protocol == 132 }

var actions = map[string]policy.Action{"Allow": policy.Allow, "Deny": policy.Deny, "Pass": policy.Pass, "Log": policy.Log}

// rules reads the rules of one direction. namespace is the policy's, empty for a global one.
func rules(at place, namespace string, d policy.Direction, list []Rule) ([]policy.Rule, error) {
	var out []policy.Rule
	for i, r := range list {
		rule, err := newRule(at.item(i), namespace, d, &r)
		if err != nil {
			return nil, err
		}
		rule.Index = i
		out = append(out, rule)
	}
	return out, nil
}

func newRule(at place, namespace string, d policy.Direction, r *Rule) (out policy.Rule, err error) {
	var ok bool
	if out.Action, ok = actions[r.Action]; !ok {
		return out, at.field("action").bad(r.Action, "Allow, Deny, Pass or Log")
	}
	if len(r.HTTP) > 0 && string(r.HTTP) != "null" {
		return out, at.field("http").bad(string(r.HTTP), "nothing: Heddle does not look into HTTP")
	}
	if out.Protocol, err = protocolNumber(at.field("protocol"), r.Protocol); err != nil {
		return out, err
	}
	if out.NotProtocol, err = protocolNumber(at.field("notProtocol"), r.NotProtocol); err != nil {
		return out, err
	}
	if out.ICMP, err = icmp(at.field("icmp"), out.Protocol, r.ICMP); err != nil {
		return out, err
	}
	if out.NotICMP, err = icmp(at.field("notICMP"), out.Protocol, r.NotICMP); err != nil {
		return out, err
	}
	if out.Source, err = side(at.field("source"), namespace, &r.Source, out.Protocol, d == policy.Ingress); err != nil {
		return out, err
	}
	if out.Dest, err = side(at.field("destination"), namespace, &r.Destination, out.Protocol, d == policy.Egress); err != nil {
		return out, err
	}
	if out.Dest.Service != nil && len(out.Dest.Ports)+len(out.Dest.NotPorts) > 0 {
		return out, at.field("destination.services").bad(r.Destination.Services.Name, "no ports or notPorts beside it: a service has its own")
	}
	out.Family, err = family(at, r, &out)
	return out, err
}

// family is the IP version that the rule names, or that its networks are of, also those that must not match: so
// Felix has it. 0 is both.
func family(at place, r *Rule, out *policy.Rule) (model.Family, error) {
	var f model.Family
	if r.IPVersion != nil {
		f = model.Family(*r.IPVersion)
		if f != model.IPv4 && f != model.IPv6 {
			return 0, at.field("ipVersion").bad(*r.IPVersion, "4 or 6")
		}
		if f != model.IPv4 && (out.Protocol == icmpv4 || out.NotProtocol == icmpv4) {
			return 0, at.field("ipVersion").bad(*r.IPVersion, "4 with ICMP")
		}
		if f != model.IPv6 && (out.Protocol == icmpv6 || out.NotProtocol == icmpv6) {
			return 0, at.field("ipVersion").bad(*r.IPVersion, "6 with ICMPv6")
		}
	}
	for _, l := range []struct {
		field string
		nets  []netip.Prefix
	}{
		{"source.nets", out.Source.Nets},
		{"source.notNets", out.Source.NotNets},
		{"destination.nets", out.Dest.Nets},
		{"destination.notNets", out.Dest.NotNets},
	} {
		for i, n := range l.nets {
			of := model.FamilyOf(n.Addr())
			if f != 0 && f != of {
				return 0, at.field(l.field).item(i).bad(n.String(), "IPv"+strconv.Itoa(int(f))+" only, as the rule's ipVersion or its other networks")
			}
			f = of
		}
	}
	return f, nil
}

// protocolNumber is that of a name or number; AnyProtocol for none.
func protocolNumber(at place, p *Protocol) (int, error) {
	if p == nil {
		return policy.AnyProtocol, nil
	}
	if n, ok := protocols[*p]; ok {
		return n, nil
	}
	n, err := strconv.ParseUint(string(*p), 10, 8)
	if err != nil || n == 0 {
		return 0, at.bad(string(*p), "TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6 or 1..255")
	}
	return int(n), nil
}

// icmp reads a type and code; nil when neither is given.
func icmp(at place, protocol int, i *ICMP) (*policy.ICMP, error) {
	switch {
	case i == nil:
		return nil, nil
	case protocol != icmpv4 && protocol != icmpv6:
		return nil, at.bad(given{}, "protocol ICMP or ICMPv6 beside it")
	case i.Type == nil && i.Code == nil:
		return nil, nil
	case i.Type == nil:
		return nil, at.field("type").bad("", "the type that the code is of")
	case *i.Type < 0 || *i.Type > 254:
		return nil, at.field("type").bad(*i.Type, "0..254")
	case i.Code == nil:
		return &policy.ICMP{Type: uint8(*i.Type), Code: -1}, nil
	case *i.Code < 0 || *i.Code > 255:
		return nil, at.field("code").bad(*i.Code, "0..255")
	}
	return &policy.ICMP{Type: uint8(*i.Type), Code: *i.Code}, nil
}

// side reads one end. remote says that it is the end which the policy does not select.
func side(at place, namespace string, e *EntityRule, protocol int, remote bool) (out policy.Side, err error) {
	if out.Nets, err = networks(at.field("nets"), e.Nets); err != nil {
		return out, err
	}
	if out.NotNets, err = networks(at.field("notNets"), e.NotNets); err != nil {
		return out, err
	}
	if out.Ports, err = ports(at.field("ports"), e.Ports, protocol); err != nil {
		return out, err
	}
	if out.NotPorts, err = ports(at.field("notPorts"), e.NotPorts, protocol); err != nil {
		return out, err
	}
	if e.Services != nil {
		out.Service, err = service(at.field("services"), namespace, e, remote)
		return out, err
	}
	if e.NotSelector != "" {
		s, err := readSelector(at.field("notSelector"), e.NotSelector)
		if err != nil {
			return out, err
		}
		out.NotSelector = &s
	}
	out.Selector, err = chosen(at, namespace, e)
	return out, err
}

// chosen is who may be at this end; nil for everybody, also those whom nobody knows.
//
// In a namespace's policy every selector is confined: to what namespaceSelector says, or else to the policy's
// own namespace. That goes for notSelector, too: with it alone, what matches is in the namespace, and not one of
// those. In a global policy only namespaceSelector confines.
func chosen(at place, namespace string, e *EntityRule) (*selector.Selector, error) {
	var parts []selector.Selector
	asked := e.NotSelector != "" && namespace != ""
	if e.NamespaceSelector != "" {
		s, err := parseSelector(at.field("namespaceSelector"), e.NamespaceSelector)
		if err != nil {
			return nil, err
		}
		if s.UsesGlobal() && s.String() != "global()" {
			return nil, at.field("namespaceSelector").bad(e.NamespaceSelector, "global() alone, or selectors without it")
		}
		parts, asked = append(parts, s.WithPrefix(policy.PrefixNamespace)), true
	} else if namespace != "" {
		parts = append(parts, selector.Equal(policy.LabelNamespace, namespace))
	}
	if a := e.ServiceAccounts; a != nil {
		if a.Selector != "" {
			s, err := readSelector(at.field("serviceAccounts.selector"), a.Selector)
			if err != nil {
				return nil, err
			}
			parts, asked = append(parts, s.WithPrefix(policy.PrefixServiceAcct)), true
		}
		for i, name := range a.Names {
			if !model.ValidName(name) {
				return nil, at.field("serviceAccounts.names").item(i).bad(name, "a service account's name")
			}
		}
		if len(a.Names) > 0 {
			parts, asked = append(parts, selector.In(policy.LabelServiceAccount, a.Names...)), true
		}
	}
	if e.Selector != "" {
		s, err := readSelector(at.field("selector"), e.Selector)
		if err != nil {
			return nil, err
		}
		parts, asked = append(parts, s), true
	}
	if !asked {
		return nil, nil
	}
	s := selector.And(parts...)
	return &s, nil
}

// service reads the name of a service, which stands alone.
func service(at place, namespace string, e *EntityRule, remote bool) (*policy.ServiceRef, error) {
	s := e.Services
	ref := &policy.ServiceRef{Namespace: s.Namespace, Name: s.Name}
	if ref.Namespace == "" {
		ref.Namespace = namespace
	}
	switch {
	case !remote:
		return nil, at.bad(s.Name, "services in an ingress rule's source or an egress rule's destination only")
	case !model.ValidName(s.Name):
		return nil, at.field("name").bad(s.Name, "a service's name")
	case !model.ValidName(ref.Namespace):
		return nil, at.field("namespace").bad(s.Namespace, "the service's namespace")
	case e.Selector != "" || e.NotSelector != "" || e.NamespaceSelector != "" || e.ServiceAccounts != nil || len(e.Nets)+len(e.NotNets) > 0:
		return nil, at.bad(s.Name, "no nets, selectors or service accounts beside it")
	}
	return ref, nil
}

func networks(at place, texts []string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for i, text := range texts {
		n, err := at.item(i).network(text)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, nil
}

const wantPortName = "a port's name: at most 15 lower-case letters, digits and -, with a letter among them"

func validPortName(name string) bool { return len(validation.IsValidPortName(name)) == 0 }

func ports(at place, list []Port, protocol int) ([]policy.Port, error) {
	var out []policy.Port
	for i, text := range list {
		p, ok := port(string(text))
		if !ok {
			return nil, at.item(i).bad(string(text), "a port in 1..65535, a range such as 1000:2000, or a port's name")
		}
		out = append(out, p)
	}
	if len(out) > 0 && !hasPorts(protocol) {
		return nil, at.bad(given{}, "protocol TCP, UDP or SCTP beside it")
	}
	return out, nil
}

// port reads 80, 1000:2000 or a name.
func port(text string) (policy.Port, bool) {
	isDigit := func(r rune) bool { return '0' <= r && r <= '9' }
	first, last, ranged := strings.Cut(text, ":")
	if !ranged {
		last = first
	}
	if slices.ContainsFunc([]rune(first+last), func(r rune) bool { return !isDigit(r) }) || first == "" || last == "" {
		return policy.Port{Name: text}, validPortName(text)
	}
	lo, errLo := strconv.ParseUint(first, 10, 16)
	hi, errHi := strconv.ParseUint(last, 10, 16)
	return policy.Port{First: uint16(lo), Last: uint16(hi)}, errLo == nil && errHi == nil && 1 <= lo && lo <= hi
}
