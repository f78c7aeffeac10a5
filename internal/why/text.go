package why

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/internal/policy"
)

// Text is an answer for people.
func (a Answer) Text() string {
	var b strings.Builder
	verdict := "allowed"
	if !a.Allowed {
		verdict = "denied"
	}
	what := ProtocolName(a.Protocol)
	if echo[a.Protocol] == 0 {
		what += fmt.Sprintf(" %d", a.Port)
	} else {
		what += " echo"
	}
	fmt.Fprintf(&b, "%s -> %s %s: %s\n", with(a.From, a.Src), with(a.To, a.Dst), what, verdict)
	for _, l := range a.Legs {
		fmt.Fprintf(&b, "  %-7s of %s on %s: %s\n", l.Direction, l.Workload, l.Node, l.why())
		if l.Staged != nil {
			fmt.Fprintf(&b, "          staged: would be %s\n", ReasonText(l.Staged))
		}
	}
	if len(a.Legs) == 0 {
		b.WriteString("  neither end is a workload of this network\n")
	}
	return b.String()
}

func with(name string, a netip.Addr) string {
	if name == a.String() {
		return name
	}
	return name + " (" + a.String() + ")"
}

func (l Leg) why() string {
	if l.Reason == nil {
		return "allowed, no policy selects it"
	}
	return ReasonText(l.Reason)
}

// ReasonText says in one clause what decided.
func ReasonText(r *policy.Reason) string {
	verb := "allowed"
	if r.Action == policy.Deny {
		verb = "denied"
	}
	switch {
	case r.Policy != nil && r.Rule < 0:
		return fmt.Sprintf("%s by %s: traffic to the node that the pod runs on", verb, r.Policy)
	case r.Policy != nil:
		return fmt.Sprintf("%s by rule %d of %s%s", verb, r.Rule+1, r.Policy, tier(r.Tier))
	case len(r.Selecting) > 0:
		names := make([]string, len(r.Selecting))
		for i, s := range r.Selecting {
			names[i] = s.String()
		}
		one := "selects it and no rule of it matches"
		if len(names) > 1 {
			one = "select it and no rule of them matches"
		}
		return fmt.Sprintf("%s at the end of tier %s: %s %s", verb, r.Tier, strings.Join(names, ", "), one)
	case r.Builtin != "":
		return verb + ": " + r.Builtin
	}
	return verb + ": past the last tier"
}

func tier(name string) string {
	if name == "" || name == policy.DefaultTier {
		return ""
	}
	return " in tier " + name
}
