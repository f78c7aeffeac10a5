package ipam

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// Books are what store and node have written down of addresses at one moment.
type Books struct {
	Pools     []model.Pool
	Nodes     []model.Node
	Blocks    []model.Block
	Endpoints []model.Endpoint
	// Local is what the node at hand says itself; nil where none was asked.
	Local *Local
}

// Local is a node's own account.
type Local struct {
	Node   string        `json:"node"`
	Pools  []model.Pool  `json:"pools"` // of its last plan
	Blocks []model.Block `json:"blocks"`
	// Workloads are those on record; Unplugged those among them, by key, whose interface is not in the kernel.
	Workloads []model.Workload     `json:"workloads"`
	Unplugged map[string]time.Time `json:"unplugged,omitempty"` // with the time of the ADD
	// Use is of its blocks, in their order.
	Use []Use `json:"use"`
}

// Use is how a block's addresses are used.
type Use struct {
	Block   netip.Prefix `json:"block"`
	Size    uint64       `json:"size"` // that any workload may get; 2^62: or more
	Used    int          `json:"used"`
	Cooling int          `json:"cooling"`
	Free    uint64       `json:"free"`
}

// What a finding is.
const (
	FindOverlap     = "pools overlap"
	FindDouble      = "claimed twice"
	FindOrphan      = "orphan"
	FindStray       = "stray"
	FindLeak        = "leak"
	FindUnrecorded  = "not in the store"
	FindUnpublished = "not published"
)

// Finding is something in the books that does not fit. Two looks at one thing give equal findings.
type Finding struct {
	What    string `json:"what"`
	Subject string `json:"subject"`
	Detail  string `json:"detail"`
	// Release is what can be given back when a later look finds it again; empty: nothing. A block's or an
	// endpoint's key in the store, or a workload's key on this node.
	Release Release `json:"release,omitzero"`
}

// Release names what can be given back.
type Release struct {
	Kind     model.Kind `json:"kind,omitempty"` // empty: a workload of this node
	Key      string     `json:"key"`
	Attached time.Time  `json:"attached,omitzero"` // of a workload: its ADD
}

// Check compares the books with each other. The order of findings is that of their subjects.
func Check(b Books) []Finding {
	k := &check{Books: b, nodes: map[string]bool{}}
	for i := range b.Nodes {
		k.nodes[b.Nodes[i].Name] = true
	}
	k.pools()
	k.blocks()
	k.endpoints()
	if b.Local != nil {
		k.local()
	}
	slices.SortFunc(k.found, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(x.What, y.What), cmp.Compare(x.Subject, y.Subject), cmp.Compare(x.Detail, y.Detail))
	})
	return k.found
}

type check struct {
	Books
	nodes map[string]bool
	found []Finding
}

func (k *check) find(what, subject, detail string, r Release) {
	k.found = append(k.found, Finding{What: what, Subject: subject, Detail: detail, Release: r})
}

func (k *check) pools() {
	for i := range k.Pools {
		for j := range k.Pools[:i] {
			if p, q := &k.Pools[i], &k.Pools[j]; p.CIDR.Overlaps(q.CIDR) {
				k.find(FindOverlap, fmt.Sprintf("pool %q", p.Name), fmt.Sprintf("its range %s overlaps %s of pool %q", p.CIDR, q.CIDR, q.Name), Release{})
			}
		}
	}
}

