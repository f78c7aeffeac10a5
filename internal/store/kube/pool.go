package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// putPool files a pool for this process.
func (c *catalog) putPool(p model.Pool, at store.Revision) (store.Revision, error) {
	if _, err := store.Encode(&p); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if at != store.AnyRevision && at != c.objects[model.KindPool][p.Name].revision {
		return 0, fmt.Errorf("pool %q: %w", p.Name, store.ErrConflict)
	}
	c.filed[p.Name] = p
	c.repool()
	c.wake() // somebody may wait for the first one
	return c.objects[model.KindPool][p.Name].revision, nil
}

func (c *catalog) deletePool(name string, at store.Revision) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	was, there := c.objects[model.KindPool][name]
	switch {
	case !there && at == store.AnyRevision:
		return nil
	case !there:
		return fmt.Errorf("pool %q: %w", name, store.ErrNotFound)
	case at != store.AnyRevision && at != was.revision:
		return fmt.Errorf("pool %q: %w", name, store.ErrConflict)
	}
	delete(c.filed, name)
	c.drop(model.KindPool, name)
	c.repool()
	return nil
}

// repool lists the filed pools anew, and then all blocks. mu is held.
func (c *catalog) repool() {
	for name, p := range c.filed {
		p = c.sized(p)
		c.set(name, &p)
	}
	for r := range c.holders {
		c.reblock(r)
	}
}

// sized is a pool with the size that this node's block has: Kubernetes chooses it, not the net-conf.json.
func (c *catalog) sized(p model.Pool) model.Pool {
	if f := c.nodes[c.node]; f != nil {
		for _, r := range f.ranges {
			if holds(p, r) && r.Bits() != p.BlockSize {
				s := p
				s.BlockSize, s.Min, s.Max = r.Bits(), netip.Addr{}, netip.Addr{}
				if s.Validate() == nil {
					return s
				}
			}
		}
	}
	return p
}

func holds(p model.Pool, r netip.Prefix) bool {
	return p.CIDR.Contains(r.Addr()) && p.CIDR.Bits() <= r.Bits()
}

// reholder learns which ranges a node has now. mu is held.
func (c *catalog) reholder(name string, was, now []netip.Prefix) {
	for _, r := range was {
		if !slices.Contains(now, r) {
			c.holders[r] = slices.DeleteFunc(slices.Clone(c.holders[r]), func(n string) bool { return n == name })
		}
	}
	for _, r := range now {
		if at, has := slices.BinarySearch(c.holders[r], name); !has {
			c.holders[r] = slices.Insert(slices.Clone(c.holders[r]), at, name)
		}
		if all := c.holders[r]; len(all) > 1 {
			c.log.Error("nodes have the same podCIDR; it counts as that of the first", "podCIDR", r, "nodes", all)
		}
	}
	if name == c.node {
		c.repool()
	}
	for _, r := range slices.Concat(was, now) {
		c.reblockAround(r)
	}
}

// reblock lists one block anew: as a podCIDR it needs a holder and a pool; else it is what a Block object says. mu is
// held.
func (c *catalog) reblock(r netip.Prefix) {
	b := &model.Block{CIDR: r}
	names := c.holders[r]
	if len(names) == 0 {
		delete(c.holders, r)
		if b := c.claimedBlock(r); b != nil {
			c.set(b.Key(), b)
		} else {
			c.drop(model.KindBlock, (&model.Block{CIDR: r}).Key())
		}
		return
	}
	for name, p := range c.filed {
		if holds(p, r) {
			b.Pool, b.Node = name, names[0]
			c.set(b.Key(), b)
			return
		}
	}
	for _, p := range c.settled {
		if holds(p, r) {
			b.Pool, b.Node = p.Name, names[0]
			c.set(b.Key(), b)
			return
		}
	}
	c.drop(b.Kind(), b.Key())
}

// poolPrefix begins the keys of IPPools, of both groups.
const poolPrefix = "IPPool."

// resettle learns anew which pools IPPools make. What those are otherwise is for whoever reads the settings; here it
// counts which one a block is of. mu is held.
func (c *catalog) resettle() {
	var settings []model.Setting
	for key, v := range c.objects[model.KindSetting] {
		if strings.HasPrefix(key, poolPrefix) {
			settings = append(settings, *v.object.(*model.Setting))
		}
	}
	net, _ := calico.Network(settings) // its problems are told by whoever reads all of them
	if slices.EqualFunc(net.Pools, c.settled, func(a, b model.Pool) bool { return a.Equal(&b) }) {
		return
	}
	c.settled = net.Pools
	for r := range c.holders {
		c.reblock(r)
	}
	c.wake()
}

// pool finds a pool by name: filed, or of an IPPool. mu is held.
func (c *catalog) pool(name string) (model.Pool, bool) {
	if p, ok := c.filed[name]; ok {
		return p, true
	}
	i := slices.IndexFunc(c.settled, func(p model.Pool) bool { return p.Name == name })
	if i < 0 {
		return model.Pool{}, false
	}
	return c.settled[i], true
}

// putBlock looks whether a node has a block that only Kubernetes gives. mu is held, and nodes are known.
func (c *catalog) putBlock(b *model.Block, at store.Revision) (store.Revision, error) {
	noun := fmt.Sprintf("block %s", b.CIDR)
	v, listed := c.objects[model.KindBlock][b.Key()]
	holders := c.holders[b.CIDR]
	switch {
	case len(holders) > 0 && holders[0] != b.Node:
		return 0, fmt.Errorf("%s: node %q has it: %w", noun, holders[0], store.ErrConflict)
	case listed && at > 0 && at != v.revision:
		return 0, fmt.Errorf("%s: %w", noun, store.ErrConflict)
	case listed:
		return v.revision, nil
	case len(holders) > 0:
		return c.revision, nil // its pool is not filed, or is another one now
	}
	f := c.nodes[b.Node]
	if f == nil {
		return 0, fmt.Errorf("%s: %w: the API server has no Node object %q (heddle agent --node must be its name)", noun, store.ErrUnsupported, b.Node)
	}
	for _, r := range f.ranges {
		if model.FamilyOf(r.Addr()) != b.Family() {
			continue
		}
		if p, is := c.pool(b.Pool); is && holds(p, r) {
			return 0, fmt.Errorf("%s: Kubernetes has given node %q %s: %w", noun, b.Node, r, store.ErrConflict)
		}
		return 0, fmt.Errorf("%s: %w: spec.podCIDRs of node %q has %s, which is not in pool %q: make Network in net-conf.json, or cidr of the IPPool, the cluster's range (kube-controller-manager --cluster-cidr)", noun, store.ErrUnsupported, b.Node, r, b.Pool)
	}
	return 0, fmt.Errorf("%s: %w: node %q has no %s range in spec.podCIDRs; Kubernetes gives them out: kube-controller-manager --allocate-node-cidrs --cluster-cidr, or kubeadm init --pod-network-cidr", noun, store.ErrUnsupported, b.Node, b.Family())
}
