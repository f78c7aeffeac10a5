// Package nft makes the kernel's packet filter equal to a plan's Filter, over netlink: no nft and no
// iptables binary is needed.
//
// What Heddle holds there is one table, `inet heddle`: a fixed skeleton (plan.Skeleton) of which only
// the elements of its sets ever change. It has no chain at the forward hook, because an accept in one
// table cannot undo a drop in another: where somebody else's chain drops what is forwarded, the accept
// has to stand in that chain (forward.go). So a packet between pods meets no rule of Heddle's at all,
// but for the first of a flow, which passes the NAT chains: masquerading, and the ports of the node that
// lead to pods. What is for the node itself passes four rules about loopback addresses.
//
// The package decides nothing about who may talk to whom, and leaves alone what carries no mark.
package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

var _ kernel.Driver = (*Driver)(nil)

// Options say where the driver works.
type Options struct {
	// NS is an open network namespace, or -1 for the one of the calling thread. It stays the caller's
	// and must stay open as long as the driver is used.
	NS  int
	Log *slog.Logger // nil: slog.Default()
}

// Driver is a kernel.Driver for plan.Filter. Its methods may be called by several goroutines.
type Driver struct {
	ns  int
	log *slog.Logger
	mu  sync.Mutex // one pass at a time
	// foreign are the tables of others with a chain at the forward hook, as the last pass saw them: what
	// Watch listens for.
	foreign atomic.Pointer[map[tableKey]bool]
}

// New returns a driver. It does not talk to the kernel yet.
func New(o Options) (*Driver, error) {
	if o.NS < -1 {
		return nil, &model.FieldError{Noun: "nft driver", Field: "NS", Value: fmt.Sprint(o.NS), Want: "an open file or -1"}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Driver{ns: o.NS, log: o.Log.With("driver", "nft")}, nil
}

// Apply makes table inet heddle equal to p.Filter in one transaction, and keeps the accepts for the
// pods' ranges in iptables' own FORWARD chains in one more for each family that needs it.
func (d *Driver) Apply(ctx context.Context, p *plan.Plan) (changed int, problems []model.Problem) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, []model.Problem{problemOf(ownSubject, err)}
	}
	r, err := d.open()
	if err != nil {
		return 0, []model.Problem{problemOf(ownSubject, err)}
	}
	defer r.close()

	n, err := d.applyOwn(r, p.Filter)
	changed += n
	if err != nil {
		problems = append(problems, problemOf(ownSubject, err))
		if errors.Is(err, unix.EPERM) || errors.Is(err, errNone) {
			return changed, problems // nothing else would fare better
		}
	}
	n, more := d.applyForward(r, p.Filter.Pods)
	return changed + n, append(problems, more...)
}

// applyOwn repairs the own table with the smallest transaction that does it. When the kernel refuses
// that, the table is made anew.
func (d *Driver) applyOwn(r *reader, f plan.Filter) (int, error) {
	have, err := r.table(ownTable)
	if err != nil {
		return 0, err
	}
	c := d.writer()
	n, err := repair(c, have, f)
	if err != nil || n == 0 {
		return 0, err
	}
	err = c.Flush()
	if err != nil && have != nil && !errors.Is(err, unix.EPERM) {
		d.log.Warn("table refused a change, making it anew", "error", err)
		c = d.writer()
		if n, err = rebuild(c, f); err == nil {
			err = c.Flush()
		}
	}
	if err != nil {
		return 0, err
	}
	d.log.Info("table written", "changed", n, "anew", have == nil)
	return n, nil
}

// Sweep removes the own table, and the own rules from other tables.
func (d *Driver) Sweep(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := d.open()
	if err != nil {
		return err
	}
	defer r.close()
	have, err := r.table(ownTable)
	if err != nil {
		return fmt.Errorf("%s: %w", ownSubject, err)
	}
	var errs []error
	if have != nil {
		c := d.writer()
		c.DelTable(&nftables.Table{Name: plan.Table, Family: nftables.TableFamilyINet})
		if err := c.Flush(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", ownSubject, err))
		}
	}
	if _, problems := d.applyForward(r, nil); len(problems) > 0 {
		for _, p := range problems {
			if p.Code == codeFailed || p.Code == codePermission {
				errs = append(errs, errors.New(p.String()))
			}
		}
	}
	return errors.Join(errs...)
}

// writer buffers one transaction; its Flush sends it.
func (d *Driver) writer() *nftables.Conn {
	c := &nftables.Conn{}
	if d.ns >= 0 {
		c.NetNS = d.ns
	}
	return c
}

// ownSubject is what problems of the own table are about.
const ownSubject = "table inet " + plan.Table

// Codes of the driver's problems.
const (
	codePermission  = "nft-permission"
	codeUnsupported = "nft-unsupported"
	codeFailed      = "nft-failed"
	codeForward     = "foreign-forward-drop"
	codeLegacy      = "iptables-legacy"
)

// errNone is the answer of a kernel without nftables: netfilter's netlink, where it is there at all, calls
// the unknown subsystem an invalid argument.
var errNone = errors.New("the kernel has no nftables")

// problemOf says what an error of the kernel means for whoever runs the node.
func problemOf(subject string, err error) model.Problem {
	p := model.Problem{
		Code: codeFailed, Severity: model.Failure, Subject: subject, Detail: err.Error(),
		Next: "nft list table inet " + plan.Table,
	}
	switch {
	case errors.Is(err, unix.EPERM):
		p.Code, p.Detail = codePermission, "changing the packet filter needs CAP_NET_ADMIN: "+err.Error()
		p.Next = "run heddle agent as root"
	case errors.Is(err, errNone):
		p.Code, p.Next = codeUnsupported, "modprobe nf_tables"
	case subject == ownSubject && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT)):
		// Sets and tables are part of nftables itself; what can be missing is the chain's type, or an expression.
		p.Code, p.Detail = codeUnsupported, "the kernel lacks a part of nftables' address translation: "+err.Error()
		p.Next = "modprobe -a nft_chain_nat nft_masq nft_nat nft_ct nft_fib_inet"
	}
	return p
}
