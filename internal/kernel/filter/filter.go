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
	"slices"
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
	ns  int
	log *slog.Logger

	watchers sync.Map // *conn of each Watch to its changed
	mu       sync.Mutex
	missed   bool  // a Watch was deaf for a moment
	c        *conn // nil until needed; what it made belongs to it
	// flags are those of the tables: none where the kernel does not know them.
	flags uint32
	// destroys: the kernel takes out elements that are not there without complaint (Linux 6.3).
	destroys, probed bool
	counted          bool // L4 and row maps count
	stated
	// known says that the kernel holds what the last calls said; local is what of it others follow from.
	known bool
	local locals
	// remains are left by Updates; cleaned tells when some are gone.
	remains map[*remains]struct{}
	cleaned *sync.Cond
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
	d := &Driver{
		ns: o.NS, stated: stated{inside: o.Inside}, log: o.Log.With("driver", "filter"), flags: tableOwner | tablePersist, destroys: true,
		remains: map[*remains]struct{}{},
	}
	d.cleaned = sync.NewCond(&d.mu)
	return d, nil
}

// Close gives the socket back. The tables stay.
func (d *Driver) Close() error {
	d.lock()
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
	d.lock()
	defer d.unlock()
	if err := ctx.Err(); err != nil {
		return 0, []model.Problem{problemOf(err)}
	}
	if err := d.open(); err != nil {
		return 0, []model.Problem{problemOf(err)}
	}
	d.known, d.local = false, localsOf(t)
	want, errs := elementsOf(t, d.local, d.stated)
	for _, err := range errs {
		problems = append(problems, problemOf(err))
	}
	n, err := d.apply(want)
	if err != nil {
		return n, append(problems, problemOf(err))
	}
	d.known = true
	return n, problems
}

// applyTries bounds how often the ruleset is read again because somebody changed it between the reading
// and the repair.
const applyTries = 5

func (d *Driver) apply(want contents) (n int, err error) {
	if !d.probed {
		if err := d.probe(); err != nil {
			return 0, err
		}
		d.probed = true
	}
	for range applyTries {
		changed, err := d.applyOnce(want)
		n += changed
		if !errors.Is(err, errStale) {
			return n, err
		}
	}
	return n, fmt.Errorf("repair: the ruleset changed during each of %d tries: %w", applyTries, errStale)
}

func (d *Driver) applyOnce(want contents) (n int, err error) {
	generation, err := d.c.generation()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNone, err)
	}
	m := newBatch(generation)
	var there, absent []*tableSpec
	for _, t := range skeleton {
		have, err := d.c.form(t)
		if err == nil && have == nil {
			absent = append(absent, t)
			continue
		}
		there = append(there, t)
		if err == nil {
			err = d.repair(m, t, have, want)
		}
		if err != nil {
			return 0, fmt.Errorf("table %s: %w", tableText(t), err)
		}
	}
	if !m.empty() {
		err = d.commit(m)
		if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, errStale) {
			d.log.Warn("tables refused a change, making them anew", "error", err)
			m = newBatch(generation)
			for _, t := range there {
				d.rebuild(m, t, want)
			}
			err = d.commit(m)
		}
		if err != nil {
			return 0, err
		}
		n = m.n
	}
	for _, t := range absent {
		built, err := d.build(t, want)
		n += built
		if err != nil {
			return n, fmt.Errorf("table %s: %w", tableText(t), err)
		}
	}
	if n > 0 {
		d.log.Info("tables written", "changed", n)
	}
	return n, nil
}

// repair writes what makes a table that is there equal to what it should be.
func (d *Driver) repair(m *message, t *tableSpec, have *form, want contents) error {
	owned := have.flags&tableOwner != 0
	if owned && have.owner != d.c.port {
		return fmt.Errorf("it belongs to another process (netlink port %d): %w", have.owner, unix.EPERM)
	}
	if have.flags&^tableOwner != d.flags&^tableOwner || !have.same(t, d.local.chains(t)) {
		d.rebuild(m, t, want)
		return nil
	}
	if !owned && d.flags != 0 {
		m.table(t, d.flags) // a table that has lost its owner is taken over
	}
	for _, s := range t.sets {
		diff, err := d.c.compare(t, s, want[s], owned, d.counts(s))
		if err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
		m.elements(t, s, unix.NFT_MSG_DELSETELEM, diff.gone, false)
		m.elements(t, s, unix.NFT_MSG_NEWSETELEM, diff.missing, d.counts(s))
	}
	return nil
}

// rebuild writes a table whole, in place of the one that is there.
func (d *Driver) rebuild(m *message, t *tableSpec, want contents) {
	m.delTable(t)
	d.sets(m, t)
	for _, s := range t.sets {
		m.elements(t, s, unix.NFT_MSG_NEWSETELEM, want[s], d.counts(s))
	}
	d.chains(m, t)
}

// sets writes a table that has no chains and no elements.
func (d *Driver) sets(m *message, t *tableSpec) {
	m.table(t, d.flags)
	for i, s := range t.sets {
		m.set(t, s, uint32(i+1))
	}
}

func (d *Driver) chains(m *message, t *tableSpec) {
	chains := d.local.chains(t)
	for _, c := range chains {
		m.chain(t, c)
	}
	for _, c := range chains {
		m.rules(t, c)
	}
}

// portion is how many elements a transaction has when nothing hangs on their coming together. For each the
// kernel keeps a page of memory until the end of the transaction, if anybody on the machine listens.
const portion = 5000

// build makes a table where there is none. It judges nothing before the last of its transactions, which
// brings the chains.
func (d *Driver) build(t *tableSpec, want contents) (n int, err error) {
	m := newBatch(0)
	step := func() {
		if err == nil {
			err = d.commit(m)
			n += m.n
		}
		m = newBatch(0)
	}
	d.sets(m, t)
	step()
	for _, s := range t.sets {
		for keys := range slices.Chunk(s.sorted(want[s]), portion) {
			m.part(t, s, unix.NFT_MSG_NEWSETELEM, keys, want[s], d.counts(s))
			if m.n >= portion {
				step()
			}
		}
	}
	d.chains(m, t)
	step()
	return n, err
}

// counts tells whether the elements of a set carry counters.
func (d *Driver) counts(s *setSpec) bool {
	return d.counted && slices.Contains(counting, s)
}

// Sweep removes both tables.
func (d *Driver) Sweep(ctx context.Context) error {
	d.lock()
	defer d.unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.open(); err != nil {
		return err
	}
	d.known = false
	m := newBatch(0)
	for _, t := range skeleton {
		have, err := d.c.form(t)
		if err != nil {
			return fmt.Errorf("table %s: %w", tableText(t), err)
		}
		if have != nil {
			m.delTable(t)
		}
	}
	if m.empty() {
		return nil
	}
	if err := d.commit(m); err != nil {
		return fmt.Errorf("delete tables %s: %w", TableName, err)
	}
	return nil
}
