package plan_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
	"github.com/heddle-net/heddle/internal/plan"
)

// changing is a network whose nodes hear of a change of mode at different times.
type changing struct {
	rt    *rapid.T
	nodes []model.Node // as the store has them
	pools []model.Pool // as each node knows it
	plans []plan.Plan  // in the kernels
	told  [][]bool     // of whose blocks BGP has told each node
}

func block(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24)
}

func mode(p model.Path) model.Pool {
	q := model.Pool{Name: "pods", CIDR: netip.MustParsePrefix("10.0.0.0/16"), BlockSize: 24, Path: p, Encap: model.EncapAlways}
	if p == model.PathVXLAN {
		q.VXLAN = model.VXLAN{VNI: 1, Port: 8472}
	}
	if p == model.PathBGP {
		q.Encap = model.EncapNever
	}
	return q
}

func (c *changing) input(i int) plan.Input {
	in := plan.Input{Self: c.nodes[i].Name, Published: c.nodes[i].Accepts, Keep: c.plans[i].Links, Attachment: model.AttachRouted}
	in.Cluster.Pools = []model.Pool{c.pools[i]}
	in.Cluster.Nodes = slices.Clone(c.nodes)
	for j := range c.nodes {
		in.Cluster.Blocks = append(in.Cluster.Blocks, model.Block{CIDR: block(j), Pool: "pods", Node: c.nodes[j].Name})
		if c.told[i][j] && i != j {
			in.Learned = append(in.Learned, peering.Route{Prefix: block(j), NextHop: c.router(i), Neighbor: c.router(i), Best: true})
		}
	}
	in.Cluster.Sort()
	in.Host.Uplinks = []model.Uplink{{Link: "eth0", Prefix: netip.PrefixFrom(c.nodes[i].Address4, 24), MTU: 1500}}
	return in
}

// router is that of a node's segment.
func (c *changing) router(i int) netip.Addr {
	b := c.nodes[i].Address4.As4()
	b[3] = 1
	return netip.AddrFrom4(b)
}

func (c *changing) build(i int) plan.Plan {
	p, err := plan.Build(c.input(i))
	if err != nil {
		c.rt.Fatal(err)
	}
	return p
}

// pass is one of a node's: it announces what it will send on, makes the plan anew, applies it, and publishes.
func (c *changing) pass(i int) {
	n := &c.nodes[i]
	p := c.build(i)
	for _, s := range plan.Sends(&p) {
		if !slices.Contains(n.Sends, s) {
			n.Sends = append(slices.Clone(n.Sends), s)
		}
	}
	c.plans[i] = c.build(i)
	n.Accepts, n.Sends, n.VTEP4 = plan.Accepts(&c.plans[i]), plan.Sends(&c.plans[i]), plan.VTEP(&c.plans[i], model.IPv4)
}

// check sees that every node has a way to every other, and that the other receives on it.
func (c *changing) check() {
	for i := range c.nodes {
		for _, peer := range c.plans[i].Peers {
			j := slices.IndexFunc(c.nodes, func(n model.Node) bool { return n.Name == peer.Node })
			if peer.Path == "" {
				c.rt.Fatalf("%s does not reach %s: %s", c.nodes[i].Name, peer.Node, peer.Reason)
			}
			takes := peer.Path == model.PathDirect || peer.Path == model.PathBGP ||
				slices.ContainsFunc(c.plans[j].Links, func(l plan.Link) bool { return string(l.Kind) == string(peer.Path) })
			if !takes {
				c.rt.Fatalf("%s sends to %s by %s, which that does not receive on", c.nodes[i].Name, peer.Node, peer.Path)
			}
		}
	}
}

// TestChangeOfModeLosesNoWay: whenever which node hears of it, and in whichever order passes run and BGP tells, every
// node has a way to every other on which that one receives; and in the end all are where they should be.
func TestChangeOfModeLosesNoWay(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		modes := rapid.SliceOfN(rapid.SampledFrom([]model.Path{model.PathVXLAN, model.PathIPIP, model.PathBGP}), 2, 4).Draw(rt, "modes")
		if modes[0] == model.PathBGP {
			modes[0] = model.PathIPIP
		}
		c := &changing{rt: rt}
		const n = 4
		for i := range n {
			c.nodes = append(c.nodes, model.Node{Name: fmt.Sprintf("n%d", i), Address4: netip.AddrFrom4([4]byte{192, 168, byte(i / 2), byte(10 + i)})})
			c.told = append(c.told, make([]bool, n))
			c.pools = append(c.pools, mode(modes[0]))
		}
		c.plans = make([]plan.Plan, n)
		for range 3 {
			for i := range n {
				c.pass(i)
			}
		}
		c.check()
		for _, m := range modes[1:] {
			want := mode(m)
			for range rapid.IntRange(0, 25).Draw(rt, "steps") {
				i, j := rapid.IntRange(0, n-1).Draw(rt, "node"), rapid.IntRange(0, n-1).Draw(rt, "of")
				switch rapid.IntRange(0, 2).Draw(rt, "what") {
				case 0:
					c.pools[i] = want
				case 1: // BGP tells, and does not go back on it
					c.told[i][j] = m == model.PathBGP || c.told[i][j]
				}
				c.pass(i)
				c.check()
			}
			for i := range n {
				c.pools[i] = want
				for j := range n {
					c.told[i][j] = m == model.PathBGP || c.told[i][j]
				}
			}
			for range 5 {
				for i := range n {
					c.pass(i)
					c.check()
				}
			}
			for i := range n {
				for _, peer := range c.plans[i].Peers {
					if peer.Path != m {
						rt.Fatalf("in the end %s reaches %s by %s, want %s: %s", c.nodes[i].Name, peer.Node, peer.Path, m, peer.Reason)
					}
				}
				for _, l := range c.plans[i].Links {
					if string(l.Kind) != string(m) {
						rt.Fatalf("in the end %s has %s", c.nodes[i].Name, l.Name)
					}
				}
			}
		}
	})
}
