package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

const (
	// listInterval is how often the heartbeats of all nodes are read, unless a lease is shorter.
	// Withdrawing takes hours, so that nobody needs to watch them.
	listInterval = time.Minute
	// returnDelay is how long after a change of the cluster the heartbeats are read while a node is lost:
	// one that comes back publishes itself, and then shows its first sign of life.
	returnDelay = time.Second
)

// registerLoop keeps what the store holds of this node true: the node itself, its blocks, its
// heartbeat.
func (a *Agent) registerLoop(ctx context.Context) error {
	beat := time.NewTicker(time.Duration(a.Config.LeaseTTL) / 3)
	defer beat.Stop()
	list := time.NewTicker(min(listInterval, time.Duration(a.Config.LeaseTTL)))
	defer list.Stop()
	due, listed := true, false
	var soon <-chan time.Time // a listing out of turn
	for {
		if s := a.snapshot(); s.synced && s.self != nil {
			a.reconcileSelf(ctx, s)
			a.tellReady(ctx, s)
		}
		// The first beat follows the registration, which looks whether the name is in use by another.
		if due && a.snapshot().published != nil {
			due = a.heartbeat(ctx) != nil
		}
		if !listed && a.snapshot().synced {
			listed = a.listHeartbeats(ctx) == nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.register:
			if soon == nil && a.mayBeBack() {
				soon = time.After(returnDelay)
			}
		case <-beat.C:
			due = true
		case <-list.C:
			listed = false
		case <-soon:
			soon, listed = nil, false
		}
	}
}

func (a *Agent) heartbeat(ctx context.Context) error {
	h := &model.Heartbeat{Node: a.Config.Node, Renewed: time.Now().UTC(), TTL: time.Duration(a.Config.LeaseTTL)}
	_, err := a.Store.Put(ctx, h, store.AnyRevision)
	if errors.Is(err, store.ErrUnsupported) {
		err = nil // this store knows by itself which nodes are gone
	}
	a.storeSeen(err)
	return err
}

// tellReady tells a store that keeps it whether pods can be added here, when that has changed or was not told.
func (a *Agent) tellReady(ctx context.Context, s state) {
	r, ok := a.Store.(store.Readier)
	if !ok || s.published == nil || s.toldReady && (s.ready == nil) == s.saidReady {
		return
	}
	err := r.NetworkReady(ctx, a.Config.Node, s.ready)
	a.storeSeen(err)
	if err != nil {
		a.Log.Warn("cannot tell whether pods can be added here; trying again", "error", err)
	}
	a.update(func(now *state) { now.toldReady, now.saidReady = err == nil, s.ready == nil })
}

// storeSeen keeps the state of the connection for `heddle status`.
func (a *Agent) storeSeen(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	a.update(func(s *state) {
		if (s.storeErr == nil) != (err == nil) || s.storeSince.IsZero() {
			s.storeSince = time.Now()
		}
		s.storeErr = err
	})
}

// listHeartbeats finds the nodes that are lost, and those lost for so long that they are withdrawn.
// Nobody is withdrawn before the store has answered for the length of a lease: after it was away all
// heartbeats are old, and the others need that time to renew theirs.
func (a *Agent) listHeartbeats(ctx context.Context) error {
	listed, _ := a.view.Snapshot()
	items, _, err := a.Store.List(ctx, model.KindHeartbeat)
	if errors.Is(err, store.ErrUnsupported) {
		return nil
	}
	a.storeSeen(err)
	if err != nil {
		return err
	}
	now := time.Now()
	s := a.snapshot()
	before, steady := s.withdrawn, now.Sub(s.storeSince) >= time.Duration(a.Config.LeaseTTL)
	lost, withdrawn := map[string]time.Duration{}, map[string]bool{}
	for _, i := range items {
		h, ok := i.Object.(*model.Heartbeat)
		if !ok || h.Lost(now) <= 0 || h.Node == a.Config.Node {
			continue
		}
		lost[h.Node] = h.Lost(now)
		if h.Lost(now) > time.Duration(a.Config.LeaseGrace) && (steady || before[h.Node]) {
			withdrawn[h.Node] = true
		}
	}
	silent := stillSilent(s.silent, lost, steady, now, time.Duration(a.Config.LeaseTTL))
	a.update(func(s *state) { s.lost, s.withdrawn, s.silent, s.listed = lost, withdrawn, silent, listed })
	if !sameNodes(s.silent, silent) {
		poke(a.kick)
	}
	if !reflect.DeepEqual(before, withdrawn) && len(before)+len(withdrawn) > 0 {
		a.Log.Info("nodes withdrawn after their grace time", "nodes", fmt.Sprint(withdrawn))
		poke(a.kick)
	}
	return nil
}

