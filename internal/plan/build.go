package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/internal/model"
)

// Defaults.
const (
	// DefaultBridge is the bridge's name where Input has none.
	DefaultBridge = "cni0"
	// defaultMTU is assumed while no uplink is known, in bytes.
	defaultMTU = 1500
)

// Build makes the plan of node in.Self. It fails only when no plan is possible, because the node is
// not in the cluster; whatever else cannot be honoured is left out and named in Plan.Problems.
func Build(in Input) (Plan, error) {
	b := &builder{in: &in, blocks: newBlocks(&in), nodes: make(map[string]*model.Node, len(in.Cluster.Nodes))}
	for i := range in.Cluster.Nodes {
		b.nodes[in.Cluster.Nodes[i].Name] = &in.Cluster.Nodes[i]
	}
	b.self = b.nodes[in.Self]
	if b.self == nil {
		return Plan{}, fmt.Errorf("node %q: not registered in the cluster, which has %d nodes", in.Self, len(in.Cluster.Nodes))
	}
	b.plan = Plan{Node: in.Self, Recalled: in.Recalled, Relearning: in.Relearning, Problems: b.blocks.problems}
	b.checkAddresses()
	b.speak()
	b.takeBlocks()
	b.learn()
	b.choose()
	b.tunnels()
	b.peers()
	b.learned()
	b.plan.MTU = b.mtu()
	b.workloads()
	b.forwarding()
	b.filter()
	b.finish()
	return b.plan, nil
}

// builder is the work of one Build.
type builder struct {
	in     *Input
	self   *model.Node
	nodes  map[string]*model.Node
	blocks *blocks
	plan   Plan
	theirs []theirs
	// told are the prefixes of which BGP says how they are reached.
	told map[netip.Prefix]told
	lost map[netip.Prefix]string // those of which it told next hops that nobody reaches, and why
	into []netip.Addr            // other ends of tunnels of which only BGP told
	// wanted are the tunnel devices that the pools ask for.
	wanted map[string]bool
	// vteps tells where the owner of a MAC is, per device: our own MACs at first.
	vteps map[vtep]netip.Addr
}

type vtep struct{ link, mac string }

func (b *builder) problem(code string, s model.Severity, subject, detail, next string) {
	b.plan.Problems = append(b.plan.Problems, model.Problem{Code: code, Severity: s, Subject: subject, Detail: detail, Next: next})
}

func (b *builder) checkAddresses() {
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		a := b.self.Address(f)
		if !a.IsValid() || b.in.Host.Uplink(a) != nil {
			continue
		}
		b.problem("node-address-missing", model.Failure, fmt.Sprintf("node %q", b.self.Name),
			fmt.Sprintf("its own address %s is on no uplink (%s)", a, uplinks(&b.in.Host)), "ip -brief address")
	}
}

func uplinks(h *model.Host) string {
	if len(h.Uplinks) == 0 {
		return "none was found"
	}
	s := ""
	for i, u := range h.Uplinks {
		if i > 0 {
			s += ", "
		}
		s += u.Prefix.String() + " on " + u.Link
	}
	return s
}

// mtu is the least of all paths that the pools may use. A device that is only kept for peers that have
// not changed yet does not count.
func (b *builder) mtu() int {
	mtu := 0
	lower := func(n int) {
		if n > 0 && (mtu == 0 || n < mtu) {
			mtu = n
		}
	}
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if up := b.in.Host.Uplink(b.self.Address(f)); up != nil {
			lower(up.MTU)
		}
	}
	for _, l := range b.plan.Links {
		if b.wanted[l.Name] {
			lower(l.MTU)
		}
	}
	for _, p := range b.plan.Peers {
		lower(p.MTU)
	}
	if mtu == 0 {
		mtu = defaultMTU
	}
	if least := 1280; mtu < least && b.hasFamily(model.IPv6) {
		b.problem("mtu-too-small", model.Warning, fmt.Sprintf("node %q", b.self.Name),
			fmt.Sprintf("%d bytes are left for pods, and IPv6 needs %d (RFC 8200 section 5)", mtu, least), "raise the uplink's MTU: ip link set dev … mtu …")
	}
	return mtu
}

func (b *builder) hasFamily(f model.Family) bool {
	return slices.ContainsFunc(b.blocks.pools, func(p model.Pool) bool { return p.Family() == f })
}

