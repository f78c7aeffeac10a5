package bgp_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/peering"
)

// TestLongLivedRestartWithOthers: a daemon that is killed, and one of ours, have their routes kept beyond the restart
// time, as the last resort, and no longer than that (RFC 9494).
func TestLongLivedRestartWithOthers(t *testing.T) {
	birds := birdConf(104, `
protocol bgp node1 {
	local 10.99.0.104 as 65001; neighbor 10.99.0.4 as 64512; multihop 2;
	graceful restart on; graceful restart time 2; long lived graceful restart on; long lived stale time 8; connect delay time 1; error wait time 1,2;
	ipv4 { import all; export filter told; next hop self; };
	ipv6 { import all; export filter told; next hop address fd99::68; };
}`)
	v4, v6 := activate("10.99.0.4")
	frrs := frrConf(104, 65001, ` bgp graceful-restart restart-time 2
 bgp long-lived-graceful-restart stale-time 8
 neighbor 10.99.0.4 remote-as 64512
 neighbor 10.99.0.4 ebgp-multihop 2
 neighbor 10.99.0.4 timers connect 1`, v4, v6)
	for _, r := range []struct {
		role
		kept string // what it says of a long-lived route
	}{
		{role{bird, birds}, "(65535,6)"},
		{role{frr, frrs}, "llgr-stale"},
	} {
		t.Run(r.name, func(t *testing.T) {
			d := newDaemon(t, r.kind, 104, r.files)
			p := newPlan(4, "10.244.4.0/26", "fd44:0:0:4::/122")
			knows(&p, at(104), func(n *peering.Neighbor) {
				n.RemoteASN, n.Multihop, n.RestartTime, n.LongLived = 65001, 2, 2*time.Second, 8*time.Second
			})
			a := newAgent(t, p)
			tells := func() bool { return best(a.view().Routes, "10.50.0.0/16") == "10.99.0.104" }
			until(t, "each has the other's routes", func() bool {
				return tells() && hasAll(d.show(d, "10.244.4.0/26"), "10.99.0.4") && hasAll(d.show(d, "fd44:0:0:4::/122"), "fd99::4")
			})

			// Ours is killed.
			a.kill()
			long := func(prefix string) bool { return strings.Contains(d.show(d, prefix), r.kept) }
			until(t, r.name+" keeps our routes beyond our restart time", func() bool {
				if !hasAll(d.show(d, "10.244.4.0/26"), "10.99.0.4") {
					t.Fatalf("our route was lost: %s", d.show(d, "10.244.4.0/26"))
				}
				return long("10.244.4.0/26") && long("fd44:0:0:4::/122")
			})
			t.Logf("%s: %s", r.name, d.show(d, "10.244.4.0/26"))
			a.start()
			until(t, "ours is back, and nothing is long-lived any more", func() bool {
				if !hasAll(d.show(d, "10.244.4.0/26"), "10.99.0.4") {
					t.Fatalf("our route was lost: %s", d.show(d, "10.244.4.0/26"))
				}
				return tells() && !long("10.244.4.0/26") && !d.keeps(d, "10.244.4.0/26")
			})

			// The other is killed.
			d.kill()
			route := func() *peering.Route {
				rs := a.view().Routes
				i := slices.IndexFunc(rs, func(r peering.Route) bool { return r.Prefix == prefix("10.50.0.0/16") })
				if i < 0 {
					return nil
				}
				return &rs[i]
			}
			until(t, "we keep its routes beyond its restart time", func() bool {
				x := route()
				if x == nil || !x.Best {
					t.Fatalf("its route was lost: %+v", x)
				}
				return x.LongLived && slices.Contains(x.Communities, peering.LLGRStale)
			})
			began := time.Now()
			until(t, "they end", func() bool { return route() == nil })
			if took := time.Since(began); took < 4*time.Second {
				t.Errorf("they ended after %s, 8s were asked for", took)
			}
		})
	}
}