// mayBeBack tells whether something in the cluster changed since the heartbeats were read, while a node
// was lost.
func (a *Agent) mayBeBack() bool {
	s := a.snapshot()
	c, _ := a.view.Snapshot()
	return len(s.lost) > 0 && !sameLists(c, s.listed)
}

// reconcileSelf writes what differs.
func (a *Agent) reconcileSelf(ctx context.Context, s state) {
	var issues []model.Problem
	if a.differs(s) {
		if err := a.publish(ctx, present); err != nil {
			issues = append(issues, a.storeProblem("node "+s.self.Name, err))
			if errors.Is(err, errNameTaken) {
				a.update(func(s *state) { s.storeIssues = issues })
				return // a block under that name would be the other machine's
			}
		}
	}
	changed, more := a.reconcileBlocks(ctx, s.blocks)
	issues = append(issues, more...)
	a.update(func(s *state) { s.storeIssues = issues })
	if changed {
		poke(a.kick)
	}
}

// present is this node as it is now, with what the pass under way sends on.
func present(s *state) *model.Node {
	n := *s.self
	n.Sends = union(n.Sends, s.announced)
	return &n
}

// differs tells whether the store has something else of this node, or nothing: somebody may have removed
// it.
func (a *Agent) differs(s state) bool {
	c, synced := a.view.Snapshot()
	return s.published == nil || s.writing != nil || !reflect.DeepEqual(*s.published, *present(&s)) || synced && c.Node(s.self.Name) == nil
}

var errNameTaken = errors.New("is registered with this node's name and alive")

// publish writes the node, which compose says at the moment of writing, unless another living machine has
// its name.
func (a *Agent) publish(ctx context.Context, compose func(*state) *model.Node) error {
	a.publishing.Lock()
	defer a.publishing.Unlock()
	at := store.Revision(0)
	item, err := a.Store.Get(ctx, model.KindNode, a.Config.Node)
	switch {
	case err == nil:
		at = item.Revision
		old, _ := item.Object.(*model.Node)
		if old != nil && old.ID != "" && old.ID != a.id && a.alive(ctx, old.Name) && a.snapshot().published == nil {
			return fmt.Errorf("another machine, %s, %w: give this one a name of its own (node: in heddle.yaml), or `heddle node remove %s` if that one is gone", old.Address(model.IPv4), errNameTaken, old.Name)
		}
	case !errors.Is(err, store.ErrNotFound):
		a.storeSeen(err)
		return err
	}
	var n *model.Node
	a.update(func(s *state) {
		n = compose(s)
		s.writing = n
	})
	rev, err := a.Store.Put(ctx, n, at)
	a.storeSeen(err)
	a.update(func(s *state) {
		switch {
		case err == nil:
			s.published, s.writing, s.written = n, nil, rev
		case !errors.Is(err, store.ErrUnavailable):
			s.writing = nil // refused, so not written
		}
	})
	if err != nil {
		return err
	}
	poke(a.endpoints)
	a.Log.Info("node published", "address4", n.Address4, "address6", n.Address6, "accepts", n.Accepts, "sends", n.Sends)
	return nil
}

// alive tells whether the node of that name has a heartbeat within its TTL.
func (a *Agent) alive(ctx context.Context, name string) bool {
	i, err := a.Store.Get(ctx, model.KindHeartbeat, name)
	if err != nil {
		return false
	}
	h, ok := i.Object.(*model.Heartbeat)
	return ok && h.Lost(time.Now()) <= 0
}

func (a *Agent) storeProblem(subject string, err error) model.Problem {
	p := model.Problem{Code: "store-write", Severity: model.Failure, Subject: subject, Detail: err.Error(), Next: a.lookAtStore("heddle status; journalctl -u heddle-store")}
	var full *ipam.PoolFullError
	switch {
	case errors.As(err, &full):
		p.Code, p.Next = "pool-full", "heddle node list, and heddle node remove one that is gone; or choose a larger Network or a longer SubnetLen"
		p.Detail = strings.TrimPrefix(full.Error(), fmt.Sprintf("pool %q: ", full.Pool)) // it is the subject
	case errors.Is(err, errNameTaken):
		p.Next = "heddle node list"
	}
	return p
}
