package agent

import (
	"context"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store"
)

// A mode change is make-before-break by two promises, kept in the store's one order of writes:
//
//   - a sender writes that it sends on a path, and builds its plan again once its view has reached that
//     write, before its first packet takes the path;
//   - a receiver writes that it does not accept a path any more, and takes the device away in a plan that
//     it builds once its view has reached that write, if that view shows no sender.
//
// Whichever write comes first, the other side sees it in time. A write that is under way, or of which
// nobody knows what became of it, counts as whichever is worse.

// announceLimit is how long a new path waits for the store. One that is away does not hold up a node
// whose old path may be gone.
const announceLimit = 2 * time.Second

// registered is this node as it last wrote itself to the store, also in an earlier life; nil when it is
// not there.
func (a *Agent) registered(c *model.Cluster) *model.Node {
	if n := a.snapshot().published; n != nil {
		return n
	}
	if n := c.Node(a.Config.Node); n != nil && n.ID == a.id {
		return n
	}
	return nil
}

// unannounced notes on which paths the pass under way will send, and returns those of which the store
// may not have been told.
func (a *Agent) unannounced(c *model.Cluster, p *plan.Plan) []model.Path {
	sends := plan.Sends(p)
	a.update(func(s *state) { s.announced = sends })
	pub := a.registered(c)
	if pub == nil {
		return nil // nobody counts on what this node sends
	}
	news := missing(sends, pub.Sends)
	if writing := a.snapshot().writing; writing != nil {
		news = missing(sends, intersect(pub.Sends, writing.Sends))
	}
	return news
}

// announce tells the store of new paths, and returns when the view has reached that.
func (a *Agent) announce(ctx context.Context, c *model.Cluster, news []model.Path) {
	ctx, cancel := context.WithTimeout(ctx, announceLimit)
	defer cancel()
	err := a.publish(ctx, func(s *state) *model.Node {
		n := *a.registeredIn(s, c)
		n.Sends = union(n.Sends, s.announced)
		return &n
	})
	if err != nil {
		a.Log.Warn("cannot announce a new path; going on", "paths", news, "error", err)
		return
	}
	for !a.viewIsCurrent() {
		if !store.Pause(ctx, time.Millisecond) {
			return
		}
	}
}

// registeredIn is registered for those who hold the state.
func (a *Agent) registeredIn(s *state, c *model.Cluster) *model.Node {
	if s.published != nil {
		return s.published
	}
	return c.Node(a.Config.Node)
}

// viewIsCurrent tells whether the view has reached this node's last write of itself.
func (a *Agent) viewIsCurrent() bool {
	s := a.snapshot()
	return s.writing == nil && a.view.Revision() >= s.written
}

// offered are the paths that peers may believe this node accepts.
func (a *Agent) offered(c *model.Cluster) []model.Path {
	n := c.Node(a.Config.Node)
	if n == nil || n.ID != a.id {
		return nil
	}
	if !a.viewIsCurrent() {
		return union(n.Accepts, []model.Path{model.PathVXLAN, model.PathIPIP})
	}
	return n.Accepts
}

// missing are the paths of want that have lacks.
func missing(want, have []model.Path) []model.Path {
	return slices.DeleteFunc(slices.Clone(want), func(p model.Path) bool { return slices.Contains(have, p) })
}

func intersect(a, b []model.Path) []model.Path {
	return slices.DeleteFunc(slices.Clone(a), func(p model.Path) bool { return !slices.Contains(b, p) })
}

func union(a, b []model.Path) []model.Path {
	out := append(slices.Clone(a), missing(b, a)...)
	slices.Sort(out)
	return out
}
