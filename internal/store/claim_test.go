package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"sync"
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

var errFull = errors.New("pool is full")

// free picks a free /24 of storetest.Pool among the first n: the lowest, on which all that claim at
// once fall together, and after a conflict any.
func free(n int) func([]netip.Prefix, int) (netip.Prefix, error) {
	return func(taken []netip.Prefix, attempt int) (netip.Prefix, error) {
		used := map[netip.Prefix]bool{}
		for _, p := range taken {
			used[p] = true
		}
		var left []netip.Prefix
		for i := range n {
			if p := storetest.Block(i, "x").CIDR; !used[p] {
				left = append(left, p)
			}
		}
		switch {
		case len(left) == 0:
			return netip.Prefix{}, errFull
		case attempt == 0:
			return left[0], nil
		}
		return left[rand.N(len(left))], nil
	}
}

func claimAtOnce(t *testing.T, agents int, open func() store.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	got := make([]model.Block, agents)
	var wg sync.WaitGroup
	for i := range agents {
		s := open()
		wg.Go(func() {
			b, err := store.Claim(ctx, s, storetest.Node(i).Name, *storetest.Pool(), free(agents))
			if err != nil {
				t.Errorf("agent %d: %v", i, err)
			}
			got[i] = b
		})
	}
	wg.Wait()
	owner := map[netip.Prefix]int{}
	for i, b := range got {
		if j, twice := owner[b.CIDR]; twice {
			t.Errorf("agents %d and %d both got %s", j, i, b.CIDR)
		}
		owner[b.CIDR] = i
		if b.Node != storetest.Node(i).Name || b.Pool != "a" {
			t.Errorf("agent %d got %+v", i, b)
		}
	}
}

func TestHundredAgentsClaimingAtOnceGetDifferentBlocks(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	url := fmt.Sprintf("http://127.0.0.1:%d", etcdproc.FreePort(t))
	done := make(chan error, 1)
	go func() {
		done <- embedded.Run(ctx, embedded.Options{DataDir: filepath.Join(t.TempDir(), "store"), Listen: []string{url}})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	claimAtOnce(t, 100, func() store.Store {
		s, err := etcd.New(ctx, etcd.Options{Endpoints: []string{url}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	})
}

func TestClaimsInMemoryGetDifferentBlocks(t *testing.T) {
	s := memory.New()
	claimAtOnce(t, 100, func() store.Store { return s })
}

func TestClaimNeverRenumbersANode(t *testing.T) {
	s := memory.New()
	ctx := context.Background()
	mine := storetest.Block(5, "node-a")
	mustPut(t, s, mine)
	b, err := store.Claim(ctx, s, "node-a", *storetest.Pool(), func([]netip.Prefix, int) (netip.Prefix, error) {
		return netip.Prefix{}, errors.New("asked for another block")
	})
	if err != nil || b != *mine {
		t.Fatalf("got %+v, %v; want %+v", b, err, *mine)
	}
}

func TestClaimFromAFullPoolSaysSo(t *testing.T) {
	s := memory.New()
	mustPut(t, s, storetest.Block(0, "node-b"))
	_, err := store.Claim(context.Background(), s, "node-a", *storetest.Pool(), free(1))
	if !errors.Is(err, errFull) {
		t.Fatalf("error %v, want the picker's", err)
	}
}

func TestClaimGivesUpWhenAlwaysOvertaken(t *testing.T) {
	s := memory.New()
	mustPut(t, s, storetest.Block(0, "node-b"))
	tries := 0
	_, err := store.Claim(context.Background(), s, "node-a", *storetest.Pool(), func([]netip.Prefix, int) (netip.Prefix, error) {
		tries++
		return storetest.Block(0, "x").CIDR, nil // a picker that does not look
	})
	if !errors.Is(err, store.ErrConflict) || tries != 200 {
		t.Fatalf("error %v after %d tries, want ErrConflict after 200", err, tries)
	}
}
