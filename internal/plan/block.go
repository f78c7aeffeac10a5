package plan

import (
	"fmt"
	"net/netip"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/path"
)

// blocks answers what Build and PodOf both ask of the cluster's pools and blocks.
type blocks struct {
	self   string
	bridge string
	style  model.Attachment
	host   *model.Host
	all    []model.Block
	pools  []model.Pool            // those that make sense together
	byName map[string]*model.Pool  // into pools
	own    []netip.Prefix          // this node's, sorted
	stray  []netip.Prefix          // this node's that no pool holds
	owner  map[netip.Prefix]string // of every block
	used   map[netip.Addr]bool     // by workloads
	// problems of pools and own blocks
	problems []model.Problem
}

func newBlocks(in *Input) *blocks {
	b := &blocks{
		self: in.Self, bridge: in.Bridge, style: in.Attachment, host: &in.Host, all: in.Cluster.Blocks,
		byName: make(map[string]*model.Pool, len(in.Cluster.Pools)),
		owner:  map[netip.Prefix]string{}, used: map[netip.Addr]bool{},
	}
	for i := range in.Workloads {
		for _, a := range in.Workloads[i].Addresses {
			b.used[a] = true
		}
	}
	if b.bridge == "" {
		b.bridge = DefaultBridge
	}
	if b.style == "" {
		b.style = model.AttachBridge
	}
	b.takePools(in.Cluster.Pools)
	for i := range b.all {
		blk := &b.all[i]
		if blk.Node != b.self {
			continue
		}
		if p := b.fault(blk); p != nil {
			if p.Code == "block-outside-pool" || p.Code == "block-without-pool" {
				b.stray = append(b.stray, blk.CIDR)
				strand(p, users(in.Workloads, blk.CIDR.Contains))
			}
			b.problems = append(b.problems, *p)
			continue
		}
		b.own = append(b.own, blk.CIDR)
		b.owner[blk.CIDR] = blk.Node
	}
	return b
}

// takePools leaves out a pool that overlaps an earlier one, and gives all pools carried by VXLAN the settings
// of the first: a node has one VXLAN network. Stores check each object alone, so both can happen.
func (b *blocks) takePools(pools []model.Pool) {
	b.pools = make([]model.Pool, 0, len(pools)) // never grows: byName points into it
	var ruler *model.Pool
	for _, p := range pools {
		if q := b.overlapping(p.CIDR); q != nil {
			b.problem("pool-conflict", model.Failure, fmt.Sprintf("pool %q", p.Name),
				fmt.Sprintf("%s overlaps pool %q %s, which is used instead", p.CIDR, q.Name, q.CIDR), "give one of them another range")
			continue
		}
		if p.Path == model.PathVXLAN && path.Tunnelled(&p) {
			if ruler != nil && p.VXLAN != ruler.VXLAN {
				b.problem("pool-vxlan-conflict", model.Failure, fmt.Sprintf("pool %q", p.Name),
					fmt.Sprintf("its vxlan settings differ from those of pool %q, which are used instead: one node has one VXLAN network", ruler.Name), "give both the same settings")
				p.VXLAN = ruler.VXLAN
			}
		}
		b.pools = append(b.pools, p)
		b.byName[p.Name] = &b.pools[len(b.pools)-1]
		if ruler == nil && p.Path == model.PathVXLAN && path.Tunnelled(&p) {
			ruler = b.byName[p.Name]
		}
	}
}

func (b *blocks) overlapping(c netip.Prefix) *model.Pool {
	for i := range b.pools {
		if b.pools[i].CIDR.Overlaps(c) {
			return &b.pools[i]
		}
	}
	return nil
}

func (b *blocks) problem(code string, s model.Severity, subject, detail, next string) {
	b.problems = append(b.problems, model.Problem{Code: code, Severity: s, Subject: subject, Detail: detail, Next: next})
}

// fault tells why a block cannot be used. What another node filed is not trusted: a block outside its
// pool, or around a node's own address, would take traffic that is not the pods'.
func (b *blocks) fault(blk *model.Block) *model.Problem {
	bad := func(code, detail, next string) *model.Problem {
		return &model.Problem{
			Code: code, Severity: model.Failure, Subject: "block " + blk.CIDR.String(),
			Detail: fmt.Sprintf("of node %q: %s", blk.Node, detail), Next: next,
		}
	}
	// Of a peer's block the pool is the subject, so that one change of it is one problem: see fold.
	ofPool := func(code, own, peers string) *model.Problem {
		p := bad(code, own, "heddle status")
		if blk.Node != b.self {
			p.Subject, p.Detail = fmt.Sprintf("pool %q", blk.Pool), fmt.Sprintf("%s: %s of node %q", peers, blk.CIDR, blk.Node)
			p.Next = "on those nodes: heddle status, which names the workloads to restart"
		}
		return p
	}
	pool := b.byName[blk.Pool]
	switch {
	case pool == nil:
		return ofPool("block-without-pool", fmt.Sprintf("its pool %q does not exist or is not in use", blk.Pool), "it does not exist or is not in use, and has blocks")
	case !blk.CIDR.IsValid() || blk.CIDR.Bits() < pool.CIDR.Bits() || !pool.CIDR.Contains(blk.CIDR.Addr()):
		return ofPool("block-outside-pool", fmt.Sprintf("it is not inside pool %q %s", pool.Name, pool.CIDR), fmt.Sprintf("blocks are outside of its range %s", pool.CIDR))
	}
	for _, u := range b.host.Uplinks {
		if blk.CIDR.Contains(u.Prefix.Addr()) {
			return bad("block-covers-uplink", fmt.Sprintf("it contains this node's own address %s on %s", u.Prefix.Addr(), u.Link), "use a pool, or SubnetMin and SubnetMax, apart from the hosts' addresses")
		}
	}
	if blk.Node != b.self {
		for _, own := range b.own {
			if own.Overlaps(blk.CIDR) && !b.lent(own, blk.CIDR) {
				return bad("block-conflict", fmt.Sprintf("it overlaps this node's own block %s", own), "on that node: heddle status")
			}
		}
	}
	return nil
}

// lent tells whether one of two blocks is a single address that is lent out of the other; not where a workload of
// this node has the address.
func (b *blocks) lent(own, theirs netip.Prefix) bool {
	if own.IsSingleIP() == theirs.IsSingleIP() {
		return false
	}
	return own.IsSingleIP() || !b.used[theirs.Addr()]
}

// around is the own block that holds a; without one, the block that the pool's block size would make of
// it, if nobody else owns that; otherwise the address alone.
func (b *blocks) around(a netip.Addr) netip.Prefix {
	for _, own := range b.own {
		if own.Contains(a) {
			return own
		}
	}
	alone := netip.PrefixFrom(a, a.BitLen())
	for i := range b.pools {
		if !b.pools[i].CIDR.Contains(a) {
			continue
		}
		blk := netip.PrefixFrom(a, b.pools[i].BlockSize).Masked()
		for j := range b.all {
			if b.all[j].Node != b.self && b.all[j].CIDR.Overlaps(blk) {
				return alone
			}
		}
		return blk
	}
	return alone
}

func (b *blocks) attachment(w *model.Workload) model.Attachment {
	if w.Attachment != "" {
		return w.Attachment
	}
	return b.style
}

// pool is the pool that holds all of a prefix; nil for none.
func (b *blocks) pool(p netip.Prefix) *model.Pool {
	for i := range b.pools {
		if c := b.pools[i].CIDR; p.Bits() >= c.Bits() && c.Contains(p.Addr()) {
			return &b.pools[i]
		}
	}
	return nil
}
