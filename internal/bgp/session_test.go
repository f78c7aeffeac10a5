package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/bfd"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

func TestOtherNeighborsAndFiltersDoNotDisturbASession(t *testing.T) {
	a := newNode(t, 1, "10.244.1.0/26").knows(at(2), nil).speak()
	b := newNode(t, 2, "10.244.2.0/26", "10.244.3.0/26").knows(at(1), nil).speak()
	until(t, "a has b's blocks", func() bool { return a.best("10.244.2.0/26") != "" && a.best("10.244.3.0/26") != "" })
	since := a.status(at(2)).Since
	a.knows(at(3), nil)
	a.plan.Announced = append(a.plan.Announced, peering.Announcement{Prefix: prefix("10.244.9.0/26")})
	a.plan.Filters = []peering.Filter{{Name: "f", Rules: []peering.Rule{
		{Direction: peering.Import, Family: model.IPv4, CIDR: prefix("10.244.3.0/26"), Match: peering.MatchEqual},
		{Direction: peering.Export, Family: model.IPv4, CIDR: prefix("10.244.1.0/26"), Match: peering.MatchIn},
	}}}
	a.plan.Neighbors[0].Filters = []string{"f"}
	a.apply()
	until(t, "the filter rejects one, and says so", func() bool {
		rs := a.to("10.244.3.0/26")
		return len(rs) == 1 && rs[0].Rejected && strings.Contains(rs[0].Reason, `filter "f"`)
	})
	until(t, "b has lost and gained", func() bool { return b.best("10.244.9.0/26") != "" && len(b.to("10.244.1.0/26")) == 0 })
	a.plan.Neighbors[0].Filters = nil
	a.plan.Neighbors = a.plan.Neighbors[:1]
	a.apply()
	until(t, "all is as it was", func() bool { return a.best("10.244.3.0/26") != "" && b.best("10.244.1.0/26") != "" })
	if s := a.status(at(2)); s.Since != since || s.Flaps != 0 {
		t.Errorf("the session was disturbed: %+v", s)
	}
}

func TestReflectorPassesOnWhatClientsTell(t *testing.T) {
	rr := newNode(t, 1)
	rr.plan.ClusterID = addr("1.2.3.4")
	for n := 2; n <= 4; n++ {
		rr.knows(at(n), func(x *peering.Neighbor) { x.Node, x.Client = fmt.Sprint("n", n), n < 4 })
		newNode(t, n)
	}
	rr.speak()
	var x [5]*node
	for n := 2; n <= 4; n++ {
		x[n] = newNode(t, n, fmt.Sprintf("10.244.%d.0/26", n)).knows(at(1), nil).speak()
	}
	until(t, "each has the others' blocks by the others", func() bool {
		for n := 2; n <= 4; n++ {
			for m := 2; m <= 4; m++ {
				if n != m && x[n].best(fmt.Sprintf("10.244.%d.0/26", m)) != at(m).String() {
					return false
				}
			}
		}
		return true
	})
	if s := rr.status(at(2)); s.Sent != 2 {
		t.Errorf("sent to a client: %d, want 2", s.Sent)
	}
	// A reflector that stops takes no routes with it: all of them restart.
	rr.stop()
	stays(t, "the routes of a reflector that restarts", 2*time.Second, func() bool { return x[2].best("10.244.3.0/26") != "" && x[4].best("10.244.2.0/26") != "" })
	until(t, "they are marked as stale", func() bool { rs := x[2].to("10.244.3.0/26"); return rs[0].Stale && x[2].status(at(1)).Restarting })
}

