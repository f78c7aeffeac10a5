package peering

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
)

// drawNetwork is any network that is not broken.
func drawNetwork(t *rapid.T) (*model.Cluster, Config) {
	c := network(rapid.IntRange(1, 40).Draw(t, "nodes"))
	config := mesh()
	config.Settings.MeshLimit = rapid.IntRange(0, 40).Draw(t, "limit")
	six := rapid.Bool().Draw(t, "IPv6 too")
	for i := range c.Nodes {
		n := &c.Nodes[i]
		if six {
			n.Address6 = netip.AddrFrom16([16]byte{0xfd, 15: byte(i + 1)})
		}
		if rapid.IntRange(0, 9).Draw(t, "own AS") == 0 {
			n.ASN = uint32(65000 + rapid.IntRange(0, 2).Draw(t, "AS"))
		}
		n.Labels = map[string]string{zoneLabel: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "zone"), "role": rapid.SampledFrom([]string{"rr", "worker"}).Draw(t, "role")}
		if n.Labels["role"] == "rr" && rapid.Bool().Draw(t, "reflects") {
			n.ClusterID = rapid.SampledFrom([]netip.Addr{ip("10.0.0.1"), ip("10.0.0.2")}).Draw(t, "cluster")
		}
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "peers") {
		p := Peer{Name: fmt.Sprintf("p%d", i)}
		switch rapid.IntRange(0, 2).Draw(t, "whose") {
		case 0:
			p.Node = c.Nodes[rapid.IntRange(0, len(c.Nodes)-1).Draw(t, "node")].Name
		case 1:
			p.NodeSelector = rapid.SampledFrom([]string{"role == 'rr'", "role == 'worker'", "all()"}).Draw(t, "nodeSelector")
		}
		p.PeerSelector = rapid.SampledFrom([]string{"role == 'rr'", "all()"}).Draw(t, "peerSelector")
		if rapid.IntRange(0, 3).Draw(t, "local AS") == 0 {
			p.LocalASN = 65099
		}
		config.Peers = append(config.Peers, p)
	}
	config.Settings.Mesh = rapid.IntRange(0, 3).Draw(t, "mesh") > 0
	return c, config
}

// Who has a session has it at both ends, with each other's addresses, ports and ASes.
func TestSessionsHaveTwoEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, config := drawNetwork(t)
		all := plans(t, c, config, rapid.Bool().Draw(t, "elected"))
		for name, p := range all {
			if again, _ := Build(Input{Self: c.Node(name), Cluster: c, Config: config, Elected: p.Elected}); len(again.Neighbors) > len(p.Neighbors) {
				t.Fatalf("%s: built again it has more neighbours: %s\nthan %s", name, sessions(again), sessions(p))
			}
			for i := range p.Neighbors {
				n := &p.Neighbors[i]
				q := all[n.Node]
				k := slices.IndexFunc(q.Neighbors, func(m Neighbor) bool { return m.Node == name })
				if k < 0 {
					t.Fatalf("%s speaks to %s, which does not speak to it", name, n.Node)
				}
				m := &q.Neighbors[k]
				local := func(n *Neighbor, p *Plan) uint32 {
					if n.LocalASN != 0 {
						return n.LocalASN
					}
					return p.ASN
				}
				if n.Source != m.Address || m.Source != n.Address || n.Port != q.Port || n.RemoteASN != local(m, q) || m.RemoteASN != local(n, p) || n.Name != m.Name || n.Kind(p.ASN) != m.Kind(q.ASN) {
					t.Fatalf("%s: %+v\n%s: %+v", name, n, n.Node, m)
				}
			}
		}
	})
}

