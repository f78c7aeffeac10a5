package peering

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/internal/model"
)

// member is a node of the network as BGP sees it.
type member struct {
	*model.Node
	asn uint32
	id  netip.Addr // router id
	// cluster makes it a route reflector: chosen by people, or elected.
	cluster netip.Addr
	elected bool
	silent  bool
	port    uint16
}

// reflector says that people made the node a route reflector.
func (m *member) reflector() bool { return m.ClusterID.IsValid() }

// members are all nodes by name, self as it is told.
func members(in *Input) []member {
	var all []member
	add := func(n *model.Node) {
		m := member{Node: n, asn: cmp.Or(n.ASN, in.Config.Settings.ASN, DefaultASN), id: routerID(n), cluster: n.ClusterID}
		m.silent = slices.Contains(in.Silent, n.Name)
		m.port = cmp.Or(in.Config.Settings.PerNode[n.Name].ListenPort, in.Config.Settings.ListenPort, DefaultPort)
		all = append(all, m)
	}
	for i := range in.Cluster.Nodes {
		if n := &in.Cluster.Nodes[i]; n.Name != in.Self.Name {
			add(n)
		}
	}
	add(in.Self)
	slices.SortFunc(all, func(a, b member) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// routerID is the node's IPv4 address; one made of the name when it has none (RFC 6286 section 2.1: any four
// bytes but zero).
func routerID(n *model.Node) netip.Addr {
	if n.Address4.IsValid() {
		return n.Address4
	}
	h := hash(n.Name) | 1
	return netip.AddrFrom4([4]byte{byte(h >> 24), byte(h >> 16), byte(h >> 8), byte(h)})
}

func hash(s string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s))
	// The low bits of names that end alike are alike: mix (the finalizer of MurmurHash3).
	x := h.Sum32()
	x = (x ^ x>>16) * 0x85ebca6b
	x = (x ^ x>>13) * 0xc2b2ae35
	return x ^ x>>16
}

// common is the address of b to which a speaks, and a's own: of IPv4 where both have one. A session carries both
// families.
func common(a, b *model.Node) (own, other netip.Addr, ok bool) {
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		if a.Address(f).IsValid() && b.Address(f).IsValid() {
			return a.Address(f), b.Address(f), true
		}
	}
	return netip.Addr{}, netip.Addr{}, false
}

// zoneLabel says in which failure domain a node is (Kubernetes' well-known label).
const zoneLabel = "topology.kubernetes.io/zone"

// A reflector more for every so many nodes, and bounds of it.
const (
	nodesPerReflector = 250
	leastReflectors   = 2
	mostReflectors    = 3
)

// elect chooses some of the candidates (indexes of all) as reflectors: the same ones on every node, mostly the same ones
// when nodes come and go, with addresses of both families before others, and in zones apart where there are some. One
// that is silent is chosen only where nobody else is left, unless silence does not count.
func elect(all []member, candidates []int, silence bool) (chosen []int) {
	families := func(m *member) (n int) {
		for _, f := range []model.Family{model.IPv4, model.IPv6} {
			if m.Address(f).IsValid() {
				n++
			}
		}
		return n
	}
	order := slices.Clone(candidates)
	slices.SortFunc(order, func(i, j int) int {
		a, b := &all[i], &all[j]
		return cmp.Or(cmp.Compare(families(b), families(a)), cmp.Compare(hash(a.Name), hash(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	left := min(max(leastReflectors, (len(candidates)+nodesPerReflector-1)/nodesPerReflector), mostReflectors)
	var zones []string
	for _, silent := range []bool{false, true} {
		for _, fresh := range []bool{true, false} { // first those of zones that have none
			for _, i := range order {
				m := &all[i]
				zone, zoned := m.Labels[zoneLabel]
				if len(chosen) == left || (silence && m.silent) != silent || slices.Contains(chosen, i) || fresh && zoned && slices.Contains(zones, zone) {
					continue
				}
				chosen, zones = append(chosen, i), append(zones, zone)
			}
		}
	}
	return chosen
}
