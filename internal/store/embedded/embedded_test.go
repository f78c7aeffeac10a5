package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/embedded"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/internal/store/storetest"
	"github.com/heddle-net/heddle/internal/store/storetest/etcdproc"
)

// run runs the store inside of the test until it ends.
func run(t *testing.T, o embedded.Options) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	o.Ready = func() { close(ready) }
	go func() { done <- embedded.Run(ctx, o) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	case <-time.After(storetest.Patience):
		cancel()
		t.Fatal("the store did not come up")
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

var prefixes atomic.Int64

func open(t testing.TB, o etcd.Options) *etcd.Store {
	t.Helper()
	s, err := etcd.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func compact(t *testing.T, s store.Store) {
	t.Helper()
	_, rev, err := s.List(context.Background(), model.KindNode)
	if err == nil {
		_, err = s.(*etcd.Store).Client().Compact(context.Background(), int64(rev), clientv3.WithCompactPhysical())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func contract(t *testing.T, endpoint string) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return open(t, etcd.Options{Endpoints: []string{endpoint}, Prefix: fmt.Sprintf("/test/%d", prefixes.Add(1))})
	}, compact)
}

func TestEmbeddedStoreKeepsTheContract(t *testing.T) {
	o := loopback(t)
	run(t, o)
	contract(t, o.Listen[0])
}

func TestStoreProcessKeepsTheContractOverAUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "hd") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := process(t, embedded.Options{DataDir: dir + "/store", Listen: []string{"unix://" + dir + "/s.sock"}})
	p.Start(t)
	p.WaitReady(t)
	fi, err := os.Stat(dir + "/s.sock")
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v %v, want mode 0600", fi.Mode(), err)
	}
	contract(t, p.URL)
	if strings.Contains(p.Log(), "level=WARN") || !strings.Contains(p.Log(), `msg="store serves"`) {
		t.Errorf("an ordinary start and work say:\n%s", p.Log())
	}
}

func TestKilledStoreKeepsEveryAcknowledgedWrite(t *testing.T) {
	t.Parallel()
	p := process(t, loopback(t))
	p.Start(t)
	p.WaitReady(t)
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	s := open(t, etcd.Options{Endpoints: []string{p.URL}})
	watcher := open(t, etcd.Options{Endpoints: []string{p.URL}})
	_, rev, err := watcher.List(ctx, model.KindNode)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := watcher.Watch(ctx, rev, model.KindNode)
	if err != nil {
		t.Fatal(err)
	}
	const rounds, writers = 3, 4
	var next atomic.Int64
	var acked sync.Map
	for range rounds {
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for range writers {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					n := storetest.Node(int(next.Add(1)))
					if _, err := s.Put(ctx, n, 0); err == nil {
						acked.Store(n.Name, true)
					} else if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrConflict) {
						t.Errorf("put: %v", err)
						return
					}
				}
			})
		}
		time.Sleep(300 * time.Millisecond) // some writes, then in the middle of them:
		p.Kill()
		close(stop)
		p.Start(t)
		wg.Wait()
	}
	last, err := s.Put(ctx, storetest.Node(60000), store.AnyRevision)
	if err != nil {
		t.Fatal(err)
	}
	items, _, err := s.List(ctx, model.KindNode)
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, it := range items {
		have[it.Object.Key()] = true
	}
	n := 0
	acked.Range(func(k, _ any) bool {
		n++
		if !have[k.(string)] {
			t.Errorf("%s was acknowledged and is not there", k)
		}
		return true
	})
	if n < 10 {
		t.Fatalf("only %d acknowledged writes: nothing was tested", n)
	}
	for seen := map[string]bool{}; ; {
		e := storetest.Next(t, ch)
		if seen[e.Key] {
			t.Errorf("the watch told of %s twice", e.Key)
		}
		seen[e.Key] = true
		if e.Revision == last {
			if len(seen) != len(have) {
				t.Errorf("the watch told of %d nodes, the store holds %d", len(seen), len(have))
			}
			return
		}
	}
}

