package filter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/policy"
)

// errUnknown says that the driver does not know what the kernel holds.
var errUnknown = errors.New("what the kernel holds is not known: apply the whole table first")

// change is what a difference makes of elements.
type change struct {
	before, after locals
	del, put      contents
	// fresh are entries of new rows: nothing leads to them before put is done.
	fresh contents
	// left are rows towards identities that nobody gets by put: who had one of these before and still has it,
	// is judged as before a moment longer. stale are entries of rows to which nothing leads any more.
	left, stale contents
}

// Update applies a difference. What leads packets to their rows changes in one atomic transaction. But a packet
// on its way through the chains may look into one map before it and into the next after it, and interval maps
// change a moment after the kernel's hash maps do. So entries of new rows that hold ranges are written in a
// transaction before it, and what only packets on their way can still come to is taken out when these have
// gone. A row never changes: no packet is judged by anything but the state before or that after.
//
// Update returns when the difference has taken effect. The taking out follows; a difference that gives one of
// the same numbers another meaning waits for it.
func (d *Driver) Update(ctx context.Context, delta *policy.Delta) error {
	d.mu.Lock()
	defer d.unlock()
	for d.leaves(delta) {
		d.cleaned.Wait()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !d.known {
		return errUnknown
	}
	c, err := d.changeOf(delta)
	if err != nil {
		return err // nothing was done
	}
	if len(c.fresh[rangeSet]) == 0 {
		for s, es := range c.fresh {
			c.put[s] = es // rows are in no other part
		}
		c.fresh = nil
	}
	for _, write := range []func(*message) error{
		func(m *message) error { return d.replace(m, nil, c.fresh) },
		func(m *message) error { return d.write(m, c) },
	} {
		if err := d.transact(write); err != nil {
			return fmt.Errorf("update policy in the kernel: %w", err)
		}
	}
	d.local = c.after
	d.clean(delta, c)
	return nil
}

// transact writes one transaction. When that fails, the driver does not know any more what the kernel holds.
func (d *Driver) transact(write func(*message) error) error {
	m := newBatch(0)
	err := write(m)
	if err == nil && !m.empty() {
		err = d.commit(m)
	}
	if err != nil {
		d.known = false
	}
	return err
}

// write is the transaction by which a change takes effect.
func (d *Driver) write(m *message, c *change) error {
	before, after := c.before.chains(inetTable), c.after.chains(inetTable)
	for _, chain := range before {
		if !slices.Contains(after, chain) {
			m.delChain(inetTable, chain)
		}
	}
	if err := d.replace(m, c.del, c.put); err != nil {
		return err
	}
	for _, chain := range after {
		if !slices.Contains(before, chain) {
			m.chain(inetTable, chain)
			m.rules(inetTable, chain)
		}
	}
	return nil
}

// replace takes elements out and puts others in, which may be there with another value.
func (d *Driver) replace(m *message, del, put contents) error {
	for _, t := range skeleton {
		for _, s := range t.sets {
			m.elements(t, s, unix.NFT_MSG_DELSETELEM, del[s], false)
			if s.data && d.destroys {
				m.elements(t, s, nftMsgDestroySetElem, put[s], false)
			} else if s.data {
				there := elements{}
				for i := range put[s] {
					if _, gone := del[s][i]; gone {
						continue
					}
					ok, err := d.c.has(t, s, i)
					if err != nil {
						return fmt.Errorf("set %s: %w", s.name, err)
					}
					if ok {
						there[i] = 0
					}
				}
				m.elements(t, s, unix.NFT_MSG_DELSETELEM, there, false)
			}
			m.elements(t, s, unix.NFT_MSG_NEWSETELEM, put[s], d.counts(s))
		}
	}
	return nil
}

// has asks for one element. Of intervals the kernel names the one that holds the key, which may be another.
func (c *conn) has(t *tableSpec, s *setSpec, i ident) (found bool, err error) {
	m := &message{}
	m.elements(t, s, unix.NFT_MSG_GETSETELEM, elements{i: 0}, false)
	err = c.dumpOne(unix.NFT_MSG_GETSETELEM, t.family, m.b[unix.SizeofNlMsghdr+4:], func(_ byte, attrs []byte) error {
		listed(s, attrs, func(got ident, _ uint32, _ []byte) { found = found || got == i })
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return found, err
}

// changeOf tells which elements a difference touches.
func (d *Driver) changeOf(delta *policy.Delta) (*change, error) {
	c := &change{before: d.local, after: d.local, del: contents{}, put: contents{}, fresh: contents{}, left: contents{}, stale: contents{}}
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	for a := range delta.Identities.Del {
		if a.IsUnspecified() {
			identity(c.put, a, 0) // always there
			continue
		}
		identity(c.del, a, 0)
	}
	for r := range delta.Nets.Del {
		if r.First.IsUnspecified() {
			netRange(c.put, policy.AddrRange{First: r.First, Last: r.First}, 0, false)
		}
		netRange(c.del, r, 0, true)
	}
	for l := range delta.Locals.Del {
		note(local(c.del, l, 0))
	}
	given := map[policy.ID]bool{}
	for _, id := range delta.Identities.Put {
		given[id] = true
	}
	for _, id := range delta.Nets.Put {
		given[id] = true
	}
	for k := range delta.Rows.Del {
		if given[k.ID] || k.ID == 0 {
			note(rowOf(c.del, k, 0))
		} else {
			note(rowOf(c.left, k, 0))
		}
	}
	for k := range delta.L4.Del {
		l4(c.stale, k, policy.VerdictDeny)
	}
	for r := range delta.Base.Del {
		base(c.stale, r, policy.VerdictDeny)
	}
	for a, id := range delta.Identities.Put {
		note(checkNumber("identity", uint32(id)))
		identity(c.put, a, id)
	}
	for r, id := range delta.Nets.Put {
		note(checkNumber("identity", uint32(id)))
		netRange(c.put, r, id, false)
	}
	for l, row := range delta.Locals.Put {
		note(local(c.put, l, row))
	}
	for k, row := range delta.Rows.Put {
		note(rowOf(c.put, k, row))
	}
	for k, v := range delta.L4.Put {
		l4(c.fresh, k, v.Verdict)
	}
	for r, v := range delta.Base.Put {
		note(checkNumber("row", uint32(r)))
		base(c.fresh, r, v.Verdict)
	}
	if d.local.differs(delta) {
		c.after = d.local.after(delta)
		note(c.derive())
	}
	return c, errors.Join(errs...)
}

// derive adds what follows from the local ends and sources as a whole.
func (c *change) derive() error {
	before, _ := c.before.derived()
	after, err := c.after.derived()
	for s, es := range before {
		for i := range es {
			if _, ok := after[s][i]; !ok {
				c.del.put(s, i, 0)
			}
		}
	}
	for s, es := range after {
		for i := range es {
			if _, ok := before[s][i]; !ok {
				c.put.put(s, i, 0)
			}
		}
	}
	return err
}

// locals are the parts of a table from which elements follow that are shared, or chains.
type locals struct {
	sources map[policy.Source]struct{}
	ends    map[policy.Local]struct{}
}

func localsOf(t *policy.Table) locals {
	l := locals{maps.Clone(t.Sources), make(map[policy.Local]struct{}, len(t.Locals))}
	for k := range t.Locals {
		l.ends[k] = struct{}{}
	}
	return l
}

// differs tells whether a difference changes l.
func (l locals) differs(d *policy.Delta) bool {
	if len(d.Sources.Put)+len(d.Sources.Del)+len(d.Locals.Del) > 0 {
		return true
	}
	for e := range d.Locals.Put {
		if _, ok := l.ends[e]; !ok {
			return true
		}
	}
	return false
}

// after is l with a difference.
func (l locals) after(d *policy.Delta) locals {
	n := locals{map[policy.Source]struct{}{}, map[policy.Local]struct{}{}}
	maps.Copy(n.sources, l.sources)
	maps.Copy(n.ends, l.ends)
	for s := range d.Sources.Del {
		delete(n.sources, s)
	}
	maps.Copy(n.sources, d.Sources.Put)
	for e := range d.Locals.Del {
		delete(n.ends, e)
	}
	for e := range d.Locals.Put {
		n.ends[e] = struct{}{}
	}
	return n
}

// chains are those of a table that there should be: a base chain costs every packet of the machine, so each
// is there only while there is an end that it judges.
func (l locals) chains(t *tableSpec) []*chainSpec {
	needed := map[string]bool{}
	for _, h := range hooks {
		for _, base := range h.Bases {
			needed[base] = false
		}
	}
	for e := range l.ends {
		switch {
		case e.Hook == policy.WorkloadIngress:
			needed["forward"] = true
		case e.Hook == policy.WorkloadEgress:
			needed["forward"], needed["input"] = true, true
		case e.Hook < policy.Hooks:
			for _, base := range hooks[e.Hook-policy.HostInput].Bases {
				needed[base] = true
			}
		}
	}
	var out []*chainSpec
	for _, c := range t.chains {
		if need, optional := needed[c.name]; !optional || need || t != inetTable {
			out = append(out, c)
		}
	}
	return out
}

// derived are the elements for sources, of which several may have one in common, and for the links of
// workloads that are policed.
func (l locals) derived() (contents, error) {
	out := contents{}
	var errs []error
	in := map[string]bool{}
	for s := range l.sources {
		errs = append(errs, source(out, s))
		link := keyOf(linkKey(s.Link))
		if _, ok := l.ends[policy.Local{Hook: policy.WorkloadEgress, Addr: s.Addr}]; ok {
			out.put(inetSets["egress_links"], link, 0)
			out.put(bridgeSets["egress_links"], link, 0)
		}
		if _, ok := l.ends[policy.Local{Hook: policy.WorkloadIngress, Addr: s.Addr}]; ok {
			in[s.Link] = true
			out.put(bridgeSets["ingress_links"], link, 0)
		}
	}
	for s := range l.sources {
		if in[s.Link] {
			out.put(paired(bridgeSets, "reach").of(s.Addr), keyOf(linkKey(s.Link), s.Addr.AsSlice()), 0)
		}
	}
	return out, errors.Join(errs...)
}
