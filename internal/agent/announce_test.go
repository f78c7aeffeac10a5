package agent

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store/memory"
)

var (
	onlyDirect = []model.Path{model.PathDirect}
	bothPaths  = []model.Path{model.PathDirect, model.PathVXLAN}
)

// publishPaths publishes a node with these paths and returns the cluster once the view shows it.
func publishPaths(t *testing.T, a *Agent, accepts, sends []model.Path) model.Cluster {
	t.Helper()
	err := a.publish(context.Background(), func(*state) *model.Node {
		return &model.Node{Name: "n1", ID: a.id, Address4: netip.MustParseAddr("192.168.0.4"), Accepts: accepts, Sends: sends}
	})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); !a.viewIsCurrent(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the view never reached the write")
		}
	}
	c, _ := a.view.Snapshot()
	return c
}

// TestPathCountsAsOfferedUntilTheViewShowsItsWithdrawal: a receiver's half of the promise.
func TestPathCountsAsOfferedUntilTheViewShowsItsWithdrawal(t *testing.T) {
	a := registrar(t, memory.New(), "n1", t.TempDir())
	c := publishPaths(t, a, onlyDirect, nil)
	if got := a.offered(&c); slices.Contains(got, model.PathVXLAN) {
		t.Errorf("offered %v, want direct alone", got)
	}
	a.update(func(s *state) { s.writing = &model.Node{Accepts: bothPaths} })
	if got := a.offered(&c); !slices.Contains(got, model.PathVXLAN) || !slices.Contains(got, model.PathIPIP) {
		t.Errorf("offered %v while a write is under way, want vxlan and ipip too", got)
	}
	a.update(func(s *state) { s.writing, s.written = nil, s.written+1 })
	if got := a.offered(&c); !slices.Contains(got, model.PathVXLAN) {
		t.Errorf("offered %v before the view reached the write, want vxlan too", got)
	}
	c = publishPaths(t, a, onlyDirect, nil)
	if got := a.offered(&c); slices.Contains(got, model.PathVXLAN) {
		t.Errorf("offered %v after the withdrawal is seen, want direct alone", got)
	}
}

// TestNewPathIsAnnouncedBeforeItIsUsed: a sender's half.
func TestNewPathIsAnnouncedBeforeItIsUsed(t *testing.T) {
	a := registrar(t, memory.New(), "n1", t.TempDir())
	p := &plan.Plan{Peers: []plan.Peer{{Node: "n2", Path: model.PathVXLAN}}}
	c := publishPaths(t, a, bothPaths, bothPaths)
	if news := a.unannounced(&c, p); len(news) != 0 {
		t.Errorf("unannounced %v, want nothing: the store knows", news)
	}
	a.update(func(s *state) { s.writing = &model.Node{Sends: onlyDirect} })
	if news := a.unannounced(&c, p); !slices.Equal(news, []model.Path{model.PathVXLAN}) {
		t.Errorf("unannounced %v while a write without vxlan is under way, want vxlan", news)
	}
	a.update(func(s *state) { s.writing = nil })

	c = publishPaths(t, a, bothPaths, onlyDirect)
	news := a.unannounced(&c, p)
	if !slices.Equal(news, []model.Path{model.PathVXLAN}) {
		t.Fatalf("unannounced %v, want vxlan", news)
	}
	a.announce(context.Background(), &c, news)
	c, _ = a.view.Snapshot()
	if got := c.Node("n1").Sends; !slices.Equal(got, bothPaths) {
		t.Errorf("the view shows that this node sends on %v after the announcement, want %v", got, bothPaths)
	}
	// What registers the node meanwhile must not take the announcement back.
	me := present(&state{self: &model.Node{Sends: onlyDirect}, announced: a.snapshot().announced})
	if !slices.Equal(me.Sends, bothPaths) {
		t.Errorf("a registration during the pass says %v, want %v", me.Sends, bothPaths)
	}
}
