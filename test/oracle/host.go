package oracle

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// Hook is a point of a host's packet path at which policies for host endpoints work, or that at which
// workloads are policed.
type Hook string

// The hooks.
const (
	HookWorkload     Hook = "workload"
	HookInput        Hook = "input"  // to the host itself
	HookOutput       Hook = "output" // from the host itself
	HookForwardIn    Hook = "forward-in"
	HookForwardOut   Hook = "forward-out"
	HookPreDNAT      Hook = "pre-dnat"
	HookUntrackedIn  Hook = "untracked-in"
	HookUntrackedOut Hook = "untracked-out"
)

var hostHooks = []Hook{HookInput, HookOutput, HookForwardIn, HookForwardOut, HookPreDNAT, HookUntrackedIn, HookUntrackedOut}

// hook is what is special at one (docs.tigera.io/calico/latest/reference/host-endpoints).
type hook struct {
	direction Direction
	// early: before DNAT or tracking nothing is denied for want of a rule; what is not decided goes on.
	early bool
	takes func(written) bool
}

var hooks = map[Hook]hook{
	HookWorkload: {takes: func(written) bool { return true }},
	HookInput:    {direction: Ingress, takes: takesSpec(func(s *CalicoPolicySpec) bool { return !s.PreDNAT && !s.DoNotTrack })},
	HookOutput:   {direction: Egress, takes: takesSpec(func(s *CalicoPolicySpec) bool { return !s.PreDNAT && !s.DoNotTrack })},
	HookForwardIn: {direction: Ingress, takes: takesSpec(func(s *CalicoPolicySpec) bool {
		return s.ApplyOnForward && !s.PreDNAT && !s.DoNotTrack
	})},
	HookForwardOut: {direction: Egress, takes: takesSpec(func(s *CalicoPolicySpec) bool {
		return s.ApplyOnForward && !s.PreDNAT && !s.DoNotTrack
	})},
	HookPreDNAT:      {direction: Ingress, early: true, takes: takesSpec(func(s *CalicoPolicySpec) bool { return s.PreDNAT })},
	HookUntrackedIn:  {direction: Ingress, early: true, takes: takesSpec(func(s *CalicoPolicySpec) bool { return s.DoNotTrack })},
	HookUntrackedOut: {direction: Egress, early: true, takes: takesSpec(func(s *CalicoPolicySpec) bool { return s.DoNotTrack })},
}

func takesSpec(ok func(*CalicoPolicySpec) bool) func(written) bool {
	return func(w written) bool {
		c, is := w.(*calicoPolicy)
		return is && ok(&c.Spec)
	}
}

// JudgeHost decides about a packet at a host endpoint of the world's node, which is known by its interface:
// of the host's own end of the packet no more is known. found is false when there is no such host endpoint.
// Fail-safe ports are not its business.
func (o *Oracle) JudgeHost(h Hook, link string, remote netip.Addr, protocol uint8, sport, dport uint16) (now, staged Verdict, found bool) {
	at := hooks[h]
	p := packet{direction: at.direction, remote: remote, protocol: protocol, sport: sport, dport: dport}
	if p.direction == Ingress {
		p.src = remote
	} else {
		p.dst = remote
	}
	for _, t := range o.things {
		if t.kind != "host" || t.host.Spec.Node != o.world.Node || t.host.Spec.InterfaceName != link {
			continue
		}
		return o.atHost(o.tiers, t, &p, h), o.atHost(o.staged, t, &p, h), true
	}
	return now, staged, false
}

func (o *Oracle) atHost(tiers []tier, t *thing, p *packet, h Hook) Verdict {
	v := o.walkAt(tiers, t, p, hooks[h])
	// What nobody opens is closed, at one interface and for the host's own packets.
	if v.Why == NoPolicy && (h == HookInput || h == HookOutput) && t.host.Spec.InterfaceName != "*" {
		v.Allow, v.Why = false, Closed
	}
	return v
}

// clearHosts are the interfaces of the world's node of which one can say what a packet meets there without
// knowing its end on the host: one host endpoint has it, and no rule that selects that asks for that end.
func (w *World) clearHosts() []string {
	var links []string
	o := New(w)
	for _, t := range o.things {
		if t.kind != "host" || t.host.Spec.Node != w.Node {
			continue
		}
		link := t.host.Spec.InterfaceName
		clear := link != ""
		for i := range w.HostEndpoints {
			h := &w.HostEndpoints[i]
			clear = clear && (h.Name == t.host.Name || h.Spec.Node != w.Node || h.Spec.InterfaceName != link)
		}
		for i := range w.CalicoPolicies {
			p := &calicoPolicy{&w.CalicoPolicies[i]}
			clear = clear && (!p.selects(o, t) || !asksLocalEnd(&p.Spec))
		}
		if clear {
			links = append(links, link)
		}
	}
	return links
}

func asksLocalEnd(s *CalicoPolicySpec) bool {
	name := func(p intstr.IntOrString) bool {
		_, _, name := portText(p.StrVal)
		return p.Type == intstr.String && name != ""
	}
	asks := func(e *CalicoEntity) bool {
		return len(e.Nets)+len(e.NotNets) > 0 || e.Selector != "" || e.NotSelector != "" || e.NamespaceSelector != "" ||
			e.ServiceAccounts != nil || slices.ContainsFunc(e.Ports, name) || slices.ContainsFunc(e.NotPorts, name)
	}
	return slices.ContainsFunc(s.Ingress, func(r CalicoRule) bool { return asks(&r.Destination) }) ||
		slices.ContainsFunc(s.Egress, func(r CalicoRule) bool { return asks(&r.Source) })
}
