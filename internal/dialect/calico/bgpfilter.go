package calico

import (
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

func (p place) bgpFilter(o *BGPFilter) (func(*reading), error) {
	out := peering.Filter{Name: o.Name, Rules: []peering.Rule{}}
	for _, of := range []struct {
		field     string
		direction peering.Direction
		family    model.Family
		rules     []BGPFilterRule
	}{
		{"exportV4", peering.Export, model.IPv4, o.Spec.ExportV4},
		{"exportV6", peering.Export, model.IPv6, o.Spec.ExportV6},
		{"importV4", peering.Import, model.IPv4, o.Spec.ImportV4},
		{"importV6", peering.Import, model.IPv6, o.Spec.ImportV6},
	} {
		for i := range of.rules {
			rule, err := p.field("spec."+of.field).item(i).filterRule(&of.rules[i], of.direction, of.family)
			if err != nil {
				return nil, err
			}
			out.Rules = append(out.Rules, rule)
		}
	}
	return func(r *reading) { r.BGP.Filters = append(r.BGP.Filters, out) }, nil
}

func (p place) filterRule(in *BGPFilterRule, direction peering.Direction, family model.Family) (peering.Rule, error) {
	out := peering.Rule{Direction: direction, Family: family}
	fail := func(err error) (peering.Rule, error) { return peering.Rule{}, err }
	if in.Interface != "" {
		return fail(p.field("interface").bad(in.Interface, "nothing: routes are told apart by what they lead to, not by interfaces; use cidr or source"))
	}
	if len(in.Priority) > 0 {
		return fail(p.field("priority").bad(raw(in.Priority), "nothing: routes here have no priority of Felix; use communities"))
	}
	var err error
	if err = p.filterPrefix(in, &out); err != nil {
		return fail(err)
	}
	if in.Source != "" {
		if _, err = p.field("source").oneOf(in.Source, "RemotePeers"); err != nil {
			return fail(err)
		}
		out.Learned = direction == peering.Export // what is imported always is
	}
	if in.PeerType != "" {
		kind, err := p.field("peerType").oneOf(in.PeerType, string(peering.Internal), string(peering.External))
		if err != nil {
			return fail(err)
		}
		out.Kind = peering.SessionKind(kind)
	}
	if in.Communities != nil {
		if len(in.Communities.Values) == 0 {
			return fail(p.field("communities.values").bad("", "at least one community"))
		}
		for i, text := range in.Communities.Values {
			c, err := p.field("communities.values").item(i).plainCommunity(text)
			if err != nil {
				return fail(err)
			}
			out.Communities = append(out.Communities, c)
		}
	}
	if out.ASPath, err = p.field("asPathPrefix").asPath(in.ASPathPrefix); err != nil {
		return fail(err)
	}
	switch in.Action {
	case "Accept":
		out.Accept = true
	case "Reject":
	default:
		return fail(p.field("action").bad(in.Action, "Accept or Reject"))
	}
	if len(in.Operations) > 0 && !out.Accept {
		return fail(p.field("operations").bad(given{}, "nothing beside action Reject"))
	}
	for i := range in.Operations {
		o, err := p.field("operations").item(i).operation(&in.Operations[i])
		if err != nil {
			return fail(err)
		}
		out.Operations = append(out.Operations, o)
	}
	return out, nil
}

// filterPrefix reads what the route leads to.
func (p place) filterPrefix(in *BGPFilterRule, out *peering.Rule) error {
	if in.CIDR == "" {
		switch {
		case in.MatchOperator != "":
			return p.field("matchOperator").bad(in.MatchOperator, "nothing without cidr")
		case in.PrefixLength != nil:
			return p.field("prefixLength").bad(given{}, "nothing without cidr")
		}
		return nil
	}
	n, err := p.field("cidr").network(in.CIDR)
	if err != nil {
		return err
	}
	if model.FamilyOf(n.Addr()) != out.Family {
		return p.field("cidr").bad(in.CIDR, "a range of "+out.Family.String())
	}
	out.CIDR = n
	if in.MatchOperator == "" {
		return p.field("matchOperator").bad("", "Equal, NotEqual, In or NotIn beside cidr")
	}
	match, err := p.field("matchOperator").oneOf(in.MatchOperator, string(peering.MatchEqual), string(peering.MatchNotEqual), string(peering.MatchIn), string(peering.MatchNotIn))
	if err != nil {
		return err
	}
	out.Match = peering.Match(match)
	if l := in.PrefixLength; l != nil {
		at := p.field("prefixLength")
		if _, err := at.field("min").number(l.Min, 0, out.Family.Bits()); err != nil {
			return err
		}
		if _, err := at.field("max").number(l.Max, 0, out.Family.Bits()); err != nil {
			return err
		}
		if l.Min != nil && l.Max != nil && *l.Min > *l.Max {
			return at.field("max").bad(*l.Max, "a length not below min")
		}
		out.MinLength, out.MaxLength = l.Min, l.Max
	}
	return nil
}

func (p place) plainCommunity(text string) (peering.Community, error) {
	var c peering.Community
	if c.UnmarshalText([]byte(text)) != nil {
		return c, p.bad(text, "AA:NN of 0..65535 or AA:BB:CC of 0..4294967295")
	}
	return c, nil
}

func (p place) asPath(list []ASNumber) ([]uint32, error) {
	var out []uint32
	for i := range list {
		n, err := p.item(i).asn(&list[i])
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

// operation reads one change of a route.
func (p place) operation(in *FilterOperation) (out peering.Operation, err error) {
	const one = "exactly one of addCommunity and prependASPath"
	switch {
	case len(in.SetPriority) > 0:
		return out, p.field("setPriority").bad(raw(in.SetPriority), "nothing: routes here have no priority of Felix; use "+one)
	case in.AddCommunity != nil && in.PrependASPath == nil:
		c, err := p.field("addCommunity.value").plainCommunity(in.AddCommunity.Value)
		return peering.Operation{AddCommunity: &c}, err
	case in.PrependASPath != nil && in.AddCommunity == nil:
		at := p.field("prependASPath.prefix")
		const most = 10
		if n := len(in.PrependASPath.Prefix); n == 0 || n > most {
			return out, at.bad(n, "1..10 numbers of ASes")
		}
		out.PrependAS, err = at.asPath(in.PrependASPath.Prefix)
		return out, err
	}
	return out, p.bad(given{}, one)
}
