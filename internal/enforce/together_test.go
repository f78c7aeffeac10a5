package enforce

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/kernel/filter"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/store/memory"
)

// held is a filter whose updates wait until they are let go.
type held struct {
	kernel.Filter
	hold    atomic.Bool
	waiting chan struct{} // an update has come
	let     chan struct{}
	updates atomic.Int64
}

func (h *held) Update(ctx context.Context, d *policy.Delta) error {
	h.updates.Add(1)
	if h.hold.Load() {
		h.waiting <- struct{}{}
		<-h.let
	}
	return h.Filter.Update(ctx, d)
}

// While the kernel is at work, everything else goes on but what waits for the kernel too, and that goes there together.
func TestWorkloadsThatComeWhileTheKernelIsBusyAreAdmittedTogether(t *testing.T) {
	s := memory.New()
	put(t, s, &model.Resource{APIVersion: "networking.k8s.io/v1", Type: "NetworkPolicy", Namespace: "dev", Name: "deny", Body: []byte(denyWeb)})
	ns := int(space(t))
	f, err := filter.New(filter.Options{NS: ns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	h := &held{Filter: f, waiting: make(chan struct{}), let: make(chan struct{})}
	e := follow(t, s, filepath.Join(t.TempDir(), "policy.json.gz"), ns, h)
	eventually(t, "known and in the kernel", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.known && e.applied
	})
	const most = 20
	admitted := make(chan error, most)
	add := func(i int) {
		a := netip.AddrFrom4([4]byte{10, 244, 0, byte(i + 2)})
		w := model.Workload{
			ContainerID: fmt.Sprint("c", i), IfName: "eth0", Namespace: "dev", Name: fmt.Sprint("web-", i), Labels: map[string]string{"app": "web"},
			HostLink: fmt.Sprint("hd", i), Addresses: []netip.Addr{a},
		}
		put(t, s, &model.Endpoint{Node: "n1", Namespace: "dev", Name: w.Name, Labels: w.Labels})
		go func() {
			err := e.AwaitPod(context.Background(), w)
			if err == nil {
				err = e.Admit(context.Background(), w, fmt.Sprintf("02:00:00:00:00:%02x", i))
			}
			if err == nil && !e.policed(a) {
				err = fmt.Errorf("%s is admitted without its policy", w.Name)
			}
			admitted <- err
		}()
	}
	h.hold.Store(true)
	first, busy := 0, false
	for ; !busy; first++ {
		add(first)
		select {
		case <-h.waiting:
			busy = true
		case err := <-admitted: // by a comparison of the whole, which happened to be due
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	h.hold.Store(false)
	before := h.updates.Load()
	for i := range most {
		add(first + i)
	}
	// The store's news and questions are heard, with the kernel still at work.
	eventually(t, "all are known", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return len(e.netns) == first+most
	})
	select {
	case err := <-admitted:
		t.Errorf("admitted before the kernel knew of it (%v)", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(h.let)
	for range most + 1 {
		if err := <-admitted; err != nil {
			t.Error(err)
		}
	}
	// One for all that had come, one if the store's news were between.
	if n := h.updates.Load() - before; n > 3 {
		t.Errorf("%d transactions for %d workloads that came meanwhile", n, most)
	}
}
