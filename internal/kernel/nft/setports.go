package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/plan"
)

var _ kernel.HostPorts = (*Driver)(nil)

// errNoTable is what a node has before its first pass, and after somebody flushed its ruleset.
var errNoTable = errors.New("the table is not there, or is another: the next pass makes it")

// SetHostPorts implements kernel.HostPorts: one transaction of elements.
func (d *Driver) SetHostPorts(ctx context.Context, ports []plan.HostPort) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ownSets(ctx, ports, func(pairs []pair) error {
		t := &nftables.Table{Name: plan.Table, Family: nftables.TableFamilyINet}
		c := d.writer()
		n := 0
		for i := range pairs {
			changed, err := fill(c, t, pairs[i].have.elems, &pairs[i].want)
			if err != nil {
				return err
			}
			n += changed
		}
		if n == 0 {
			return nil
		}
		return c.Flush()
	})
}

// CheckHostPorts implements kernel.HostPorts.
func (d *Driver) CheckHostPorts(ctx context.Context, ports []plan.HostPort) error {
	for _, p := range ports {
		err := d.ownSets(ctx, []plan.HostPort{p}, func(pairs []pair) error {
			for _, q := range pairs {
				if _, missing := compareElems(q.have.elems, q.want.elems); len(missing) > 0 {
					return fmt.Errorf("%s lacks %s port %d to %s", q.want.name, p.Protocol, p.Port, p.To)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pair is a set of host ports as it is and as it should be.
type pair struct {
	have set
	want wantSet
}

// ownSets calls f with the sets of host ports.
func (d *Driver) ownSets(ctx context.Context, ports []plan.HostPort, f func([]pair) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := d.open()
	if err != nil {
		return fmt.Errorf("%s: %w", ownSubject, err)
	}
	defer r.close()
	have, err := r.sets(ownTable)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: %w", ownSubject, err)
	}
	var pairs []pair
	for _, w := range wantSets(plan.Filter{HostPorts: ports}) {
		if !strings.HasPrefix(w.name, "hostports") && !strings.HasPrefix(w.name, "hide") {
			continue
		}
		i := slices.IndexFunc(have, w.sameForm)
		if i < 0 {
			return fmt.Errorf("%s: %w", ownSubject, errNoTable)
		}
		pairs = append(pairs, pair{have[i], w})
	}
	if err := f(pairs); err != nil {
		return fmt.Errorf("%s: %w", ownSubject, err)
	}
	return nil
}
