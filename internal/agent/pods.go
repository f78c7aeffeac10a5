package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/enforce"
	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// pods is the agent as CNI sees it.
type pods Agent

// Ready implements cni.Pods.
func (p *pods) Ready() error { return (*Agent)(p).snapshot().ready }

// Add implements cni.Pods. The reservation is on record before the interface is made, and the interface
// is complete before Add returns; a crash between leaves a reservation that the same ADD, a DEL or a
// GC finds.
func (p *pods) Add(ctx context.Context, w model.Workload, netns *os.File) (cni.Attached, error) {
	a := (*Agent)(p)
	if err := p.Ready(); err != nil {
		return cni.Attached{}, cni.Errorf(cni.CodeTryAgainLater, "%v", err)
	}
	took := a.metrics.start()
	// Before any lock and any address: the store may tell late, and neither passes nor other pods wait for that.
	if err := a.policy.AwaitPod(ctx, w); err != nil {
		return cni.Attached{}, cni.Errorf(cni.CodeTryAgainLater, "%v", err)
	}
	took.lap("known")
	w.Wishes = a.wishes(&w)
	if err := checkWishes(&w); err != nil {
		return cni.Attached{}, err
	}
	if w.Wishes != nil {
		w.MAC = w.Wishes.MAC
	}
	w.HostLink = model.HostLinkName(w.ContainerID, w.IfName)
	w.Created = time.Now().UTC()
	defer a.keys.lock(w.Key())()
	w, existed, s, err := a.place(ctx, w, took.lap)
	if err != nil {
		return cni.Attached{}, err
	}
	defer a.attaching.RUnlock()
	took.lap("reserved")
	poke(a.endpoints) // the sooner others know it, the sooner they let it in
	pod := plan.PodOf(*s.input, w, w.MTU)
	if existed {
		if a.Pods.Verify(ctx, netns, pod) == nil {
			return attached(w, pod), a.openPorts(ctx, w)
		}
		if err := a.Pods.Detach(ctx, w.HostLink); err != nil {
			return cni.Attached{}, err
		}
	}
	// First the policies, then the interface: the workload never sends a packet that they deny.
	err = a.policy.Admit(ctx, w, pod.MAC)
	took.lap("admitted")
	if err == nil {
		if err = a.Pods.Attach(ctx, netns, pod); err != nil {
			a.policy.Dismiss(w, pod.MAC)
		}
		took.lap("attached")
	}
	if err == nil {
		if err = a.openPorts(ctx, w); err != nil {
			err = errors.Join(err, a.Pods.Detach(ctx, w.HostLink))
			a.policy.Dismiss(w, pod.MAC)
		}
	}
	if err != nil {
		_, _, rerr := a.ledger.Release(ctx, w.Key(), time.Now())
		a.closePorts(ctx, w)
		poke(a.endpoints)
		if errors.Is(err, enforce.ErrUnknown) || errors.Is(err, enforce.ErrUnnamed) {
			err = cni.Errorf(cni.CodeTryAgainLater, "%v", err)
		}
		return cni.Attached{}, errors.Join(err, rerr)
	}
	took.lap("opened")
	a.Log.Debug("workload attached", "workload", w.String(), "addresses", w.Addresses, slog.Group("took", took.laps...))
	return attached(w, pod), nil
}

// Del implements cni.Pods. The address is freed only when the interface is gone.
func (p *pods) Del(ctx context.Context, containerID, ifName string) error {
	a := (*Agent)(p)
	key := (&model.Workload{ContainerID: containerID, IfName: ifName}).Key()
	defer a.keys.lock(key)()
	a.attaching.RLock()
	defer a.attaching.RUnlock()
	if err := a.Pods.Detach(ctx, model.HostLinkName(containerID, ifName)); err != nil {
		return err
	}
	w, had, err := a.ledger.Release(ctx, key, time.Now())
	poke(a.endpoints)
	if had && err == nil {
		a.closePorts(ctx, w)
		a.policy.Dismiss(w, a.macOf(w))
		a.Log.Debug("workload detached", "workload", w.String())
	}
	if had || err != nil {
		return err
	}
	freed, err := hostLocalFree(a.Config.HostLocalDir, containerID, ifName)
	if len(freed) > 0 {
		a.Log.Info("a container of another plugin's chain has ended", "container", containerID, "interface", ifName, "addresses", freed)
	}
	return err
}

