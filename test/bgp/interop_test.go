package bgp_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// role is what a daemon is to our speakers, in both of their languages.
type role struct {
	kind
	files map[string]string
}

// birdConf is BIRD as the given protocols; it announces 10.50.0.0/16 and fd50::/32 with communities, a default
// route, and node 1's own address.
func birdConf(n int, protocols string) map[string]string {
	return map[string]string{"bird.conf": fmt.Sprintf(`
log "DIR/log" all;
router id %[1]s;
protocol device { scan time 2; }
protocol direct { ipv4; ipv6; }
protocol static own4 { ipv4; route 10.50.0.0/16 blackhole; route 10.244.50.0/26 blackhole; route 0.0.0.0/0 blackhole; route 10.99.0.1/32 blackhole; }
protocol static own6 { ipv6; route fd50::/32 blackhole; route fd44:0:0:50::/122 blackhole; route ::/0 blackhole; }
filter told { if source = RTS_BGP then accept; if source != RTS_STATIC then reject; bgp_community.add((65001, 100)); bgp_large_community.add((65001, 1, 2)); accept; }
%[2]s
`, at(n), protocols)}
}

// frrConf is FRR with the given statements, and the same announcements.
func frrConf(n int, as uint32, neighbors, v4, v6 string) map[string]string {
	return map[string]string{
		"zebra.conf": "hostname z\nlog file DIR/log\n",
		"bgpd.conf": fmt.Sprintf(`
hostname b
log file DIR/log
route-map told permit 10
 set community 65001:100
 set large-community 65001:1:2
router bgp %[2]d
 bgp router-id %[1]s
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
%[3]s
 address-family ipv4 unicast
  network 10.50.0.0/16 route-map told
  network 10.244.50.0/26 route-map told
  network 0.0.0.0/0
  network 10.99.0.1/32
%[4]s
 exit-address-family
 address-family ipv6 unicast
  network fd50::/32 route-map told
  network fd44:0:0:50::/122 route-map told
  network ::/0
%[5]s
 exit-address-family
`, at(n), as, neighbors, v4, v6),
	}
}

func activate(names ...string) (v4, v6 string) {
	for _, n := range names {
		v4 += "  neighbor " + n + " activate\n"
	}
	return v4, v4
}

// TestTopOfRackSwitch: an eBGP neighbour with a password is told of the node's blocks in both families over one
// session, with communities; it is believed about all but the default route and the node's own address, unless a
// filter accepts the one.
func TestTopOfRackSwitch(t *testing.T) {
	v4, v6 := activate("10.99.0.1")
	roles := []role{
		{bird, birdConf(101, `
protocol bgp node1 {
	local 10.99.0.101 as 65001; neighbor 10.99.0.1 as 64512; password "not-a-word-to-anybody"; graceful restart on;
	ipv4 { import all; export filter told; next hop self; };
	ipv6 { import all; export filter told; next hop address fd99::65; };
}`)},
		{frr, frrConf(101, 65001, " neighbor 10.99.0.1 remote-as 64512\n neighbor 10.99.0.1 password not-a-word-to-anybody", v4, v6)},
	}
	for _, r := range roles {
		t.Run(r.name, func(t *testing.T) {
			d := newDaemon(t, r.kind, 101, r.files)
			p := newPlan(1, "10.244.1.0/26", "fd44:0:0:1::/122")
			p.Announced[0].Communities = []peering.Community{{A: 64512, B: 7}, {Large: true, A: 64512, B: 8, C: 9}}
			knows(&p, at(101), func(n *peering.Neighbor) { n.RemoteASN, n.Password = 65001, "not the word" })
			x := start(t, p)
			until(t, "the status says that passwords may differ", func() bool {
				return strings.Contains(x.status(at(101)).Failure, "passwords of the two sides differ")
			})
			x.plan.Neighbors[0].Password = "not-a-word-to-anybody"
			x.apply()
			d.says("10.244.1.0/26", "10.99.0.1", "64512")
			d.says("fd44:0:0:1::/122", "fd99::1", "64512")
			said := strings.NewReplacer("(", "", ")", "", ", ", ":", ",", ":").Replace(d.show(d, "10.244.1.0/26"))
			if !hasAll(said, "64512:7", "64512:8:9") {
				t.Errorf("%s does not see the communities: %s", r.name, said)
			}
			until(t, "the switch's routes are believed", func() bool {
				return best(x.Routes(), "10.50.0.0/16") == "10.99.0.101" && best(x.Routes(), "fd50::/32") == "fd99::65"
			})
			got := x.to("10.50.0.0/16")[0]
			if len(got.Communities) != 2 || got.ASPath[0] != 65001 || got.Communities[0].String() != "65001:100" || got.Communities[1].String() != "65001:1:2" {
				t.Errorf("what came: %+v", got)
			}
			for _, no := range []string{"0.0.0.0/0", "::/0", "10.99.0.1/32"} {
				until(t, no+" is there, and not believed", func() bool { rs := x.to(no); return len(rs) == 1 && rs[0].Rejected && rs[0].Reason != "" })
			}
			x.plan.Filters = []peering.Filter{{Name: "f", Rules: []peering.Rule{
				{Direction: peering.Import, Family: model.IPv4, CIDR: prefix("0.0.0.0/0"), Match: peering.MatchEqual, Accept: true},
				{Direction: peering.Export, Family: model.IPv6},
			}}}
			x.plan.Neighbors[0].Filters = []string{"f"}
			x.apply()
			until(t, "the default route counts, now that a filter accepts it", func() bool { return best(x.Routes(), "0.0.0.0/0") == "10.99.0.101" })
			until(t, "a filter withdraws what was told", func() bool { return !strings.Contains(d.show(d, "fd44:0:0:1::/122"), "fd99::1") })
			d.says("10.244.1.0/26", "10.99.0.1")
			if s := x.status(at(101)); s.Flaps != 0 || s.State != peering.Established || s.Sent != 1 {
				t.Errorf("status: %+v", s)
			}
			t.Logf("%s: %+v", r.name, x.status(at(101)))
		})
	}
}

