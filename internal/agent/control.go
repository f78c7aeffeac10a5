package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// control serves people and probes: /status, /plan, /input and what policy.go adds on the root-only socket, with
// Go's own profiles for whoever looks into an agent that takes too much; /metrics,
// /healthz and /readyz there and on the configured address.
type control struct {
	servers   []*http.Server
	listeners []net.Listener
}

func pid() int { return os.Getpid() }

func (a *Agent) listenControl() (*control, error) {
	probes := http.NewServeMux()
	probes.Handle("GET /metrics", promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}))
	probes.HandleFunc("GET /healthz", a.serveHealth)
	probes.HandleFunc("GET /readyz", a.serveReady)

	private := http.NewServeMux()
	private.Handle("/", probes)
	private.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { reply(w, a.Status()) })
	private.HandleFunc("GET /plan", func(w http.ResponseWriter, _ *http.Request) { replyOr(w, a.snapshot().plan) })
	a.servePolicy(private)
	a.serveIPAM(private)
	private.HandleFunc("GET /input", func(w http.ResponseWriter, _ *http.Request) { replyOr(w, a.snapshot().input) })

	private.HandleFunc("GET /debug/pprof/", pprof.Index)
	private.HandleFunc("GET /debug/pprof/profile", pprof.Profile)

	c := &control{}
	if err := c.add("unix:"+a.controlSocket(), private); err != nil {
		return nil, err
	}
	if a.Config.Metrics != "" {
		if err := c.add(a.Config.Metrics, probes); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

// add listens on host:port or unix:/path. A socket file of an earlier life is replaced: lockNode has
// made sure that nobody listens there.
func (c *control) add(address string, h http.Handler) error {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("listen on %s: %w", path, err)
		}
	}
	l, err := net.Listen(network, address)
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(address)
		return fmt.Errorf("metrics %s: another process has this port: see `ss -ltnp sport = :%s`, stop it or choose another --metrics", address, port)
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	if network == "unix" {
		if err := os.Chmod(address, 0o600); err != nil {
			return errors.Join(err, l.Close())
		}
	}
	c.listeners = append(c.listeners, l)
	c.servers = append(c.servers, &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second})
	return nil
}

func (c *control) close() error {
	var errs []error
	for _, l := range c.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// serve runs until ctx ends.
func (c *control) serve(ctx context.Context) error {
	done := make(chan error, len(c.servers))
	for i, s := range c.servers {
		go func() { done <- s.Serve(c.listeners[i]) }()
	}
	var err error
	left := len(c.servers)
	select {
	case <-ctx.Done():
	case err = <-done:
		left--
	}
	for _, s := range c.servers {
		_ = s.Close()
	}
	for range left {
		if e := <-done; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// serveHealth: the loops turn. A pass runs at least every fullInterval. One that can do nothing, for
// want of an address or of a valid pool, is healthy: a restart would mend nothing.
func (a *Agent) serveHealth(w http.ResponseWriter, _ *http.Request) {
	last := a.snapshot().turned
	if last.IsZero() {
		last = a.started
	}
	if age := time.Since(last); age > 4*fullInterval && a.snapshot().synced {
		http.Error(w, fmt.Sprintf("no pass for %s", age.Round(time.Second)), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

func (a *Agent) serveReady(w http.ResponseWriter, _ *http.Request) {
	if err := a.snapshot().ready; err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the reader has gone away: nobody to tell
}

func replyOr[T any](w http.ResponseWriter, v *T) {
	if v == nil {
		http.Error(w, "there is no plan yet: see /status", http.StatusServiceUnavailable)
		return
	}
	reply(w, v)
}
