package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/agent"
)

// Get asks a node's agent by its control socket: "/status", "/plan", "/readyz", "/metrics".
func (l *Lab) Get(ctx context.Context, node, path string) ([]byte, error) {
	socket := filepath.Join(l.machineDir(node), runDir, "agent.sock")
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("agent of %s: %w", node, err)
	}
	body, err := io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("agent of %s: %s: %s", node, resp.Status, bytes.TrimSpace(body))
	}
	return body, err
}

// Status asks a node's agent how it is.
func (l *Lab) Status(ctx context.Context, node string) (agent.Status, error) {
	var s agent.Status
	body, err := l.Get(ctx, node, "/status")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, fmt.Errorf("agent of %s: status: %w", node, err)
	}
	return s, nil
}

// WaitReady waits until every agent has written its CNI configuration, which it does only when pods
// can be added.
func (l *Lab) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, n := range l.Nodes() {
		err := poll(ctx, func() error {
			files, err := filepath.Glob(filepath.Join(l.machineDir(n), cniDir, "*.conflist"))
			if err != nil {
				return err
			}
			if len(files) == 0 {
				return fmt.Errorf("node %q: its agent has not written a CNI configuration", n)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%w\n%s", err, l.logTails(n))
		}
	}
	return nil
}

// settle is how long agents may take to agree on paths when all that is left is peers without one:
// a fixed mode may have no path to some peer, and that is then the lab's answer.
const settle = 3 * time.Second

// WaitPeers waits until every node knows all blocks of all others and has a path to each, or says for
// `settle` that it has none: those are returned.
func (l *Lab) WaitPeers(ctx context.Context) ([]NodePath, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var known time.Time
	var missing []NodePath
	err := poll(ctx, func() error {
		all := map[string]agent.Status{}
		for _, n := range l.Nodes() {
			s, err := l.Status(ctx, n)
			if err != nil {
				return err
			}
			all[n] = s
		}
		if err := l.unknownBlocks(all); err != nil {
			return err
		}
		if known.IsZero() {
			known = time.Now()
		}
		missing = nil
		for _, n := range l.Nodes() {
			for _, p := range all[n].Peers {
				if p.State != agent.PeerUp && p.State != agent.PeerNotCarried {
					missing = append(missing, NodePath{n, p})
				}
			}
		}
		if len(missing) > 0 && time.Since(known) < settle {
			return errors.New(missing[0].String())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, l.logTails(l.Nodes()...))
	}
	return missing, nil
}

// unknownBlocks is nil when every node lists as many blocks of each other node as that node owns.
func (l *Lab) unknownBlocks(all map[string]agent.Status) error {
	for a, s := range all {
		for b, other := range all {
			if a == b {
				continue
			}
			n := 0
			for _, p := range s.Peers {
				if p.Node == b {
					n++
				}
			}
			if len(other.Blocks) == 0 || n < len(other.Blocks) {
				return fmt.Errorf("node %q knows %d of %d blocks of node %q", a, n, len(other.Blocks), b)
			}
		}
	}
	return nil
}

// poll tries until nil or ctx ends, and then returns the last error.
func poll(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("not in time: %w", err)
			}
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// logTails are the last lines of the services' logs, for errors.
func (l *Lab) logTails(nodes ...string) string {
	var b strings.Builder
	for _, n := range nodes {
		services := []string{"agent"}
		if slices.Contains(l.storeNodes(), n) {
			services = []string{"store", "agent"}
		}
		for _, s := range services {
			raw, err := os.ReadFile(l.Node(n).LogFile(s))
			if err != nil {
				continue
			}
			lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
			fmt.Fprintf(&b, "--- end of the log of %s on %s:\n%s\n", s, n, strings.Join(lines[max(0, len(lines)-8):], "\n"))
		}
	}
	return b.String()
}
