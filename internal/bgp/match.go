package bgp

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/osrg/gobgp/v4/api"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// This file turns conditions on prefixes into gobgp's sets of prefixes with ranges of lengths, which know no "not":
// what does not lie in a range is the union of its siblings on the way up, and of what contains it.

// matching is the set of prefixes that a rule is about; all: every one.
func matching(r *peering.Rule) (set []*api.Prefix, all bool) {
	low, high := 0, bits(r.Family)
	if r.MinLength != nil {
		low = max(low, *r.MinLength)
	}
	if r.MaxLength != nil {
		high = min(high, *r.MaxLength)
	}
	if !r.CIDR.IsValid() {
		if low == 0 && high == bits(r.Family) {
			return nil, true
		}
		return some(inside(everything(r.Family), low, high)), false
	}
	if family(r.CIDR) != r.Family {
		// Nothing of the rule's family is or lies in it.
		return nil, r.Match == peering.MatchNotEqual || r.Match == peering.MatchNotIn
	}
	equal := func() []*api.Prefix {
		if n := r.CIDR.Bits(); low <= n && n <= high {
			return some(inside(r.CIDR, n, n))
		}
		return nil
	}
	switch r.Match {
	case peering.MatchEqual:
		return equal(), false
	case peering.MatchNotEqual:
		if len(equal()) == 0 {
			return nil, true
		}
		return append(outside(r.CIDR), some(inside(r.CIDR, r.CIDR.Bits()+1, 128))...), false
	case peering.MatchNotIn:
		// All but those that lie in it and are of those lengths.
		set = append(outside(r.CIDR), some(inside(r.CIDR, 0, low-1))...)
		return append(set, some(inside(r.CIDR, high+1, 128))...), false
	}
	return some(inside(r.CIDR, low, high)), false
}

// some drops a range that is empty.
func some(p *api.Prefix) []*api.Prefix {
	if p.MaskLengthMin > p.MaskLengthMax {
		return nil
	}
	return []*api.Prefix{p}
}

// inside are the prefixes that are or lie in x, of lengths from low to high.
func inside(x netip.Prefix, low, high int) *api.Prefix {
	if high < 0 {
		return &api.Prefix{IpPrefix: x.String(), MaskLengthMin: 1} // none: its maximum is 0
	}
	return &api.Prefix{IpPrefix: x.String(), MaskLengthMin: uint32(max(low, x.Bits())), MaskLengthMax: uint32(min(high, x.Addr().BitLen()))}
}

// outside are all prefixes that neither are nor lie in x.
func outside(x netip.Prefix) []*api.Prefix {
	var out []*api.Prefix
	for n := range x.Bits() {
		out = append(out, inside(netip.PrefixFrom(x.Addr(), n).Masked(), n, n), inside(sibling(x.Addr(), n), 0, 128))
	}
	return out
}

// sibling is the prefix of n+1 bits that differs from a in its last bit.
func sibling(a netip.Addr, n int) netip.Prefix {
	b := a.AsSlice()
	b[n/8] ^= 0x80 >> (n % 8)
	s, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(s, n+1).Masked()
}

// overlapping are those that are, lie in, or contain x.
func overlapping(x netip.Prefix) []*api.Prefix {
	out := []*api.Prefix{inside(x, 0, 128)}
	for n := range x.Bits() {
		out = append(out, inside(netip.PrefixFrom(x.Addr(), n).Masked(), n, n))
	}
	return out
}

// beginning are those whose first address lies in x, but for the default route.
func beginning(x netip.Prefix) []*api.Prefix {
	out := []*api.Prefix{inside(x, 1, 128)}
	for n := x.Bits() - 1; n > 0; n-- {
		if up := netip.PrefixFrom(x.Addr(), n); up.Masked() == up {
			out = append(out, inside(up, n, n))
		}
	}
	return out
}

// neverRouted are ranges to which no route leads, whatever filters say; see peering.Plan.Believe.
func neverRouted(f model.Family) (out []*api.Prefix) {
	begin, within := []string{"0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4"}, []string{"0.0.0.0/8", "255.255.255.255/32"}
	if f == model.IPv6 {
		begin, within = []string{"::/128", "::1/128", "fe80::/10", "ff00::/8", "::ffff:0:0/96"}, []string{"::/127"}
	}
	for _, s := range begin {
		out = append(out, beginning(netip.MustParsePrefix(s))...)
	}
	for _, s := range within {
		out = append(out, inside(netip.MustParsePrefix(s), 0, 128))
	}
	return out
}

// badHops are next hops by which a route of a family cannot lead: none, not to send to, of the other family, or
// this node.
func badHops(f model.Family, own []netip.Addr) []string {
	out := []string{"0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/0"}
	if f == model.IPv6 {
		out = []string{"::/128", "::1/128", "fe80::/10", "ff00::/8", "::ffff:0.0.0.0/96", "0.0.0.0/0"}
	}
	for _, a := range own {
		if model.FamilyOf(a) == f {
			out = append(out, a.String())
		}
	}
	return out
}