func TestWatchAsksToListAgainAfterRestartWithCompaction(t *testing.T) {
	t.Parallel()
	p := process(t, loopback(t))
	p.Start(t)
	p.WaitReady(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	s := open(t, etcd.Options{Endpoints: []string{p.URL}})
	rev, err := s.Put(ctx, storetest.Node(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	// The watch begins while the store is down, from a revision that is gone when it is back.
	ch, err := s.Watch(ctx, rev, model.KindNode)
	if err != nil {
		t.Fatal(err)
	}
	p.Start(t)
	other := open(t, etcd.Options{Endpoints: []string{p.URL}, Prefix: "/other"})
	for i := range 5 {
		if rev, err = other.Put(ctx, storetest.Node(i), 0); err != nil {
			t.Fatal(err)
		}
	}
	compact(t, other)
	p.Kill()
	p.Start(t)
	for {
		e := storetest.Next(t, ch)
		if e.Type == store.EventResync {
			if e.Revision < rev {
				t.Fatalf("resync at %d, want %d or later", e.Revision, rev)
			}
			break
		}
		// The client may have been connected before the compaction: then there is nothing to tell.
		t.Fatalf("event %+v, want a resync", e)
	}
}

func TestWatchAsksToListAgainWhenTheStoreWasPutBack(t *testing.T) {
	t.Parallel()
	o := loopback(t)
	p := process(t, o)
	p.Start(t)
	p.WaitReady(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	s := open(t, etcd.Options{Endpoints: []string{p.URL}})
	for i := range 5 {
		if _, err := s.Put(ctx, storetest.Node(i), 0); err != nil {
			t.Fatal(err)
		}
	}
	_, rev, err := s.List(ctx, model.KindNode)
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	if err := os.RemoveAll(o.DataDir); err != nil {
		t.Fatal(err)
	}
	ch, err := s.Watch(ctx, rev, model.KindNode)
	if err != nil {
		t.Fatal(err)
	}
	p.Start(t)
	if e := storetest.Next(t, ch); e.Type != store.EventResync || e.Revision >= rev {
		t.Fatalf("event %+v, want a resync below %d", e, rev)
	}
	r, err := s.Put(ctx, storetest.Node(9), 0)
	if err != nil {
		t.Fatal(err)
	}
	if e := storetest.Next(t, ch); e.Revision != r {
		t.Fatalf("event %+v, want node 9 at %d", e, r)
	}
}

func TestErrorsSayWhatToTry(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), storetest.Patience)
	defer cancel()

	o := loopback(t)
	o.Listen = []string{"http://" + taken.Addr().String()}
	err = embedded.Run(ctx, o)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), taken.Addr().String()) || !strings.Contains(err.Error(), "choose another --listen") {
		t.Errorf("port in use: %v", err)
	}

	o = loopback(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o.DataDir = file + "/store"
	if err := embedded.Run(ctx, o); err == nil || !strings.Contains(err.Error(), "--data-dir "+o.DataDir) {
		t.Errorf("no directory: %v", err)
	}

	o = loopback(t)
	o.DataDir = "/sys/heddle-store" // where not even root may make a directory
	err = embedded.Run(ctx, o)
	if !errors.Is(err, syscall.EROFS) && (!errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "no permission to write there")) {
		t.Errorf("no permission: %v", err)
	}

	o = loopback(t)
	run(t, o)
	o.Listen = []string{fmt.Sprintf("http://127.0.0.1:%d", etcdproc.FreePort(t))}
	if err := embedded.Run(ctx, o); err == nil || !strings.Contains(err.Error(), "another store runs over it") {
		t.Errorf("directory in use: %v", err)
	}
}

func TestOptionsThatMakeNoSenseAreRefusedByName(t *testing.T) {
	three := map[string]string{"a": "http://127.0.0.1:1", "b": "http://127.0.0.1:2", "c": "http://127.0.0.1:3"}
	for _, c := range []struct {
		change func(*embedded.Options)
		want   string
	}{
		{func(o *embedded.Options) { o.DataDir = "store" }, "--data-dir"},
		{func(o *embedded.Options) { o.Listen = nil }, "--listen"},
		{func(o *embedded.Options) { o.Listen = []string{"http://192.0.2.1:2379"} }, "--listen"},
		{func(o *embedded.Options) { o.Listen = []string{"http://example.com:2379"} }, "--listen"},
		{func(o *embedded.Options) { o.Name = "No" }, "--name"},
		{func(o *embedded.Options) { o.Cluster = three }, "--peer-listen"},
		{func(o *embedded.Options) { o.Cluster, o.PeerListen, o.Name = three, "http://127.0.0.1:1", "d" }, "--initial-cluster"},
		{func(o *embedded.Options) { o.Cluster, o.PeerListen, o.Name = three, "http://127.0.0.1:9", "a" }, "--initial-cluster"},
		{func(o *embedded.Options) {
			o.Cluster, o.PeerListen, o.Name = map[string]string{"a": "http://127.0.0.1:1", "b": "http://127.0.0.1:2"}, "http://127.0.0.1:1", "a"
		}, "--initial-cluster"},
		{func(o *embedded.Options) { o.QuotaBytes = 1 }, "quota"},
	} {
		o := loopback(t)
		c.change(&o)
		err := embedded.Run(context.Background(), o)
		var fe *model.FieldError
		if !errors.As(err, &fe) || fe.Field != c.want {
			t.Errorf("%+v: error %v, want one about %s", o, err, c.want)
		}
	}
	if _, err := embedded.ParseCluster("a=http://x:1,a=http://y:1"); err == nil {
		t.Error("a member named twice was taken")
	}
	m, err := embedded.ParseCluster("a=https://10.0.0.1:2380, b=https://10.0.0.2:2380")
	if err != nil || len(m) != 2 || m["b"] != "https://10.0.0.2:2380" {
		t.Errorf("members: %v %v", m, err)
	}
}

func TestOrderlyStopIsQuiet(t *testing.T) {
	p := process(t, loopback(t))
	p.Start(t)
	p.WaitReady(t)
	p.Stop()
	for line := range strings.Lines(p.Log()) {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "level=WARN") {
			t.Errorf("logged by an orderly stop: %s", line)
		}
	}
}
