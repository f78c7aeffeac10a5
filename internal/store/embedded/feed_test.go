package embedded_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/internal/store/storetest"
)

// feeding starts a feed of endpoints and resources on a connection of its own, and ends it with the test.
func feeding(t *testing.T, url string) *storetest.Mirror {
	t.Helper()
	s := open(t, etcd.Options{Endpoints: []string{url}})
	m := &storetest.Mirror{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- store.NewFeed(s, nil, model.KindEndpoint, model.KindResource).Run(ctx, func(b store.Batch) { m.Take(t, b) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m
}

// persist puts or deletes until the store takes it.
func persist(t *testing.T, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), storetest.Patience)
	defer cancel()
	for err := do(ctx); err != nil; err = do(ctx) {
		if !store.Pause(ctx, 10*time.Millisecond) {
			t.Fatal(err)
		}
	}
}

func TestFeedGoesOnAfterOutagesAndCompactions(t *testing.T) {
	t.Parallel()
	p := process(t, loopback(t))
	p.Start(t)
	p.WaitReady(t)
	s := open(t, etcd.Options{Endpoints: []string{p.URL}})
	put := func(o model.Object) {
		t.Helper()
		persist(t, func(ctx context.Context) error { _, err := s.Put(ctx, o, store.AnyRevision); return err })
	}
	for i := range 700 {
		put(storetest.Endpoint(i, "node-1"))
	}
	m := feeding(t, p.URL)
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	for round := range 3 {
		p.Kill()
		p.Start(t)
		for i := range 20 {
			e := storetest.Endpoint(round*20+i, "node-1")
			e.Labels["round"] = fmt.Sprint(round)
			put(e)
			put(storetest.Resource(round*20 + i))
			persist(t, func(ctx context.Context) error {
				return s.Delete(ctx, model.KindEndpoint, storetest.Endpoint(100+round*20+i, "node-1").Key(), store.AnyRevision)
			})
			if i%5 == 0 {
				compact(t, s)
			}
		}
		m.Wait(t, s, model.KindEndpoint, model.KindResource)
	}
	m.Do(func() {
		if m.Wholes != 1 {
			t.Errorf("%d whole batches from one store, want the first alone", m.Wholes)
		}
	})
}

func TestFeedTellsAllOfAStoreThatWasPutBack(t *testing.T) {
	t.Parallel()
	o := loopback(t)
	p := process(t, o)
	p.Start(t)
	p.WaitReady(t)
	s := open(t, etcd.Options{Endpoints: []string{p.URL}})
	put := func(o model.Object) {
		t.Helper()
		persist(t, func(ctx context.Context) error { _, err := s.Put(ctx, o, store.AnyRevision); return err })
	}
	for i := range 20 {
		put(storetest.Endpoint(i, "node-1"))
	}
	p.Stop()
	backup := o.DataDir + ".backup"
	if err := os.CopyFS(backup, os.DirFS(o.DataDir)); err != nil {
		t.Fatal(err)
	}
	p.Start(t)
	m := feeding(t, p.URL)
	v := store.NewView(open(t, etcd.Options{Endpoints: []string{p.URL}}), nil)
	ctx, cancel := context.WithCancel(context.Background())
	viewed := make(chan error, 1)
	go func() { viewed <- v.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-viewed; err != nil {
			t.Error(err)
		}
	}()
	nodes := func(want int) {
		t.Helper()
		for end := time.Now().Add(3 * storetest.Patience); ; time.Sleep(5 * time.Millisecond) {
			c, synced := v.Snapshot()
			if synced && len(c.Nodes) == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the view has %d nodes, want %d", len(c.Nodes), want)
			}
		}
	}
	put(storetest.Node(1))
	nodes(1)
	for i := range 20 { // what the backup has not
		e := storetest.Endpoint(i, "node-1")
		e.Labels["since"] = "the backup"
		put(e)
	}
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	p.Kill()
	if err := os.RemoveAll(o.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(o.DataDir, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	p.Start(t)
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	nodes(0)
	m.Do(func() {
		if m.Wholes != 2 {
			t.Errorf("%d whole batches, want another one after the store was put back", m.Wholes)
		}
	})
}

func TestWhatIsWrittenInOneTransactionComesInAFewBatches(t *testing.T) {
	t.Parallel()
	o := loopback(t)
	run(t, o)
	s := open(t, etcd.Options{Endpoints: o.Listen})
	m := feeding(t, o.Listen[0])
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	var ops []clientv3.Op
	const n = 100 // of a hundred operations is etcd's own limit
	for i := range n {
		e := storetest.Endpoint(i, "node-1")
		data, err := store.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, clientv3.OpPut(etcd.DefaultPrefix+"/security/endpoints/"+e.Key(), string(data)))
	}
	var before int
	m.Do(func() { before = m.Batches })
	if _, err := s.Client().Txn(context.Background()).Then(ops...).Commit(); err != nil {
		t.Fatal(err)
	}
	m.Wait(t, s, model.KindEndpoint, model.KindResource)
	m.Do(func() {
		if m.Batches-before > n/10 {
			t.Errorf("%d changes of one transaction came in %d batches", n, m.Batches-before)
		}
	})
}

// fill writes n endpoints, a thousand in a transaction's time.
func fill(tb testing.TB, s *etcd.Store, n int) {
	tb.Helper()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			var ops []clientv3.Op
			for i := w; i < n; i += 16 {
				e := storetest.Endpoint(i, fmt.Sprintf("node-%d", i/100))
				data, err := store.Encode(e)
				if err != nil {
					tb.Error(err)
					return
				}
				if ops = append(ops, clientv3.OpPut("/heddle/v1/security/endpoints/"+e.Key(), string(data))); len(ops) < 100 && i+16 < n {
					continue
				}
				if _, err := s.Client().Txn(context.Background()).Then(ops...).Commit(); err != nil {
					tb.Error(err)
					return
				}
				ops = nil
			}
		})
	}
	wg.Wait()
}

// BenchmarkFeedReads100000Endpoints measures the time to the first batch, and the heap in use with that
// batch and after it.
func BenchmarkFeedReads100000Endpoints(b *testing.B) {
	p := process(b, loopback(b))
	p.Start(b)
	p.WaitReady(b)
	s := open(b, etcd.Options{Endpoints: []string{p.URL}})
	fill(b, s, 100_000)
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	begin := heap()
	for b.Loop() {
		ctx, cancel := context.WithCancel(context.Background())
		taken, taking := make(chan int), make(chan bool)
		f := store.NewFeed(s, nil, model.KindEndpoint, model.KindResource)
		done := make(chan error, 1)
		go func() {
			done <- f.Run(ctx, func(batch store.Batch) { taken <- len(batch.Items); <-taking; runtime.KeepAlive(batch.Items) })
		}()
		if n := <-taken; n != 100_000 {
			b.Fatalf("%d endpoints", n)
		}
		b.StopTimer()
		b.ReportMetric(heap()-begin, "MiB-with-batch")
		taking <- true
		time.Sleep(100 * time.Millisecond)
		b.ReportMetric(heap()-begin, "MiB-after")
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
