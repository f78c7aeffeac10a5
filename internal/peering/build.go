package peering

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Build makes a node's BGP plan; nil when the node does not speak: nobody asked for BGP, and no pool is carried
// by it. Problems name what could not be honoured; the rest goes on. Equal inputs make equal plans, and the plans
// of two nodes fit together: who has a session has it at both ends.
func Build(in Input) (*Plan, []model.Problem) {
	if !in.Config.Wanted && !slices.ContainsFunc(in.Cluster.Pools, func(p model.Pool) bool { return p.Path == model.PathBGP }) {
		return nil, nil
	}
	b := &builder{in: &in, all: members(&in), found: map[netip.Addr]*candidate{}}
	b.self = &b.all[slices.IndexFunc(b.all, func(m member) bool { return m.Name == in.Self.Name })]
	b.elect()
	p := &Plan{ASN: b.self.asn, RouterID: b.self.id, ClusterID: b.self.cluster, Port: b.self.port, Announced: []Announcement{}}
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if a := in.Self.Address(f); a.IsValid() {
			p.Listen = append(p.Listen, a)
		}
	}
	b.peers()
	b.mesh()
	p.Neighbors = b.neighbors(p)
	b.filters(p)
	b.ranges(p)
	b.announce(p)
	b.sameRouterID()
	p.Elected = b.stand || b.self.elected
	p.Mode = b.mode(p)
	slices.SortFunc(b.problems, func(x, y model.Problem) int {
		return cmp.Or(cmp.Compare(x.Code, y.Code), cmp.Compare(x.Subject, y.Subject), cmp.Compare(x.Detail, y.Detail))
	})
	return p, slices.Compact(b.problems)
}

// builder gathers a plan.
type builder struct {
	in    *Input
	all   []member
	self  *member
	found map[netip.Addr]*candidate // neighbours by address
	// stand says that elected reflectors stand for the mesh.
	stand     bool
	meshed    int // sessions of the mesh that are wanted
	staying   int // and those that only stay until others tell what they tell
	elections []string
	replaced  []string // that would be elected if they were not silent
	problems  []model.Problem
}

func (b *builder) fail(code, subject, detail, next string) {
	b.problems = append(b.problems, model.Problem{Code: code, Severity: model.Failure, Subject: subject, Detail: detail, Next: next})
}

// neighbors lists the sessions by address.
func (b *builder) neighbors(p *Plan) []Neighbor {
	list := make([]Neighbor, 0, len(b.found))
	for _, c := range b.found {
		n := c.Neighbor
		if p.ClusterID.IsValid() && n.Kind(p.ASN) == Internal {
			n.Client = c.member == nil || c.member.cluster != p.ClusterID
		}
		list = append(list, n)
	}
	slices.SortFunc(list, func(x, y Neighbor) int { return x.Address.Compare(y.Address) })
	return list
}

// filters takes those that sessions name.
func (b *builder) filters(p *Plan) {
	used := map[string]bool{}
	for _, n := range p.Neighbors {
		for _, f := range n.Filters {
			used[f] = true
		}
	}
	for _, f := range b.in.Config.Filters {
		if used[f.Name] {
			p.Filters = append(p.Filters, f)
			delete(used, f.Name)
		}
	}
	slices.SortFunc(p.Filters, func(x, y Filter) int { return cmp.Compare(x.Name, y.Name) })
	for _, n := range p.Neighbors {
		for _, f := range n.Filters {
			if used[f] {
				b.fail("bgp-filter", "BGPPeer "+n.Name, fmt.Sprintf("filter %q is not there, so nothing is believed from %s, and nothing told", f, n.Address), "heddle get bgpfilters")
			}
		}
	}
}

// ranges says about what neighbours are believed.
func (b *builder) ranges(p *Plan) {
	own := func(x netip.Prefix) {
		if x.IsValid() {
			p.Own = append(p.Own, x.Masked())
		}
	}
	for _, a := range p.Listen {
		own(netip.PrefixFrom(a, a.BitLen()))
	}
	for _, u := range b.in.Self.Uplinks {
		own(netip.PrefixFrom(u.Prefix.Addr(), u.Prefix.Addr().BitLen()))
	}
	s := &b.in.Config.Settings
	for _, x := range slices.Concat(s.ClusterIPs, s.ExternalIPs, s.LoadBalancerIPs) {
		own(x)
	}
	var blocks, others []netip.Prefix
	for _, x := range b.in.Cluster.Blocks {
		if x.Node == b.self.Name {
			blocks = append(blocks, x.CIDR)
			own(x.CIDR)
		} else {
			others = append(others, x.CIDR)
		}
	}
	for _, x := range others {
		if slices.ContainsFunc(blocks, func(block netip.Prefix) bool { return block != x && within(x, block) }) {
			p.Lent = append(p.Lent, x)
		}
	}
	for _, pool := range b.in.Cluster.Pools {
		if pool.Path != model.PathNone {
			p.Believed = append(p.Believed, pool.CIDR)
		}
	}
	p.Own, p.Lent, p.Believed = tidy(p.Own), tidy(p.Lent), tidy(p.Believed)
}

