package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/embedded"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/internal/store/memory"
	"github.com/heddle-net/heddle/internal/store/storetest"
	"github.com/heddle-net/heddle/internal/store/storetest/etcdproc"
)

// publishing runs publishLoop of a node that is registered and has a block.
func publishing(t *testing.T, s store.Store, node, stateDir string) *Agent {
	t.Helper()
	a := registrar(t, s, node, stateDir)
	a.Config.LeaseTTL *= 1000 // no look by the clock
	a.update(func(s *state) {
		s.blocks = []model.Block{{CIDR: netip.MustParsePrefix("10.244.1.0/24"), Pool: "flannel", Node: node}}
		s.published = &model.Node{Name: node}
	})
	startPublishing(t, a)
	return a
}

func startPublishing(t *testing.T, a *Agent) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.publishLoop(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	poke(a.endpoints)
}

// attach is what an ADD does to the ledger.
func attach(t *testing.T, a *Agent, id string, labels map[string]string) model.Workload {
	t.Helper()
	w := model.Workload{
		ContainerID: id, IfName: "eth0", Namespace: "dev", Name: id, Labels: labels,
		Attachment: model.AttachBridge, HostLink: model.HostLinkName(id, "eth0"),
	}
	w, _, err := a.ledger.Reserve(context.Background(), w, prefixes(a.snapshot().blocks), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	poke(a.endpoints)
	return w
}

func detach(t *testing.T, a *Agent, w model.Workload) {
	t.Helper()
	if _, _, err := a.ledger.Release(context.Background(), w.Key(), time.Now()); err != nil {
		t.Fatal(err)
	}
	poke(a.endpoints)
}

// endpointsAre waits until the store's endpoints are those of the workloads, and others that are named.
func endpointsAre(t *testing.T, s store.Store, a *Agent, others ...string) []store.Item {
	t.Helper()
	for end := time.Now().Add(storetest.Patience); ; time.Sleep(2 * time.Millisecond) {
		want := map[string]model.Object{}
		for _, w := range a.ledger.List() {
			e := &model.Endpoint{Node: a.Config.Node, Link: w.HostLink, Namespace: w.Namespace, Name: w.Name, Addresses: w.Addresses, Labels: w.Labels}
			want[e.Key()] = e
		}
		items, _, err := s.List(context.Background(), model.KindEndpoint)
		got := map[string]model.Object{}
		for _, it := range items {
			if !slices.Contains(others, it.Object.Key()) {
				got[it.Object.Key()] = it.Object
			}
		}
		if err == nil && reflect.DeepEqual(got, want) && len(items) == len(want)+len(others) {
			return items
		}
		if time.Now().After(end) {
			t.Fatalf("the store has %v (%v), want %v and %v", got, err, want, others)
		}
	}
}

func TestWorkloadsArePublishedWithTheirLabelsUntilTheyAreGone(t *testing.T) {
	s := memory.New()
	a := publishing(t, s, "n1", t.TempDir())
	foreign := &model.Endpoint{Node: "n10", Link: "hd1", Addresses: []netip.Addr{netip.MustParseAddr("10.244.9.9")}}
	put(t, s, foreign)
	web := attach(t, a, "web", map[string]string{"app": "web"})
	endpointsAre(t, s, a, foreign.Key())
	for i := range 50 {
		attach(t, a, fmt.Sprintf("c%d", i), nil)
	}
	endpointsAre(t, s, a, foreign.Key())
	detach(t, a, web)
	endpointsAre(t, s, a, foreign.Key())
}

func TestWorkloadThatIsPublishedAlreadyIsNotWrittenAgain(t *testing.T) {
	s := memory.New()
	a := publishing(t, s, "n1", t.TempDir())
	attach(t, a, "web", map[string]string{"app": "web"})
	before := endpointsAre(t, s, a)
	for range 10 {
		poke(a.endpoints)
		time.Sleep(2 * time.Millisecond)
	}
	a.update(func(s *state) { s.written++ }) // as after a new registration: the publisher looks
	attach(t, a, "other", nil)
	endpointsAre(t, s, a)
	again := &publisher{Agent: a, cleared: map[string]bool{}} // as in the agent's next life
	if err := again.turn(context.Background()); err != nil {
		t.Fatal(err)
	}
	after := endpointsAre(t, s, a)
	for _, it := range after {
		if it.Object.Key() == before[0].Object.Key() && it.Revision != before[0].Revision {
			t.Errorf("%s was written again", it.Object.Key())
		}
	}
}

func TestAtItsStartAnAgentRemovesEndpointsThatNoWorkloadHas(t *testing.T) {
	s := memory.New()
	put(t, s, &model.Endpoint{Node: "n1", Link: "hdgone", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.9")}})
	a := publishing(t, s, "n1", t.TempDir())
	endpointsAre(t, s, a)
}

func TestEndpointsThatSomebodyChangedOrRemovedAreMended(t *testing.T) {
	s := memory.New()
	a := publishing(t, s, "n1", t.TempDir())
	attach(t, a, "web", map[string]string{"app": "web"})
	changed := endpointsAre(t, s, a)[0].Object.(*model.Endpoint)
	changed.Labels = map[string]string{"app": "db"}
	put(t, s, changed)
	w := attach(t, a, "two", nil)
	endpointGone(t, s, &model.Endpoint{Node: "n1", Link: w.HostLink})
	a.update(func(s *state) { s.written++ })
	poke(a.endpoints)
	endpointsAre(t, s, a)
}

// endpointGone waits for the endpoint and removes it.
func endpointGone(t *testing.T, s store.Store, e *model.Endpoint) {
	t.Helper()
	for end := time.Now().Add(storetest.Patience); ; time.Sleep(time.Millisecond) {
		it, err := s.Get(context.Background(), e.Kind(), e.Key())
		if err == nil {
			err = s.Delete(context.Background(), e.Kind(), e.Key(), it.Revision)
		}
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestNodeWhoseNameIsNotItsOwnPublishesNothing(t *testing.T) {
	s := memory.New()
	theirs := &model.Endpoint{Node: "n1", Link: "hdtheirs", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.9")}}
	put(t, s, theirs)
	a := registrar(t, s, "n1", t.TempDir())
	a.update(func(s *state) {
		s.blocks = []model.Block{{CIDR: netip.MustParsePrefix("10.244.1.0/24"), Pool: "flannel", Node: "n1"}}
	})
	p := &publisher{Agent: a}
	attach(t, a, "web", nil)
	if err := p.turn(context.Background()); err != nil {
		t.Fatal(err)
	}
	if items, _, err := s.List(context.Background(), model.KindEndpoint); err != nil || len(items) != 1 || items[0].Object.Key() != theirs.Key() {
		t.Fatalf("the store has %v, %v: want only what the node of that name wrote", items, err)
	}
}

// refusing refuses the writes of one endpoint.
type refusing struct {
	store.Store
	key atomic.Value
}

func (r *refusing) Put(ctx context.Context, o model.Object, at store.Revision) (store.Revision, error) {
	if o.Key() == r.key.Load() {
		return 0, errors.New("no space")
	}
	return r.Store.Put(ctx, o, at)
}

func TestEndpointThatTheStoreRefusesIsAProblemAndHoldsUpNoOther(t *testing.T) {
	s := &refusing{Store: memory.New()}
	s.key.Store("n1:" + model.HostLinkName("web", "eth0"))
	a := publishing(t, s, "n1", t.TempDir())
	attach(t, a, "web", nil)
	other := attach(t, a, "other", nil)
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(storetest.Patience); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	wait("the other one is not published", func() bool {
		_, err := s.Get(context.Background(), model.KindEndpoint, "n1:"+other.HostLink)
		return err == nil
	})
	wait("no problem is told", func() bool {
		p := a.snapshot().unpublished
		return len(p) == 1 && p[0].Code == "store-write" && p[0].Subject == "endpoints"
	})
	s.key.Store("")
	endpointsAre(t, s, a)
	wait("the problem stays", func() bool { return len(a.snapshot().unpublished) == 0 })
}

func TestEndpointsFollowAfterAnOutageOfTheStore(t *testing.T) {
	dir, url := t.TempDir(), fmt.Sprintf("http://127.0.0.1:%d", etcdproc.FreePort(t))
	serve := func() (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- embedded.Run(ctx, embedded.Options{DataDir: dir + "/store", Listen: []string{url}}) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	stop := serve()
	s, err := etcd.New(context.Background(), etcd.Options{Endpoints: []string{url}, CallTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	a := publishing(t, s, "n1", t.TempDir())
	first := attach(t, a, "first", nil)
	endpointsAre(t, s, a)
	stop()
	begin := time.Now()
	detach(t, a, first)
	for i := range 20 {
		attach(t, a, fmt.Sprintf("c%d", i), nil)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("workloads waited %s for a store that is away", took)
	}
	time.Sleep(100 * time.Millisecond)
	stop = serve()
	t.Cleanup(stop)
	endpointsAre(t, s, a)
}

func TestEndpointsOfAWithdrawnNodeGoAndThoseOfALivingOneStay(t *testing.T) {
	s := memory.New()
	for _, n := range []string{"gone", "gone2", "alive"} {
		put(t, s, &model.Endpoint{Node: n, Link: "hd1", Addresses: []netip.Addr{netip.MustParseAddr("10.244.9.9")}})
	}
	put(t, s, heartbeat("gone", 48*time.Hour))
	put(t, s, heartbeat("alive", 0)) // it came back since it was counted as withdrawn
	a := publishing(t, s, "n1", t.TempDir())
	a.update(func(s *state) {
		s.withdrawn = map[string]bool{"gone": true, "alive": true}
		s.written++
	})
	poke(a.endpoints)
	endpointsAre(t, s, a, "alive:hd1", "gone2:hd1")
}

// unheard loses its answers to the writes of one endpoint.
type unheard struct {
	store.Store
	writes chan struct{} // one per such write
}

func (u *unheard) Put(ctx context.Context, o model.Object, at store.Revision) (store.Revision, error) {
	rev, err := u.Store.Put(ctx, o, at)
	if o.Kind() == model.KindEndpoint && err == nil {
		u.writes <- struct{}{}
		return 0, fmt.Errorf("put: %w: connection reset", store.ErrUnavailable)
	}
	return rev, err
}

func TestEndpointOfAWriteWithoutAnAnswerDoesNotOutliveItsWorkload(t *testing.T) {
	s := &unheard{memory.New(), make(chan struct{})}
	a := publishing(t, s, "n1", t.TempDir())
	w := attach(t, a, "web", nil)
	for end := time.Now().Add(storetest.Patience); ; time.Sleep(time.Millisecond) {
		if _, err := s.Get(context.Background(), model.KindEndpoint, "n1:"+w.HostLink); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the endpoint was never written")
		}
	}
	detach(t, a, w)
	<-s.writes
	endpointsAre(t, s, a)
}
