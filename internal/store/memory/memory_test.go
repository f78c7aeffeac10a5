package memory

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemoryKeepsTheContract(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return New() }, func(t *testing.T, s store.Store) {
		_, rev, err := s.List(context.Background(), model.KindNode)
		if err != nil {
			t.Fatal(err)
		}
		s.(*Store).Compact(rev)
	})
}
