package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/memory"
)

// away is a store that cannot be reached.
type away struct{ store.Store }

func (away) List(context.Context, ...model.Kind) ([]store.Item, store.Revision, error) {
	return nil, 0, fmt.Errorf("list pools: %w: connection refused", store.ErrUnavailable)
}

func TestNetConfIsNotBlamedForAStoreThatIsAway(t *testing.T) {
	a := registrar(t, memory.New(), "n1", t.TempDir())
	said := func(s store.Store, text string) string {
		t.Helper()
		a.Store = s
		a.netConfResult(a.fileNetConf(context.Background(), []byte(text)))
		var b strings.Builder
		for _, p := range a.snapshot().netConf {
			b.WriteString(p.Detail)
		}
		return b.String()
	}
	good := `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`
	if d := said(away{}, `{"Network":"10.244.0.0"}`); !strings.Contains(d, "Network") {
		t.Fatalf("a bad file: %q, want the field that is wrong", d)
	}
	if d := said(away{}, good); d != "" {
		t.Errorf("the store is away: %q, want nothing about the file", d)
	}
	if d := said(memory.New(), good); d != "" {
		t.Errorf("a good file: %q", d)
	}
}