func (k *check) pool(name string) *model.Pool {
	i := slices.IndexFunc(k.Pools, func(p model.Pool) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &k.Pools[i]
}

func (k *check) blocks() {
	for i := range k.Blocks {
		b := &k.Blocks[i]
		subject := "block " + b.CIDR.String()
		for j := range k.Blocks[:i] {
			if o := &k.Blocks[j]; o.CIDR.Overlaps(b.CIDR) && !lent(o, b) && !lent(b, o) {
				k.find(FindDouble, subject, fmt.Sprintf("of node %q: it overlaps block %s of node %q", b.Node, o.CIDR, o.Node), Release{})
			}
		}
		p := k.pool(b.Pool)
		switch {
		case !k.nodes[b.Node]:
			k.find(FindOrphan, subject, fmt.Sprintf("its node %q is not in the network", b.Node), Release{Kind: model.KindBlock, Key: b.Key()})
		case p == nil:
			k.find(FindStray, subject, fmt.Sprintf("of node %q: its pool %q does not exist; the node gives it up once no workload uses it", b.Node, b.Pool), Release{})
		case !Holds(p, *b) && b.Lender == "" && b.For == "":
			k.find(FindStray, subject, fmt.Sprintf("of node %q: pool %q has no such block (%s in blocks of /%d); the node gives it up once no workload uses it", b.Node, p.Name, p.CIDR, p.BlockSize), Release{})
		}
	}
}

// lent tells whether the first is an address that is lent out of the second, or asked for.
func lent(one, of *model.Block) bool {
	return one.Lender != "" && one.Lender == of.Node || one.For != "" && one.Node == of.Node
}

// around is the smallest block that holds an address; nil for none.
func (k *check) around(a netip.Addr) (around *model.Block) {
	for i := range k.Blocks {
		if b := &k.Blocks[i]; b.CIDR.Contains(a) && (around == nil || around.CIDR.Bits() < b.CIDR.Bits()) {
			around = b
		}
	}
	return around
}

func (k *check) endpoints() {
	owner := map[netip.Addr]*model.Endpoint{}
	for i := range k.Endpoints {
		e := &k.Endpoints[i]
		if !k.nodes[e.Node] && e.Link != "" { // of those by name somebody else keeps the books
			k.find(FindOrphan, "endpoint "+nameOf(e), fmt.Sprintf("its node %q is not in the network; it has %v", e.Node, e.Addresses), Release{Kind: model.KindEndpoint, Key: e.Key()})
		}
		for _, a := range e.Addresses {
			if other := owner[a]; other != nil {
				k.find(FindDouble, "address "+a.String(), fmt.Sprintf("%s on node %q and %s on node %q both have it", nameOf(other), other.Node, nameOf(e), e.Node), Release{})
			}
			owner[a] = e
			inPool := slices.ContainsFunc(k.Pools, func(p model.Pool) bool { return p.CIDR.Contains(a) })
			switch b := k.around(a); {
			case b == nil && inPool:
				k.find(FindStray, "address "+a.String(), fmt.Sprintf("%s on node %q has it, and no node has a block around it", nameOf(e), e.Node), Release{})
			case b != nil && b.Node != e.Node:
				k.find(FindDouble, "address "+a.String(), fmt.Sprintf("%s on node %q has it, and block %s is node %q's", nameOf(e), e.Node, b.CIDR, b.Node), Release{})
			}
		}
	}
}

func nameOf(e *model.Endpoint) string {
	if e.Name != "" {
		return e.Namespace + "/" + e.Name
	}
	return e.Link
}

// local compares the node's own account with the store's.
func (k *check) local() {
	l := k.Local
	for _, b := range l.Blocks {
		subject := "block " + b.CIDR.String()
		i := slices.IndexFunc(k.Blocks, func(o model.Block) bool { return o.CIDR == b.CIDR })
		switch {
		case i < 0:
			k.find(FindUnrecorded, subject, fmt.Sprintf("node %q uses it, and the store does not have it: the node claims it again", l.Node), Release{})
		case k.Blocks[i].Node != l.Node:
			k.find(FindDouble, subject, fmt.Sprintf("node %q uses it, and the store has it as node %q's", l.Node, k.Blocks[i].Node), Release{})
		}
	}
	for _, b := range k.Blocks {
		if b.Node == l.Node && b.For == "" && !slices.ContainsFunc(l.Blocks, func(o model.Block) bool { return o.CIDR == b.CIDR }) {
			k.find(FindStray, "block "+b.CIDR.String(), fmt.Sprintf("the store has it as node %q's, which does not use it", l.Node), Release{})
		}
	}
	published, named := map[netip.Addr]bool{}, false
	for i := range k.Endpoints {
		if k.Endpoints[i].Node == l.Node {
			named = named || k.Endpoints[i].Link == ""
			for _, a := range k.Endpoints[i].Addresses {
				published[a] = true
			}
		}
	}
	for i := range l.Workloads {
		w := &l.Workloads[i]
		subject := "workload " + w.String()
		if at, gone := l.Unplugged[w.Key()]; gone {
			k.find(FindLeak, subject, fmt.Sprintf("it holds %v since %s, and its interface %s is gone", w.Addresses, at.UTC().Format(time.RFC3339), w.HostLink), Release{Key: w.Key(), Attached: at})
			continue
		}
		for _, a := range w.Addresses {
			if !published[a] && !named { // else the store has it from elsewhere, and later
				k.find(FindUnpublished, subject, fmt.Sprintf("the store does not know that it has %s", a), Release{})
			}
		}
	}
}

// Again are the findings of a second look that the first had too, and that can be released: what was made or taken
// away between the two is none.
func Again(first, second []Finding) []Finding {
	var both []Finding
	for _, f := range second {
		if f.Release.Key != "" && slices.ContainsFunc(first, f.same) {
			both = append(both, f)
		}
	}
	return both
}

// same reports whether a finding is about the same thing: a workload that was added again is another.
func (f *Finding) same(o Finding) bool {
	return f.What == o.What && f.Release.Kind == o.Release.Kind && f.Release.Key == o.Release.Key && f.Release.Attached.Equal(o.Release.Attached)
}
