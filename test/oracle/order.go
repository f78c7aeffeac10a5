package oracle

import (
	"math"
	"slices"
	"strings"
)

// action is what a policy says of a packet.
type action int

const (
	actNothing action = iota // no rule decided
	actAllow
	actDeny
	actPass
)

// written is a policy of any language, as the walk through the tiers needs it.
type written interface {
	ref() Ref
	tier() string
	order() float64
	applies(d Direction) bool
	selects(o *Oracle, t *thing) bool
	// judge reads the rules in order. The number is of the rule that decided; logged says whether one with
	// action Log matched before it.
	judge(o *Oracle, subject *thing, p *packet) (decided action, rule int, logged bool)
}

// tier is a tier with its policies in order.
type tier struct {
	name        string
	order       float64
	defaultPass bool
	policies    []written
}

// inForce are the policies that decide.
func (o *Oracle) inForce() []written {
	var all []written
	w := o.world
	for i := range w.NetworkPolicies {
		p := &w.NetworkPolicies[i]
		all = append(all, &kubePolicy{Ref{"NetworkPolicy", p.Namespace, p.Name}, &p.Spec})
	}
	for i := range w.ClusterPolicies {
		all = append(all, &clusterPolicy{&w.ClusterPolicies[i]})
	}
	for i := range w.CalicoPolicies {
		if p := &w.CalicoPolicies[i]; !strings.HasPrefix(p.Kind, "Staged") {
			all = append(all, &calicoPolicy{p})
		}
	}
	return all
}

// ifStaged are the policies that would decide if all that is staged were in force: each takes the place of
// the one of its name, or takes it away.
func (o *Oracle) ifStaged() []written {
	all := o.inForce()
	w := o.world
	put := func(replaces Ref, action string, p written) {
		all = slices.DeleteFunc(all, func(a written) bool { return a.ref() == replaces })
		if action != "Delete" {
			all = append(all, p)
		}
	}
	for i := range w.StagedKubernetes {
		p := &w.StagedKubernetes[i]
		put(Ref{"NetworkPolicy", p.Namespace, p.Name}, p.Spec.StagedAction,
			&kubePolicy{Ref{"StagedNetworkPolicy", p.Namespace, p.Name}, &p.Spec.NetworkPolicySpec})
	}
	for i := range w.CalicoPolicies {
		if p := (&calicoPolicy{&w.CalicoPolicies[i]}); strings.HasPrefix(p.Kind, "Staged") {
			r := p.ref()
			r.Kind = strings.TrimPrefix(r.Kind, "Staged")
			put(r, p.Spec.StagedAction, p)
		}
	}
	return all
}

// tiersOf puts policies in their order.
func (o *Oracle) tiersOf(policies []written) []tier {
	tiers := []tier{
		{name: "kube-admin", order: 1_000, defaultPass: true},
		{name: "default", order: 1_000_000},
		{name: "kube-baseline", order: 10_000_000, defaultPass: true},
	}
	for i := range o.world.Tiers {
		t := &o.world.Tiers[i]
		tiers = slices.DeleteFunc(tiers, func(known tier) bool { return known.name == t.Name })
		tiers = append(tiers, tier{name: t.Name, order: orderOf(t.Spec.Order), defaultPass: t.Spec.DefaultAction == "Pass"})
	}
	slices.SortFunc(tiers, func(a, b tier) int {
		if a.order != b.order {
			return sign(a.order < b.order)
		}
		return strings.Compare(a.name, b.name)
	})
	for i := range tiers {
		for _, p := range policies {
			if p.tier() == tiers[i].name {
				tiers[i].policies = append(tiers[i].policies, p)
			}
		}
		slices.SortFunc(tiers[i].policies, func(a, b written) int {
			ra, rb := a.ref(), b.ref()
			ra.Kind, rb.Kind = strings.TrimPrefix(ra.Kind, "Staged"), strings.TrimPrefix(rb.Kind, "Staged")
			switch {
			case a.order() != b.order():
				return sign(a.order() < b.order())
			case ra.Namespace != rb.Namespace:
				return sign(ra.Namespace < rb.Namespace)
			case ra.Name != rb.Name:
				return sign(ra.Name < rb.Name)
			case ra.Kind != rb.Kind:
				return sign(ra.Kind < rb.Kind)
			}
			return 0
		})
	}
	return tiers
}

func sign(less bool) int {
	if less {
		return -1
	}
	return 1
}

// orderOf reads an order that may be missing: those without one come last.
func orderOf(order *float64) float64 {
	if order == nil {
		return math.Inf(1)
	}
	return *order
}