// workloads adds the own end of the network: the bridge or the blackholes, and every workload's host part.
func (b *builder) workloads() {
	bridged := b.blocks.style == model.AttachBridge
	local := slices.Clone(b.blocks.own)
	least := b.plan.MTU
	for i := range b.in.Workloads {
		w := &b.in.Workloads[i]
		pod := b.blocks.pod(w, b.plan.MTU)
		b.plan.Links = append(b.plan.Links, pod.Host)
		b.plan.Routes = append(b.plan.Routes, pod.HostRoutes...)
		b.plan.Sysctls = append(b.plan.Sysctls, pod.HostSysctls...)
		for _, a := range pod.HostAddresses {
			b.plan.Addresses = append(b.plan.Addresses, Address{Link: pod.Host.Name, Prefix: a})
		}
		if pod.Host.Master != "" {
			bridged = true
			least = min(least, pod.MTU)
		}
		if pod.Host.Master != "" {
			for _, a := range pod.Addresses {
				if !a.IsSingleIP() && !slices.Contains(local, a.Masked()) {
					local = append(local, a.Masked())
				}
			}
		}
	}
	b.homeless()
	b.plan.Filter.Local = local
	if !bridged {
		// Without these, a packet to an address of the block that no workload has would follow the default
		// route out of the node, and might come back.
		for _, blk := range b.blocks.own {
			b.plan.Routes = append(b.plan.Routes, Route{Type: RouteBlackhole, Dst: blk})
		}
		return
	}
	if len(local) > 0 {
		b.bridge(local, least)
	}
}

// homeless names the workloads whose address is in no block of this node. Those in a block that its pool
// does not hold are that block's problem.
func (b *builder) homeless() {
	var last netip.Addr
	names := users(b.in.Workloads, func(a netip.Addr) bool {
		holds := func(p netip.Prefix) bool { return p.Contains(a) }
		if !b.blocks.around(a).IsSingleIP() || slices.ContainsFunc(b.blocks.own, holds) || slices.ContainsFunc(b.blocks.stray, holds) {
			return false
		}
		last = a
		return true
	})
	if len(names) > 0 {
		b.plan.Problems = append(b.plan.Problems, outsideBlocks(names, last))
	}
}

// bridge adds the bridge. Its MAC is fixed: the kernel's own choice changes as ports come and go, and
// then the pods' neighbour entries for their gateway are wrong. Its MTU is that of the smallest port,
// so that the kernel tells a sender that a packet is too big instead of dropping it in silence.
func (b *builder) bridge(local []netip.Prefix, mtu int) {
	name := b.blocks.bridge
	mac := deriveMAC("bridge", b.self.Name, name)
	b.plan.Links = append(b.plan.Links, Link{
		Name: name, Kind: LinkBridge, Alias: alias("bridge"), MTU: mtu, MAC: mac, NFCall: b.in.Policed,
	})
	for _, blk := range local {
		if blk.IsSingleIP() {
			continue
		}
		b.plan.Addresses = append(b.plan.Addresses, Address{Link: name, Prefix: netip.PrefixFrom(gateway(blk), blk.Bits())})
		if blk.Addr().Is6() {
			b.plan.Sysctls = append(b.plan.Sysctls, Sysctl{"net/ipv6/conf/" + name + "/accept_ra", "0"})
			// The kernel asks for a workload's MAC from a link-local address. Its own choice of one would
			// rest for duplicate address detection, and with it every packet to a workload.
			b.plan.Addresses = append(b.plan.Addresses, Address{Link: name, Prefix: netip.PrefixFrom(linkLocal(mac), 64)})
		}
	}
}

// forwarding turns the node into a router. On IPv6 this also makes uplinks ignore router advertisements
// unless their accept_ra is 2; that setting is the administrator's.
func (b *builder) forwarding() {
	b.plan.Sysctls = append(b.plan.Sysctls, Sysctl{"net/ipv4/ip_forward", "1"})
	if b.hasFamily(model.IPv6) {
		b.plan.Sysctls = append(b.plan.Sysctls, Sysctl{"net/ipv6/conf/all/forwarding", "1"})
	}
}