func tidy(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

// announce lists the own prefixes: blocks as they are, and nothing twice that lies in one; addresses that are
// borrowed of others' blocks; and the ranges of services.
func (b *builder) announce(p *Plan) {
	reasons := map[netip.Prefix]string{}
	add := func(x netip.Prefix, reason string) {
		if _, there := reasons[x]; !there {
			reasons[x] = reason
		}
	}
	poolOf := func(a netip.Addr) *model.Pool {
		i := slices.IndexFunc(b.in.Cluster.Pools, func(p model.Pool) bool { return p.CIDR.Contains(a) })
		if i < 0 || b.in.Cluster.Pools[i].NoBGPExport || b.in.Cluster.Pools[i].Path == model.PathNone {
			return nil
		}
		return &b.in.Cluster.Pools[i]
	}
	var own []netip.Prefix
	for _, x := range b.in.Cluster.Blocks {
		if x.Node == b.self.Name {
			own = append(own, x.CIDR)
		}
	}
	for _, a := range b.in.Addresses {
		own = append(own, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, x := range own {
		pool := poolOf(x.Addr())
		if pool == nil || slices.ContainsFunc(own, func(y netip.Prefix) bool { return x != y && within(x, y) }) {
			continue
		}
		reason := fmt.Sprintf("block of pool %q", pool.Name)
		if x.IsSingleIP() {
			reason = fmt.Sprintf("address of pool %q, in a block of another node", pool.Name)
		}
		add(x, reason)
	}
	s := &b.in.Config.Settings
	for _, of := range []struct {
		what   string
		ranges []netip.Prefix
	}{{"cluster IPs", s.ClusterIPs}, {"external IPs", s.ExternalIPs}, {"load balancer IPs", s.LoadBalancerIPs}} {
		for _, x := range of.ranges {
			add(x, "range of services' "+of.what)
		}
	}
	for x, reason := range reasons {
		p.Announced = append(p.Announced, Announcement{Prefix: x, Communities: communities(s.Advertisements, x), Reason: reason})
	}
	slices.SortFunc(p.Announced, func(x, y Announcement) int { return x.Prefix.Compare(y.Prefix) })
}

// communities are those of all advertisements that the prefix is in.
func communities(list []Advertisement, x netip.Prefix) []Community {
	var out []Community
	for _, a := range list {
		if within(x, a.CIDR) {
			out = append(out, a.Communities...)
		}
	}
	slices.SortFunc(out, func(x, y Community) int {
		return cmp.Or(cmp.Compare(len(x.String()), len(y.String())), cmp.Compare(x.String(), y.String()))
	})
	return slices.Compact(out)
}

// sameRouterID finds a node that cannot be told from this one.
func (b *builder) sameRouterID() {
	for i := range b.all {
		if m := &b.all[i]; m != b.self && m.id == b.self.id {
			b.fail("bgp-router-id", fmt.Sprintf("node %q", m.Name), fmt.Sprintf("it has the router id of this node, %s: neither can have a session with the other", m.id), "give one of the two another address")
		}
	}
}

// mode says in words who speaks to whom.
func (b *builder) mode(p *Plan) string {
	var parts []string
	nodes := len(b.all)
	switch {
	case !b.in.Config.Settings.Mesh:
		parts = append(parts, "no mesh")
	case b.stand:
		parts = append(parts, fmt.Sprintf("%d nodes, more than %d: elected route reflectors %s", nodes, b.in.Config.Settings.MeshLimit, strings.Join(b.elections, ", ")))
		if len(b.replaced) > 0 {
			parts = append(parts, "replaced because silent: "+strings.Join(b.replaced, ", "))
		}
	default:
		parts = append(parts, fmt.Sprintf("full mesh of %d nodes", b.meshed+1))
	}
	if p.ClusterID.IsValid() {
		parts = append(parts, fmt.Sprintf("this node reflects routes, cluster %s", p.ClusterID))
	}
	if others := len(p.Neighbors) - b.meshed - b.staying; others == 1 {
		parts = append(parts, "1 peer")
	} else if others > 1 {
		parts = append(parts, fmt.Sprintf("%d peers", others))
	}
	if b.staying > 0 {
		parts = append(parts, fmt.Sprintf("%d sessions of the mesh stay until others tell what they tell", b.staying))
	}
	return strings.Join(parts, "; ")
}