// Every node learns of every other's block: directly, or from at most two reflectors, and the sessions of a large
// network are few.
func TestEveryNodeReachesEveryOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, config := drawNetwork(t)
		config.Settings.Mesh, config.Peers = true, nil
		for i := range c.Nodes {
			c.Nodes[i].ASN = 0
		}
		all := plans(t, c, config, rapid.Bool().Draw(t, "elected"))
		total, own := 0, 0
		for i := range c.Nodes {
			p := all[c.Nodes[i].Name]
			total += len(p.Neighbors)
			if c.Nodes[i].ClusterID.IsValid() {
				own++
			}
			if got := spread(all, c, c.Nodes[i].Name); got != len(c.Nodes) {
				t.Fatalf("the block of %s reaches %d of %d nodes", c.Nodes[i].Name, got, len(c.Nodes))
			}
		}
		if limit := config.Settings.MeshLimit; limit > 0 && len(c.Nodes)-own > limit {
			if most := (own + mostReflectors) * len(c.Nodes); total/2 > most {
				t.Fatalf("%d sessions, more than %d", total/2, most)
			}
		}
	})
}

// spread tells a node's block from session to session, as Tell and Believe have it, over at most two reflectors, and
// counts who knows it at the end.
func spread(all map[string]*Plan, c *model.Cluster, origin string) int {
	at := map[string]Route{origin: {Prefix: all[origin].Announced[0].Prefix, NextHop: c.Node(origin).Address4}}
	for range 3 {
		next := map[string]Route{}
		for name, r := range at {
			p := all[name]
			for i := range p.Neighbors {
				n := &p.Neighbors[i]
				if _, knows := at[n.Node]; knows {
					continue
				}
				told, ok, _ := p.Tell(n, r, name == origin)
				if !ok {
					continue
				}
				q := all[n.Node]
				k := slices.IndexFunc(q.Neighbors, func(m Neighbor) bool { return m.Node == name })
				told.Neighbor = q.Neighbors[k].Address
				if got, ok, _ := q.Believe(&q.Neighbors[k], told); ok {
					next[n.Node] = got
				}
			}
		}
		for name, r := range next {
			at[name] = r
		}
	}
	return len(at)
}

// A plan depends on nothing but its input, and what comes first in it changes nothing.
func TestPlansDependOnTheirInputOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, config := drawNetwork(t)
		self := rapid.IntRange(0, len(c.Nodes)-1).Draw(t, "self")
		first, problems := Build(Input{Self: &c.Nodes[self], Cluster: c, Config: config})
		node := c.Nodes[self]
		slices.Reverse(config.Peers)
		again, problems2 := Build(Input{Self: &node, Cluster: c, Config: config})
		if !reflect.DeepEqual(first, again) || !reflect.DeepEqual(problems, problems2) {
			t.Fatalf("got %+v\nand %+v", first, again)
		}
	})
}

// silentIn are some of a network's nodes.
func silentIn(t *rapid.T, c *model.Cluster, label string, most int) (names []string) {
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(c.Nodes)-1), 0, most, func(i int) int { return i }).Draw(t, label) {
		names = append(names, c.Nodes[i].Name)
	}
	slices.Sort(names)
	return names
}

// electedBy are the reflectors that a node's plan counts on.
func electedBy(in Input) (names []string) {
	b := &builder{in: &in, all: members(&in)}
	b.elect()
	return b.elections
}