// TestRouteReflector: two nodes that know a reflector only learn each other's blocks with the right next hops.
func TestRouteReflector(t *testing.T) {
	b := ""
	for n := 1; n <= 2; n++ {
		b += fmt.Sprintf(`
protocol bgp node%[1]d {
	local 10.99.0.102 as 64512; neighbor 10.99.0.%[1]d as 64512; rr client; rr cluster id 1.2.3.4; graceful restart on; multihop;
	ipv4 { import all; export where source = RTS_BGP; };
	ipv6 { import all; export where source = RTS_BGP; };
}`, n)
	}
	f, c := "", ""
	for n := 1; n <= 2; n++ {
		f += fmt.Sprintf(" neighbor 10.99.0.%d remote-as 64512\n", n)
		c += fmt.Sprintf("  neighbor 10.99.0.%[1]d activate\n  neighbor 10.99.0.%[1]d route-reflector-client\n", n)
	}
	for _, r := range []role{{bird, birdConf(102, b)}, {frr, frrConf(102, 64512, " bgp cluster-id 1.2.3.4\n"+f, c, c)}} {
		t.Run(r.name, func(t *testing.T) {
			newDaemon(t, r.kind, 102, r.files)
			var x [3]*node
			for n := 1; n <= 2; n++ {
				p := newPlan(n, fmt.Sprintf("10.244.%d.0/26", n), fmt.Sprintf("fd44:0:0:%d::/122", n))
				knows(&p, at(102), func(n *peering.Neighbor) { n.Node = "reflector" })
				x[n] = start(t, p)
			}
			for n := 1; n <= 2; n++ {
				other := 3 - n
				until(t, "the other's blocks are there", func() bool {
					return best(x[n].Routes(), fmt.Sprintf("10.244.%d.0/26", other)) == at(other).String() &&
						best(x[n].Routes(), fmt.Sprintf("fd44:0:0:%d::/122", other)) == at6(other).String()
				})
			}
			p := x[2].plan
			p.Announced = nil
			x[2].plan = p
			x[2].apply()
			until(t, "a withdrawal is reflected", func() bool { return len(x[1].to("10.244.2.0/26")) == 0 })
			until(t, "all was told", x[1].Settled)
		})
	}
}

