package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/model"
	"golang.org/x/sync/errgroup"
)

// Ping is one cell of the matrix.
type Ping struct {
	From, To Pod
	Family   model.Family
	RTT      time.Duration // 0 when there was no answer
	Err      string        // why not; empty for an answer
}

// Matrix is what `heddle lab ping` finds: every pod to every other, and the path per pair of nodes.
type Matrix struct {
	Pods  []Pod
	Pings []Ping
	Paths []NodePath
}

// NodePath is how one node reaches one block of another.
type NodePath struct {
	From string
	agent.PeerStatus
}

func (p NodePath) String() string {
	return fmt.Sprintf("node %q to %s of %q: %s: %s", p.From, p.Block, p.Node, p.State, p.Reason)
}

// OK reports whether there were pings and all were answered.
func (m *Matrix) OK() bool {
	for _, p := range m.Pings {
		if p.Err != "" {
			return false
		}
	}
	return len(m.Pings) > 0
}

// Ping pings between all pods that have addresses of the families, a bounded number at a time.
func (l *Lab) Ping(ctx context.Context, families ...model.Family) (*Matrix, error) {
	pods, err := l.Pods()
	if err != nil {
		return nil, err
	}
	m := &Matrix{Pods: pods}
	for _, f := range families {
		for _, from := range pods {
			for _, to := range pods {
				if from.Name != to.Name && from.Address(f).IsValid() && to.Address(f).IsValid() {
					m.Pings = append(m.Pings, Ping{From: from, To: to, Family: f})
				}
			}
		}
	}
	pids, err := inits(l.Dir)
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4 * runtime.GOMAXPROCS(0))
	for i := range m.Pings {
		p := &m.Pings[i]
		g.Go(func() error {
			rtt, err := pingOnce(gctx, pids[p.From.Node], *p)
			if p.RTT = rtt; err != nil {
				p.Err = err.Error()
			}
			return gctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, n := range l.Nodes() {
		s, err := l.Status(ctx, n)
		if err != nil {
			return nil, err
		}
		for _, p := range s.Peers {
			m.Paths = append(m.Paths, NodePath{n, p})
		}
	}
	return m, nil
}

var rttRE = regexp.MustCompile(`time=([0-9.]+) ms`)

func pingOnce(ctx context.Context, initPID int, p Ping) (time.Duration, error) {
	if initPID == 0 {
		return 0, fmt.Errorf("node %s does not run", p.From.Node)
	}
	out, err := enter(ctx, initPID, p.From.Name, "ping", "-n", "-c", "1", "-W", "3", p.To.Address(p.Family).String()).Output()
	if found := rttRE.FindSubmatch(out); err == nil && found != nil {
		ms, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil {
			return 0, err
		}
		return max(time.Duration(ms*float64(time.Millisecond)), 1), nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return 0, errors.New("no answer in 3 s")
	}
	return 0, fmt.Errorf("ping: %w", err)
}

// Print writes the matrix for people: rows are senders, columns receivers, cells round trips.
func (m *Matrix) Print(out io.Writer) error {
	var failed []Ping
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		cells := map[string]string{}
		for _, p := range m.Pings {
			if p.Family != f {
				continue
			}
			cell := "FAIL"
			if p.Err == "" {
				cell = fmt.Sprintf("%.2f", float64(p.RTT)/float64(time.Millisecond))
			} else {
				failed = append(failed, p)
			}
			cells[p.From.Name+" "+p.To.Name] = cell
		}
		if len(cells) == 0 {
			continue
		}
		if err := m.printFamily(out, f, cells); err != nil {
			return err
		}
	}
	if err := m.printPaths(out); err != nil {
		return err
	}
	for i, p := range failed {
		line := fmt.Sprintf("FAIL %s from %s/%s (%s) to %s/%s (%s): %s\n", p.Family, p.From.Node, p.From.Name, p.From.Address(p.Family), p.To.Node, p.To.Name, p.To.Address(p.Family), p.Err)
		if i == shownFailures {
			line = fmt.Sprintf("FAIL … and %d more\n", len(failed)-i)
		}
		if _, err := io.WriteString(out, line); err != nil {
			return err
		}
		if i == shownFailures {
			break
		}
	}
	_, err := fmt.Fprintf(out, "%d of %d pings answered\n", len(m.Pings)-len(failed), len(m.Pings))
	return err
}

// shownFailures bounds the list below the tables, which show all of them.
const shownFailures = 6

func (m *Matrix) printFamily(out io.Writer, f model.Family, cells map[string]string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	var b strings.Builder
	fmt.Fprintf(&b, "%s, ms\t", f)
	for _, to := range m.Pods {
		fmt.Fprintf(&b, "%s/%s\t", to.Node, to.Name)
	}
	b.WriteByte('\n')
	for _, from := range m.Pods {
		fmt.Fprintf(&b, "%s/%s %s\t", from.Node, from.Name, from.Address(f))
		for _, to := range m.Pods {
			cell := cells[from.Name+" "+to.Name]
			if cell == "" {
				cell = "-"
			}
			b.WriteString(cell + "\t")
		}
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return w.Flush()
}

func (m *Matrix) printPaths(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	var b strings.Builder
	b.WriteString("FROM\tTO\tBLOCK\tPATH\tVIA\tREASON\n")
	for _, p := range m.Paths {
		path, via := string(p.Path), ""
		if path == "" {
			path = "none"
		}
		if p.Via.IsValid() {
			via = p.Via.String()
		}
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\t%s\t%s\n", p.From, p.Node, p.Block, path, via, p.Reason)
	}
	b.WriteByte('\n')
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return w.Flush()
}
