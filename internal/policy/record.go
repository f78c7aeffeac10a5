package policy

import (
	"maps"
	"net/netip"
	"slices"
	"unique"
)

// record is what a Compiler keeps of an object.
type record interface {
	enter(c *Compiler)
	leave(c *Compiler)
	object() Object
}

// endpoint is a workload. There are many: it holds no more than it must.
type endpoint struct {
	holder
	id, node, namespace, name string
	own                       *attrs
	next                      *endpoint // of the same namespace and name
}

func (e *endpoint) enter(*Compiler) {} // see putEndpoint

// putEndpoint makes the record, new or not, that of the object.
func (c *Compiler) putEndpoint(e *endpoint, o *Endpoint) {
	own := c.attrs.get(o.Labels, o.ServiceAccount, o.Ports)
	local := c.opt.Local(o)
	if e.own == nil || e.namespace != o.Namespace || e.name != o.Name || e.local != local {
		if e.own != nil {
			e.leave(c)
		}
		e.namespace, e.name, e.local = c.space(o.Namespace).of(o.Namespace), o.Name, local
		if e.name != "" {
			n := name{e.namespace, e.name}
			e.next = c.names[n]
			c.names[n] = e
		}
	} else {
		c.attrs.release(e.own)
	}
	e.id, e.node, e.own = o.Key, unique.Make(o.Node).Value(), own
	c.sort(e)
	addrs := usableAddrs(o.Addresses)
	if !slices.EqualFunc(e.addrs, addrs, func(a *address, n netip.Addr) bool { return a.addr == n }) {
		c.touchSites(&e.holder)
		c.book.take(&e.holder)
		c.book.give(&e.holder, addrs, nil)
	}
	c.touchSites(&e.holder)
}

func (e *endpoint) leave(c *Compiler) {
	c.touchSites(&e.holder)
	c.book.take(&e.holder)
	c.setClass(&e.holder, nil)
	c.attrs.release(e.own)
	e.own = nil
	if e.name != "" {
		n := name{e.namespace, e.name}
		for at := c.names[n]; at != nil; at = at.next {
			if at == e {
				c.names[n] = e.next
				break
			}
			if at.next == e {
				at.next = e.next
				break
			}
		}
		if c.names[n] == nil {
			delete(c.names, n)
		}
		e.next = nil
	}
	c.dropSpace(e.namespace)
}

func (e *endpoint) object() Object {
	o := &Endpoint{
		Key: e.id, Node: e.node, Namespace: e.namespace, Name: e.name,
		Labels: e.own.labels(), ServiceAccount: e.own.account, Ports: slices.Clone(e.own.ports),
	}
	for _, a := range e.addrs {
		o.Addresses = append(o.Addresses, a.addr)
	}
	return o
}

// sort says that the class of the workload is to be found anew.
func (c *Compiler) sort(e *endpoint) {
	if !e.dirty {
		e.dirty = true
		c.unsorted = append(c.unsorted, e)
	}
}

// podRec is what people wrote about a workload.
type podRec struct {
	key  string
	name name
	of   *attrs
}

func (p *podRec) enter(c *Compiler) {
	v := c.pods[p.name]
	v.put(p.key, p)
	c.pods[p.name] = v
	c.sortNamed(p.name)
}

func (p *podRec) leave(c *Compiler) {
	v := c.pods[p.name]
	if v.del(p.key); len(v) == 0 {
		delete(c.pods, p.name)
	} else {
		c.pods[p.name] = v
	}
	c.attrs.release(p.of)
	c.sortNamed(p.name)
}

func (p *podRec) object() Object {
	return &Pod{Namespace: p.name.namespace, Name: p.name.name, Labels: p.of.labels(), ServiceAccount: p.of.account, Ports: slices.Clone(p.of.ports)}
}

func (c *Compiler) sortNamed(n name) {
	for e := c.names[n]; e != nil; e = e.next {
		c.sort(e)
	}
}

type namespaceRec struct {
	key string
	of  *Namespace
}

func (n *namespaceRec) enter(c *Compiler) {
	s := c.space(n.of.Name)
	if s == nil {
		return
	}
	s.written.put(n.key, n.of)
	c.relabel(s)
}

func (n *namespaceRec) leave(c *Compiler) {
	s := c.spaces[n.of.Name]
	if s == nil {
		return
	}
	s.written.del(n.key)
	c.relabel(s)
	c.dropSpace(s.name)
}

func (n *namespaceRec) object() Object { return n.of }

// relabel takes the labels of the namespace from what is written.
func (c *Compiler) relabel(s *space) {
	var labels map[string]string
	if len(s.written) > 0 {
		labels = s.written[0].of.Labels
	}
	if maps.Equal(labels, s.labels) {
		return
	}
	s.set(labels)
	for k := range s.classes {
		c.restale(k)
	}
}

type accountRec struct {
	key string
	of  *ServiceAccount
}

func (a *accountRec) enter(c *Compiler) {
	s := c.space(a.of.Namespace)
	if s == nil {
		return
	}
	at := s.accounts[a.of.Name]
	if at == nil {
		at = &account{}
		s.accounts[a.of.Name] = at
	}
	at.written.put(a.key, a.of)
	c.relabelAccount(s, a.of.Name, at)
}