// calicoMesh is a member of the mesh as Calico sets up BIRD: iBGP over several hops, next hops resolved by other
// routes, itself as the next hop, graceful restart, and a filter that lets blocks out only.
func calicoMesh(n int, nodes ...int) map[string]string {
	s := `
function blocks4() { if net ~ [ 10.244.0.0/16{26,26} ] then accept; reject; }
function blocks6() { if net ~ [ fd44::/32{122,122} ] then accept; reject; }
template bgp mesh {
	local as 64512; multihop; graceful restart on; connect delay time 2; connect retry time 5; error wait time 5,30;
	ipv4 { import all; export filter { blocks4(); }; next hop self; gateway recursive; add paths on; };
}
template bgp mesh6 {
	local as 64512; multihop; graceful restart on; connect delay time 2; connect retry time 5; error wait time 5,30;
	ipv6 { import all; export filter { blocks6(); }; next hop self; gateway recursive; add paths on; };
}
`
	for _, m := range nodes {
		s += fmt.Sprintf("protocol bgp Mesh_%[2]d from mesh { source address %[1]s; neighbor %[3]s as 64512; }\n", at(n), m, at(m))
		s += fmt.Sprintf("protocol bgp Mesh6_%[2]d from mesh6 { source address %[1]s; neighbor %[3]s as 64512; }\n", at6(n), m, at6(m))
	}
	return birdConf(n, s)
}

func frrMesh(n int, nodes ...int) map[string]string {
	var neighbors, v4, v6 string
	for _, m := range nodes {
		neighbors += fmt.Sprintf(" neighbor %s remote-as 64512\n neighbor %s remote-as 64512\n", at(m), at6(m))
		v4 += fmt.Sprintf("  neighbor %s activate\n  neighbor %s next-hop-self\n  no neighbor %s activate\n", at(m), at(m), at6(m))
		v6 += fmt.Sprintf("  neighbor %s activate\n  neighbor %s next-hop-self\n", at6(m), at6(m))
	}
	return frrConf(n, 64512, neighbors, v4, v6)
}

// TestMeshWithOthers: nodes of ours and others' in one full mesh, IPv4 and IPv6 over sessions of their own.
// TestRestart… below kills a node of ours: the others keep its routes.
func TestMeshWithOthers(t *testing.T) {
	for _, r := range []role{{bird, calicoMesh(103, 1, 2)}, {frr, frrMesh(103, 1, 2)}} {
		t.Run(r.name, func(t *testing.T) {
			d := newDaemon(t, r.kind, 103, r.files)
			p1 := newPlan(1, "10.244.1.0/26", "fd44:0:0:1::/122")
			p2 := newPlan(2, "10.244.2.0/26", "fd44:0:0:2::/122")
			mesh := func(p *peering.Plan, nodes ...int) {
				for _, n := range nodes {
					for _, a := range []netip.Addr{at(n), at6(n)} {
						knows(p, a, func(x *peering.Neighbor) { x.Node, x.Name = fmt.Sprint("n", n), "mesh" })
					}
				}
			}
			mesh(&p1, 2, 103)
			mesh(&p2, 1, 103)
			x, a := start(t, p1), newAgent(t, p2)
			for n, hop := range map[int]netip.Addr{1: at(1), 2: at(2)} {
				d.says(fmt.Sprintf("10.244.%d.0/26", n), hop.String())
				d.says(fmt.Sprintf("fd44:0:0:%d::/122", n), at6(n).String())
			}
			until(t, "our node has all blocks", func() bool {
				rs := x.Routes()
				return strings.HasPrefix(best(rs, "10.244.2.0/26"), "10.99.0.2") && strings.HasPrefix(best(rs, "10.244.50.0/26"), "10.99.0.103") &&
					strings.HasPrefix(best(rs, "fd44:0:0:2::/122"), "fd99::2") && strings.HasPrefix(best(rs, "fd44:0:0:50::/122"), "fd99::67")
			})
			if n := len(x.to("10.244.2.0/26")); n > 2 {
				t.Errorf("what a node of the mesh told was told on by another: %v", x.to("10.244.2.0/26"))
			}
			until(t, "the agent has settled", func() bool { return a.view().Settled })

			a.kill()
			until(t, r.name+" keeps the routes for a restart", func() bool { return d.keeps(d, "10.244.2.0/26") })
			kept := func() bool {
				return hasAll(d.show(d, "10.244.2.0/26"), "10.99.0.2") && hasAll(d.show(d, "fd44:0:0:2::/122"), "fd99::2") &&
					strings.HasPrefix(best(x.Routes(), "10.244.2.0/26"), "10.99.0.2")
			}
			hold := func(d time.Duration) {
				t.Helper()
				for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(30 * time.Millisecond) {
					if !kept() {
						t.Fatal("a route of the killed agent was lost")
					}
				}
			}
			hold(4 * time.Second)
			a.start()
			began := time.Now()
			until(t, "the agent is back", func() bool {
				if !kept() {
					t.Fatal("a route of the killed agent was lost while it came back")
				}
				v := a.view()
				return v.Settled && strings.HasPrefix(best(v.Routes, "10.244.1.0/26"), "10.99.0.1") && strings.HasPrefix(best(v.Routes, "10.244.50.0/26"), "10.99.0.103")
			})
			t.Logf("%s: re-learned all %s after its start", r.name, time.Since(began).Round(10*time.Millisecond))
			until(t, "nothing is stale any more", func() bool {
				return !d.keeps(d, "10.244.2.0/26") && !x.to("10.244.2.0/26")[0].Stale
			})
			hold(2 * time.Second)

			// And the other way round: we keep the routes of a daemon that is killed.
			d.kill()
			until(t, "our node marks what the daemon told", func() bool {
				rs := x.to("10.244.50.0/26")
				return len(rs) > 0 && rs[0].Stale && rs[0].Best && x.status(at(103)).Restarting
			})
			d.start()
			until(t, "the daemon is back", func() bool {
				rs := x.to("10.244.50.0/26")
				if len(rs) == 0 || !rs[0].Best {
					t.Fatalf("a route of the killed %s was lost", r.name)
				}
				return !rs[0].Stale && x.status(at(103)).State == peering.Established
			})
		})
	}
}