func TestPathsOfEqualCostAreAllBest(t *testing.T) {
	x := newNode(t, 1)
	for n := 2; n <= 4; n++ {
		other := newNode(t, n, "192.0.2.0/24")
		other.plan.ASN = uint32(65000 + n)
		other.knows(at(1), func(x *peering.Neighbor) { x.RemoteASN = 64512; x.Filters = []string{"p"} })
		if n == 4 {
			other.plan.Filters = []peering.Filter{{Name: "p", Rules: []peering.Rule{{Direction: peering.Export, Family: model.IPv4, Accept: true, Operations: []peering.Operation{{PrependAS: []uint32{65004}}}}}}}
		} else {
			other.plan.Filters = []peering.Filter{{Name: "p"}}
		}
		other.speak()
		x.knows(at(n), func(x *peering.Neighbor) { x.RemoteASN = uint32(65000 + n) })
	}
	x.speak()
	until(t, "two of three win", func() bool {
		return x.best("192.0.2.0/24") == "10.99.0.2 10.99.0.3" && len(x.to("192.0.2.0/24")) == 3
	})
	rs := x.to("192.0.2.0/24")
	if rs[0].Reason != "one of 2 of equal cost" || rs[2].Reason != "10.99.0.2 has a shorter AS path" {
		t.Errorf("reasons: %q, %q", rs[0].Reason, rs[2].Reason)
	}
}

func TestStatusSaysWhyASessionDoesNotComeUp(t *testing.T) {
	wrong := func(n int, change func(*peering.Plan)) { // a neighbour that is not as node 1 thinks
		x := newNode(t, n)
		change(&x.plan)
		x.knows(at(1), nil)
		x.plan.Neighbors[0].RemoteASN = 64512
		x.speak()
	}
	wrong(2, func(p *peering.Plan) { p.ASN = 65001 })
	wrong(3, func(p *peering.Plan) { p.RouterID = at(1) })
	newNode(t, 4).speak() // knows nobody
	x := newNode(t, 1).knows(at(2), nil).knows(at(3), nil).knows(at(4), nil).knows(at(5), nil).knows(at(6), func(n *peering.Neighbor) { n.Source = addr("10.77.0.1") }).speak()
	for n, words := range map[int]string{
		2: "it says AS 65001, AS 64512 was expected",
		3: "router id",
		4: "closed it",
		5: "refused: nothing listens on that port there",
		6: "the source address is not on this node",
	} {
		until(t, fmt.Sprintf("the status of neighbor %d has %q", n, words), func() bool {
			return strings.Contains(x.status(at(n)).Failure, words) && x.status(at(n)).State != peering.Established
		})
	}
}

func TestPasswordsAreInNoLog(t *testing.T) {
	const password = "pass-w0rd.of.nobody"
	keyed := func(n *peering.Neighbor) { n.Password = password }
	a := newNode(t, 1, "10.244.1.0/26").knows(at(2), keyed).knows(at(3), keyed).speak()
	b := newNode(t, 2, "10.244.2.0/26").knows(at(1), keyed).speak()
	newNode(t, 3).knows(at(1), func(n *peering.Neighbor) { n.Password = "another" }).speak()
	until(t, "the session with the right password is up", func() bool { return a.best("10.244.2.0/26") != "" && b.best("10.244.1.0/26") != "" })
	until(t, "of the other it is said that passwords may differ", func() bool { return strings.Contains(a.status(at(3)).Failure, "passwords of the two sides differ") })
	// A record that has it nonetheless.
	a.listener.note(at(9), "")
	h := &handler{listener: a.listener}
	log := newRecordOf(h)
	log.Warn("set "+password, "Key", "10.99.0.9", "what", struct{ Secret string }{password})
	if s := a.log.String() + b.log.String(); strings.Contains(s, password) || !strings.Contains(s, "set ***") {
		t.Errorf("a password is in the log, or nothing was logged: %s", s)
	}
	// Without the password it works no more, and without one on both sides again.
	a.plan.Neighbors[0].Password = ""
	a.apply()
	until(t, "the session without the password is down", func() bool { return a.status(at(2)).State != peering.Established })
	b.plan.Neighbors[0].Password = ""
	b.apply()
	a.untilUp(at(2))
}

