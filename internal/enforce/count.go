package enforce

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/policy"
)

// RuleCount is how many packets a rule, or the end of a tier, has decided here.
type RuleCount struct {
	Reason policy.Reason `json:"reason"`
	kernel.Count
}

// ErrNotCounting says that nobody asked for counters.
var ErrNotCounting = errors.New("rules are not counted: heddle policy counters --on")

// SetCounting switches the counters of rules on, from nothing, or off.
func (e *Enforcer) SetCounting(ctx context.Context, on bool) error {
	return e.Filter.SetCounting(ctx, on)
}

// SetLogging has the flow log hold what policies allow too, or no more.
func (e *Enforcer) SetLogging(ctx context.Context, on bool) error {
	return e.Filter.SetLogging(ctx, on)
}

// Counters are the counts of the rules that have decided something, the most packets first.
func (e *Enforcer) Counters(ctx context.Context) ([]RuleCount, error) {
	if !e.Filter.Counting() {
		return nil, ErrNotCounting
	}
	e.applying.Lock() // the rows stay those that are counted
	defer e.applying.Unlock()
	c, err := e.Filter.Counters(ctx)
	if err != nil {
		return nil, err
	}
	t := e.compiler.Table()
	sums := map[*policy.Reason]*RuleCount{}
	add := func(d policy.Decision, n kernel.Count) {
		if n.Packets == 0 || d.Reason == nil {
			return
		}
		if sums[d.Reason] == nil {
			sums[d.Reason] = &RuleCount{Reason: *d.Reason}
		}
		sums[d.Reason].Packets += n.Packets
		sums[d.Reason].Bytes += n.Bytes
	}
	for key, n := range c.L4 {
		add(t.L4[key], n)
	}
	for row, n := range c.Base {
		add(t.Base[row], n)
	}
	out := []RuleCount{}
	for _, s := range slices.Collect(maps.Values(sums)) {
		i := slices.IndexFunc(out, func(r RuleCount) bool { return same(r.Reason, s.Reason) })
		if i < 0 {
			out = append(out, *s)
			continue
		}
		out[i].Packets += s.Packets
		out[i].Bytes += s.Bytes
	}
	slices.SortFunc(out, func(a, b RuleCount) int { return cmp.Compare(b.Packets, a.Packets) })
	return out, nil
}

// same reports whether two reasons name the same rule.
func same(a, b policy.Reason) bool {
	if (a.Policy == nil) != (b.Policy == nil) || a.Policy != nil && *a.Policy != *b.Policy {
		return false
	}
	return a.Action == b.Action && a.Tier == b.Tier && a.Rule == b.Rule && a.Builtin == b.Builtin && slices.Equal(a.Selecting, b.Selecting)
}