// TestHoldTimerEndsASilentSession: a neighbor that falls silent without closing its connection is given up on when the
// hold timer ends, and the status says so. Its routes are kept if it can restart (RFC 4724), else they are gone at
// once; when it is heard again, all is as before.
func TestHoldTimerEndsASilentSession(t *testing.T) {
	birds := func(restart string) map[string]string {
		return birdConf(106, `
protocol bgp node1 {
	local 10.99.0.106 as 65001; neighbor 10.99.0.6 as 64512; graceful restart `+restart+`; connect delay time 1; error wait time 1,2;
	ipv4 { import all; export filter told; next hop self; };
}`)
	}
	v4, v6 := activate("10.99.0.6")
	for _, r := range []struct {
		role
		kept bool
	}{
		{role{bird, birds("off")}, false},
		{role{bird, birds("on")}, true},
		{role{frr, frrConf(106, 65001, " neighbor 10.99.0.6 remote-as 64512\n neighbor 10.99.0.6 timers connect 1", v4, v6)}, true},
	} {
		t.Run(fmt.Sprintf("%s kept=%v", r.name, r.kept), func(t *testing.T) {
			d := newDaemon(t, r.kind, 106, r.files)
			p := newPlan(6, "10.244.6.0/26")
			knows(&p, at(106), func(n *peering.Neighbor) { n.RemoteASN, n.HoldTime = 65001, 3*time.Second })
			x := start(t, p)
			until(t, "each has the other's routes", func() bool {
				return best(x.Routes(), "10.50.0.0/16") == "10.99.0.106" && hasAll(d.show(d, "10.244.6.0/26"), "10.99.0.6")
			})
			if out := d.ask("nft", "add table inet cut; add chain inet cut in { type filter hook input priority 0; policy drop; }; add chain inet cut out { type filter hook output priority 0; policy drop; }"); out != "" {
				t.Fatal(out)
			}
			cut := time.Now()
			until(t, "the session ends, because of the hold timer", func() bool {
				s := x.status(at(106))
				return s.State != peering.Established && strings.Contains(s.Failure, "the hold timer expired")
			})
			if took := time.Since(cut); took > 30*time.Second {
				t.Errorf("it ended after %s, the hold time is 3s", took)
			}
			kept := func() bool {
				rs := x.to("10.50.0.0/16")
				return len(rs) == 1 && rs[0].Best && rs[0].Stale && x.status(at(106)).Restarting
			}
			gone := func() bool { return len(x.to("10.50.0.0/16")) == 0 }
			for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if r.kept != kept() || r.kept == gone() {
					t.Fatalf("its routes after the end: %+v", x.to("10.50.0.0/16"))
				}
			}
			if out := d.ask("nft", "delete table inet cut"); out != "" {
				t.Fatal(out)
			}
			until(t, "it is heard again, and all is as before", func() bool {
				if r.kept && gone() {
					t.Fatal("its routes were lost as it came back")
				}
				rs := x.to("10.50.0.0/16")
				return x.status(at(106)).State == peering.Established && len(rs) == 1 && rs[0].Best && !rs[0].Stale && hasAll(d.show(d, "10.244.6.0/26"), "10.99.0.6")
			})
		})
	}
}

// TestReflectorToBeLosesNoRoute: a node of ours becomes a route reflector, for which its session is made anew. The other
// side keeps its routes, and it the other's.
func TestReflectorToBeLosesNoRoute(t *testing.T) {
	birds := birdConf(109, `
protocol bgp node1 {
	local 10.99.0.109 as 64512; neighbor 10.99.0.9 as 64512; graceful restart on; connect delay time 1; connect retry time 2; error wait time 1,2;
	ipv4 { import all; export filter told; next hop self; };
}`)
	v4, v6 := activate("10.99.0.9")
	for _, r := range []role{{bird, birds}, {frr, frrConf(109, 64512, " neighbor 10.99.0.9 remote-as 64512\n neighbor 10.99.0.9 timers connect 2", v4, v6)}} {
		t.Run(r.name, func(t *testing.T) {
			d := newDaemon(t, r.kind, 109, r.files)
			p := newPlan(9, "10.244.9.0/26")
			knows(&p, at(109), nil)
			x := start(t, p)
			kept := func() bool {
				return best(x.Routes(), "10.50.0.0/16") == "10.99.0.109" && hasAll(d.show(d, "10.244.9.0/26"), "10.99.0.9")
			}
			until(t, "each has the other's routes", kept)
			since := x.status(at(109)).Since
			x.plan.ClusterID, x.plan.Neighbors[0].Client = at(9), true
			x.apply()
			until(t, "the session is there again, and nothing is stale", func() bool {
				if !kept() {
					t.Fatalf("a route was lost: %+v; %s says %s", x.to("10.50.0.0/16"), r.name, d.show(d, "10.244.9.0/26"))
				}
				s := x.status(at(109))
				return s.State == peering.Established && s.Since.After(since) && !s.Restarting && !x.to("10.50.0.0/16")[0].Stale && !d.keeps(d, "10.244.9.0/26")
			})
			if s := x.status(at(109)); s.Flaps != 0 || s.Failure != "" {
				t.Errorf("what this node did itself counts as a failure: %+v", s)
			}
		})
	}
}
