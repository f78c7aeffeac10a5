package peering

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/selector"
)

// anyHops lets eBGP neighbours be any number of hops away: nodes need not share a segment.
const anyHops = 255

// candidate is a neighbour, and what else is known of it.
type candidate struct {
	Neighbor
	member *member // nil: no node of this network
	rank   rank
}

// rank says which of two candidates for one address counts, at both ends alike: the lower one.
type rank struct {
	scope int // 0: written for one node, 1: by a selector, 2: for all
	name  string
}

func (r rank) before(s rank) bool {
	return cmp.Or(cmp.Compare(r.scope, s.scope), cmp.Compare(r.name, s.name)) < 0
}

func (b *builder) add(c candidate) {
	if was := b.found[c.Address]; was == nil || c.rank.before(was.rank) {
		b.found[c.Address] = &c
	}
}

// peers takes what BGPPeers say of this node. One that picks nodes of this network counts at both ends, so that
// it need not be written twice.
func (b *builder) peers() {
	for i := range b.in.Config.Peers {
		p := &b.in.Config.Peers[i]
		nodes, ok := b.selector(p, "nodeSelector", p.NodeSelector)
		others, ok2 := b.selector(p, "peerSelector", p.PeerSelector)
		if !ok || !ok2 {
			continue
		}
		scope := 2
		switch {
		case p.Node != "":
			scope = 0
		case p.NodeSelector != "":
			scope = 1
		}
		here := func(m *member) bool {
			return (p.Node == "" || p.Node == m.Name) && nodes.Matches(selector.Map(m.Labels))
		}
		there := func(m *member) bool {
			if p.Address.IsValid() {
				return m.Address4 == p.Address || m.Address6 == p.Address
			}
			return others.Matches(selector.Map(m.Labels))
		}
		if p.Locked != "" && (here(b.self) || there(b.self)) {
			b.locked("BGPPeer "+p.Name, p.PasswordRef, p.Locked)
		}
		if p.PasswordRef != "" && p.Password == "" {
			continue
		}
		known := false
		for k := range b.all {
			m := &b.all[k]
			known = known || p.Address.IsValid() && there(m)
			forward, back := here(b.self) && there(m), here(m) && there(b.self)
			if m == b.self || !forward && (!back || p.OneSided) {
				continue
			}
			n := Neighbor{Name: p.Name, Node: m.Name, Port: m.port, Session: p.Session}
			if !b.reach(&n, m, p, forward) {
				continue
			}
			n.LocalASN, n.RemoteASN = 0, m.asn
			if forward {
				n.LocalASN = p.LocalASN
				if p.Address.IsValid() {
					n.RemoteASN, n.Port = cmp.Or(p.RemoteASN, m.asn), cmp.Or(p.Port, m.port)
				}
			}
			if back && p.LocalASN != 0 {
				n.RemoteASN = p.LocalASN
			}
			n.nearOrFar(b.self.asn)
			b.add(candidate{n, m, rank{scope, p.Name}})
		}
		if p.Address.IsValid() && !known && here(b.self) {
			b.outsider(p, scope)
		}
	}
}

// nearOrFar lets a node of another AS be in another segment, where nothing is said of that.
func (n *Neighbor) nearOrFar(own uint32) {
	if n.Kind(own) == External && n.Multihop == 0 && n.TTLSecurity == 0 {
		n.Multihop = anyHops
	}
}

// spoken reports whether there is a session with the node already.
func (b *builder) spoken(m *member) bool {
	for _, c := range b.found {
		if c.member == m {
			return true
		}
	}
	return false
}

// outsider takes a neighbour that is no node of this network.
func (b *builder) outsider(p *Peer, scope int) {
	n := Neighbor{Address: p.Address, Port: cmp.Or(p.Port, DefaultPort), Name: p.Name, Session: p.Session}
	n.RemoteASN = cmp.Or(p.RemoteASN, b.in.Config.Settings.ASN, DefaultASN)
	if !n.Source.IsValid() && !p.AnySource {
		f := model.FamilyOf(p.Address)
		if n.Source = b.in.Self.Address(f); !n.Source.IsValid() {
			b.fail("bgp-no-address", "BGPPeer "+p.Name, fmt.Sprintf("no session with %s: this node has no %s address", p.Address, f), "set sourceAddress: None in the BGPPeer, or give the node an address of that family")
			return
		}
	}
	b.add(candidate{n, nil, rank{scope, p.Name}})
}

// reach finds the two ends of a session with a node. A BGPPeer may name one of its addresses.
func (b *builder) reach(n *Neighbor, m *member, p *Peer, forward bool) bool {
	own, other, ok := common(b.in.Self, m.Node)
	if p != nil && p.Address.IsValid() {
		f := model.FamilyOf(p.Address)
		if own, other = b.in.Self.Address(f), m.Address(f); forward {
			other = p.Address
		}
		ok = own.IsValid() && other.IsValid()
	}
	if !ok {
		b.fail("bgp-no-address", fmt.Sprintf("node %q", m.Name), "no session with it: the two nodes have no address of one family", "give both an address of one family")
		return false
	}
	n.Address = other
	if !forward || p == nil || !n.Source.IsValid() {
		n.Source = own
	}
	if forward && p != nil && p.AnySource {
		n.Source = netip.Addr{}
	}
	return true
}

