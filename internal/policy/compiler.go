package policy

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Options say for which node a Compiler works.
type Options struct {
	Node string
	// Local tells which workloads are policed here; nil: those of Node. It is asked once per Put.
	Local func(*Endpoint) bool
}

// Compiler makes the decision table of one node out of objects, and keeps it in step with them. What a change
// costs depends on what it touches, not on how much there is. It is not for use by several goroutines at once.
//
// How it gets from objects to the table, each step only for what changed (compile.go):
//
//	endpoint, pod, namespace, account → class: workloads with the same effective labels and named ports
//	policy, class → which policies select something here → their rules' ends as predicates, made of atoms
//	atom, class, nets → facts of an address → group → identity: what the predicates make of it
//	site (a local address or interface) → program: what decides there → per identity a row
type Compiler struct {
	opt     Options
	objects map[string]record
	table   *Table
	changed bool // something was told since the last Compile
	round   uint64

	attrs    attrsPool
	spaces   map[string]*space
	pods     map[name]versions[*podRec]
	names    map[name]*endpoint // the first of a chain
	classes  map[classKey]*class
	policed  map[*class]struct{} // classes with locals
	stale    []*class
	unsorted []*endpoint // of which the class is to be found

	links    map[string][]netip.Addr
	node     []netip.Addr
	hosts    map[*hostRec]struct{} // of this node
	services map[ServiceRef]map[string]*EndpointSlice

	tiers      map[string]*tierRec
	written    map[string]versions[*Tier]
	known      map[*policyRec]struct{}
	subjects   index[*policyRec]
	replaced   map[Ref]int // by staged policies
	fresh      []*policyRec
	gone       []*policyRec
	activity   []*policyRec
	allDirty   bool // what every program depends on changed
	hostsDirty bool
	serial     uint64

	atoms  atoms
	preds  preds
	own    *pred
	book   book
	nets   netList
	idents identities

	rows        rows
	programs    map[string]*program
	remembering []*program
	orphans     []*program // whose last end left
	sites       map[*address]*site
	hostSites   map[string]*site
	dirtySites  map[*address]struct{}

	identityOf ledger[netip.Addr, ID]
	netsOut    ledger[AddrRange, ID]
	locals     ledger[Local, Row]
	rowOf      ledger[RowKey, Row]
	l4         ledger[L4Key, Decision]
	base       ledger[Row, Decision]
	sources    ledger[Source, struct{}]
}

// name is a workload's or a service account's.
type name struct{ namespace, name string }

// NewCompiler returns a compiler that was told nothing yet.
func NewCompiler(o Options) *Compiler {
	if o.Local == nil {
		o.Local = func(e *Endpoint) bool { return e.Node == o.Node }
	}
	c := &Compiler{
		opt: o, objects: map[string]record{},
		attrs: attrsPool{}, spaces: map[string]*space{}, pods: map[name]versions[*podRec]{}, names: map[name]*endpoint{},
		classes: map[classKey]*class{}, policed: map[*class]struct{}{},
		hosts: map[*hostRec]struct{}{}, services: map[ServiceRef]map[string]*EndpointSlice{},
		tiers: map[string]*tierRec{}, written: map[string]versions[*Tier]{}, known: map[*policyRec]struct{}{},
		subjects: newIndex[*policyRec](), replaced: map[Ref]int{},
		atoms: newAtoms(), preds: preds{by: map[string]*pred{}}, book: newBook(), idents: newIdentities(),
		rows: newRows(), programs: map[string]*program{}, sites: map[*address]*site{}, hostSites: map[string]*site{}, dirtySites: map[*address]struct{}{},
		identityOf: newLedger[netip.Addr, ID](), netsOut: newLedger[AddrRange, ID](), locals: newLedger[Local, Row](), rowOf: newLedger[RowKey, Row](),
		l4: newLedger[L4Key, Decision](), base: newLedger[Row, Decision](), sources: newLedger[Source, struct{}](),
	}
	c.table = &Table{
		Identities: c.identityOf.now, Nets: c.netsOut.now, Locals: c.locals.now, Rows: c.rowOf.now,
		L4: c.l4.now, Base: c.base.now, Sources: c.sources.now,
	}
	c.table.reindex(&Delta{})
	for _, t := range BuiltinTiers() {
		c.setTier(t.Name)
	}
	c.own, _ = c.preds.get(&c.atoms, &Side{OwnNode: true}, sideContext{remote: true})
	return c
}

