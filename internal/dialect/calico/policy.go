package calico

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-net/heddle/internal/dialect/kube"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/selector"
)

func networkPolicy(at place, o *NetworkPolicy) (*policy.Policy, error) {
	return newPolicy(at.field("spec"), o.ref(), o.Spec)
}

func globalNetworkPolicy(at place, o *GlobalNetworkPolicy) (*policy.Policy, error) {
	return newGlobalPolicy(at.field("spec"), o.ref(), o.Spec)
}

func stagedNetworkPolicy(at place, o *StagedNetworkPolicy) (*policy.Policy, error) {
	in := at.field("spec")
	rest := o.Spec.NetworkPolicySpec
	rest.Tier = "" // a removal may name the tier
	deletion, err := stagedAction(in, o.Spec.StagedAction, reflect.ValueOf(rest).IsZero(), "spec with a tier at most")
	if err != nil {
		return nil, err
	}
	p, err := newPolicy(in, o.ref(), o.Spec.NetworkPolicySpec)
	return staged(p, deletion), err
}

func stagedGlobalNetworkPolicy(at place, o *StagedGlobalNetworkPolicy) (*policy.Policy, error) {
	in := at.field("spec")
	rest := o.Spec.GlobalNetworkPolicySpec
	rest.Tier = ""
	deletion, err := stagedAction(in, o.Spec.StagedAction, reflect.ValueOf(rest).IsZero(), "spec with a tier at most")
	if err != nil {
		return nil, err
	}
	p, err := newGlobalPolicy(in, o.ref(), o.Spec.GlobalNetworkPolicySpec)
	return staged(p, deletion), err
}

// stagedKubernetesNetworkPolicy is read as Kubernetes' own policy. It is called StagedNetworkPolicy: the change of
// the NetworkPolicy of its name.
func stagedKubernetesNetworkPolicy(at place, o *StagedKubernetesNetworkPolicy) (*policy.Policy, error) {
	spec := o.Spec.NetworkPolicySpec
	deletion, err := stagedAction(at.field("spec"), o.Spec.StagedAction, reflect.ValueOf(spec).IsZero(), "no other field in spec")
	if err != nil {
		return nil, err
	}
	np := networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name},
		Spec:       spec,
	}
	body, err := json.Marshal(np)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at.noun, err)
	}
	meant, err := kube.Object(&model.Resource{APIVersion: np.APIVersion, Type: np.Kind, Namespace: np.Namespace, Name: np.Name, Body: body})
	if err != nil {
		if wrong, ok := errors.AsType[*model.FieldError](err); ok {
			wrong.Noun = at.noun
		}
		return nil, err
	}
	p, ok := meant.(*policy.Policy)
	if !ok {
		return nil, fmt.Errorf("%s: read as %T", at.noun, meant)
	}
	p.Ref.Kind = "Staged" + p.Ref.Kind
	return staged(p, deletion), nil
}

// stagedAction reports whether the policy stands for a removal, which has nothing else to say.
func stagedAction(spec place, action string, empty bool, want string) (deletion bool, err error) {
	switch action {
	case "", "Set":
		return false, nil
	case "Delete":
		if !empty {
			return false, spec.field("stagedAction").bad(action, want)
		}
		return true, nil
	}
	return false, spec.field("stagedAction").bad(action, "Set or Delete")
}

func staged(p *policy.Policy, deletion bool) *policy.Policy {
	if p == nil {
		return nil
	}
	p.Staged, p.Deletion = true, deletion
	if deletion {
		p.AppliesIngress, p.AppliesEgress, p.Ingress, p.Egress = false, false, nil, nil
	}
	return p
}

