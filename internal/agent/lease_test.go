package agent

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/memory"
)

func heartbeat(node string, age time.Duration) *model.Heartbeat {
	return &model.Heartbeat{Node: node, Renewed: time.Now().Add(-age), TTL: 90 * time.Second}
}

func list(t *testing.T, a *Agent) map[string]bool {
	t.Helper()
	if err := a.listHeartbeats(context.Background()); err != nil {
		t.Fatal(err)
	}
	return a.snapshot().withdrawn
}

// answered says since when the store has answered.
func answered(a *Agent, since time.Duration) {
	a.update(func(s *state) { s.storeSince = time.Now().Add(-since) })
}

func TestStoreOutageWithdrawsNobody(t *testing.T) {
	s := memory.New()
	a := registrar(t, s, "n1", t.TempDir())
	put(t, s, heartbeat("n2", 48*time.Hour))
	if got := list(t, a); len(got) > 0 {
		t.Fatalf("withdrawn at the first answer of the store: %v", got)
	}
	answered(a, time.Hour)
	if got := list(t, a); !got["n2"] {
		t.Fatalf("withdrawn %v, want n2: it had its time to renew", got)
	}
	put(t, s, heartbeat("n3", 48*time.Hour))
	a.storeSeen(store.ErrUnavailable)
	a.storeSeen(nil)
	if got := list(t, a); !got["n2"] || got["n3"] {
		t.Fatalf("withdrawn %v after an outage, want n2 as before and not n3", got)
	}
	put(t, s, heartbeat("n2", 0))
	if got := list(t, a); len(got) > 0 {
		t.Fatalf("withdrawn %v, want nobody: n2 is back", got)
	}
}

func TestReturnedNodeIsNotWithdrawnForLong(t *testing.T) {
	s := memory.New()
	put(t, s, heartbeat("n2", 48*time.Hour))
	a := registrar(t, s, "n1", t.TempDir())
	a.storeSeen(nil)
	answered(a, time.Hour)
	a.update(func(s *state) { s.synced = true })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.registerLoop(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not within 20 s, and the next regular listing is after 60", what)
			}
		}
	}
	wait("n2 is withdrawn", func() bool { return a.snapshot().withdrawn["n2"] })
	put(t, s, heartbeat("n2", 0))
	put(t, s, &model.Node{Name: "n2", ID: "x", Address4: netip.MustParseAddr("192.168.0.5")})
	wait("the view has n2", func() bool { c, _ := a.view.Snapshot(); return c.Node("n2") != nil })
	poke(a.register) // as the agent's forward does
	wait("n2 is back", func() bool { return len(a.snapshot().withdrawn) == 0 })
}
