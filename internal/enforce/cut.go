package enforce

import (
	"context"
	"maps"
	"net/netip"
	"os"
	"time"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/store"
)

// cutLoop ends the flows that a change of the table denies, and those of workloads that are gone.
func (e *Enforcer) cutLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.cut:
		}
		begin := time.Now()
		e.mu.Lock()
		gone := maps.Clone(e.gone)
		e.mu.Unlock()
		n, err := e.Flows.Cut(ctx, e.denies, e.openNetns)
		if err != nil && ctx.Err() == nil {
			e.Log.Warn("flows that policies deny may go on", "error", err)
		}
		if err == nil {
			e.mu.Lock()
			maps.DeleteFunc(e.gone, func(a netip.Addr, _ bool) bool { return gone[a] })
			e.mu.Unlock()
		}
		if n > 0 {
			e.Log.Info("flows cut", "flows", n, "took", time.Since(begin).Round(time.Microsecond))
		}
		// Reading all flows costs: a quarter of one core at most.
		store.Pause(ctx, 3*time.Since(begin))
	}
}

// denies tells whether a flow is to end: the table denies it, which began before that was so, or one of its
// ends is gone.
func (e *Enforcer) denies(f kernel.Flow) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone[f.Src.Addr()] || e.gone[f.Dst.Addr()] {
		return true
	}
	d, _ := e.judge(f.Protocol, f.Src, f.Dst)
	return d.Verdict == policy.VerdictDeny || d.Verdict == policy.VerdictDenyLog
}

// judge decides a new packet between two addresses: egress of the source if it is local, then ingress of
// the destination if that is.
func (e *Enforcer) judge(proto uint8, src, dst netip.AddrPort) (policy.Decision, policy.Direction) {
	t := e.compiler.Table()
	out := t.Decide(policy.Local{Hook: policy.WorkloadEgress, Addr: src.Addr()}, dst.Addr(), proto, src.Port(), dst.Port())
	if out.Verdict == policy.VerdictDeny || out.Verdict == policy.VerdictDenyLog {
		return out, policy.Egress
	}
	in := t.Decide(policy.Local{Hook: policy.WorkloadIngress, Addr: dst.Addr()}, src.Addr(), proto, src.Port(), dst.Port())
	if in.Reason == nil && in.Staged == nil && (out.Reason != nil || out.Staged != nil) {
		return out, policy.Egress
	}
	return in, policy.Ingress
}

func (e *Enforcer) openNetns(a netip.Addr) *os.File {
	e.mu.Lock()
	path := e.netns[a]
	e.mu.Unlock()
	if path == "" {
		return nil
	}
	f, err := os.Open(path) //nolint:gosec // the path that the runtime gave at ADD
	if err != nil {
		return nil // the workload is going away, and its sockets with it
	}
	return f
}