func (b *builder) filter() {
	for _, l := range b.plan.Links {
		switch {
		case l.VXLAN != nil:
			b.plan.Filter.Tunnels = append(b.plan.Filter.Tunnels, uint16(l.VXLAN.Port))
		case l.IPIP != nil:
			b.unwrapped(model.FamilyOf(l.IPIP.Local))
		}
	}
	for i := range b.blocks.pools {
		p := &b.blocks.pools[i]
		b.plan.Filter.Pods = append(b.plan.Filter.Pods, p.CIDR)
		if p.Masquerade {
			b.plan.Filter.Masquerade = append(b.plan.Filter.Masquerade, p.CIDR)
		}
		if p.Path == model.PathVXLAN {
			b.plan.Filter.Tunnels = append(b.plan.Filter.Tunnels, uint16(p.VXLAN.Port))
		}
	}
	for _, l := range b.plan.Links {
		if l.Kind == LinkBridge {
			b.plan.Filter.Bridges = append(b.plan.Filter.Bridges, l.Name)
		}
	}
	b.plan.Filter.HostPorts = b.blocks.hostPorts(b.in.Workloads)
}

// unwrapped notes that the node takes IP in IP of a family, and from where. A node may send from any of its
// addresses: the kernel chooses by the way to the other end.
func (b *builder) unwrapped(outer model.Family) {
	protocol := uint8(4) // IPv4 in IPv4: RFC 2003
	if outer == model.IPv6 {
		protocol = 41 // IPv6 in IPv6: RFC 2473
	}
	b.plan.Filter.Protocols = append(b.plan.Filter.Protocols, protocol)
	from := func(a netip.Addr) {
		if a.IsValid() && model.FamilyOf(a) == outer {
			b.plan.Filter.Nodes = append(b.plan.Filter.Nodes, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for i := range b.in.Cluster.Nodes {
		n := &b.in.Cluster.Nodes[i]
		if n.Name == b.self.Name {
			continue
		}
		from(n.Address(outer))
		from(n.Public(outer))
		for _, u := range n.Uplinks {
			from(u.Prefix.Addr())
		}
	}
	for _, a := range b.into {
		from(a)
	}
}

// finish sorts every list by its key and drops what is there twice.
func (b *builder) finish() {
	p := &b.plan
	sorted(&p.Links, func(a, b Link) int { return cmp.Compare(a.Name, b.Name) })
	sorted(&p.Addresses, func(a, b Address) int { return cmp.Or(cmp.Compare(a.Link, b.Link), a.Prefix.Compare(b.Prefix)) })
	sorted(&p.Routes, func(a, b Route) int { return a.Dst.Compare(b.Dst) })
	sorted(&p.Neighbors, func(a, b Neighbor) int { return cmp.Or(cmp.Compare(a.Link, b.Link), a.IP.Compare(b.IP)) })
	sorted(&p.FDB, func(a, b FDB) int { return cmp.Or(cmp.Compare(a.Link, b.Link), cmp.Compare(a.MAC, b.MAC)) })
	sorted(&p.Rules, func(a, b Rule) int { return cmp.Compare(a.Priority, b.Priority) })
	sorted(&p.Sysctls, func(a, b Sysctl) int { return cmp.Compare(a.Key, b.Key) })
	sorted(&p.Filter.Pods, netip.Prefix.Compare)
	sorted(&p.Filter.Masquerade, netip.Prefix.Compare)
	slices.Sort(p.Filter.Tunnels)
	p.Filter.Tunnels = slices.Compact(p.Filter.Tunnels)
	slices.Sort(p.Filter.Protocols)
	slices.SortFunc(p.Filter.Nodes, netip.Prefix.Compare)
	p.Filter.Nodes = slices.Compact(p.Filter.Nodes)
	sorted(&p.Filter.Local, netip.Prefix.Compare)
	p.Filter.Local = outermost(p.Filter.Local)
	sorted(&p.Peers, func(a, b Peer) int { return cmp.Or(cmp.Compare(a.Node, b.Node), a.Block.Compare(b.Block)) })
	sorted(&p.Problems, func(a, b model.Problem) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Detail, b.Detail))
	})
	p.Problems = fold(p.Problems)
	b.origins()
}

// sorted orders a list and keeps the first of equal keys; an empty list becomes [] in JSON, not null.
func sorted[T any](list *[]T, by func(a, b T) int) {
	if *list == nil {
		*list = []T{}
	}
	slices.SortStableFunc(*list, by)
	*list = slices.CompactFunc(*list, func(a, b T) bool { return by(a, b) == 0 })
}

// outermost drops prefixes that an earlier one contains: an nftables set takes no overlapping intervals.
func outermost(sorted []netip.Prefix) []netip.Prefix {
	out := sorted[:0]
	for _, p := range sorted {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}
