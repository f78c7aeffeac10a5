package kube

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// Block objects, of a CustomResourceDefinition of our own, are the blocks of pools that Kubernetes gives nothing out
// of. The name of one is made of its range, so that the API server lets one node make it. podCIDRs go first: a Block
// object that overlaps one of a node's is no block.
var (
	blockV1   = schema.GroupVersion{Group: "heddle.net", Version: "v1"}
	blocksGVR = blockV1.WithResource("blocks")
)

// Fields of a Block's spec. A borrower is who asks the node for a single address (model.Block.For).
const (
	fieldCIDR, fieldPool, fieldNode = "cidr", "pool", "node"
	fieldLender, fieldBorrower      = "lender", "borrower"
)

// blockName is the name of the object of a block by its key: 10.245.0.4-30, v6-fd00-1---126.
func blockName(key string) string {
	if strings.Contains(key, ":") {
		return "v6-" + strings.ReplaceAll(key, ":", "-")
	}
	return key
}

// claimed is what is known of a Block object.
type claimed struct {
	block   model.Block
	uid     types.UID
	made    time.Time
	version string
	born    string // the first version that was seen here
	// counts: it is a block; ever: it was one at some time.
	counts, ever bool
}

// older reports whether a Block object counts before another one that overlaps it. All agents see it the same way, also
// those that learn of the two long after.
func (cl *claimed) older(than *claimed) bool {
	return cl.made.Before(than.made) || cl.made.Equal(than.made) && !reached(cl.version, than.version)
}

// apart reports whether two blocks may be side by side: they do not overlap, or one is an address that is lent out of
// the other.
func apart(a, b *model.Block) bool { return !a.CIDR.Overlaps(b.CIDR) || outOf(a, b) || outOf(b, a) }

// blocks is the source of Block objects.
func (s *Store) blocks() *source {
	c := s.clients.dynamic.Resource(blocksGVR)
	return &source{
		resource: blocksGVR, kind: model.KindBlock, optional: true,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) },
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.Watch(ctx, o)
		},
		reduce: reduceBlock,
	}
}

// reduceBlock keeps of a Block object what it says of a block.
func reduceBlock(o runtime.Object) *thin {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return &thin{}
	}
	out := &thin{name: u.GetName(), version: u.GetResourceVersion(), uid: u.GetUID(), made: u.GetCreationTimestamp().Time, key: u.GetName()}
	b, err := blockOf(u)
	if err != nil {
		out.wrong = err
		return out
	}
	out.object = b
	return out
}

// blockOf reads a Block object.
func blockOf(u *unstructured.Unstructured) (*model.Block, error) {
	spec, _ := u.Object["spec"].(map[string]any)
	text := func(field string) string { s, _ := spec[field].(string); return strings.Clone(s) }
	b := &model.Block{Pool: text(fieldPool), Node: text(fieldNode), Lender: text(fieldLender), For: text(fieldBorrower)}
	var err error
	if b.CIDR, err = netip.ParsePrefix(text(fieldCIDR)); err != nil {
		return nil, fmt.Errorf("block %q: cidr: %w", u.GetName(), err)
	}
	if err := b.Validate(); err != nil {
		return nil, err
	}
	if want := blockName(b.Key()); u.GetName() != want || b.CIDR.Addr().Is4In6() {
		return nil, &model.FieldError{Noun: fmt.Sprintf("block %s", b.CIDR), Field: "metadata.name", Value: u.GetName(), Want: want}
	}
	return b, nil
}

// objectOf is a block as an object.
func objectOf(b *model.Block) *unstructured.Unstructured {
	spec := map[string]any{fieldCIDR: b.CIDR.String(), fieldPool: b.Pool, fieldNode: b.Node}
	for field, v := range map[string]string{fieldLender: b.Lender, fieldBorrower: b.For} {
		if v != "" {
			spec[field] = v
		}
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": blockV1.String(), "kind": "Block", "metadata": map[string]any{"name": blockName(b.Key())}, "spec": spec,
	}}
}

// takeBlock learns of a Block object. mu is held.
func (c *catalog) takeBlock(t *thin, gone bool) {
	c.reach(t.version)
	was := c.claimed[t.name]
	b, _ := t.object.(*model.Block)
	if b == nil && !gone {
		c.log.Warn("a Block of the API server is left out", "name", t.name, "version", t.version, "reason", t.wrong)
	}
	if was != nil && (gone || b == nil || was.uid != t.uid) {
		delete(c.claimed, t.name)
		c.reblockAround(was.block.CIDR) // also when it was made anew meanwhile: then it is another one
		was = nil
	}
	if b != nil && !gone {
		now := &claimed{block: *b, uid: t.uid, made: t.made, version: t.version, born: t.version}
		if was != nil {
			now.born, now.counts, now.ever = was.born, was.counts, was.ever
		}
		c.claimed[t.name] = now
		c.reblockAround(b.CIDR)
	}
	c.wake()
}

// replaceBlocks learns that these are all Block objects. mu is held.
func (c *catalog) replaceBlocks(all []*thin) {
	there := make(map[string]bool, len(all))
	for _, t := range all {
		there[t.name] = true
	}
	for name, was := range c.claimed {
		if !there[name] {
			delete(c.claimed, name)
			c.reblockAround(was.block.CIDR)
		}
	}
	known := maps.Clone(c.claimed)
	for _, t := range all {
		c.takeBlock(t, false)
	}
	for name, cl := range c.claimed {
		if known[name] == nil {
			cl.ever = cl.counts // a list is in no order of time
		}
	}
	c.wake()
}