// TestADeadReflectorIsReplacedAlone: whoever is silent, all nodes elect the same reflectors, and never none; a death
// changes one of them at most, and only when it is an elected one that died; and no silent node is elected while
// another one is left.
func TestADeadReflectorIsReplacedAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, config := drawNetwork(t)
		config.Settings.Mesh, config.Settings.MeshLimit = true, 1
		silent := silentIn(t, c, "silent", len(c.Nodes))
		electable := func(n *model.Node) bool { return !n.ClusterID.IsValid() && n.ASN == 0 }
		candidates, living := 0, 0
		for i := range c.Nodes {
			if n := &c.Nodes[i]; electable(n) {
				candidates++
				if !slices.Contains(silent, n.Name) {
					living++
				}
			}
		}
		at := func(self int, silent []string) Input {
			return Input{Self: &c.Nodes[self], Cluster: c, Config: config, Silent: silent}
		}
		chosen := electedBy(at(0, silent))
		for i := range c.Nodes {
			if other := electedBy(at(i, silent)); !slices.Equal(other, chosen) {
				t.Fatalf("%s elects %v, %s %v", c.Nodes[0].Name, chosen, c.Nodes[i].Name, other)
			}
		}
		if candidates < 2 {
			return
		}
		if len(chosen) != leastReflectors {
			t.Fatalf("elected of %d: %v", candidates, chosen)
		}
		dead := 0
		for _, name := range chosen {
			if slices.Contains(silent, name) {
				dead++
			}
		}
		if dead != max(0, leastReflectors-living) {
			t.Fatalf("of %d living ones %v are elected, silent are %v", living, chosen, silent)
		}
		// One more dies.
		next := c.Nodes[rapid.IntRange(0, len(c.Nodes)-1).Draw(t, "dies")].Name
		if slices.Contains(silent, next) {
			return
		}
		after := electedBy(at(0, append(slices.Clone(silent), next)))
		var gone []string
		for _, name := range chosen {
			if !slices.Contains(after, name) {
				gone = append(gone, name)
			}
		}
		if len(after) != len(chosen) || len(gone) > 1 || len(gone) == 1 && gone[0] != next {
			t.Fatalf("elected were %v; %s dies, and they are %v", chosen, next, after)
		}
		if slices.Contains(after, next) && living > leastReflectors {
			t.Fatalf("%s is silent and stays elected: %v", next, after)
		}
	})
}

// TestDeadReflectorsCutNobodyOff: the living learn of each other's blocks by those that stand in for dead reflectors,
// also while not everybody knows of the last death.
func TestDeadReflectorsCutNobodyOff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := network(rapid.IntRange(6, 40).Draw(t, "nodes"))
		config := mesh()
		config.Settings.MeshLimit = 4
		for i := range c.Nodes {
			c.Nodes[i].Labels = map[string]string{zoneLabel: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "zone")}
		}
		silent := silentIn(t, c, "silent", len(c.Nodes)-3)
		last := silentIn(t, c, "the last death", 1)
		dead := append(slices.Clone(silent), last...)
		all := map[string]*Plan{}
		for i := range c.Nodes {
			in := Input{Self: &c.Nodes[i], Cluster: c, Config: config, Silent: silent}
			if rapid.Bool().Draw(t, "knows of the last death") {
				in.Silent = dead
			}
			if !slices.Contains(dead, c.Nodes[i].Name) {
				all[c.Nodes[i].Name], _ = Build(in)
			}
		}
		for name, p := range all { // the dead do not speak, and a session needs both ends
			p.Neighbors = slices.DeleteFunc(p.Neighbors, func(n Neighbor) bool {
				q := all[n.Node]
				return q == nil || !slices.ContainsFunc(q.Neighbors, func(m Neighbor) bool { return m.Node == name })
			})
		}
		for name := range all {
			if got := spread(all, c, name); got != len(all) {
				t.Fatalf("the block of %s reaches %d of %d living nodes", name, got, len(all))
			}
		}
	})
}

// The same for three reflectors, in zones and without.
func TestADeadReflectorOfThreeIsReplacedAlone(t *testing.T) {
	c := network(501)
	for i := range c.Nodes {
		if i%3 > 0 {
			c.Nodes[i].Labels = map[string]string{zoneLabel: []string{"", "a", "b"}[i%3]}
		}
	}
	in := Input{Self: &c.Nodes[0], Cluster: c, Config: mesh()}
	for range 6 { // one death after the other
		before := electedBy(in)
		for _, dies := range before {
			in := in
			in.Silent = append(slices.Clone(in.Silent), dies)
			stay := slices.DeleteFunc(slices.Clone(before), func(s string) bool { return s == dies })
			after := electedBy(in)
			if len(after) != mostReflectors || slices.Contains(after, dies) || len(slices.DeleteFunc(after, func(s string) bool { return slices.Contains(stay, s) })) != 1 {
				t.Errorf("%s of %v dies, and they are %v", dies, before, electedBy(in))
			}
		}
		in.Silent = append(in.Silent, before[len(before)/2])
	}
}
