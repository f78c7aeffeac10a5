// Package filter keeps the decision table of policy in the kernel's packet filter, over netlink: no nft
// binary is needed.
//
// What Heddle holds there are two tables with a fixed skeleton (skeleton.nft) and sets and maps of which
// only the elements ever change: `inet heddle-policy` judges packets to and from workloads and host
// endpoints and drops what a routed workload may not send; `bridge heddle-policy` does the latter for
// workloads on a bridge. Established flows pass first, and a packet costs the same whatever the number of
// elements.
//
// A chain carries the number at which it has come (identity, row, verdict) to the next rule in the packet's
// priority, and sets that back at the end. Whatever is not found after a policed end was, is denied; maps
// through which a packet falls when they have no entry carry one that no packet has, so that a map that
// somebody flushed denies instead of opens.
//
// From Linux 6.9 on the tables belong to the driver's socket: nobody else can change them, and they stay
// when it closes, for the next to take over.
package filter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

var _ kernel.Filter = (*Driver)(nil)

// Options say where the driver works.
type Options struct {
	// NS is an open network namespace, or -1 for the one of the calling thread. It stays the caller's
	// and must stay open as long as the driver is used.
	NS int
	// Inside are bridges of workloads: host endpoints for all interfaces do not judge what comes from them
	// or goes to them, as they do not for workloads' own interfaces.
	Inside []string
	Log    *slog.Logger // nil: slog.Default()
}

// Driver is a kernel.Filter. Its methods may be called by several goroutines.
type Driver struct {
	ns     int
	inside []string
	log    *slog.Logger

	mu sync.Mutex
	c  *conn // nil until needed; what it made belongs to it
	// flags are those of the tables: none where the kernel does not know them.
	flags uint32
	// destroys: the kernel takes out elements that are not there without complaint (Linux 6.3).
	destroys, probed bool
	counted          bool // L4 and row maps count
	// known says that the kernel holds what the last calls said; local is what of it others follow from.
	known bool
	local locals
}

// New returns a driver. It does not talk to the kernel yet.
func New(o Options) (*Driver, error) {
	if o.NS < -1 {
		return nil, &model.FieldError{Noun: "policy driver", Field: "NS", Value: fmt.Sprint(o.NS), Want: "an open file or -1"}
	}
	for _, name := range o.Inside {
		if err := checkLink("policy driver", name); err != nil {
			return nil, err
		}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Driver{ns: o.NS, inside: o.Inside, log: o.Log.With("driver", "filter"), flags: tableOwner | tablePersist, destroys: true}, nil
}

// Close gives the socket back. The tables stay.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.c == nil {
		return nil
	}
	c := d.c
	d.c, d.known = nil, false
	return c.Close()
}

// open makes sure of the socket.
func (d *Driver) open() error {
	if d.c != nil {
		return nil
	}
	c, err := dial(d.ns)
	if err != nil {
		return fmt.Errorf("netfilter: %w", err)
	}
	d.c = c
	return nil
}

// Apply compares both tables with t and repairs them.
func (d *Driver) Apply(ctx context.Context, t *policy.Table) (changed int, problems []model.Problem) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, []model.Problem{problemOf(err)}
	}
	if err := d.open(); err != nil {
		return 0, []model.Problem{problemOf(err)}
	}
	d.known, d.local = false, localsOf(t)
	want, errs := elementsOf(t, d.local, d.inside)
	for _, err := range errs {
		problems = append(problems, problemOf(err))
	}
	n, err := d.apply(want)
	if err != nil {
		return n, append(problems, problemOf(err))
	}
	if !d.probed {
		if err := d.probe(); err != nil {
			return n, append(problems, problemOf(err))
		}
		d.probed = true
	}
	d.known = true
	return n, problems
}

// applyTries bounds how often the ruleset is read again because somebody changed it between the reading
// and the repair.
const applyTries = 5

