//go:build kube

package kube_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/heddle-net/heddle/internal/store/kube"
)

// wire stands between a store and the API server: it counts bytes, and can be cut.
type wire struct {
	to       string
	listener net.Listener
	received atomic.Int64 // by the store

	mu     sync.Mutex
	frozen chan struct{} // not nil: nothing passes until it is closed
	down   bool
	conns  map[net.Conn]bool
	wg     sync.WaitGroup
}

// wired returns a wire to the API server, and a kubeconfig that leads over it.
func (l *lab) wired(t testing.TB) (*wire, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l.wiredOn(t, ln)
}

// wiredOn is wired with a listener that may stand in another network namespace.
func (l *lab) wiredOn(t testing.TB, ln net.Listener) (*wire, string) {
	t.Helper()
	w := &wire{to: strings.TrimPrefix(l.url, "https://"), listener: ln, conns: map[net.Conn]bool{}}
	w.wg.Go(w.serve)
	t.Cleanup(func() {
		_ = ln.Close()
		w.thaw()
		w.cut()
		w.wg.Wait()
	})
	path := filepath.Join(t.TempDir(), "wired.yaml")
	text := strings.ReplaceAll(l.config(adminToken), l.url, "https://"+ln.Addr().String())
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w, path
}

// over opens a store over the wire.
func (l *lab) over(t testing.TB, o kube.Options) (*wire, *kube.Store) {
	t.Helper()
	w, config := l.wired(t)
	o.Kubeconfig = config
	return w, l.open(t, o)
}

func (w *wire) serve() {
	for {
		near, err := w.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", w.to)
		if err != nil || !w.add(near, far) {
			_ = near.Close()
			continue
		}
		w.wg.Go(func() { w.pump(far, near, nil) })
		w.wg.Go(func() { w.pump(near, far, &w.received) })
	}
}

func (w *wire) add(near, far net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		_ = far.Close()
		return false
	}
	w.conns[near], w.conns[far] = true, true
	return true
}

func (w *wire) pump(to, from net.Conn, count *atomic.Int64) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		w.mu.Lock()
		frozen := w.frozen
		w.mu.Unlock()
		if frozen != nil {
			<-frozen
		}
		if count != nil {
			count.Add(int64(n))
		}
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = to.Close()
	_ = from.Close()
}

// cut ends all connections, and takes no new ones until mend.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = true
	for c := range w.conns {
		_ = c.Close()
	}
	clear(w.conns)
}

// freeze lets nothing pass, and keeps all connections, until thaw.
func (w *wire) freeze() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frozen = make(chan struct{})
}

func (w *wire) thaw() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.frozen != nil {
		close(w.frozen)
		w.frozen = nil
	}
}

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = false
}