// newPolicy reads what the policies of a namespace have, and what global ones share with them.
func newPolicy(at place, ref policy.Ref, spec NetworkPolicySpec) (*policy.Policy, error) {
	p := &policy.Policy{Ref: ref, Tier: spec.Tier, Order: order(spec.Order)}
	if p.Tier == "" {
		p.Tier = policy.DefaultTier
	}
	if why := validation.IsDNS1123Label(p.Tier); len(why) > 0 {
		return nil, at.field("tier").bad(p.Tier, "the name of a tier")
	}
	for i, h := range spec.PerformanceHints {
		if h != "AssumeNeededOnEveryNode" {
			return nil, at.field("performanceHints").item(i).bad(h, "AssumeNeededOnEveryNode")
		}
	}
	own, err := readSelector(at.field("selector"), spec.Selector)
	if err != nil {
		return nil, err
	}
	accounts, err := readSelector(at.field("serviceAccountSelector"), spec.ServiceAccountSelector)
	if err != nil {
		return nil, err
	}
	parts := []selector.Selector{own}
	if ref.Namespace != "" {
		parts = append(parts, selector.Equal(policy.LabelNamespace, ref.Namespace))
	}
	if spec.ServiceAccountSelector != "" {
		parts = append(parts, accounts.WithPrefix(policy.PrefixServiceAcct))
	}
	p.Subject = selector.And(parts...)

	if p.AppliesIngress, p.AppliesEgress, err = directions(at.field("types"), spec); err != nil {
		return nil, err
	}
	if p.Ingress, err = rules(at.field("ingress"), ref.Namespace, policy.Ingress, spec.Ingress); err != nil {
		return nil, err
	}
	p.Egress, err = rules(at.field("egress"), ref.Namespace, policy.Egress, spec.Egress)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// directions are those that the policy names, or else those of which it has rules, or else Ingress.
func directions(at place, spec NetworkPolicySpec) (ingress, egress bool, err error) {
	for i, t := range spec.Types {
		if slices.Contains(spec.Types[:i], t) || t != "Ingress" && t != "Egress" {
			return false, false, at.item(i).bad(t, "Ingress and Egress, each once at most")
		}
	}
	if len(spec.Types) == 0 {
		return len(spec.Ingress) > 0 || len(spec.Egress) == 0, len(spec.Egress) > 0, nil
	}
	return slices.Contains(spec.Types, "Ingress"), slices.Contains(spec.Types, "Egress"), nil
}

func newGlobalPolicy(at place, ref policy.Ref, spec GlobalNetworkPolicySpec) (*policy.Policy, error) {
	p, err := newPolicy(at, ref, spec.NetworkPolicySpec)
	if err != nil {
		return nil, err
	}
	namespaces, err := readSelector(at.field("namespaceSelector"), spec.NamespaceSelector)
	if err != nil {
		return nil, err
	}
	if spec.NamespaceSelector != "" {
		p.Subject = selector.And(p.Subject, namespaces.WithPrefix(policy.PrefixNamespace))
	}
	switch {
	case spec.PreDNAT && spec.DoNotTrack:
		return nil, at.field("preDNAT").bad(true, "false, or doNotTrack: false: a policy works at one place")
	case spec.PreDNAT && len(spec.Egress) > 0:
		return nil, at.field("egress").bad(fmt.Sprintf("%d rules", len(spec.Egress)), "no rules with preDNAT: true, which is for ingress only")
	case spec.PreDNAT && p.AppliesEgress:
		return nil, at.field("types").item(slices.Index(spec.Types, "Egress")).bad("Egress", "Ingress only with preDNAT: true")
	case (spec.PreDNAT || spec.DoNotTrack) && !spec.ApplyOnForward:
		return nil, at.field("applyOnForward").bad(false, "true with preDNAT or doNotTrack, which forwarded packets meet as well")
	case spec.PreDNAT:
		p.HostMode = policy.HostPreDNAT
	case spec.DoNotTrack:
		p.HostMode = policy.HostUntracked
	case spec.ApplyOnForward:
		p.HostMode = policy.HostForward
	}
	if spec.PreDNAT || spec.DoNotTrack {
		// These work at host endpoints only: Felix gives workloads none of them.
		p.Subject = selector.And(p.Subject, selector.Not(selector.Has(policy.LabelOrchestrator)))
	}
	return p, nil
}

// readSelector reads a selector in which global() has no place.
func readSelector(at place, text string) (selector.Selector, error) {
	s, err := parseSelector(at, text)
	if err == nil && s.UsesGlobal() {
		return s, at.bad(text, "no global(): only the namespaceSelector of a rule may say it")
	}
	return s, err
}

func parseSelector(at place, text string) (selector.Selector, error) {
	s, err := selector.Parse(text)
	if wrong, ok := errors.AsType[*selector.Error](err); ok {
		found := "the end"
		if wrong.Found != "" {
			found = fmt.Sprintf("%q", wrong.Found)
		}
		return s, at.bad(text, fmt.Sprintf("%s instead of %s at position %d", wrong.Want, found, wrong.Position))
	}
	return s, err
}