func (d *Driver) apply(want contents) (int, error) {
	for try := 1; ; try++ {
		n, err := d.applyOnce(want)
		if err == nil || try == applyTries || !errors.Is(err, errStale) {
			return n, err
		}
	}
}

func (d *Driver) applyOnce(want contents) (int, error) {
	generation, err := d.c.generation()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNone, err)
	}
	m := newBatch(generation)
	there := map[*tableSpec]bool{}
	for _, t := range skeleton {
		if there[t], err = d.repair(m, t, want); err != nil {
			return 0, fmt.Errorf("table %s: %w", tableText(t), err)
		}
	}
	if m.empty() {
		return 0, nil
	}
	err = d.c.commit(m)
	switch {
	case err == nil:
		d.log.Info("tables written", "changed", m.n)
		return m.n, nil
	case errors.Is(err, unix.EPERM), errors.Is(err, errStale):
		return 0, err
	case d.flags != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)):
		d.log.Info("the kernel has no tables with an owner that persist (Linux 6.9): going on without")
		d.flags = 0
	default:
		d.log.Warn("tables refused a change, making them anew", "error", err)
	}
	m = newBatch(generation)
	for _, t := range skeleton {
		d.rebuild(m, t, want, there[t])
	}
	if err := d.c.commit(m); err != nil {
		return 0, err
	}
	return m.n, nil
}

// repair writes what makes a table equal to what it should be, and tells whether there was one.
func (d *Driver) repair(m *message, t *tableSpec, want contents) (there bool, err error) {
	have, err := d.c.form(t.family)
	if err != nil {
		return false, err
	}
	owned := have != nil && have.flags&tableOwner != 0
	if owned && have.owner != d.c.port {
		return true, fmt.Errorf("it belongs to another process (netlink port %d): %w", have.owner, unix.EPERM)
	}
	if have == nil || have.flags&^tableOwner != d.flags&^tableOwner || !have.same(t, d.local.chains(t)) {
		d.rebuild(m, t, want, have != nil)
		return have != nil, nil
	}
	if !owned && d.flags != 0 {
		m.table(t, d.flags) // a table that has lost its owner is taken over
	}
	for _, s := range t.sets {
		diff, err := d.c.compare(t, s, want[s], owned, d.counts(s))
		if err != nil {
			return true, fmt.Errorf("set %s: %w", s.name, err)
		}
		m.elements(t.family, s, unix.NFT_MSG_DELSETELEM, diff.gone, false)
		m.elements(t.family, s, unix.NFT_MSG_NEWSETELEM, diff.missing, d.counts(s))
	}
	return true, nil
}

// rebuild writes a table whole, in place of whatever is there.
func (d *Driver) rebuild(m *message, t *tableSpec, want contents, there bool) {
	if there {
		m.delTable(t.family)
	}
	m.table(t, d.flags)
	for i, s := range t.sets {
		m.set(t, s, uint32(i+1))
	}
	chains := d.local.chains(t)
	for _, c := range chains {
		m.chain(t, c)
	}
	for _, c := range chains {
		m.rules(t, c)
	}
	for _, s := range t.sets {
		m.elements(t.family, s, unix.NFT_MSG_NEWSETELEM, want[s], d.counts(s))
	}
}

// counts tells whether the elements of a set carry counters.
func (d *Driver) counts(s *setSpec) bool {
	return d.counted && (s == portSet || s == rangeSet || s == protoSet || s == rows)
}

// Sweep removes both tables.
func (d *Driver) Sweep(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.open(); err != nil {
		return err
	}
	d.known = false
	m := newBatch(0)
	for _, t := range skeleton {
		have, err := d.c.form(t.family)
		if err != nil {
			return fmt.Errorf("table %s: %w", tableText(t), err)
		}
		if have != nil {
			m.delTable(t.family)
		}
	}
	if m.empty() {
		return nil
	}
	if err := d.c.commit(m); err != nil {
		return fmt.Errorf("delete tables %s: %w", TableName, err)
	}
	return nil
}
