package agent

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store/ledger"
)

// portsKey is the lock of the node's ports among those of workloads, whose keys have a slash.
const portsKey = "host ports"

// reserve is Ledger.Take, once nobody else has the ports that the workload asks for.
func (a *Agent) reserve(ctx context.Context, w model.Workload, ask ledger.Ask) (model.Workload, bool, error) {
	if len(w.HostPorts) > 0 {
		defer a.keys.lock(portsKey)()
		if err := portsTaken(&w, a.ledger.List()); err != nil {
			return w, false, err
		}
	}
	got, existed, err := a.ledger.Take(ctx, w, ask, time.Now())
	if err == nil && existed {
		err = sameCapabilities(got, w)
	}
	if err == nil && !existed {
		err = portsReachable(&got)
		if err != nil {
			_, _, _ = a.ledger.Release(ctx, w.Key(), time.Now())
		}
	}
	return got, existed, err
}

// portsTaken names the first port that another workload has. A pod's own earlier sandbox is no other: its DEL may
// still come, and the port goes to the newer one.
func portsTaken(w *model.Workload, others []model.Workload) error {
	for i := range others {
		o := &others[i]
		if o.Key() == w.Key() || w.Name != "" && o.Namespace == w.Namespace && o.Name == w.Name {
			continue
		}
		for _, p := range w.HostPorts {
			if j := slices.IndexFunc(o.HostPorts, p.Collides); j >= 0 {
				return cni.Errorf(cni.CodeTryAgainLater, "workload %s: host port %s: workload %s has %s on this node", w, p, o, o.HostPorts[j])
			}
		}
	}
	return nil
}

// portsReachable names the first port whose address is of a family that the workload has none of.
func portsReachable(w *model.Workload) error {
	for _, p := range w.HostPorts {
		if !slices.ContainsFunc(w.Addresses, func(a netip.Addr) bool { return p.Of(model.FamilyOf(a)) }) {
			return cni.Errorf(cni.CodeInvalidConfig, "%v", &model.FieldError{
				Noun: "workload " + w.String(), Field: "hostIP", Value: p.HostIP.String(),
				Want: fmt.Sprintf("an address of the workload's families, which has %v", w.Addresses),
			})
		}
	}
	return nil
}

// sameCapabilities compares what is on record with what the runtime says.
func sameCapabilities(w, want model.Workload) error {
	if !slices.Equal(w.HostPorts, want.HostPorts) {
		return cni.Errorf(cni.CodeDiffers, "runtimeConfig.portMappings has %v, the reservation of %s %v", want.HostPorts, w.Key(), w.HostPorts)
	}
	if !reflect.DeepEqual(w.Bandwidth, want.Bandwidth) {
		return cni.Errorf(cni.CodeDiffers, "runtimeConfig.bandwidth has %+v, the reservation of %s %+v", want.Bandwidth, w.Key(), w.Bandwidth)
	}
	return nil
}

// openPorts makes the ports of a workload on record lead to it.
func (a *Agent) openPorts(ctx context.Context, w model.Workload) error {
	if len(w.HostPorts) == 0 {
		return nil
	}
	all, err := a.setPorts(ctx)
	if err != nil {
		return fmt.Errorf("host ports: %w", err)
	}
	a.forget(ctx, w, func(t kernel.Tracked) bool {
		to := plan.LeadsTo(all, "udp", t.Dst)
		return to.IsValid() && to != t.To
	})
	return nil
}

// closePorts closes those of a workload that is off the record. What fails now is the next pass's work.
func (a *Agent) closePorts(ctx context.Context, w model.Workload) {
	if len(w.HostPorts) == 0 {
		return
	}
	if _, err := a.setPorts(ctx); err != nil {
		a.Log.Warn("host ports not closed yet", "workload", w.String(), "reason", err)
		poke(a.kick)
	}
	a.forget(ctx, w, func(t kernel.Tracked) bool { return slices.Contains(w.Addresses, t.To.Addr()) })
}

// forget ends what the kernel remembers of UDP on the workload's ports and is stale: a client that goes on sending from
// the same port would never get to where the port leads now.
func (a *Agent) forget(ctx context.Context, w model.Workload, stale func(kernel.Tracked) bool) {
	own, err := a.ports([]model.Workload{w})
	own = slices.DeleteFunc(own, func(p plan.HostPort) bool { return p.Protocol != "udp" })
	f, can := a.Flows.(kernel.Forgetter)
	if err != nil || len(own) == 0 || !can {
		return
	}
	n, err := f.ForgetUDP(ctx, func(t kernel.Tracked) bool { return plan.LeadsTo(own, "udp", t.Dst).IsValid() && stale(t) })
	if err != nil {
		a.Log.Warn("flows to host ports not forgotten", "workload", w.String(), "reason", err)
	} else if n > 0 {
		a.Log.Debug("flows to host ports forgotten", "workload", w.String(), "flows", n)
	}
}

// setPorts makes the kernel's ports those of the record. Nobody changes them meanwhile: what is read last is written
// last.
func (a *Agent) setPorts(ctx context.Context) ([]plan.HostPort, error) {
	defer a.keys.lock(portsKey)()
	ports, err := a.ports(a.ledger.List())
	if err != nil {
		return nil, err
	}
	for _, d := range a.Drivers {
		if h, ok := d.(kernel.HostPorts); ok {
			return ports, h.SetHostPorts(ctx, ports)
		}
	}
	return nil, fmt.Errorf("no driver of this node has them")
}

// checkPorts looks whether a workload's ports lead to it.
func (a *Agent) checkPorts(ctx context.Context, w model.Workload) error {
	if len(w.HostPorts) == 0 {
		return nil
	}
	ports, err := a.ports([]model.Workload{w})
	if err != nil {
		return err
	}
	for _, d := range a.Drivers {
		if h, ok := d.(kernel.HostPorts); ok {
			return h.CheckHostPorts(ctx, ports)
		}
	}
	return nil
}

func (a *Agent) ports(ws []model.Workload) ([]plan.HostPort, error) {
	s := a.snapshot()
	if s.input == nil {
		return nil, errStarting
	}
	in := *s.input
	in.Workloads = ws
	return plan.HostPorts(in), nil
}