func TestTTLSecurityAndPassiveSessions(t *testing.T) {
	near := func(n *peering.Neighbor) { n.TTLSecurity, n.RemoteASN = 1, 65002 }
	a := newNode(t, 1, "10.244.1.0/26").knows(at(2), near).knows(at6(3), func(n *peering.Neighbor) { n.RemoteASN, n.Multihop, n.Passive = 4200000003, 5, true }).speak()
	b := newNode(t, 2, "10.244.2.0/26")
	b.plan.ASN = 65002
	b.knows(at(1), func(n *peering.Neighbor) { near(n); n.RemoteASN = 64512 }).speak()
	c := newNode(t, 3, "10.244.3.0/26", "fd44:0:0:3::/122")
	c.plan.ASN = 65003
	c.knows(at6(1), func(n *peering.Neighbor) { n.RemoteASN, n.LocalASN, n.Multihop = 64512, 4200000003, 5 }).speak()
	until(t, "all are told", func() bool {
		return a.best("10.244.2.0/26") == "10.99.0.2" && a.best("10.244.3.0/26") == "10.99.0.3" && a.best("fd44:0:0:3::/122") == "fd99::3" &&
			b.best("10.244.1.0/26") == "10.99.0.1" && c.best("10.244.1.0/26") == "10.99.0.1"
	})
}

// detector is a liveness detection that tests drive.
type detector struct {
	mu    sync.Mutex
	told  func(bfd.Event)
	set   []bfd.Session
	state bfd.State
	ready chan struct{}
}

func (d *detector) Run(ctx context.Context, told func(bfd.Event)) error {
	d.mu.Lock()
	d.told = told
	d.mu.Unlock()
	close(d.ready)
	<-ctx.Done()
	return nil
}

func (d *detector) Set(s []bfd.Session) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.set = s
	return nil
}

func (d *detector) State(netip.Addr) (bfd.State, string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state, "as told"
}

func (d *detector) tell(e bfd.Event) {
	d.mu.Lock()
	d.state = e.State
	told := d.told
	d.mu.Unlock()
	told(e)
}

func TestLivenessDetectionEndsASessionAtOnce(t *testing.T) {
	d := &detector{ready: make(chan struct{})}
	a := newNode(t, 1)
	a.bfd = d
	a.knows(at(2), func(n *peering.Neighbor) { n.BFD = &peering.BFD{Transmit: time.Second} }).speak()
	newNode(t, 2, "10.244.2.0/26").knows(at(1), nil).speak()
	until(t, "a has b's block", func() bool { return a.best("10.244.2.0/26") != "" })
	if len(d.set) != 1 || d.set[0].Peer != at(2) || d.set[0].Local != at(1) {
		t.Fatalf("watched: %+v", d.set)
	}
	<-d.ready
	d.tell(bfd.Event{Peer: at(2), State: bfd.Up})
	d.tell(bfd.Event{Peer: at(2), State: bfd.Down, Admin: true})
	stays(t, "a session whose detection was put out of service", 300*time.Millisecond, func() bool { return a.best("10.244.2.0/26") != "" })
	d.tell(bfd.Event{Peer: at(2), State: bfd.Up})
	d.tell(bfd.Event{Peer: at(2), State: bfd.Down, Cause: "no packet for 300ms"})
	if s := a.status(at(2)); len(a.Routes()) != 0 || s.State == peering.Established || !strings.Contains(s.Failure, "no packet for 300ms") || s.BFD != "Down: as told" {
		t.Errorf("after Down: %v, %+v", a.Routes(), s)
	}
	d.tell(bfd.Event{Peer: at(2), State: bfd.Up})
	until(t, "it is back", func() bool { return a.best("10.244.2.0/26") != "" })
}

func TestNewRouterIDStartsAnewWithoutLoss(t *testing.T) {
	a := newNode(t, 1, "10.244.1.0/26").knows(at(2), nil).speak()
	b := newNode(t, 2, "10.244.2.0/26").knows(at(1), nil).speak()
	until(t, "both have all", func() bool { return a.best("10.244.2.0/26") != "" && b.best("10.244.1.0/26") != "" })
	a.plan.RouterID = at(77)
	a.apply()
	until(t, "a is back, and b never lost its route", func() bool {
		if b.best("10.244.1.0/26") == "" {
			t.Fatal("b lost a's route while a started anew")
		}
		return a.best("10.244.2.0/26") != "" && !b.to("10.244.1.0/26")[0].Stale
	})
	if problems := a.Apply(context.Background(), nil); len(problems) > 0 {
		t.Error(problems)
	}
	until(t, "without a plan nothing is told", func() bool { return len(b.Routes()) == 0 && len(a.Status()) == 0 })
}
