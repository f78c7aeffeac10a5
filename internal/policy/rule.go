package policy

import (
	"cmp"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// policyRec is one policy that the compiler was told.
type policyRec struct {
	*Policy
	key    string
	serial uint64
	// uses are how many classes that are policed here it selects: workloads, and host endpoints.
	uses [2]int
	// slots are its rules, compiled while it is in use.
	slots   [slots]*slot
	waiting bool // in Compiler.activity
}

// The slots: whom a policy selects, and the direction.
const (
	workloadIngress = iota
	workloadEgress
	hostIngress
	hostEgress
	slots
)

// slot is the rules of a policy for one direction, and for workloads or host endpoints.
type slot struct {
	rules  []crule
	family bool // some rule is about one family only
}

// crule is a rule of which the ends are predicates.
type crule struct {
	*Rule
	remote, local *pred // nil: asks nothing
	remoteIsDest  bool
	said          *because // once it was needed
}

func familyNets(f model.Family) []netip.Prefix {
	if f == model.IPv4 {
		return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	}
	return []netip.Prefix{netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

// applies tells whether the policy says anything in the slot.
func (p *policyRec) applies(n int) bool {
	ingress := n == workloadIngress || n == hostIngress
	if ingress && !p.AppliesIngress || !ingress && !p.AppliesEgress {
		return false
	}
	switch p.HostMode {
	case HostPreDNAT:
		return n == hostIngress
	case HostUntracked:
		return n == hostIngress || n == hostEgress
	}
	return true
}

// compileSlot makes predicates of the rules' ends.
func (p *policyRec) compileSlot(n int, ps *preds, as *atoms) *slot {
	rules, ingress, host := p.Ingress, n == workloadIngress || n == hostIngress, n >= hostIngress
	if !ingress {
		rules = p.Egress
	}
	s := &slot{rules: make([]crule, 0, len(rules))}
	for i := range rules {
		r := &rules[i]
		remote, local := &r.Source, &r.Dest
		if !ingress {
			remote, local = &r.Dest, &r.Source
		}
		in := sideContext{dest: !ingress, remote: true, protocol: max(r.Protocol, AnyProtocol)}
		if host {
			in.family = r.Family
		} else if r.Family != 0 {
			s.family = true
		}
		far, never := ps.get(as, remote, in)
		if never {
			continue
		}
		in.dest, in.remote, in.family = ingress, false, 0
		near, never := ps.get(as, local, in)
		if never {
			ps.release(far, true)
			continue
		}
		s.rules = append(s.rules, crule{Rule: r, remote: far, local: near, remoteIsDest: !ingress})
	}
	return s
}

func (s *slot) release(ps *preds) {
	for _, r := range s.rules {
		ps.release(r.remote, true)
		ps.release(r.local, false)
	}
}

// before is the order of policies in a tier.
func before(a, b *policyRec) int {
	x, y := a.Ref.inForce(), b.Ref.inForce()
	return cmp.Or(cmp.Compare(a.Order, b.Order), strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Name, y.Name),
		strings.Compare(x.Kind, y.Kind), strings.Compare(a.Ref.Kind, b.Ref.Kind), strings.Compare(a.key, b.key))
}

// inForce is the name of the policy in force that a staged one of this name stands for.
func (r Ref) inForce() Ref {
	r.Kind = strings.TrimPrefix(r.Kind, "Staged")
	return r
}

// span is a range of ports of one protocol, or of AnyProtocol.
type span struct {
	protocol    int
	first, last uint16
}

// match is what a rule asks of protocol and ports, once both ends are known. Lists that are nil do not restrict.
type match struct {
	protocol, notProtocol int
	icmp, notICMP         *ICMP
	src, dst              []span
	notSrc, notDst        []span
	service               []span
}

// matchOf resolves the rule's ports; source and dest are what the predicates of the ends made of them.
func matchOf(r *Rule, source, dest value) match {
	m := match{protocol: max(r.Protocol, AnyProtocol), notProtocol: max(r.NotProtocol, AnyProtocol), icmp: r.ICMP, notICMP: r.NotICMP}
	lists := source.lists()
	m.src, lists = spans(r.Source.Ports, m.protocol, lists)
	m.notSrc, _ = spans(r.Source.NotPorts, m.protocol, lists)
	lists = dest.lists()
	if r.Dest.Service != nil {
		m.service = append(make([]span, 0, len(lists[0])/3), fromList(lists[0])...)
		lists = lists[1:]
	}
	m.dst, lists = spans(r.Dest.Ports, m.protocol, lists)
	m.notDst, _ = spans(r.Dest.NotPorts, m.protocol, lists)
	if len(r.Source.NotPorts) == 0 {
		m.notSrc = nil
	}
	if len(r.Dest.NotPorts) == 0 {
		m.notDst = nil
	}
	return m
}

// spans resolves a list of ports and returns the lists of names that it did not use. nil stays nil.
func spans(ports []Port, protocol int, lists []string) ([]span, []string) {
	if ports == nil {
		return nil, lists
	}
	out := make([]span, 0, len(ports))
	for _, p := range ports {
		if p.Name == "" {
			if p.First <= p.Last {
				out = append(out, span{protocol, p.First, p.Last})
			}
			continue
		}
		out = append(out, fromList(lists[0])...)
		lists = lists[1:]
	}
	return out, lists
}

func fromList(list string) []span {
	var out []span
	for i := 0; i < len(list); i += 3 {
		port := uint16(list[i+1])<<8 | uint16(list[i+2])
		out = append(out, span{int(list[i]), port, port})
	}
	return out
}

// hasPorts: TCP, UDP, SCTP, DCCP, UDP-Lite.
func hasPorts(protocol int) bool {
	return protocol == 6 || protocol == 17 || protocol == 132 || protocol == 33 || protocol == 136
}

// anyPorts: the protocols that ports of a rule without protocol are of.
func anyPorts(protocol byte) bool { return protocol == 6 || protocol == 17 || protocol == 132 }

func isICMP(protocol int) bool { return protocol == 1 || protocol == 58 }

func (m *match) ported() bool {
	return m.src != nil || m.dst != nil || m.notSrc != nil || m.notDst != nil || m.service != nil
}

// protocolMatches: some packet of the protocol may match. protocol is otherProtocol for those that no rule names.
func (m *match) protocolMatches(protocol int) bool {
	switch {
	case m.protocol >= 0 && m.protocol != protocol, m.notProtocol >= 0 && m.notProtocol == protocol,
		(m.icmp != nil || m.notICMP != nil) && !isICMP(protocol):
		return false
	case !m.ported():
		return true
	case m.protocol >= 0:
		return hasPorts(protocol)
	}
	return protocol >= 0 && anyPorts(byte(protocol))
}

// portsMatch decides for a protocol that matches.
func (m *match) portsMatch(protocol int, src, dst uint16) bool {
	return (m.icmp == nil || m.icmp.has(dst)) && (m.notICMP == nil || !m.notICMP.has(dst)) &&
		(m.src == nil || within(m.src, protocol, src)) && (m.dst == nil || within(m.dst, protocol, dst)) &&
		(m.service == nil || within(m.service, protocol, dst)) &&
		!within(m.notSrc, protocol, src) && !within(m.notDst, protocol, dst)
}

func (i *ICMP) has(dst uint16) bool {
	return i.Type == uint8(dst>>8) && (i.Code < 0 || i.Code == int(dst&255))
}

func within(list []span, protocol int, port uint16) bool {
	for i := range list {
		if s := &list[i]; s.first <= port && port <= s.last && (s.protocol < 0 || s.protocol == protocol) {
			return true
		}
	}
	return false
}
