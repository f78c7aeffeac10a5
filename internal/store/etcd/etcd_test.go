package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/internal/store/storetest"
	"github.com/heddle-net/heddle/internal/store/storetest/etcdproc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var prefixes atomic.Int64

func open(t *testing.T, url string, o etcd.Options) *etcd.Store {
	t.Helper()
	o.Endpoints = []string{url}
	if o.Prefix == "" {
		o.Prefix = fmt.Sprintf("/test/%d", prefixes.Add(1))
	}
	s, err := etcd.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func compact(t *testing.T, s store.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), storetest.Patience)
	defer cancel()
	_, rev, err := s.List(ctx, model.KindNode)
	if err == nil {
		_, err = s.(*etcd.Store).Client().Compact(ctx, int64(rev), clientv3.WithCompactPhysical())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestSeparateEtcdKeepsTheContract(t *testing.T) {
	p := etcdproc.Debian(t)
	p.Start(t)
	p.WaitReady(t)
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, p.URL, etcd.Options{}) }, compact)
}

// logCounter counts log lines that hold a text.
type logCounter struct {
	mu    sync.Mutex
	lines []string
}

func (l *logCounter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	return len(b), nil
}

func (l *logCounter) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.lines {
		if strings.Contains(s, text) {
			n++
		}
	}
	return n
}

func TestBadObjectIsLeftOutAndLoggedOncePerRevision(t *testing.T) {
	p := etcdproc.Debian(t)
	p.Start(t)
	p.WaitReady(t)
	var log logCounter
	s := open(t, p.URL, etcd.Options{Prefix: "/bad", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	ctx, cancel := context.WithTimeout(context.Background(), storetest.Patience)
	defer cancel()
	rev, err := s.Put(ctx, storetest.Node(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := s.Watch(ctx, rev, model.KindNode)
	if err != nil {
		t.Fatal(err)
	}
	raw := func(key, value string) {
		t.Helper()
		if _, err := s.Client().Put(ctx, "/bad/nodes/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	raw("broken", "{")
	raw("wrong", `{"name":"other","address4":"10.0.0.1"}`)
	raw("huge", `{"name":"huge","address4":"10.0.0.1","version":"`+strings.Repeat("x", store.MaxObjectSize)+`"}`)
	raw("newer", `{"name":"newer","address4":"10.0.0.1","fromTheFuture":{"a":1}}`)
	if e := storetest.Next(t, ch); e.Key != "newer" {
		t.Fatalf("event %+v, want the good object only", e)
	}
	for range 3 {
		items, _, err := s.List(ctx, model.KindNode)
		if err != nil || len(items) != 2 {
			t.Fatalf("list: %v %v", items, err)
		}
	}
	for _, k := range []string{"broken", "wrong", "huge"} {
		if n := log.count("key=/bad/nodes/" + k); n != 1 {
			t.Errorf("%s was logged %d times, want 1", k, n)
		}
	}
	raw("broken", "[")
	if _, _, err := s.List(ctx, model.KindNode); err != nil {
		t.Fatal(err)
	}
	if n := log.count("key=/bad/nodes/broken"); n != 2 {
		t.Errorf("after another bad write it was logged %d times, want 2", n)
	}
}

func TestStoreThatIsDownNeitherBlocksNewNorHangsACall(t *testing.T) {
	s := open(t, fmt.Sprintf("http://127.0.0.1:%d", etcdproc.FreePort(t)), etcd.Options{CallTimeout: 300 * time.Millisecond})
	_, err := s.Get(context.Background(), model.KindNode, "node-00001")
	if !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("error %v, want ErrUnavailable", err)
	}
	if !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %q does not say why", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err = s.Put(ctx, storetest.Node(1), 0); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("error %v, want ErrUnavailable", err)
	}
	ch, err := s.Watch(context.Background(), 0, model.KindNode)
	if err != nil {
		t.Fatalf("watch: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	storetest.Ended(t, ch)
}

func TestOptionsThatMakeNoSenseAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		o    etcd.Options
		want string
	}{
		{etcd.Options{}, "endpoints"},
		{etcd.Options{Endpoints: []string{"10.0.0.1:2379"}}, "endpoints"},
		{etcd.Options{Endpoints: []string{"https://10.0.0.1:2379"}}, "ca"},
		{etcd.Options{Endpoints: []string{"http://10.0.0.1:2379"}, TLS: cert.Files{CA: "x"}}, "endpoints"},
		{etcd.Options{Endpoints: []string{"http://127.0.0.1:2379"}, Prefix: "nowhere/"}, "prefix"},
	} {
		_, err := etcd.New(context.Background(), c.o)
		var fe *model.FieldError
		if !errors.As(err, &fe) || fe.Field != c.want {
			t.Errorf("%+v: error %v, want one about %s", c.o, err, c.want)
		}
	}
}
