package agent

import (
	"context"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/store/memory"
)

func TestAgentThatCanDoNothingIsHealthy(t *testing.T) {
	s := memory.New()
	put(t, s, pool("10.244.0.0/16", 24))
	a := registrar(t, s, "n1", t.TempDir())
	a.Facts = routes{} // a host without any address
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, synced := a.view.Snapshot(); synced {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the view never saw the store")
		}
	}
	health := func() int {
		w := httptest.NewRecorder()
		a.serveHealth(w, nil)
		return w.Code
	}
	a.started = time.Now().Add(-time.Hour)
	a.pass(context.Background())
	if a.snapshot().ready == nil || a.snapshot().plan != nil {
		t.Fatal("want a pass that finds no address")
	}
	if got := health(); got != 200 {
		t.Errorf("healthz says %d after a pass, want 200", got)
	}
	a.update(func(s *state) { s.turned = time.Now().Add(-time.Hour) })
	if got := health(); got != 503 {
		t.Errorf("healthz says %d an hour after the last pass, want 503", got)
	}
}
