//go:build kube

package kube

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// dialFrom makes connections that are those of a network namespace.
func dialFrom(ns *os.File) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		type result struct {
			conn net.Conn
			err  error
		}
		out := make(chan result)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				out <- result{nil, err}
				return
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			out <- result{conn, err}
		}()
		r := <-out
		return r.conn, r.err
	}
}

// inside is a client whose connections are those of a pod.
func inside(ns *os.File, keep bool) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: dialFrom(ns), DisableKeepAlives: !keep, MaxIdleConnsPerHost: 1}, Timeout: 15 * time.Second}
}

// load is a client that asks again and again.
type load struct {
	what          string
	asked, failed atomic.Int64
	first         atomic.Value // of the errors
	stop          context.CancelFunc
	done          sync.WaitGroup
}

// startLoad asks url every so often from the pod's namespace, each time on a new connection, or always on one.
func startLoad(t *testing.T, ns *os.File, url string, every time.Duration, keep bool) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{what: url, stop: cancel}
	client := inside(ns, keep)
	ask := func() {
		l.asked.Add(1)
		err := get(context.Background(), client, url)
		if err != nil {
			l.failed.Add(1)
			l.first.CompareAndSwap(nil, fmt.Sprintf("%s %v", time.Now().Format("15:04:05.000"), err))
		}
	}
	l.done.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if keep {
				ask()
			} else {
				l.done.Go(ask)
			}
		}
	})
	t.Cleanup(func() { cancel(); l.done.Wait(); client.CloseIdleConnections() })
	return l
}

// awaitService waits until a Service answers in a pod's namespace: kube-proxy tells a node of its pods when it comes to it,
// which may be after they are ready, and until then it refuses connections.
func awaitService(t *testing.T, ns *os.File, url string) string {
	t.Helper()
	client := inside(ns, false)
	eventually(t, time.Minute, url+" answers", func() error { return get(context.Background(), client, url) })
	return url
}

// end stops the load and wants every request answered.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.done.Wait()
	t.Logf("%s: %d requests, %d failed", l.what, l.asked.Load(), l.failed.Load())
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%s: %d of %d requests failed, the first at %v", l.what, n, l.asked.Load(), l.first.Load())
	}
	if l.asked.Load() == 0 {
		t.Errorf("%s: nothing was asked", l.what)
	}
}

func get(ctx context.Context, c *http.Client, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

// netnsOf opens a pod's namespace until the test ends.
func netnsOf(ctx context.Context, t *testing.T, l *lab.Lab, p pod) *os.File {
	t.Helper()
	f, err := l.Netns(ctx, p.node, p.ips[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// agentAnswers asks a node's agent by its socket.
func agentAnswers(ctx context.Context, l *lab.Lab, node, path string) (string, error) {
	return l.Exec(ctx, node, "curl", "-sS", "-m", "5", "--fail", "--unix-socket", "/run/heddle/agent.sock", "http://agent"+path)
}

// killAgent ends a node's agent at once, as a crash would, and waits until another one is ready.
func killAgent(ctx context.Context, t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	before := agentPID(ctx, t, l, node)
	if _, err := l.Exec(ctx, node, "kill", "-9", before); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Minute, "node "+node+" has an agent again", func() error {
		if now := agentPID(ctx, t, l, node); now == before || now == "" {
			return fmt.Errorf("agent %q, before %s", now, before)
		}
		_, err := agentAnswers(ctx, l, node, "/readyz")
		return err
	})
}

// agentPID is the agent's process in the node's own numbers; "" for none.
func agentPID(ctx context.Context, t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	out, _ := l.Exec(ctx, node, "sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/heddle agent' && echo ${p#/proc/}; done; true`)
	return strings.TrimSpace(out)
}