func (a *accountRec) leave(c *Compiler) {
	s := c.spaces[a.of.Namespace]
	if s == nil {
		return
	}
	at := s.accounts[a.of.Name]
	at.written.del(a.key)
	c.relabelAccount(s, a.of.Name, at)
	if len(at.written) == 0 {
		delete(s.accounts, a.of.Name)
		c.dropSpace(s.name)
	}
}

func (a *accountRec) object() Object { return a.of }

func (c *Compiler) relabelAccount(s *space, name string, at *account) {
	var labels map[string]string
	if len(at.written) > 0 {
		labels = at.written[0].of.Labels
	}
	at.set(labels)
	for k := range s.classes {
		if k.attrs.account == name {
			c.restale(k)
		}
	}
}

type setRec struct {
	holder
	of *NetworkSet
}

func (s *setRec) enter(c *Compiler) {
	single, wide := split(s.of.Nets)
	c.book.give(&s.holder, single, wide)
	own := c.attrs.get(s.of.Labels, "", nil)
	c.setClass(&s.holder, c.class(networkSet, own, s.of.Ref.Namespace))
}

func (s *setRec) leave(c *Compiler) {
	c.book.take(&s.holder)
	c.setClass(&s.holder, nil)
	c.dropSpace(s.of.Ref.Namespace)
}

func (s *setRec) object() Object { return s.of }

type hostRec struct {
	holder
	key string
	of  *HostEndpoint
}

func (h *hostRec) enter(c *Compiler) {
	h.local = h.of.Node == c.opt.Node
	c.book.give(&h.holder, usableAddrs(h.of.Expected), nil)
	c.setClass(&h.holder, c.class(hostEndpoint, c.attrs.get(h.of.Labels, "", h.of.Ports), ""))
	if h.local {
		c.hosts[h] = struct{}{}
		c.hostsDirty = true
	}
}

func (h *hostRec) leave(c *Compiler) {
	c.book.take(&h.holder)
	c.setClass(&h.holder, nil)
	if h.local {
		delete(c.hosts, h)
		c.hostsDirty = true
	}
}

func (h *hostRec) object() Object { return h.of }

type sliceRec struct {
	key string
	of  *EndpointSlice
}

func (s *sliceRec) enter(c *Compiler) {
	m := c.services[s.of.Service]
	if m == nil {
		m = map[string]*EndpointSlice{}
		c.services[s.of.Service] = m
	}
	m[s.key] = s.of
	c.giveAtom(c.atoms.services[s.of.Service])
}

func (s *sliceRec) leave(c *Compiler) {
	m := c.services[s.of.Service]
	delete(m, s.key)
	if len(m) == 0 {
		delete(c.services, s.of.Service)
	}
	c.giveAtom(c.atoms.services[s.of.Service])
}

func (s *sliceRec) object() Object { return s.of }

type writtenTier struct {
	key string
	of  *Tier
}

func (t *writtenTier) enter(c *Compiler) {
	v := c.written[t.of.Name]
	v.put(t.key, t.of)
	c.written[t.of.Name] = v
	c.setTier(t.of.Name)
}

func (t *writtenTier) leave(c *Compiler) {
	v := c.written[t.of.Name]
	if v.del(t.key); len(v) == 0 {
		delete(c.written, t.of.Name)
	} else {
		c.written[t.of.Name] = v
	}
	c.setTier(t.of.Name)
}

func (t *writtenTier) object() Object { return t.of }

// setTier takes the tier from what is written, or built in.
func (c *Compiler) setTier(name string) {
	var to *Tier
	if v := c.written[name]; len(v) > 0 {
		to = v[0].of
	} else {
		for _, b := range BuiltinTiers() {
			if b.Name == name {
				to = &b
			}
		}
	}
	old := c.tiers[name]
	switch {
	case to == nil && old == nil, to != nil && old != nil && old.Tier == *to:
		return
	case to == nil:
		delete(c.tiers, name)
	default:
		c.serial++
		c.tiers[name] = &tierRec{*to, c.serial}
	}
	c.allDirty, c.changed = true, true
	// A tier that comes or goes brings or takes the staged policies in it.
	clear(c.replaced)
	for p := range c.known {
		c.replace(p, 1)
	}
}

// replace counts what a staged policy stands for.
func (c *Compiler) replace(p *policyRec, n int) {
	if p.Staged && c.tiers[p.Tier] != nil {
		ref := p.Ref.inForce()
		if c.replaced[ref] += n; c.replaced[ref] == 0 {
			delete(c.replaced, ref)
		}
		c.allDirty = true
	}
}

func (p *policyRec) enter(c *Compiler) {
	c.known[p] = struct{}{}
	c.subjects.add(p.Subject, p)
	c.fresh = append(c.fresh, p)
	c.replace(p, 1)
}

func (p *policyRec) leave(c *Compiler) {
	delete(c.known, p)
	c.subjects.remove(p.Subject, p)
	c.gone = append(c.gone, p)
	c.replace(p, -1)
}

func (p *policyRec) object() Object { return p.Policy }
