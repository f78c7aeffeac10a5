package plan

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/path"
)

// Sends lists the paths on which a node with this plan sends, sorted: what it publishes as Node.Sends.
func Sends(p *Plan) []model.Path {
	var out []model.Path
	for _, peer := range p.Peers {
		if peer.Path != "" && peer.Path != model.PathNone && !slices.Contains(out, peer.Path) {
			out = append(out, peer.Path)
		}
	}
	slices.Sort(out)
	return out
}

// Accepts lists the paths on which a node receives once this plan is in its kernel, sorted: what it then
// publishes as Node.Accepts.
func Accepts(p *Plan) []model.Path {
	out := []model.Path{model.PathDirect}
	if !p.Retiring && slices.ContainsFunc(p.Links, func(l Link) bool { return l.Kind == LinkVXLAN }) {
		out = append(out, model.PathVXLAN)
	}
	return out
}

// VTEP is the MAC of the plan's VXLAN device with outer headers of the family; "" for none: what the node
// publishes as Node.VTEP4 and VTEP6 once the plan is in its kernel.
func VTEP(p *Plan, outer model.Family) string {
	for _, l := range p.Links {
		if l.Kind == LinkVXLAN && model.FamilyOf(l.VXLAN.Local) == outer {
			return l.MAC
		}
	}
	return ""
}

// peers adds the ways to all other nodes' blocks.
func (b *builder) peers() {
	type key struct{ node, pool string }
	type way struct {
		choice path.Choice
		lost   *model.Problem
	}
	ways := make(map[key]way, len(b.in.Cluster.Nodes))
	for i := range b.in.Cluster.Blocks {
		blk := &b.in.Cluster.Blocks[i]
		if blk.Node == b.self.Name {
			continue
		}
		if p := b.blocks.fault(blk); p != nil {
			b.plan.Problems = append(b.plan.Problems, *p)
			continue
		}
		subject := "block " + blk.CIDR.String()
		if owner, taken := b.blocks.owner[blk.CIDR]; taken {
			b.problem("block-conflict", model.Failure, subject, fmt.Sprintf("of node %q: node %q has it too", blk.Node, owner), "on that node: heddle status")
			continue
		}
		b.blocks.owner[blk.CIDR] = blk.Node
		peer := b.nodes[blk.Node]
		if peer == nil {
			b.problem("block-without-node", model.Warning, subject, fmt.Sprintf("its node %q is not in the cluster", blk.Node), "heddle status")
			continue
		}
		k := key{blk.Node, blk.Pool}
		w, known := ways[k]
		if !known {
			pool := b.blocks.byName[blk.Pool]
			w.choice, w.lost = path.Choose(b.self, b.in.Host, peer, pool, pool.Family())
			if w.lost == nil && w.choice.Path == model.PathVXLAN && VTEP(&b.plan, w.choice.Outer) == "" {
				w.choice, w.lost = path.Choice{}, &model.Problem{
					Code: "peer-path-not-ready", Severity: model.Failure, Subject: fmt.Sprintf("node %q", peer.Name),
					Detail: "this node has no vxlan device for " + w.choice.Outer.String(), Next: "heddle status",
				}
			}
			if w.lost != nil {
				b.plan.Problems = append(b.plan.Problems, *w.lost)
			}
			ways[k] = w
		}
		if w.lost != nil {
			b.plan.Peers = append(b.plan.Peers, Peer{Node: peer.Name, Block: blk.CIDR, Reason: w.lost.Detail})
			continue
		}
		b.reach(peer, blk.CIDR, w.choice)
	}
}

// reach adds one way to one block.
func (b *builder) reach(peer *model.Node, dst netip.Prefix, c path.Choice) {
	line := Peer{Node: peer.Name, Block: dst, Path: c.Path, Via: c.Via, MTU: c.MTU, Reason: c.Reason}
	lost := func(code, detail string) {
		b.problem(code, model.Failure, fmt.Sprintf("node %q", peer.Name), detail, "on that node: heddle status")
		b.plan.Peers = append(b.plan.Peers, Peer{Node: peer.Name, Block: dst, Reason: detail})
	}
	if c.Via.IsValid() && dst.Contains(c.Via) {
		lost("block-covers-node", fmt.Sprintf("its block %s contains its own address %s", dst, c.Via))
		return
	}
	switch c.Path {
	case model.PathDirect:
		b.plan.Routes = append(b.plan.Routes, Route{Dst: dst, Via: c.Via, Link: c.Link})
	case model.PathVXLAN:
		mac := peer.VTEP(c.Outer)
		if at, ok := b.vteps[vtep{c.Link, mac}]; ok && at != c.Via {
			lost("vtep-mac-conflict", fmt.Sprintf("the MAC %s of its vxlan device is also that of the node at %s", mac, at))
			return
		}
		b.vteps[vtep{c.Link, mac}] = c.Via
		if c.Via != peer.Address(c.Outer) {
			b.behindNAT(c.Link)
		}
		r := Route{Dst: dst, Via: dst.Addr(), Link: c.Link, OnLink: true}
		if dst.Addr().Is6() {
			// The block's base would do as in IPv4, but the kernel refuses such a gateway while the block's
			// old route points to another device: a change of path could not be one replace.
			r.Via, r.OnLink = linkLocal(mac), false
		}
		b.plan.Routes = append(b.plan.Routes, r)
		b.plan.Neighbors = append(b.plan.Neighbors, Neighbor{Link: c.Link, IP: r.Via, MAC: mac})
		b.plan.FDB = append(b.plan.FDB, FDB{Link: c.Link, MAC: mac, Dst: c.Via})
	}
	b.plan.Peers = append(b.plan.Peers, line)
}

// behindNAT notes that packets of a VXLAN device meet a NAT.
func (b *builder) behindNAT(device string) {
	for _, l := range b.plan.Links {
		if l.Name == device && l.VXLAN != nil {
			l.VXLAN.NoTxChecksum = true // VXLAN is a pointer of this plan's own
		}
	}
}

// linkLocal is the address that a device with this MAC gives itself (RFC 4291 appendix A).
func linkLocal(mac string) netip.Addr {
	m, err := net.ParseMAC(mac)
	if err != nil || len(m) != 6 {
		return netip.Addr{} // nodes are validated when they are read
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}