// TestSitesOfOneAS: what another site of the own AS tells, with a foreign AS between, is refused for its AS path, and
// believed where a BGPPeer allows it.
func TestSitesOfOneAS(t *testing.T) {
	b := ""
	for n := 7; n <= 8; n++ {
		b += fmt.Sprintf(`
protocol bgp site%[1]d {
	local 10.99.0.107 as 65000; neighbor 10.99.0.%[1]d as 65001;
	ipv4 { import all; export where source = RTS_BGP; };
	ipv6 { import all; export where source = RTS_BGP; };
}`, n)
	}
	v4, v6 := activate("10.99.0.7", "10.99.0.8")
	for _, r := range []role{{bird, birdConf(107, b)}, {frr, frrConf(107, 65000, " neighbor 10.99.0.7 remote-as 65001\n neighbor 10.99.0.8 remote-as 65001", v4, v6)}} {
		t.Run(r.name, func(t *testing.T) {
			newDaemon(t, r.kind, 107, r.files)
			var x [9]*node
			for n := 7; n <= 8; n++ {
				p := newPlan(n, fmt.Sprintf("10.244.%d.0/26", n))
				p.ASN = 65001
				knows(&p, at(107), func(n *peering.Neighbor) { n.RemoteASN = 65000 })
				x[n] = start(t, p)
			}
			refused := func(n int, block string) {
				t.Helper()
				until(t, "the other site's block is refused, and why", func() bool {
					rs := x[n].to(block)
					return len(rs) == 1 && rs[0].Rejected && !rs[0].Best && rs[0].Reason == "this node's own AS is in its path"
				})
			}
			refused(7, "10.244.8.0/26")
			refused(8, "10.244.7.0/26")
			x[7].plan.Neighbors[0].AllowOwnAS = 1
			x[7].apply()
			until(t, "it counts where that is allowed", func() bool {
				rs := x[7].to("10.244.8.0/26")
				return best(x[7].Routes(), "10.244.8.0/26") != "" && slices.Equal(rs[0].ASPath, []uint32{65000, 65001})
			})
			refused(8, "10.244.7.0/26")
			x[7].plan.Neighbors[0].AllowOwnAS = 0
			x[7].apply()
			refused(7, "10.244.8.0/26")
		})
	}
}
