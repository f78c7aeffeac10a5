package netlink

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// round is one look at the kernel and the changes that follow from it. The order works on an empty
// host and takes nothing away before its replacement is there: links, sysctls, what is missing
// (addresses, neighbours, forwarding entries, routes, rules), then what is too much, the other way round.
type round struct {
	d *Driver
	c *conn
	p *plan.Plan

	links   *links
	usable  map[string]*link // links of the plan that are there, ours and up
	tunnels []*link          // the VXLAN devices among them
	stray   map[int]bool     // workloads' veths that no plan names, by index: left alone for now

	adds, dels []op
	changed    int
	done       []op // what was changed
	problems   []model.Problem
}

// op is one change, and how to speak of it when the kernel refuses.
type op struct {
	req     *nl.NetlinkRequest
	code    string
	subject string
	next    string
	route   *plan.Route // set where the change is a route of the plan
}

func (r *round) run(ctx context.Context) {
	if err := r.load(); err != nil {
		r.unread("links", err)
		return
	}
	r.applyLinks()
	r.applySysctls()
	for _, diff := range []func(){r.diffAddresses, r.diffNeighbors, r.diffFDB, r.diffRoutes, r.diffRules} {
		if err := ctx.Err(); err != nil {
			r.fail("interrupted", "pass", err, "")
			return
		}
		diff()
	}
	r.execute(r.adds)
	slices.Reverse(r.dels)
	r.execute(r.dels)
	r.removeLinks()
}

func (r *round) load() (err error) {
	r.links, err = r.c.links()
	return err
}

func (r *round) add(o op) { r.adds = append(r.adds, o) }

// remove notes nothing for a plan from memory: what that does not know may be newer than it.
func (r *round) remove(o op) {
	if !r.p.Recalled {
		r.dels = append(r.dels, o)
	}
}

// one runs a single change at once and tells whether it is done.
func (r *round) one(o op) bool {
	if err := r.c.do(o.req); err != nil {
		r.fail(o.code, o.subject, err, o.next)
		return false
	}
	r.changed++
	r.done = append(r.done, o)
	return true
}

// execute runs changes in batches.
func (r *round) execute(ops []op) {
	if len(ops) == 0 {
		return
	}
	reqs := make([]*nl.NetlinkRequest, len(ops))
	for i := range ops {
		reqs[i] = ops[i].req
	}
	var contested, covered []op
	for i, err := range r.c.run(reqs) {
		o := ops[i]
		switch {
		case err == nil:
			r.changed++
			r.done = append(r.done, o)
		case o.route != nil && errors.Is(err, unix.EEXIST):
			contested = append(contested, o)
		case o.route != nil && o.route.OnLink && o.route.Dst.Addr().Is6() && errors.Is(err, unix.EINVAL):
			covered = append(covered, o)
		case isRemoval(o.req) && isGone(err): // it went by itself, with its link or address
		default:
			r.fail(o.code, o.subject, err, o.next)
		}
	}
	if len(covered) > 0 {
		r.uncover(covered)
	}
	if len(contested) > 0 {
		r.contest(contested)
	}
}

func isRemoval(req *nl.NetlinkRequest) bool {
	switch req.Type {
	case unix.RTM_DELADDR, unix.RTM_DELLINK, unix.RTM_DELNEIGH, unix.RTM_DELROUTE, unix.RTM_DELRULE:
		return true
	}
	return false
}

func isGone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// fail records what could not be done, with the kernel's reason.
func (r *round) fail(code, subject string, err error, next string) {
	if errors.Is(err, unix.EPERM) {
		next = "run as root, or with CAP_NET_ADMIN (and CAP_SYS_ADMIN for namespaces)"
	}
	r.problems = append(r.problems, model.Problem{Code: code, Severity: model.Failure, Subject: subject, Detail: err.Error(), Next: next})
}

// unread records that a part of the kernel's state could not be read: nothing of it is changed.
func (r *round) unread(what string, err error) {
	r.fail("kernel-unreadable", what, err, "heddle status")
}