// Check implements cni.Pods.
func (p *pods) Check(ctx context.Context, want model.Workload, netns *os.File) error {
	a := (*Agent)(p)
	key := want.Key()
	defer a.keys.lock(key)()
	w, ok := a.ledger.Get(key)
	if !ok {
		return cni.Errorf(cni.CodeUnknownContainer, "%s has no reservation on this node", key)
	}
	for _, addr := range want.Addresses {
		if !slices.Contains(w.Addresses, addr) {
			return cni.Errorf(cni.CodeDiffers, "prevResult has address %s, the reservation of %s is %v", addr, key, w.Addresses)
		}
	}
	if err := sameCapabilities(w, want); err != nil {
		return err
	}
	s := a.snapshot()
	if s.input == nil {
		return cni.Errorf(cni.CodeTryAgainLater, "%v", errStarting)
	}
	if err := a.checkPorts(ctx, w); err != nil {
		return err
	}
	return a.Pods.Verify(ctx, netns, plan.PodOf(*s.input, w, w.MTU))
}

// GC implements cni.Pods.
func (p *pods) GC(ctx context.Context, network string, keep map[string]bool) error {
	a := (*Agent)(p)
	var errs []error
	for _, w := range a.ledger.List() {
		if w.Network != network || keep[w.Key()] {
			continue
		}
		if err := p.Del(ctx, w.ContainerID, w.IfName); err != nil {
			errs = append(errs, err)
			continue
		}
		a.Log.Info("garbage collected", "workload", w.String(), "addresses", w.Addresses)
	}
	return errors.Join(errs...)
}

// applied are the own blocks that a plan in the kernel was built with: the node has a gateway in them.
func applied(own []model.Block, in *plan.Input) []model.Block {
	return slices.DeleteFunc(slices.Clone(own), func(b model.Block) bool { return !slices.Contains(in.Cluster.Blocks, b) })
}

// inUse are the blocks that their pools still have. One that is only kept for the workloads in it is
// out of reach for other nodes, and would be kept for ever if new workloads went there. Until its
// successor is claimed a workload would lack an address of that family: it has to wait.
func inUse(c model.Cluster, own []model.Block) ([]model.Block, error) {
	var use []model.Block
	dropped, has := map[model.Family]netip.Prefix{}, map[model.Family]bool{}
	for _, b := range own {
		if p := c.Pool(b.Pool); p != nil && ipam.Has(p, b) {
			use = append(use, b)
			has[b.Family()] = true
		} else {
			dropped[b.Family()] = b.CIDR
		}
	}
	for i := range c.Pools {
		p := &c.Pools[i]
		if old := dropped[p.Family()]; old.IsValid() && !has[p.Family()] {
			return nil, cni.Errorf(cni.CodeTryAgainLater, "pool %q has no block %s any more, and this node has no other block of the pool yet", p.Name, old)
		}
	}
	return use, nil
}

func prefixes(blocks []model.Block) []netip.Prefix {
	out := make([]netip.Prefix, len(blocks))
	for i, b := range blocks {
		out[i] = b.CIDR
	}
	return out
}

// attached is what ADD answers: the plan's MAC included, which a workload without a wish for one has too.
func attached(w model.Workload, p plan.Pod) cni.Attached {
	w.MAC = p.MAC
	r := cni.Attached{Workload: w, Addresses: p.Addresses, Gateways: p.Gateways}
	for _, route := range p.Routes {
		if route.Dst.Bits() == 0 {
			r.Routes = append(r.Routes, route.Dst)
		}
	}
	return r
}
