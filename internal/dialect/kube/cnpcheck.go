package kube

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"unicode/utf8"

	strictjson "sigs.k8s.io/json"
	cnpv1 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Limits of the API server on a ClusterNetworkPolicy.
const (
	maxItems    = 25  // rules of a direction, peers, protocols, networks
	maxRuleName = 100 // characters
)

// checkCNP refuses what Object lets pass, because objects from an API server of a later version may have it.
func checkCNP(a at, c *cnpv1.ClusterNetworkPolicy) error {
	spec := a.field("spec")
	if n := len(c.Spec.Ingress); n > maxItems {
		return tooMany(spec.field("ingress"), n)
	}
	for i, r := range c.Spec.Ingress {
		if err := checkRule(spec.field("ingress").item(i), "from", ingress, asEgress(r)); err != nil {
			return err
		}
	}
	if n := len(c.Spec.Egress); n > maxItems {
		return tooMany(spec.field("egress"), n)
	}
	for i, r := range c.Spec.Egress {
		if err := checkRule(spec.field("egress").item(i), "to", egress, r); err != nil {
			return err
		}
	}
	return nil
}

func tooMany(a at, n int) error {
	return a.bad(json.RawMessage(fmt.Sprintf("[%d]", n)), fmt.Sprintf("at most %d items", maxItems))
}

func checkRule(a at, peersField string, d direction, r cnpv1.ClusterNetworkPolicyEgressRule) error {
	peers, protocols := a.field(peersField), a.field("protocols")
	switch {
	case utf8.RuneCountInString(r.Name) > maxRuleName:
		return a.field("name").bad(r.Name, fmt.Sprintf("at most %d characters", maxRuleName))
	case len(r.To) > maxItems:
		return tooMany(peers, len(r.To))
	case len(r.Protocols) > maxItems:
		return tooMany(protocols, len(r.Protocols))
	case r.Protocols != nil && len(r.Protocols) == 0:
		return protocols.bad(r.Protocols, "at least one, or no such field")
	}
	networks := false
	for i, p := range r.To {
		if err := checkPeer(peers.item(i), d, p); err != nil {
			return err
		}
		networks = networks || p.Networks != nil
	}
	for i, p := range r.Protocols {
		a := protocols.item(i)
		switch understood, err := cnpProtocol(a, p, &l4List{}); {
		case err != nil:
			return err
		case !understood:
			return a.bad(p, "tcp, udp or sctp with a destinationPort of number or range, or destinationNamedPort; one of them")
		case networks && p.DestinationNamedPort != "":
			return a.field("destinationNamedPort").bad(p.DestinationNamedPort, "no named port in a rule with networks, which have none")
		}
	}
	return nil
}

func checkPeer(a at, d direction, p cnpv1.ClusterNetworkPolicyEgressPeer) error {
	want := "namespaces, pods or networks, one of them"
	if d == ingress {
		want = "namespaces or pods, one of them"
	}
	switch {
	case p.Nodes != nil:
		return a.field("nodes").bad(p.Nodes, want+": labels of nodes are not known here")
	case p.DomainNames != nil:
		return a.field("domainNames").bad(p.DomainNames, want+": names are not resolved here")
	case cnpPeerFields(p) != 1:
		return a.bad(p, want)
	case len(p.Networks) > maxItems:
		return tooMany(a.field("networks"), len(p.Networks))
	}
	for i, n := range p.Networks {
		if slices.Contains(p.Networks[:i], n) {
			return a.field("networks").item(i).bad(n, "each network once")
		}
	}
	return nil
}

// ruleRE finds the rule that a field's path leads into.
var ruleRE = regexp.MustCompile(`^spec\.(ingress|egress)\[(\d+)\]\.`)

// closeUnknown looks for unknown fields in rules: such a rule gets one peer without any field. It returns the
// rest of what is wrong, and the error for the first unknown field.
func closeUnknown(a at, c *cnpv1.ClusterNetworkPolicy, body []byte, wrong []strictjson.FieldError) (rest []strictjson.FieldError, unknown error) {
	for _, w := range wrong {
		rule := ruleRE.FindStringSubmatch(w.FieldPath())
		if rule == nil {
			rest = append(rest, w)
			continue
		}
		i, err := strconv.Atoi(rule[2])
		switch {
		case err == nil && rule[1] == "ingress" && i < len(c.Spec.Ingress):
			c.Spec.Ingress[i].From = []cnpv1.ClusterNetworkPolicyIngressPeer{{}}
		case err == nil && rule[1] == "egress" && i < len(c.Spec.Egress):
			c.Spec.Egress[i].To = []cnpv1.ClusterNetworkPolicyEgressPeer{{}}
		default:
			rest = append(rest, w)
			continue
		}
		if unknown == nil {
			unknown = explainStrict(a, body, c, w)
		}
	}
	return rest, unknown
}

// present is what tells a required field that is absent from one that has its type's zero value.
type present struct {
	Spec struct {
		Priority *json.RawMessage `json:"priority"`
		Subject  presentPeer      `json:"subject"`
		Ingress  []struct {
			From []presentPeer `json:"from"`
		} `json:"ingress"`
		Egress []struct {
			To []presentPeer `json:"to"`
		} `json:"egress"`
	} `json:"spec"`
}

type presentPeer struct {
	Pods *struct {
		PodSelector *json.RawMessage `json:"podSelector"`
	} `json:"pods"`
}

// presentCNP looks for required fields of which absence would mean the most: the first priority, every pod.
func presentCNP(a at, body []byte) error {
	var p present
	if err := strictjson.UnmarshalCaseSensitivePreserveInts(body, &p); err != nil {
		return fmt.Errorf("%s: %w", a.noun, err) // readStrict took it
	}
	spec := a.field("spec")
	if p.Spec.Priority == nil {
		return spec.field("priority").bad(nil, fmt.Sprintf("0..%d", maxPriority))
	}
	missing := func(a at, peers ...presentPeer) error {
		i := slices.IndexFunc(peers, func(p presentPeer) bool { return p.Pods != nil && p.Pods.PodSelector == nil })
		if i < 0 {
			return nil
		}
		if a.path != "spec.subject" {
			a = a.item(i)
		}
		return a.field("pods").field("podSelector").bad(nil, "a selector; {} for every pod")
	}
	if err := missing(spec.field("subject"), p.Spec.Subject); err != nil {
		return err
	}
	for i, r := range p.Spec.Ingress {
		if err := missing(spec.field("ingress").item(i).field("from"), r.From...); err != nil {
			return err
		}
	}
	for i, r := range p.Spec.Egress {
		if err := missing(spec.field("egress").item(i).field("to"), r.To...); err != nil {
			return err
		}
	}
	return nil
}