func (b *builder) selector(p *Peer, field, text string) (selector.Selector, bool) {
	s, err := selector.Parse(text)
	if err != nil {
		b.fail("bgp-selector", "BGPPeer "+p.Name, fmt.Sprintf("%s: %v; no session comes of it", field, err), "heddle get bgppeers "+p.Name+" -o yaml")
	}
	return s, err == nil
}

func (b *builder) locked(subject, ref, why string) {
	b.fail("bgp-password", subject, fmt.Sprintf("no session without password %s: %s", ref, why), "put the password into the folder bgp.passwords of heddle.yaml, as the file "+ref)
}

// Parts of MeshLimit, in percent, at which the mesh comes back, and at which elected reflectors end: a mesh is there
// before they do, and a node more or less does not change everybody's sessions.
const (
	meshBack      = 90
	reflectorsEnd = 80
)

// elect decides whether elected reflectors stand for the mesh. Nodes that people made reflectors, and those of other
// ASes, are apart from it.
func (b *builder) elect() {
	s := &b.in.Config.Settings
	if !s.Mesh || s.MeshLimit <= 0 {
		return
	}
	var candidates []int
	for i := range b.all {
		if b.electable(&b.all[i]) {
			candidates = append(candidates, i)
		}
	}
	n := len(candidates)
	b.stand = n > s.MeshLimit || b.in.Elected && n*100 > s.MeshLimit*meshBack
	// A reflector that was one goes on until it starts anew: it cannot see whether the others have their mesh yet.
	if b.stand || n*100 > s.MeshLimit*reflectorsEnd || b.in.Elected {
		chosen := elect(b.all, candidates, true)
		for _, i := range chosen {
			b.all[i].elected, b.all[i].cluster = true, b.all[i].id
		}
		for _, i := range elect(b.all, candidates, false) {
			if !b.all[i].elected {
				b.replaced = append(b.replaced, b.all[i].Name)
			}
		}
	}
	for i := range b.all {
		if b.all[i].elected {
			b.elections = append(b.elections, b.all[i].Name)
		}
	}
	slices.Sort(b.replaced)
}

func (b *builder) electable(m *member) bool {
	return !m.reflector() && m.asn == cmp.Or(b.in.Config.Settings.ASN, DefaultASN)
}

// mesh takes the nodes of this network to which this one speaks because all do. Other than in Calico that goes for
// route reflectors too: a node that becomes one keeps its sessions until there is a better way, and is never alone.
func (b *builder) mesh() {
	s := &b.in.Config.Settings
	if s.Mesh && s.MeshLocked != "" {
		b.locked("BGPConfiguration default", s.MeshPasswordRef, s.MeshLocked)
	}
	if s.MeshPasswordRef != "" && s.MeshPassword == "" {
		return
	}
	var unwanted []candidate
	for i := range b.all {
		m := &b.all[i]
		if m == b.self || b.spoken(m) {
			continue
		}
		n := Neighbor{Name: "mesh", Node: m.Name, Port: m.port, Session: Session{
			RemoteASN: m.asn, Password: s.MeshPassword, PasswordRef: s.MeshPasswordRef, RestartTime: s.MeshRestartTime,
		}}
		n.nearOrFar(b.self.asn)
		wanted := s.Mesh && (!b.stand || b.self.elected || m.elected || !b.electable(m) || !b.electable(b.self))
		if own, other, ok := common(b.in.Self, m.Node); ok {
			n.Address, n.Source = other, own
		} else if wanted {
			b.reach(&n, m, nil, true) // says so
		}
		switch c := (candidate{n, m, rank{}}); {
		case !n.Address.IsValid() || b.found[n.Address] != nil:
		case wanted:
			b.found[n.Address] = &c
			b.meshed++
		default:
			unwanted = append(unwanted, c)
		}
	}
	b.keep(unwanted)
}

// keep keeps sessions that are not wanted any more while they tell what no other tells: whoever takes over from
// the mesh is heard before it goes. It needs somebody who can take over, a route reflector.
func (b *builder) keep(unwanted []candidate) {
	reflected := false
	for _, c := range b.found {
		reflected = reflected || c.member != nil && c.member.cluster.IsValid()
	}
	if !reflected || len(unwanted) == 0 {
		return
	}
	others := map[netip.Prefix]bool{}
	for _, r := range b.in.Learned {
		if !r.Rejected && b.found[r.Neighbor] != nil {
			others[r.Prefix] = true
		}
	}
	for _, c := range unwanted {
		if slices.ContainsFunc(b.in.Learned, func(r Route) bool { return r.Neighbor == c.Address && !r.Rejected && !others[r.Prefix] }) {
			b.found[c.Address] = &c
			b.staying++
		}
	}
}