// mark tells a route for which a rule has already been chosen, while several statements work on it.
const marks = "4294967295:4294967295:"

func mark(n int) string { return fmt.Sprintf("%s%d", marks, n) }

// unmark takes such marks from what neighbours tell, where they would be mistaken.
func (r *ruleset) unmark(p *peering.Plan) {
	for i := range p.Filters {
		for k := range p.Filters[i].Rules {
			if rule := &p.Filters[i].Rules[k]; rule.Direction == peering.Import && rule.Accept && len(prepends(rule, 0)) > 1 {
				r.imports = append(r.imports, &api.Statement{Name: "import unmarked", Conditions: &api.Conditions{}, Actions: &api.Actions{
					LargeCommunity: &api.CommunityAction{Type: api.CommunityAction_TYPE_REMOVE, Communities: []string{"^" + marks}},
				}})
				return
			}
		}
	}
}

// run is a number of equal ASes.
type run struct {
	asn uint32
	n   uint32
}

// prepends are a rule's ASes in the order in which they are put before the path, one after the other. shown is
// the AS that must stay first in what an eBGP neighbour sees (RFC 4271 section 5.1.2); it comes again where
// others were put before it. 0: none.
func prepends(rule *peering.Rule, shown uint32) (out []run) {
	for _, o := range rule.Operations {
		for i := len(o.PrependAS) - 1; i >= 0; i-- {
			if n := len(out); n > 0 && out[n-1].asn == o.PrependAS[i] {
				out[n-1].n++
			} else {
				out = append(out, run{o.PrependAS[i], 1})
			}
		}
	}
	if n := len(out); n > 0 && shown != 0 && out[n-1].asn != shown {
		out = append(out, run{shown, 1})
	}
	return out
}

// accepting are the statements that accept what c matches, after the rule's operations. One statement can put one
// AS before the path; where there are more, the first marks the route, and others see the mark.
func (r *ruleset) accepting(rule *peering.Rule, shown uint32, c *api.Conditions, hop *api.NexthopAction, add func(*api.Conditions, *api.Actions)) {
	last := accept()
	last.Nexthop = hop
	var small, large []string
	for _, o := range rule.Operations {
		switch {
		case o.AddCommunity != nil && slices.Contains(slices.Concat(small, large), o.AddCommunity.String()):
		case o.AddCommunity != nil && o.AddCommunity.Large:
			large = append(large, o.AddCommunity.String())
		case o.AddCommunity != nil:
			small = append(small, o.AddCommunity.String())
		case o.Preference != nil:
			last.LocalPref = &api.LocalPrefAction{Value: *o.Preference}
		}
	}
	if small != nil {
		last.Community = &api.CommunityAction{Type: api.CommunityAction_TYPE_ADD, Communities: small}
	}
	if large != nil {
		last.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_TYPE_ADD, Communities: large}
	}
	runs := prepends(rule, shown)
	if len(runs) == 0 {
		add(c, last)
		return
	}
	if len(runs) == 1 {
		last.AsPrepend = &api.AsPrependAction{Asn: runs[0].asn, Repeat: runs[0].n}
		add(c, last)
		return
	}
	m := mark(len(r.imports) + len(r.exports))
	marked := func() *api.Conditions {
		return &api.Conditions{LargeCommunitySet: &api.MatchSet{
			Type: api.MatchSet_TYPE_ANY, Name: r.set(api.DefinedType_DEFINED_TYPE_LARGE_COMMUNITY, []string{m}, nil),
		}}
	}
	add(c, &api.Actions{LargeCommunity: &api.CommunityAction{Type: api.CommunityAction_TYPE_ADD, Communities: []string{m}}})
	for _, x := range runs {
		add(marked(), &api.Actions{AsPrepend: &api.AsPrependAction{Asn: x.asn, Repeat: x.n}})
	}
	if large != nil {
		add(marked(), &api.Actions{LargeCommunity: last.LargeCommunity})
	}
	last.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_TYPE_REMOVE, Communities: []string{m}}
	add(marked(), last)
}

func everything(f model.Family) netip.Prefix {
	if f == model.IPv6 {
		return netip.MustParsePrefix("::/0")
	}
	return netip.MustParsePrefix("0.0.0.0/0")
}

func bits(f model.Family) int { return everything(f).Addr().BitLen() }

func family(x netip.Prefix) model.Family { return model.FamilyOf(x.Addr()) }

// digest is a short name for a text.
func digest(s string) string {
	h := sha256.Sum256([]byte(s))
	return strings.ToLower(hex.EncodeToString(h[:12]))
}
