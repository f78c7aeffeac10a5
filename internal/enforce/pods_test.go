package enforce

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/kernel/filter"
	"github.com/heddle-net/heddle/internal/kernel/flow"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/memory"
)

const denyWeb = `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"namespace":"dev","name":"deny"},` +
	`"spec":{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress"]}}`

// space is an empty network namespace of the test's own.
func space(t *testing.T) netns.NsHandle {
	t.Helper()
	out := make(chan netns.NsHandle)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h, err := netns.New()
		if err != nil {
			t.Error(err)
		}
		out <- h
	}()
	h := <-out
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// enforcing runs an Enforcer of node n1 until the test ends.
func enforcing(t *testing.T, s store.Store, memory string) *Enforcer {
	t.Helper()
	ns := int(space(t))
	f, err := filter.New(filter.Options{NS: ns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return follow(t, s, memory, ns, f)
}

// follow runs an Enforcer over a filter until the test ends.
func follow(t *testing.T, s store.Store, memory string, ns int, f kernel.Filter) *Enforcer {
	t.Helper()
	fl, err := flow.New(flow.Options{NS: ns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Options{Node: "n1", Log: slog.New(slog.DiscardHandler), Store: s, Filter: f, Flows: fl, Packets: fl, Memory: memory, Named: true})
	if err != nil {
		t.Fatal(err)
	}
	e.SetNode([]netip.Addr{netip.MustParseAddr("192.168.0.1")}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return e
}

func put(t *testing.T, s store.Store, o model.Object) {
	t.Helper()
	if _, err := s.Put(context.Background(), o, store.AnyRevision); err != nil {
		t.Fatal(err)
	}
}

func pod(uid, app string, addrs ...netip.Addr) *model.Endpoint {
	return &model.Endpoint{Node: "n1", Namespace: "dev", Name: "web", UID: uid, Labels: map[string]string{"app": app}, Addresses: addrs}
}

// policed reports whether the ingress of an address is.
func (e *Enforcer) policed(a netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, is := e.compiler.Table().Locals[policy.Local{Hook: policy.WorkloadIngress, Addr: a}]
	return is
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func TestPodIsAdmittedOnceTheStoreHasToldOfItAndNotOfItsPredecessor(t *testing.T) {
	s := memory.New()
	put(t, s, &model.Resource{APIVersion: "networking.k8s.io/v1", Type: "NetworkPolicy", Namespace: "dev", Name: "deny", Body: []byte(denyWeb)})
	put(t, s, pod("1", "db"))
	e := enforcing(t, s, filepath.Join(t.TempDir(), "policy.json.gz"))
	eventually(t, "known", func() bool { return e.Ready() == nil })

	a := netip.MustParseAddr("10.244.0.9")
	w := model.Workload{ContainerID: "c", IfName: "eth0", Namespace: "dev", Name: "web", UID: "2", HostLink: "hdc", Addresses: []netip.Addr{a}}
	admitted := make(chan error, 1)
	go func() {
		err := e.AwaitPod(context.Background(), w)
		if err == nil {
			err = e.Admit(context.Background(), w, "02:00:00:00:00:09")
		}
		admitted <- err
	}()
	put(t, s, pod("1", "web"))
	select {
	case err := <-admitted:
		t.Fatalf("admitted with the labels of the pod before it: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	put(t, s, pod("2", "web"))
	if err := <-admitted; err != nil {
		t.Fatal(err)
	}
	if !e.policed(a) {
		t.Error("the pod is admitted without the policy that selects it")
	}
	// What the store tells of its labels later holds too.
	put(t, s, pod("2", "db", a))
	eventually(t, "the policy lets go of a pod with other labels", func() bool { return !e.policed(a) })
}

func TestPodOfWhichTheStoreDoesNotTellIsNotAdmitted(t *testing.T) {
	e := enforcing(t, memory.New(), filepath.Join(t.TempDir(), "policy.json.gz"))
	eventually(t, "known", func() bool { return e.Ready() == nil })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	w := model.Workload{ContainerID: "c", IfName: "eth0", Namespace: "dev", Name: "web", HostLink: "hdc"}
	for what, err := range map[string]error{"AwaitPod": e.AwaitPod(ctx, w), "Admit": e.Admit(context.Background(), w, "")} {
		if !errors.Is(err, ErrUnnamed) {
			t.Fatalf("%s: %v, want ErrUnnamed", what, err)
		}
	}
	w.Name = "" // a container that is no pod has nothing to wait for
	if err := e.Admit(context.Background(), w, ""); err != nil {
		t.Fatal(err)
	}
}

// TestPodOfAnotherPluginIsPolicedUntilOneOfOursHasItsName: pods made before a node was moved to Heddle.
func TestPodOfAnotherPluginIsPolicedUntilOneOfOursHasItsName(t *testing.T) {
	s := memory.New()
	put(t, s, &model.Resource{APIVersion: "networking.k8s.io/v1", Type: "NetworkPolicy", Namespace: "dev", Name: "deny", Body: []byte(denyWeb)})
	old, fresh := netip.MustParseAddr("10.244.0.7"), netip.MustParseAddr("10.244.0.8")
	put(t, s, pod("1", "web", old))
	file := filepath.Join(t.TempDir(), "policy.json.gz")
	e := enforcing(t, s, file)
	eventually(t, "policed", func() bool { return e.policed(old) })
	w := model.Workload{ContainerID: "c", IfName: "eth0", Namespace: "dev", Name: "web", HostLink: "hdc", Addresses: []netip.Addr{fresh}}
	if err := errors.Join(e.AwaitPod(context.Background(), w), e.Admit(context.Background(), w, "02:00:00:00:00:08")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new address is policed, the old one nobody's", func() bool { return e.policed(fresh) && !e.policed(old) })

	// The next life knows the pod's labels without the store.
	e.Remember()
	down, err := New(Options{Node: "n1", Log: slog.New(slog.DiscardHandler), Memory: file, Named: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := down.AwaitPod(context.Background(), w); err != nil {
		t.Error(err)
	}
	// A pod that is deleted decides nothing any more.
	e.Dismiss(w, "02:00:00:00:00:08")
	if err := s.Delete(context.Background(), model.KindEndpoint, pod("1", "web").Key(), store.AnyRevision); err != nil {
		t.Fatal(err)
	}
	eventually(t, "forgotten", func() bool { return !e.policed(old) && !e.policed(fresh) })
}
