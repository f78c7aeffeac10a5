package oracle

import (
	"net/netip"
	"slices"
)

// Direction is seen from the local workload or host.
type Direction int

// The directions.
const (
	Ingress Direction = iota + 1
	Egress
)

func (d Direction) String() string {
	if d == Ingress {
		return "ingress"
	}
	return "egress"
}

// Ref names a policy by kind, namespace and name. Calico's NetworkPolicy is "NetworkPolicy.projectcalico.org", and
// what is staged is called as what it would become, with "Staged" before it.
type Ref struct{ Kind, Namespace, Name string }

// Why says what kind of thing decided.
type Why string

// What can decide.
const (
	NoWorkload Why = "no workload"  // nothing local is there to be policed
	Itself     Why = "itself"       // from a workload to itself
	OwnNode    Why = "own node"     // from the node that the workload runs on
	NoPolicy   Why = "no policy"    // nothing selects the workload, or all that do passed it on
	ByRule     Why = "rule"         // a rule
	ByTier     Why = "tier default" // policies of a tier select the workload, none of them decided
	Closed     Why = "host endpoint without policy"
)

// Verdict is what becomes of a packet in one direction.
type Verdict struct {
	Allow  bool
	Logged bool // a matching Log rule stood before what decided
	Why    Why
	Tier   string
	Policy Ref // that decided, with ByRule
	Rule   int // its place in the policy's list; -1: what Kubernetes allows beyond the list
	// Selecting are the policies of the tier that decided ByTier.
	Selecting []Ref
}

// Oracle judges packets in a world that does not change.
type Oracle struct {
	world     *World
	things    []*thing
	tiers     []tier
	staged    []tier // as if everything that is staged were in force
	selectors map[string]*expr
}

// packet is one, as the rules see it.
type packet struct {
	direction     Direction
	local, remote netip.Addr
	src, dst      netip.Addr
	protocol      uint8
	sport, dport  uint16 // for ICMP dport is type<<8|code
}

// New prepares a world for judging.
func New(w *World) *Oracle {
	o := &Oracle{world: w, things: w.things(), selectors: map[string]*expr{}}
	o.tiers = o.tiersOf(o.inForce())
	o.staged = o.tiersOf(o.ifStaged())
	return o
}

// Judge decides about a packet between a local workload and a remote address, in one direction. The second
// verdict is what would become of it if all that is staged were in force.
func (o *Oracle) Judge(d Direction, local, remote netip.Addr, protocol uint8, sport, dport uint16) (now, staged Verdict) {
	p := packet{direction: d, local: local, remote: remote, src: local, dst: remote, protocol: protocol, sport: sport, dport: dport}
	if d == Ingress {
		p.src, p.dst = remote, local
	}
	var subject *thing
	for _, t := range o.things {
		if t.kind == "workload" && t.at(local) {
			subject = t
			break
		}
	}
	if subject == nil {
		v := Verdict{Allow: true, Why: NoWorkload}
		return v, v
	}
	if local == remote {
		v := Verdict{Allow: true, Why: Itself}
		return v, v
	}
	if n := o.world.node(subject.endpoint.Node); d == Ingress && n != nil && slices.Contains(n.Addresses, remote) {
		v := Verdict{Allow: true, Why: OwnNode}
		return v, v
	}
	return o.walk(o.tiers, subject, &p), o.walk(o.staged, subject, &p)
}

// Verdict decides about a packet on its whole way: out of the one workload, and into the other. An end that
// is no workload of the cluster has no say.
func (o *Oracle) Verdict(from, to netip.Addr, protocol uint8, sport, dport uint16) (egress, ingress Verdict) {
	egress, _ = o.Judge(Egress, from, to, protocol, sport, dport)
	ingress, _ = o.Judge(Ingress, to, from, protocol, sport, dport)
	return egress, ingress
}

// walk goes through the tiers.
func (o *Oracle) walk(tiers []tier, subject *thing, p *packet) Verdict {
	return o.walkAt(tiers, subject, p, hooks[HookWorkload])
}

func (o *Oracle) walkAt(tiers []tier, subject *thing, p *packet, at hook) Verdict {
	logged := false
	for _, t := range tiers {
		var selecting []Ref
		passed := false
		for _, pol := range t.policies {
			if !pol.applies(p.direction) || !at.takes(pol) || !pol.selects(o, subject) {
				continue
			}
			selecting = append(selecting, pol.ref())
			action, rule, log := pol.judge(o, subject, p)
			logged = logged || log
			switch action {
			case actAllow, actDeny:
				return Verdict{Allow: action == actAllow, Logged: logged, Why: ByRule, Tier: t.name, Policy: pol.ref(), Rule: rule}
			case actPass:
				passed = true
			}
			if passed {
				break
			}
		}
		if len(selecting) == 0 || passed || t.defaultPass || at.early {
			continue
		}
		return Verdict{Allow: false, Logged: logged, Why: ByTier, Tier: t.name, Selecting: selecting}
	}
	return Verdict{Allow: true, Logged: logged, Why: NoPolicy}
}
