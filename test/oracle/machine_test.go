package oracle_test

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/dialect/kube"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/test/oracle"
)

// machine is what is tested: the dialects and a compiler, fed as an agent would, and beside it a table that
// hears of changes only, as a kernel does.
type machine struct {
	compiler *policy.Compiler
	fed      map[string][]byte // by key: what was put last
	kernel   policy.Table
}

func newMachine(node string) *machine {
	return &machine{
		compiler: policy.NewCompiler(policy.Options{Node: node}),
		fed:      map[string][]byte{},
		kernel: policy.Table{
			Identities: map[netip.Addr]policy.ID{}, Nets: map[policy.AddrRange]policy.ID{},
			Locals: map[policy.Local]policy.Row{}, Rows: map[policy.RowKey]policy.Row{},
			L4: map[policy.L4Key]policy.Decision{}, Base: map[policy.Row]policy.Decision{},
			Sources: map[policy.Source]struct{}{},
		},
	}
}

// become tells the compiler what has changed since the world before, and compiles.
func (m *machine) become(w *oracle.World) error {
	want := map[string]policy.Object{}
	texts := map[string][]byte{}
	for _, r := range w.Resources() {
		key := "resource:" + r.Key()
		texts[key] = r.Body
		if bytes.Equal(m.fed[key], r.Body) {
			continue
		}
		o, err := objectOf(&r)
		if err != nil {
			return fmt.Errorf("the dialect refuses it: %w", err)
		}
		want[key] = o
	}
	for _, e := range w.Endpoints {
		key := "endpoint:" + e.Key()
		texts[key] = fmt.Appendf(nil, "%+v", e)
		if !bytes.Equal(m.fed[key], texts[key]) {
			want[key] = endpointOf(e)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(m.fed)) {
		if _, there := texts[key]; !there {
			m.compiler.Delete(key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		m.compiler.Put(key, want[key])
	}
	m.fed = texts
	for _, n := range w.Nodes {
		if n.Name == w.Node {
			m.compiler.SetNode(n.Addresses)
			m.compiler.SetLinks(n.Links)
		}
	}
	m.apply(m.compiler.Compile())
	return m.sameKernel()
}

func endpointOf(e model.Endpoint) *policy.Endpoint {
	return &policy.Endpoint{
		Key: e.Key(), Node: e.Node, Namespace: e.Namespace, Name: e.Name, Labels: e.Labels, Addresses: e.Addresses,
	}
}

func (m *machine) apply(d *policy.Delta) {
	if d == nil {
		return
	}
	change(m.kernel.Identities, d.Identities)
	change(m.kernel.Nets, d.Nets)
	change(m.kernel.Locals, d.Locals)
	change(m.kernel.Rows, d.Rows)
	change(m.kernel.L4, d.L4)
	change(m.kernel.Base, d.Base)
	change(m.kernel.Sources, d.Sources)
}

func change[K comparable, V any](have map[K]V, c policy.Change[K, V]) {
	for k := range c.Del {
		delete(have, k)
	}
	maps.Copy(have, c.Put)
}

// sameKernel checks that the differences add up to the table.
func (m *machine) sameKernel() error {
	t := m.compiler.Table()
	for _, part := range []struct {
		name       string
		have, want any
	}{
		{"Identities", m.kernel.Identities, t.Identities},
		{"Nets", m.kernel.Nets, t.Nets},
		{"Locals", m.kernel.Locals, t.Locals},
		{"Rows", m.kernel.Rows, t.Rows},
		{"L4", m.kernel.L4, t.L4},
		{"Base", m.kernel.Base, t.Base},
		{"Sources", m.kernel.Sources, t.Sources},
	} {
		if reflect.ValueOf(part.want).Len() == 0 && reflect.ValueOf(part.have).Len() == 0 {
			continue
		}
		if !reflect.DeepEqual(part.have, part.want) {
			return fmt.Errorf("the deltas do not add up to the table's %s: %v, want %v", part.name, part.have, part.want)
		}
	}
	return nil
}

// ask asks the table.
func (m *machine) ask(p oracle.Probe) policy.Decision {
	if hook, ok := hostHooks[p.Hook]; ok {
		return m.compiler.Table().Decide(policy.Local{Hook: hook, Link: p.Link}, p.Remote, p.Protocol, p.Sport, p.Dport)
	}
	hook := policy.WorkloadIngress
	if p.Direction == oracle.Egress {
		hook = policy.WorkloadEgress
	}
	return m.compiler.Table().Decide(policy.Local{Hook: hook, Addr: p.Local}, p.Remote, p.Protocol, p.Sport, p.Dport)
}

var hostHooks = map[oracle.Hook]policy.Hook{
	oracle.HookInput: policy.HostInput, oracle.HookOutput: policy.HostOutput,
	oracle.HookForwardIn: policy.HostForwardIn, oracle.HookForwardOut: policy.HostForwardOut,
	oracle.HookPreDNAT: policy.HostPreDNATIn, oracle.HookUntrackedIn: policy.HostUntrackedIn, oracle.HookUntrackedOut: policy.HostUntrackedOut,
}

// differs says in what a decision is not what the oracle says; empty: in nothing.
func differs(p oracle.Probe, got policy.Decision, now, staged oracle.Verdict) string {
	early := p.Hook == oracle.HookPreDNAT || p.Hook == oracle.HookUntrackedIn || p.Hook == oracle.HookUntrackedOut
	undecided := early && now.Why == oracle.NoPolicy && got.Reason != nil
	allow := got.Verdict == policy.VerdictAllow || got.Verdict == policy.VerdictAllowLog || undecided && got.Verdict == policy.VerdictContinue
	if allow != now.Allow {
		return "verdict"
	}
	if why := differsReason(got.Reason, now); why != "" {
		return why
	}
	var want policy.Verdict
	change := staged.Allow != now.Allow
	switch {
	case undecided:
		want = policy.VerdictContinue
	case now.Allow && (now.Logged || change):
		want = policy.VerdictAllowLog
	case now.Allow:
		want = policy.VerdictAllow
	case now.Logged:
		want = policy.VerdictDenyLog
	default:
		want = policy.VerdictDeny
	}
	if got.Verdict != want {
		return fmt.Sprintf("log: verdict %d, want %d", got.Verdict, want)
	}
	if change != (got.Staged != nil) {
		return "staged"
	}
	if change {
		if why := differsReason(got.Staged, staged); why != "" {
			return "staged " + why
		}
	}
	return ""
}

func differsReason(r *policy.Reason, want oracle.Verdict) string {
	builtin := map[oracle.Why]string{
		oracle.NoPolicy: "", oracle.Itself: policy.BuiltinItself, oracle.OwnNode: policy.BuiltinOwnNode, oracle.Closed: policy.BuiltinHost,
	}
	if text, ok := builtin[want.Why]; ok {
		// Who is not policed at all needs no reason.
		if r == nil && want.Allow {
			return ""
		}
		if r == nil || r.Policy != nil || len(r.Selecting) > 0 || (r.Action == policy.Allow) != want.Allow || r.Builtin != text {
			return "reason"
		}
		return ""
	}
	if r == nil {
		return "no reason"
	}
	if (r.Action == policy.Allow) != want.Allow {
		return "reason's action"
	}
	if r.Tier != want.Tier {
		return "tier"
	}
	if want.Why == oracle.ByTier {
		selecting := make([]oracle.Ref, 0, len(r.Selecting))
		for _, s := range r.Selecting {
			selecting = append(selecting, refOf(s))
		}
		if r.Policy != nil || !slices.Equal(selecting, want.Selecting) {
			return "selecting policies"
		}
		return ""
	}
	if r.Policy == nil || refOf(*r.Policy) != want.Policy {
		return "policy"
	}
	if r.Rule != want.Rule {
		return "rule"
	}
	return ""
}

func refOf(r policy.Ref) oracle.Ref {
	return oracle.Ref{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
}

func show(d policy.Decision) string {
	text := fmt.Sprintf("verdict %d", d.Verdict)
	for name, r := range map[string]*policy.Reason{"reason": d.Reason, "staged": d.Staged} {
		if r != nil {
			text += fmt.Sprintf(", %s {action %d tier %q policy %v rule %d selecting %v}", name, r.Action, r.Tier, r.Policy, r.Rule, r.Selecting)
		}
	}
	return text
}

func objectOf(r *model.Resource) (policy.Object, error) {
	if r.Group() == "projectcalico.org" {
		return calico.Object(r)
	}
	return kube.Object(r)
}
