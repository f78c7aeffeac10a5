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
	// What only BGP told of may go to a node of this network as well: one whose blocks the store has not told of yet.
	if slices.ContainsFunc(p.Routes, func(r Route) bool { return r.Learned && byIPIP(p, &r) }) && !slices.Contains(out, model.PathIPIP) {
		out = append(out, model.PathIPIP)
	}
	slices.Sort(out)
	return out
}

// byIPIP tells whether a route leads into an ipip device.
func byIPIP(p *Plan, r *Route) bool {
	return slices.ContainsFunc(p.Links, func(l Link) bool {
		return l.Kind == LinkIPIP && (l.Name == r.Link || slices.ContainsFunc(r.NextHops, func(h NextHop) bool { return h.Link == l.Name }))
	})
}

// Accepts lists the paths on which a node receives once this plan is in its kernel, sorted: what it then
// publishes as Node.Accepts.
func Accepts(p *Plan) []model.Path {
	out := []model.Path{model.PathDirect}
	for _, t := range tunnelPaths {
		if !slices.Contains(p.Retiring, t) && slices.ContainsFunc(p.Links, func(l Link) bool { return l.path() == t }) {
			out = append(out, t)
		}
	}
	slices.Sort(out)
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

// codeNotTold is the problem that BGP has not told of a node's blocks.
const codeNotTold = "bgp-route-missing"

// theirs is a block of another node that the store knows, and how it is reached.
type theirs struct {
	peer   *model.Node
	pool   *model.Pool
	dst    netip.Prefix
	choice path.Choice
	lost   *model.Problem // why there is no choice; without a code: said elsewhere
}

// takeBlocks finds out which blocks of others the store knows and a plan may use.
func (b *builder) takeBlocks() {
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
		b.theirs = append(b.theirs, theirs{peer: peer, pool: b.blocks.byName[blk.Pool], dst: blk.CIDR})
	}
}

// choose decides how every block of the others is reached. Blocks of one node in one pool go one way, but for
// those that BGP has told of.
func (b *builder) choose() {
	type key struct{ node, pool string }
	ways := make(map[key]theirs, len(b.in.Cluster.Nodes))
	for i := range b.theirs {
		t := &b.theirs[i]
		told, ok := b.told[t.dst]
		if ok && !told.spare {
			t.choice = told.choice
			continue
		}
		k := key{t.peer.Name, t.pool.Name}
		w, known := ways[k]
		if !known {
			w.choice, w.lost = b.way(t.peer, t.pool)
			ways[k] = w
		}
		t.choice, t.lost = w.choice, w.lost
		if why := b.lost[t.dst]; why != "" && t.lost != nil && t.lost.Code == codeNotTold {
			t.lost = &model.Problem{Detail: "BGP told of it by a next hop that is out of reach: " + why} // which is a problem already
		}
		if waiting := w.choice.Waiting; ok && waiting != "" && (w.lost != nil || w.choice.Path == model.PathDirect) {
			t.choice, t.lost = told.choice, nil
			t.choice.Reason = "stays on bgp: " + waiting
			b.uses(told, t.choice.Reason)
		}
	}
}

// way is how a node's blocks in a pool are reached, as far as BGP has not told. While what the pool asks for is
// not ready, it stays on the tunnel of the last plan that the peer still accepts, if there is one: a change of
// mode loses no packet.
func (b *builder) way(peer *model.Node, pool *model.Pool) (path.Choice, *model.Problem) {
	c, lost := path.Choose(b.self, b.in.Host, peer, pool, pool.Family())
	waiting := c.Waiting
	if pool.Path == model.PathBGP {
		waiting = "BGP has not told of it yet"
		if lost == nil {
			c.Reason = waiting + "; " + c.Reason
			return c, nil
		}
		if lost.Code == "peer-not-on-link" {
			lost = &model.Problem{
				Code: codeNotTold, Severity: model.Warning, Subject: lost.Subject,
				Detail: fmt.Sprintf("BGP has not told of its blocks in pool %q, and it is in no segment of this node", pool.Name), Next: "heddle status",
			}
		}
	}
	if waiting == "" {
		return c, lost
	}
	for _, p := range tunnelPaths {
		before := b.before(p, pool)
		if before == nil {
			continue
		}
		if t, no := path.Choose(b.self, b.in.Host, peer, before, pool.Family()); no == nil && t.Path == p {
			t.Reason, t.Waiting = fmt.Sprintf("stays on %s: %s", p, waiting), waiting
			return t, nil
		}
	}
	return c, lost
}

// before is a pool as it was when the tunnel of a path that the last plan has was made for it; nil when there is
// no such tunnel, or it is the one that the pool asks for.
func (b *builder) before(p model.Path, pool *model.Pool) *model.Pool {
	kept := b.kept(p)
	if p == pool.Path || len(kept) == 0 {
		return nil
	}
	q := model.Pool{Name: pool.Name, CIDR: pool.CIDR, Path: p, Encap: model.EncapAlways}
	for _, l := range kept {
		if v := l.VXLAN; v != nil {
			q.VXLAN = model.VXLAN{VNI: v.VNI, Port: v.Port, MTU: max(q.VXLAN.MTU, l.MTU)}
		}
	}
	return &q
}

// peers adds the ways to all other nodes' blocks.
func (b *builder) peers() {
	told := map[string]bool{} // problems: one for each node and pool
	for i := range b.theirs {
		t := &b.theirs[i]
		if t.lost == nil && slices.Contains(tunnelPaths, t.choice.Path) && !slices.ContainsFunc(b.plan.Links, func(l Link) bool {
			return l.path() == t.choice.Path && model.FamilyOf(l.local()) == t.choice.Outer
		}) {
			t.lost = &model.Problem{
				Code: "peer-path-not-ready", Severity: model.Failure, Subject: fmt.Sprintf("node %q", t.peer.Name),
				Detail: fmt.Sprintf("this node has no %s device for %s", t.choice.Path, t.choice.Outer), Next: "heddle status",
			}
		}
		if t.lost == nil {
			b.reach(t.peer, t.dst, t.choice)
			continue
		}
		if k := t.lost.Code + " " + t.lost.Subject + " " + t.lost.Detail; t.lost.Code != "" && !told[k] {
			told[k] = true
			b.plan.Problems = append(b.plan.Problems, *t.lost)
		}
		b.plan.Peers = append(b.plan.Peers, Peer{Node: t.peer.Name, Block: t.dst, Reason: t.lost.Detail})
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
	case model.PathIPIP:
		b.plan.Routes = append(b.plan.Routes, intoIPIP(dst, c.Via, c.Link))
	case model.PathBGP:
		b.plan.Routes = append(b.plan.Routes, b.told[dst].route)
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

// intoIPIP is a route through an ipip device to the node at an address.
func intoIPIP(dst netip.Prefix, to netip.Addr, link string) Route {
	if to.Is6() {
		return Route{Dst: dst, Link: link, Encap: to}
	}
	return Route{Dst: dst, Via: to, Link: link, OnLink: true}
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