// Put tells of an object; one of the same key is replaced. key is unique over all objects. The object must
// not change afterwards.
func (c *Compiler) Put(key string, o Object) {
	c.changed = true
	var r record
	switch o := o.(type) {
	case *Endpoint:
		r = &endpoint{}
		if old, same := c.objects[key].(*endpoint); same { // its place in the maps stays
			r = old
		}
		c.objects[key] = r
		c.putEndpoint(r.(*endpoint), o)
		return
	case *Pod:
		r = &podRec{key: key, name: name{o.Namespace, o.Name}, of: c.attrs.get(o.Labels, o.ServiceAccount, o.Ports)}
	case *Namespace:
		r = &namespaceRec{key, o}
	case *ServiceAccount:
		r = &accountRec{key, o}
	case *NetworkSet:
		r = &setRec{of: o}
	case *HostEndpoint:
		r = &hostRec{key: key, of: o}
	case *EndpointSlice:
		r = &sliceRec{key, o}
	case *Tier:
		r = &writtenTier{key, o}
	case *Policy:
		c.serial++
		r = &policyRec{Policy: o, key: key, serial: c.serial}
	default:
		c.Delete(key)
		return
	}
	c.Delete(key)
	c.objects[key] = r
	r.enter(c)
}

// Delete takes an object back. A key that is not known is nothing.
func (c *Compiler) Delete(key string) {
	if r := c.objects[key]; r != nil {
		c.changed = true
		delete(c.objects, key)
		r.leave(c)
	}
}

// SetNode tells the own node's addresses.
func (c *Compiler) SetNode(addrs []netip.Addr) {
	addrs = usableAddrs(addrs)
	if !slices.Equal(addrs, c.node) {
		c.node = addrs
		c.changed, c.hostsDirty = true, true
		c.giveAtom(c.atoms.own)
	}
}

// SetLinks tells this host's interfaces with their addresses: host endpoints that name no interface choose
// by them.
func (c *Compiler) SetLinks(links map[string][]netip.Addr) {
	if !maps.EqualFunc(links, c.links, slices.Equal[[]netip.Addr]) {
		c.links = map[string][]netip.Addr{}
		for l, a := range links {
			c.links[l] = slices.Clone(a)
		}
		c.changed, c.hostsDirty = true, true
	}
}

// PutSource and DeleteSource say what a local workload may send; they only go through to the table.
func (c *Compiler) PutSource(s Source) {
	c.changed = true
	c.sources.put(s, struct{}{})
}

// DeleteSource is the opposite of PutSource.
func (c *Compiler) DeleteSource(s Source) {
	c.changed = true
	c.sources.del(s)
}

// Table is the live table: to be read only, and only until the next Compile.
func (c *Compiler) Table() *Table { return c.table }

// Objects yields everything that was put and not deleted, in no order.
func (c *Compiler) Objects() iter.Seq2[string, Object] {
	return func(yield func(string, Object) bool) {
		for key, r := range c.objects {
			if !yield(key, r.object()) {
				return
			}
		}
	}
}

// Problems tells what was put and cannot take effect.
func (c *Compiler) Problems() []model.Problem {
	var out []model.Problem
	for p := range c.known {
		if c.tiers[p.Tier] == nil {
			out = append(out, model.Problem{
				Code: "policy-tier-missing", Severity: model.Failure, Subject: p.Ref.String(),
				Detail: "it is in tier " + p.Tier + ", which does not exist: the policy decides nothing",
				Next:   "heddle get tiers",
			})
		}
	}
	for _, s := range c.hostSites {
		out = append(out, s.wrong...)
	}
	slices.SortFunc(out, func(a, b model.Problem) int {
		if a.Subject != b.Subject {
			return strings.Compare(a.Subject, b.Subject)
		}
		return strings.Compare(a.Detail, b.Detail)
	})
	return slices.Compact(out)
}