// reach learns that all Block objects are known as of a version. mu is held.
func (c *catalog) reach(version string) {
	if !reached(c.blocksAt, version) {
		c.blocksAt = version
	}
}

// reached reports whether a version is another one or a later one.
func reached(at, version string) bool {
	order, err := resourceversion.CompareResourceVersion(at, version)
	return err == nil && order >= 0
}

// reblockAround lists a range's block anew, and those of Block objects that hang together with it. No agent makes one
// that overlaps a podCIDR or an older one that counts: such is a mistake, or worse, and does not count. mu is held.
func (c *catalog) reblockAround(r netip.Prefix) {
	widest := r // of two ranges that overlap one holds the other
	for _, cl := range c.claimed {
		if cl.block.CIDR.Overlaps(r) && cl.block.CIDR.Bits() < widest.Bits() {
			widest = cl.block.CIDR
		}
	}
	var list, counting []*claimed
	for _, cl := range c.claimed {
		if cl.block.CIDR.Overlaps(widest) {
			list = append(list, cl)
		}
	}
	slices.SortFunc(list, func(a, b *claimed) int {
		if a.older(b) {
			return -1
		}
		return 1
	})
	for _, cl := range list {
		why := c.notCounting(cl, counting)
		if why != nil && (cl.counts || !cl.ever) {
			c.log.Error("a Block does not count", "block", cl.block.CIDR, "node", cl.block.Node, "reason", why)
		}
		if cl.counts = why == nil; cl.counts {
			cl.ever = true
			counting = append(counting, cl)
		}
	}
	c.reblock(r)
	for _, cl := range list {
		c.reblock(cl.block.CIDR)
	}
}

// notCounting says why a Block object is no block, given the older ones around it that are. mu is held.
func (c *catalog) notCounting(cl *claimed, older []*claimed) error {
	if of := c.podCIDROver(cl.block.CIDR); of.IsValid() {
		return fmt.Errorf("it overlaps podCIDR %s of node %q: choose pools outside of what Kubernetes gives out", of, c.holders[of][0])
	}
	for _, o := range older {
		if !apart(&o.block, &cl.block) {
			return fmt.Errorf("it overlaps %s of node %q, which is older", o.block.CIDR, o.block.Node)
		}
	}
	return nil
}

// claimedBlock is the block that a Block object of just this range says, if that counts. mu is held.
func (c *catalog) claimedBlock(r netip.Prefix) *model.Block {
	cl := c.claimed[blockName((&model.Block{CIDR: r}).Key())]
	if cl == nil || !cl.counts {
		return nil
	}
	b := cl.block
	return &b
}

// podCIDROver is a podCIDR of any node that overlaps a range; the zero Prefix for none. mu is held.
func (c *catalog) podCIDROver(r netip.Prefix) netip.Prefix {
	for of, names := range c.holders {
		if len(names) > 0 && of.Overlaps(r) {
			return of
		}
	}
	return netip.Prefix{}
}

// given reports whether Kubernetes alone says whose a block is: it is in a pool of a net-conf.json, which is what the
// cluster gives podCIDRs of, or in another one that holds some; or nobody knows yet what Kubernetes gives out. mu is
// held.
func (c *catalog) given(b *model.Block) bool {
	if _, filed := c.filed[b.Pool]; filed || len(c.filed)+len(c.holders) == 0 || c.podCIDROver(b.CIDR).IsValid() {
		return true
	}
	for _, p := range c.filed {
		if p.CIDR.Overlaps(b.CIDR) {
			return true
		}
	}
	for _, p := range c.settled {
		if p.CIDR.Overlaps(b.CIDR) && c.podCIDROver(p.CIDR).IsValid() {
			return true
		}
	}
	return false
}

// Assigns reports whether Kubernetes gives the blocks of a pool, one to each node: of others, nodes claim them.
func (c *catalog) Assigns(p model.Pool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.given(&model.Block{CIDR: p.CIDR, Pool: p.Name})
}

// against says which block stands in the way of another. Only those are asked that an older version than before has
// made; empty: all. One that never counted is in nobody's way. mu is held.
func (c *catalog) against(b *model.Block, before string) error {
	for _, cl := range c.claimed {
		o := &cl.block
		if o.CIDR == b.CIDR || !cl.ever || apart(o, b) || before != "" && reached(cl.born, before) {
			continue
		}
		return fmt.Errorf("block %s: it overlaps block %s of node %q: %w", b.CIDR, o.CIDR, o.Node, store.ErrConflict)
	}
	return nil
}

// outOf reports whether one is an address that is lent out of a block, or asked for.
func outOf(one, of *model.Block) bool {
	return one.Lender != "" && one.Lender == of.Node || one.For != "" && one.Node == of.Node
}

// unfollowed says why Block objects are not known; nil when they are. mu is held.
func (c *catalog) unfollowed() error {
	for _, src := range c.sources {
		if src.resource != blocksGVR {
			continue
		}
		if src.denied {
			return fmt.Errorf("%w: the ClusterRole of this agent has no right to list and watch %s: kubectl apply -f deploy/heddle.yaml", store.ErrUnsupported, blocksGVR.GroupResource())
		}
		return nil
	}
	return fmt.Errorf("%w: blocks of pools that Kubernetes gives no podCIDRs of are objects of kind Block, and the API server has no CustomResourceDefinition %s: kubectl apply -f deploy/heddle.yaml", store.ErrUnsupported, blocksGVR.GroupResource())
}
