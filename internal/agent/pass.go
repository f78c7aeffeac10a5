package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store"
)

const (
	// gatherInterval is how long a pass waits after the first change, as changes come in bunches: a
	// node and its blocks, a route and its neighbour.
	gatherInterval = 10 * time.Millisecond
	// restInterval is the least time between passes; after a long pass it is twice that pass's length,
	// so that passes take a third of one core at most.
	restInterval = 50 * time.Millisecond
	// fullInterval is after how long a pass runs though nothing was seen to change.
	fullInterval = 30 * time.Second
)

// passLoop is the loop that makes the kernel equal to the plan.
func (a *Agent) passLoop(ctx context.Context) error {
	full := time.NewTicker(fullInterval)
	defer full.Stop()
	for {
		begin := time.Now()
		a.pass(ctx)
		if !store.Pause(ctx, max(restInterval, 2*time.Since(begin))) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.kick:
			store.Pause(ctx, gatherInterval)
			drain(a.kick)
		case <-full.C:
		}
	}
}

func drain(c chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// pass takes a snapshot, builds, applies and reports, once.
func (a *Agent) pass(ctx context.Context) {
	begin := time.Now()
	defer func() { a.update(func(s *state) { s.turned = time.Now() }) }()
	cluster, known, recalled := a.cluster()
	if !known {
		// Nothing is known of the cluster, so nothing is known to be unwanted: touch nothing.
		a.notReady("waiting for the store")
		return
	}
	host, err := a.Facts.Host(ctx)
	if ctx.Err() != nil {
		return // told to stop, which is no news about the node
	}
	if err != nil {
		a.notReady(err.Error())
		return
	}
	self, issues := a.selfNode(ctx, host, &cluster)
	if self == nil {
		a.update(func(s *state) { s.passIssues = issues })
		a.notReady(issues[0].Detail)
		return
	}
	if err := model.ValidatePools(cluster.Pools); err != nil {
		a.update(func(s *state) { s.passIssues = []model.Problem{poolProblem(err)} })
		a.notReady(err.Error())
		return
	}

	a.attaching.Lock()
	in := a.input(*self, cluster, recalled, host)
	p, err := plan.Build(in)
	if err == nil {
		if news := a.unannounced(&cluster, &p); len(news) > 0 {
			// Not under the lock: the store may be slow, and pods come and go meanwhile.
			a.attaching.Unlock()
			a.announce(ctx, &cluster, news)
			if cluster, known, recalled = a.cluster(); !known {
				return
			}
			a.attaching.Lock()
			in = a.input(*self, cluster, recalled, host)
			p, err = plan.Build(in)
		}
	}
	if err != nil {
		a.attaching.Unlock()
		a.notReady(err.Error())
		return
	}
	a.policy.SetNode(ownAddresses(self, host, &p), interfaces(host))
	changed := 0
	for _, d := range a.Drivers {
		n, problems := d.Apply(ctx, &p)
		changed += n
		issues = append(issues, problems...)
	}
	a.attaching.Unlock()
	if ctx.Err() != nil {
		return
	}

	self.Accepts, self.Sends, self.Lacks = accepts(&p, issues), plan.Sends(&p), lacks(issues)
	self.VTEP4, self.VTEP6 = vteps(&p, issues)
	a.update(func(s *state) {
		s.self, s.input, s.plan, s.announced = self, &in, &p, nil
		s.passIssues = append(issues, p.Problems...)
		s.pass = Pass{Count: s.pass.Count + 1, At: begin, Duration: time.Since(begin), Changed: changed}
	})
	a.metrics.pass(time.Since(begin), changed)
	if changed > 0 {
		a.Log.Info("kernel changed", "objects", changed, "took", time.Since(begin).Round(time.Microsecond), "problems", len(issues)+len(p.Problems))
	}
	a.judgeReady(ctx, &in, &p, issues)
	poke(a.register)
	poke(a.applied)
	poke(a.speak)
}

// cluster is what is known: from the store, or recalled from the last life while the store is away.
// Withdrawn nodes are left out. Own blocks are those the node holds, whatever the store says at the moment.
func (a *Agent) cluster() (c model.Cluster, known, recalled bool) {
	c, known, recalled = a.seen()
	if !known {
		return c, false, true
	}
	s := a.snapshot()
	if !recalled && !s.synced {
		a.update(func(s *state) { s.synced = true })
	}
	a.ownMasquerade(&c)
	me := a.Config.Node
	gone := func(node string) bool { return node != me && s.withdrawn[node] }
	c.Nodes = slices.DeleteFunc(slices.Clone(c.Nodes), func(n model.Node) bool { return gone(n.Name) })
	own := map[string]bool{}
	for _, b := range s.blocks {
		own[b.Key()] = true
	}
	c.Blocks = slices.DeleteFunc(slices.Clone(c.Blocks), func(b model.Block) bool {
		return own[b.Key()] || b.Node == me || gone(b.Node)
	})
	c.Blocks = append(c.Blocks, s.blocks...)
	c.Sort()
	return c, true, recalled
}

func (a *Agent) input(self model.Node, c model.Cluster, recalled bool, host model.Host) plan.Input {
	self = fromStore(self, &c)
	offered := a.offered(&c)
	learned, relearning := a.learned()
	c.Nodes = slices.DeleteFunc(slices.Clone(c.Nodes), func(n model.Node) bool { return n.Name == self.Name })
	c.Nodes = append(c.Nodes, self)
	c.Sort()
	return plan.Input{
		Self:       self.Name,
		Cluster:    c,
		Host:       host,
		Attachment: a.Config.Attachment,
		Bridge:     a.Config.Bridge,
		Workloads:  a.ledger.List(),
		Published:  offered,
		Keep:       a.keep(),
		Policed:    a.policy.Policed(),
		Recalled:   recalled,
		BGP:        a.peeringConfig(c.Settings),
		Learned:    learned,
		Relearning: relearning,
		Elected:    a.elected(),
		Silent:     slices.Sorted(maps.Keys(a.snapshot().silent)),
	}
}

// vteps are the MACs to publish: those of devices that are really there.
func vteps(p *plan.Plan, issues []model.Problem) (v4, v6 string) {
	for _, l := range p.Links {
		if l.Kind != plan.LinkVXLAN || slices.ContainsFunc(issues, func(i model.Problem) bool {
			return i.Severity == model.Failure && i.Subject == "link "+l.Name
		}) {
			continue
		}
		if l.VXLAN.Local.Is4() {
			v4 = l.MAC
		} else {
			v6 = l.MAC
		}
	}
	return v4, v6
}

// judgeReady says whether pods can be added, once this plan is in the kernel. A block that was claimed
// while it was made is none yet: there is no bridge.
func (a *Agent) judgeReady(ctx context.Context, in *plan.Input, p *plan.Plan, issues []model.Problem) {
	s := a.snapshot()
	if len(applied(s.blocks, in)) == 0 {
		why := "this node has no block of addresses yet"
		if len(s.storeIssues) > 0 {
			why = s.storeIssues[0].String()
		} else if len(a.clusterPools()) == 0 {
			why = "the network has no pool of addresses"
		}
		a.notReady(why)
		return
	}
	if err := a.policy.Ready(); err != nil {
		a.notReady(err.Error())
		return
	}
	for _, i := range issues {
		if i.Severity == model.Failure && (i.Subject == "link "+a.Config.Bridge || i.Code == "no-permission") {
			a.notReady(i.String())
			return
		}
	}
	if s.ready != nil {
		// An agent that said so once can add pods in its next life too, if the store is away then.
		a.remember(ctx)
		a.policy.Remember()
		a.Log.Info("ready for pods", "blocks", fmt.Sprint(s.blocks), "mtu", p.MTU)
	}
	a.update(func(s *state) { s.ready = nil })
	a.writeReadyFiles(p)
}

func (a *Agent) clusterPools() []model.Pool {
	c, _, _ := a.cluster()
	return c.Pools
}

func (a *Agent) notReady(why string) {
	if s := a.snapshot(); s.ready == nil || s.ready.Error() != why {
		a.Log.Warn("not ready for pods", "reason", why)
	}
	was := false
	a.update(func(s *state) {
		was = s.ready == nil
		s.ready = fmt.Errorf("%s", why)
	})
	if was { // and not one that has just started
		if err := os.Remove(a.readyFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.Log.Error("cannot tell that the node is not ready", "error", err)
		}
	}
}

func poolProblem(err error) model.Problem {
	return model.Problem{
		Code: "pools-invalid", Severity: model.Failure, Subject: "pools", Detail: err.Error() + "; the last good plan stays in force",
		Next: "heddle network show",
	}
}