// unstable reports what was changed again in the last round: the kernel took it and does not hold it.
func (r *round) unstable() (out []model.Problem) {
	told := map[string]bool{}
	for _, p := range r.problems {
		told[p.Subject] = true
	}
	for _, o := range r.done {
		if told[o.subject] {
			continue
		}
		told[o.subject] = true
		out = append(out, model.Problem{
			Code: "not-kept", Severity: model.Failure, Subject: o.subject,
			Detail: "the kernel accepted the change, but does not hold it: something else changes it at the same time", Next: o.next,
		})
	}
	return out
}

// diffAddresses compares the addresses of the plan's links. Link-local IPv6 addresses that the kernel
// made by itself stay.
func (r *round) diffAddresses() {
	all, err := r.c.addresses()
	if err != nil {
		r.unread("addresses", err)
		return
	}
	have := map[plan.Address]bool{}
	for _, a := range all {
		l := r.links.byIndex[a.index]
		if l != nil && r.usable[l.name] == l {
			have[plan.Address{Link: l.name, Prefix: a.prefix}] = true
		}
	}
	want := map[plan.Address]bool{}
	for _, a := range r.p.Addresses {
		l := r.usable[a.Link]
		if l == nil {
			continue
		}
		want[a] = true
		if !have[a] {
			r.add(op{req: newAddress(l.index, a.Prefix), code: "address-failed", subject: "address " + a.Prefix.String() + " on " + a.Link, next: "ip address show dev " + a.Link})
		}
	}
	for a := range have {
		if !want[a] && !(a.Prefix.Addr().Is6() && a.Prefix.Addr().IsLinkLocalUnicast()) {
			r.remove(op{req: delAddress(r.usable[a.Link].index, a.Prefix), code: "address-failed", subject: "address " + a.Prefix.String() + " on " + a.Link, next: "ip address show dev " + a.Link})
		}
	}
}

// removeLinks removes our links that the plan does not have. Workloads' veths get a time of grace.
func (r *round) removeLinks() {
	for _, l := range r.unwanted() {
		if r.stray[l.index] || r.p.Recalled && !l.workloads() {
			continue
		}
		o := op{code: "link-failed", subject: "link " + l.name, next: "ip -d link show " + l.name}
		if err := r.drop(l); err != nil {
			r.fail(o.code, o.subject, err, o.next)
			continue
		}
		r.changed++
		r.done = append(r.done, o)
		r.d.log.Info("link removed", "link", l.name, "alias", l.alias)
	}
}

func (r *round) unwanted() (out []*link) {
	want := make(map[string]bool, len(r.p.Links))
	for i := range r.p.Links {
		want[r.p.Links[i].Name] = true
	}
	for _, l := range r.links.order {
		if l.ours() && !want[l.name] {
			out = append(out, l)
		}
	}
	return out
}

// markStrays sees which workloads' veths no plan names, and since when.
func (r *round) markStrays() {
	r.stray = map[int]bool{}
	since := map[int]time.Time{}
	now := time.Now()
	for _, l := range r.unwanted() {
		if l.kind != string(plan.LinkVeth) {
			continue
		}
		first, seen := r.d.stray[l.index]
		if !seen {
			first = now
		}
		since[l.index] = first
		r.stray[l.index] = now.Sub(first) < r.d.grace
	}
	r.d.stray = since
}

// sweep removes everything that is ours, in every table.
func (r *round) sweep(ctx context.Context) error {
	if err := r.load(); err != nil {
		return err
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rs, err := r.c.owned(family, 0)
		if err != nil {
			return err
		}
		for i := range rs {
			r.remove(op{req: delRoute(&rs[i]), subject: "route " + rs[i].dst.String()})
		}
	}
	r.diffRules()
	r.execute(r.dels)
	for _, l := range r.unwanted() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.drop(l); err != nil && !isGone(err) {
			r.fail("link-failed", "link "+l.name, err, "")
		}
	}
	var errs []error
	for _, p := range r.problems {
		errs = append(errs, errors.New(p.String()))
	}
	return errors.Join(errs...)
}
