package enforce

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/store"
)

func far(i, change int) *model.Endpoint {
	return &model.Endpoint{
		Node: "n2", Namespace: "dev", Name: fmt.Sprint("p", i), Link: fmt.Sprint("hd", i), Labels: map[string]string{"change": fmt.Sprint(change)},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})},
	}
}

// A question in a large cluster holds up neither ADDs nor the store's news, and its answer is of what is known when all
// of that has been read.
func TestQuestionsHoldUpNobodyAndMissNothing(t *testing.T) {
	e, err := New(Options{Node: "n1", Log: slog.New(slog.DiscardHandler), Memory: filepath.Join(t.TempDir(), "policy.json.gz")})
	if err != nil {
		t.Fatal(err)
	}
	const many = 5000
	all := store.Batch{Whole: true}
	for i := range 2 * many {
		all.Items = append(all.Items, store.Item{Object: far(i, 0)})
	}
	e.Take(all)
	// The objects come and go in pairs, so a copy that is torn shows.
	pair := func(k, change int) []store.Item {
		return []store.Item{{Object: far(2*k, change)}, {Object: far(2*k+1, change)}}
	}
	stop := make(chan struct{})
	during := 0 // changes that were heard while a copy was being made
	var others sync.WaitGroup
	others.Go(func() {
		for turns := 0; ; turns++ {
			select {
			case <-stop:
				return
			default:
			}
			e.mu.Lock()
			if e.touched != nil {
				during++
			}
			e.mu.Unlock()
			k := turns % many
			if turns%2 == 0 {
				e.Take(store.Batch{Items: pair(k, turns)})
				continue
			}
			e.Take(store.Batch{Deleted: []store.KindKey{
				{Kind: model.KindEndpoint, Key: far(2*k, 0).Key()}, {Kind: model.KindEndpoint, Key: far(2*k+1, 0).Key()},
			}})
		}
	})
	torn := 0
	for range 3 {
		world, err := e.world()
		if err != nil {
			t.Fatal(err)
		}
		changes := map[int]string{}
		for _, o := range world {
			ep := o.(*policy.Endpoint)
			var i int
			if _, err := fmt.Sscanf(ep.Name, "p%d", &i); err != nil {
				t.Fatal(err)
			}
			change := ep.Labels["change"]
			if other, two := changes[i/2]; !two {
				changes[i/2] = change
			} else if delete(changes, i/2); other != change {
				torn++
			}
		}
		torn += len(changes)
	}
	close(stop)
	others.Wait()
	if torn > 0 {
		t.Errorf("%d pairs are torn", torn)
	}
	if during < 3 {
		t.Errorf("%d changes were heard while everything was copied three times", during)
	}
}
