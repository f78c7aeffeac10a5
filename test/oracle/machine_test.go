package oracle_test

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/heddle-net/heddle/internal/dialect"
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
	l4       map[policy.Row][]policy.L4Key // of kernel, by row
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

// become tells the compiler what has changed since the world before, and, unless quiet, compiles.
func (m *machine) become(w *oracle.World, quiet bool) error {
	want := map[string]policy.Object{}
	texts := map[string][]byte{}
	for _, r := range w.Resources() {
		key := "resource:" + r.Key()
		texts[key] = r.Body
		if bytes.Equal(m.fed[key], r.Body) {
			continue
		}
		o, err := dialect.Object(&r)
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
	if quiet {
		return nil
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
	return m.sound()
}

// sound checks what table.go promises of a table, and gets it ready for asking.
func (m *machine) sound() error {
	ranges := slices.Collect(maps.Keys(m.kernel.Nets))
	slices.SortFunc(ranges, func(a, b policy.AddrRange) int { return a.First.Compare(b.First) })
	for i, r := range ranges {
		if r.First.Is4() != r.Last.Is4() || r.Last.Less(r.First) || i > 0 && !ranges[i-1].Last.Less(r.First) {
			return fmt.Errorf("unsound: net %v after %v", r, ranges[max(i-1, 0)])
		}
	}
	for _, row := range m.kernel.Locals {
		if _, ok := m.kernel.Base[row]; !ok || row == 0 {
			return fmt.Errorf("unsound: a local end has row %d, which does not exist", row)
		}
	}
	for k, row := range m.kernel.Rows {
		if _, ok := m.kernel.Base[row]; !ok || row == 0 || k.ID == 0 {
			return fmt.Errorf("unsound: %v has row %d, which does not exist", k, row)
		}
	}
	m.l4 = map[policy.Row][]policy.L4Key{}
	for k := range m.kernel.L4 {
		if _, ok := m.kernel.Base[k.Row]; !ok {
			return fmt.Errorf("unsound: %v is of a row that does not exist", k)
		}
		for _, other := range m.l4[k.Row] {
			if other.Protocol == k.Protocol && !whole(other) && !whole(k) && meet(other.Src, k.Src) && meet(other.Dst, k.Dst) {
				return fmt.Errorf("unsound: %v and %v overlap", k, other)
			}
		}
		m.l4[k.Row] = append(m.l4[k.Row], k)
	}
	return nil
}

func whole(k policy.L4Key) bool { return k.Src == policy.AllPorts && k.Dst == policy.AllPorts }

func meet(a, b policy.PortRange) bool { return a.First <= b.Last && b.First <= a.Last }

// walk is the walk that the top of table.go describes, through the table that heard of changes only.
func (m *machine) walk(l policy.Local, remote netip.Addr, protocol uint8, sport, dport uint16) policy.Decision {
	base, ok := m.kernel.Locals[l]
	if !ok || l.Addr.IsValid() && l.Addr == remote {
		return policy.Decision{Verdict: policy.VerdictAllow}
	}
	id, ok := m.kernel.Identities[remote]
	if !ok {
		for r, n := range m.kernel.Nets {
			if !remote.Less(r.First) && !r.Last.Less(remote) {
				id = n
			}
		}
	}
	row, ok := m.kernel.Rows[policy.RowKey{Local: l, ID: id}]
	if !ok {
		row = base
	}
	at := policy.PortRange{First: dport, Last: dport}
	from := policy.PortRange{First: sport, Last: sport}
	d := m.kernel.Base[row]
	for _, k := range m.l4[row] {
		if k.Protocol != protocol {
			continue
		}
		if whole(k) {
			d = m.kernel.L4[k]
		} else if meet(k.Src, from) && meet(k.Dst, at) {
			return m.kernel.L4[k]
		}
	}
	return d
}

// ask asks the table, and walks through the kernel's; agree says that they are of one mind.
func (m *machine) ask(p oracle.Probe) (d policy.Decision, agree bool) {
	local := policy.Local{Hook: policy.WorkloadIngress, Addr: p.Local}
	if p.Direction == oracle.Egress {
		local.Hook = policy.WorkloadEgress
	}
	if hook, ok := hostHooks[p.Hook]; ok {
		local = policy.Local{Hook: hook, Link: p.Link}
	}
	d = m.compiler.Table().Decide(local, p.Remote, p.Protocol, p.Sport, p.Dport)
	w := m.walk(local, p.Remote, p.Protocol, p.Sport, p.Dport)
	return d, d.Verdict == w.Verdict && (d.Reason == w.Reason && d.Staged == w.Staged || p.Local == p.Remote)
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
