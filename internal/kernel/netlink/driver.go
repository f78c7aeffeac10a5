// Package netlink makes the kernel's links, addresses, routes, neighbours, forwarding entries, rules
// and sysctls equal to a node plan, attaches workloads, and observes the machine.
//
// It speaks route netlink with the message formats of vishvananda/netlink's nl package over sockets of
// its own (conn.go), so that a thousand changes are a handful of system calls. It decides nothing: what
// should be there is the plan's word, what is Heddle's own is told by marks (route protocol, link
// alias), and what carries no mark is reported, never changed. There is no memory of earlier plans:
// every pass reads the kernel, compares and changes what differs.
package netlink

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// maxRounds bounds a pass: one round to change, one to read back and to repair what a change took with
// it (the kernel removes secondary addresses with their primary, and routes with an address), one more
// for what that took with it, and one to see that it holds.
const maxRounds = 4

// defaultStrayGrace is long against the time between an attachment and the next plan that has it.
const defaultStrayGrace = 30 * time.Second

// Options say where a Driver, Pods or Facts work.
type Options struct {
	// NS is a handle (open file descriptor) of the network namespace, or CurrentNS. It is duplicated:
	// the caller may close it afterwards.
	NS int
	// Log gets one line per link made or removed; nil for none.
	Log *slog.Logger
	// StrayGrace is how long a workload's veth that no plan names is left alone: a plan may be older
	// than an attachment, and one look must never cut a running workload off. 0 means 30 s.
	StrayGrace time.Duration
}

// Driver implements kernel.Driver.
type Driver struct {
	ns    int
	log   *slog.Logger
	grace time.Duration

	mu    sync.Mutex // serializes passes: they share the socket and stray
	c     *conn
	stray map[int]time.Time // index of a veth of ours in no plan: since when
}

var _ kernel.Driver = (*Driver)(nil)

// New opens a driver. Errors are those of opening a socket in the namespace.
func New(opts Options) (*Driver, error) {
	ns, err := dupNS(opts.NS)
	if err != nil {
		return nil, err
	}
	c, err := dialIn(ns)
	if err != nil {
		closeNS(ns)
		return nil, err
	}
	d := &Driver{ns: ns, log: opts.Log, grace: opts.StrayGrace, c: c, stray: map[int]time.Time{}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.grace == 0 {
		d.grace = defaultStrayGrace
	}
	return d, nil
}

// Close gives the socket and the handle back. Apply, Sweep and Watch must have returned.
func (d *Driver) Close() {
	d.c.close()
	closeNS(d.ns)
}

func dupNS(ns int) (int, error) {
	if ns == CurrentNS {
		return ns, nil
	}
	dup, err := unix.FcntlInt(uintptr(ns), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace (handle %d): %w", ns, err)
	}
	return dup, nil
}

func closeNS(ns int) {
	if ns != CurrentNS {
		unix.Close(ns)
	}
}

// Apply implements kernel.Driver.
func (d *Driver) Apply(ctx context.Context, p *plan.Plan) (changed int, problems []model.Problem) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range maxRounds {
		r := &round{d: d, c: d.c, p: p}
		r.run(ctx)
		changed += r.changed
		if r.changed == 0 {
			return changed, r.problems
		}
		problems = append(r.problems, r.unstable()...)
	}
	return changed, problems
}

// Sweep implements kernel.Driver.
func (d *Driver) Sweep(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &round{d: d, c: d.c, p: &plan.Plan{}}
	return r.sweep(ctx)
}
