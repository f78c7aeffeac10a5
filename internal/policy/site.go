package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// site is a place that is policed here: an address of a local workload, or an interface of this host.
type site struct {
	addr    *address        // of a workload
	link    string          // of a host endpoint
	host    *holder         // of a host endpoint
	of      *HostEndpoint   // of a host endpoint
	named   bool            // the host endpoint is of one interface
	addrs   []netip.Addr    // of a host endpoint: what is known of its end of a packet
	classes []*class        // that have it
	ends    [Hooks]*end     // those that are policed
	dirty   bool            // its programs are to be found anew
	group   *group          // of addr, when it was looked at last
	wrong   []model.Problem // what its host endpoint cannot do
}

// end is one entry of Locals.
type end struct {
	local   Local
	program *program
	pos     int // in program.ends
}

// tierRec is a tier, written or built in, that is in force.
type tierRec struct {
	Tier
	serial uint64
}

// hooksOf are the hooks at which a slot's policies work, for each mode.
func hooksOf(p *policyRec, slot int) []Hook {
	switch slot {
	case workloadIngress:
		return []Hook{WorkloadIngress}
	case workloadEgress:
		return []Hook{WorkloadEgress}
	case hostIngress:
		return [...][]Hook{HostNormal: {HostInput}, HostForward: {HostInput, HostForwardIn}, HostPreDNAT: {HostPreDNATIn}, HostUntracked: {HostUntrackedIn}}[p.HostMode]
	}
	return [...][]Hook{HostNormal: {HostOutput}, HostForward: {HostOutput, HostForwardOut}, HostPreDNAT: nil, HostUntracked: {HostUntrackedOut}}[p.HostMode]
}

// slotOf is the slot of which a hook takes its rules.
func slotOf(h Hook) int {
	switch h {
	case WorkloadIngress:
		return workloadIngress
	case WorkloadEgress:
		return workloadEgress
	case HostInput, HostForwardIn, HostPreDNATIn, HostUntrackedIn:
		return hostIngress
	}
	return hostEgress
}

// policies lists what selects the site at the hook, in order; staged ones and those in force.
func (c *Compiler) policies(s *site, h Hook) []*policyRec {
	n := slotOf(h)
	var out []*policyRec
	for i, k := range s.classes {
		for p := range k.selected {
			if p.slots[n] == nil || c.tiers[p.Tier] == nil || !slices.Contains(hooksOf(p, n), h) {
				continue
			}
			if i > 0 && slices.Contains(out, p) {
				continue
			}
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *policyRec) int {
		if a.Tier != b.Tier {
			return compareTier(c.tiers[a.Tier], c.tiers[b.Tier])
		}
		return before(a, b)
	})
	return out
}

func compareTier(a, b *tierRec) int {
	switch {
	case a.Order < b.Order:
		return -1
	case a.Order > b.Order:
		return 1
	}
	return strings.Compare(a.Name, b.Name)
}

// localValue tells what a predicate makes of the site's own end. unsure: of a host endpoint it is not the
// same for all packets.
func (c *Compiler) localValue(s *site, h Hook, p *pred) (v value, unsure bool) {
	if p == nil {
		return yes, false
	}
	if s.host == nil {
		return p.evaluate(s.group.facts), false
	}
	if len(p.has)+len(p.hasNot) == 0 { // only ports by name
		return p.evaluate(s.host.facts()), false
	}
	if h != HostInput && h != HostOutput || len(s.addrs) == 0 {
		return no, true
	}
	for i, a := range s.addrs {
		n := p.evaluate(c.factsAt(a).with(s.host.facts()))
		if i > 0 && n != v {
			return no, true
		}
		v = n
	}
	return v, false
}

// factsAt tells what is true of any address.
func (c *Compiler) factsAt(n netip.Addr) facts {
	var f facts
	if g := c.nets.find(n); g != nil {
		f = g.facts
	}
	if a := c.book.get(n); a != nil {
		c.book.owners(a, func(h *holder) { f = f.with(h.facts()) })
	}
	return f
}
