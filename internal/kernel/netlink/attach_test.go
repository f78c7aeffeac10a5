package netlink

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

func newPods(t testing.TB, node *space) *Pods {
	t.Helper()
	p, err := NewPods(Options{NS: node.fd()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// bridgePlan is a node with a bridge and nothing else.
func bridgePlan() *plan.Plan {
	p := tunnelPlan(0)
	return &plan.Plan{Links: p.Links[:1], Addresses: p.Addresses[:2], Sysctls: p.Sysctls[:2]}
}

// bridged is pod i (2..250) of 10.244.0.0/24 and fd00:244::/64.
func bridged(i int) plan.Pod {
	host := model.HostLinkName(fmt.Sprint("c", i), "eth0")
	return plan.Pod{
		Key: fmt.Sprintf("c%d/eth0", i), IfName: "eth0", MAC: mac(0x700 + i), MTU: 1400,
		Host:      plan.Link{Name: host, Kind: plan.LinkVeth, Alias: fmt.Sprintf("heddle:default/pod%d", i), MTU: 1400, Master: "cni0", Hairpin: true},
		Addresses: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.0.%d/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:244::%x/64", i))},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("fd00:244::1")},
		Routes: []plan.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.244.0.1"), Link: "eth0"},
			{Dst: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00:244::1"), Link: "eth0"},
		},
	}
}

// routed is the same pod behind a veth of its own.
func routed(i int) plan.Pod {
	p := bridged(i)
	h := p.Host.Name
	p.Host.Master, p.Host.Hairpin, p.Host.MAC = "", false, model.RoutedMAC
	for j, a := range p.Addresses {
		p.Addresses[j] = netip.PrefixFrom(a.Addr(), a.Addr().BitLen())
		p.HostRoutes = append(p.HostRoutes, plan.Route{Dst: p.Addresses[j], Link: h})
	}
	p.Gateways = []netip.Addr{model.RoutedGateway4, model.RoutedGateway6}
	p.Routes = []plan.Route{
		{Dst: netip.PrefixFrom(model.RoutedGateway4, 32), Link: "eth0"},
		{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: model.RoutedGateway4, Link: "eth0"},
		{Dst: netip.MustParsePrefix("::/0"), Via: model.RoutedGateway6, Link: "eth0"},
	}
	p.Neighbors = []plan.Neighbor{{Link: "eth0", IP: model.RoutedGateway4, MAC: model.RoutedMAC}, {Link: "eth0", IP: model.RoutedGateway6, MAC: model.RoutedMAC}}
	p.HostAddresses = []netip.Prefix{netip.PrefixFrom(model.RoutedGateway6, 64)}
	p.HostSysctls = []plan.Sysctl{
		{Key: "net/ipv4/conf/" + h + "/forwarding", Value: "1"},
		{Key: "net/ipv4/conf/" + h + "/proxy_arp", Value: "1"},
		{Key: "net/ipv6/conf/" + h + "/forwarding", Value: "1"},
	}
	return p
}

// planWith adds a pod's host part to a plan, as Build does.
func planWith(p *plan.Plan, pods ...plan.Pod) *plan.Plan {
	for _, x := range pods {
		p.Links = append(p.Links, x.Host)
		for _, a := range x.HostAddresses {
			p.Addresses = append(p.Addresses, plan.Address{Link: x.Host.Name, Prefix: a})
		}
		p.Routes = append(p.Routes, x.HostRoutes...)
		p.Sysctls = append(p.Sysctls, x.HostSysctls...)
	}
	return p
}

func attach(t testing.TB, p *Pods, s *space, pod plan.Pod) {
	t.Helper()
	if err := p.Attach(context.Background(), s.file, pod); err != nil {
		t.Fatal(err)
	}
}

func TestAttachBridge(t *testing.T) {
	node, d := newNode(t)
	apply(t, d, bridgePlan())
	pods := newPods(t, node)
	a, b := newSpace(t), newSpace(t)
	attach(t, pods, a, bridged(3))
	attach(t, pods, b, bridged(4))
	// The very first packets flow.
	a.pings("10.244.0.4")
	b.pings("fd00:244::3")
	a.pings("10.244.0.1")
	a.pings("192.168.0.4")
	a.pings("fd00:192::4")
	node.pings("10.244.0.4")
	node.pings("fd00:244::4")
	a.wants("ip -d link show eth0", mac(0x703), "mtu 1400", "numtxqueues 1")
	a.wants("ip link show lo", ",UP")
	a.lacks("ip -6 addr show", "tentative")
	node.wants("ip -d link show "+bridged(3).Host.Name, "master cni0", "hairpin on", "alias heddle:default/pod3", "mtu 1400")
	for i, s := range []*space{a, b} {
		if err := pods.Verify(context.Background(), s.file, bridged(3+i)); err != nil {
			t.Error(err)
		}
	}
	// The pass agrees with what was made.
	if n := apply(t, d, planWith(bridgePlan(), bridged(3), bridged(4))); n != 0 {
		t.Errorf("the pass changed %d objects after two attachments", n)
	}
	for range 2 { // again is success
		if err := pods.Detach(context.Background(), bridged(3).Host.Name); err != nil {
			t.Error(err)
		}
	}
	a.lacks("ip link show", "eth0")
	node.lacks("ip link show", bridged(3).Host.Name)
	b.pings("10.244.0.1")
}

func TestAttachRouted(t *testing.T) {
	node, d := newNode(t)
	pods := newPods(t, node)
	a, b := newSpace(t), newSpace(t)
	none := &plan.Plan{Sysctls: bridgePlan().Sysctls}
	apply(t, d, none)
	attach(t, pods, a, routed(3))
	attach(t, pods, b, routed(4))
	a.pings("10.244.0.4")
	b.pings("fd00:244::3")
	a.pings("192.168.0.4")
	node.pings("10.244.0.3")
	node.pings("fd00:244::3")
	a.wants("ip route show", "default via 169.254.1.1 dev eth0", "169.254.1.1 dev eth0 proto static scope link")
	a.wants("ip neigh show", "169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT", "fe80::1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT")
	node.wants("ip route show proto 104", "10.244.0.3 dev "+routed(3).Host.Name+" scope link")
	for i, s := range []*space{a, b} {
		if err := pods.Verify(context.Background(), s.file, routed(3+i)); err != nil {
			t.Error(err)
		}
	}
	full := func() *plan.Plan {
		return planWith(&plan.Plan{Sysctls: none.Sysctls}, routed(3), routed(4))
	}
	if n := apply(t, d, full()); n != 0 {
		t.Errorf("the pass changed %d objects after two attachments", n)
	}
	// What somebody spoils of the host end is repaired.
	h := routed(3).Host.Name
	node.ip("addr flush dev " + h)
	node.ip("route flush proto 104")
	node.ip("link set " + h + " down")
	node.ip("link set " + h + " mtu 1300 address 02:00:00:00:00:99")
	apply(t, d, full())
	for _, dst := range []string{"10.244.0.4", "fd00:244::4"} { // the link's carrier comes back a little later
		eventually(t, "ping "+dst+" after the repair", func() bool {
			_, err := a.try("ping", "-c1", "-W1", dst)
			return err == nil
		})
	}
	if err := pods.Verify(context.Background(), a.file, routed(3)); err != nil {
		t.Error(err)
	}
	if err := pods.Detach(context.Background(), h); err != nil {
		t.Error(err)
	}
	node.lacks("ip route show proto 104", h)
	x := applyFor(t, d, full(), "workload-link-missing")
	if x.Severity != model.Warning || x.Subject != "link "+h {
		t.Errorf("got %+v", x)
	}
	node.lacks("ip link show", h)
}

func TestBridgeComesBackWithItsPorts(t *testing.T) {
	node, d := newNode(t)
	pods := newPods(t, node)
	a, b := newSpace(t), newSpace(t)
	full := func() *plan.Plan { return planWith(bridgePlan(), bridged(3), bridged(4)) }
	apply(t, d, bridgePlan())
	attach(t, pods, a, bridged(3))
	attach(t, pods, b, bridged(4))
	node.ip("link del cni0")
	if n := apply(t, d, full()); n == 0 {
		t.Fatal("nothing was repaired")
	}
	node.wants("ip -d link show "+bridged(4).Host.Name, "master cni0", "hairpin on")
	for i, s := range []*space{a, b} {
		if err := pods.Verify(context.Background(), s.file, bridged(3+i)); err != nil {
			t.Error(err)
		}
		for _, dst := range []string{"10.244.0.1", "10.244.0.3", "10.244.0.4"} {
			eventually(t, "ping "+dst+" through the new bridge", func() bool {
				_, err := s.try("ping", "-c1", "-W1", dst)
				return err == nil
			})
		}
	}
	if n := apply(t, d, full()); n != 0 {
		t.Errorf("the pass after the repair changed %d objects", n)
	}
}

func TestStrayVethGoesOnlyAfterItsGrace(t *testing.T) {
	node, _ := newNode(t)
	d, err := New(Options{NS: node.fd()}) // with the default grace
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	a := newSpace(t)
	apply(t, d, &plan.Plan{})
	attach(t, newPods(t, node), a, routed(3))
	if n := apply(t, d, &plan.Plan{}); n != 0 {
		t.Errorf("a plan older than the attachment changed %d objects", n)
	}
	a.pings("192.168.0.4")
	for i := range d.stray {
		d.stray[i] = d.stray[i].Add(-defaultStrayGrace)
	}
	if n := apply(t, d, &plan.Plan{}); n == 0 {
		t.Error("the stray veth stays")
	}
	node.lacks("ip link show", "heddle:")
}

func TestAttachLeavesNothingOnError(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(node, pod *space, p *plan.Pod)
		want  string
	}{
		{"no bridge", func(node, _ *space, p *plan.Pod) { node.ip("link del cni0") }, "there is no bridge cni0 on the node"},
		{"interface exists", func(_, pod *space, p *plan.Pod) { pod.ip("link add eth0 type veth peer name x") }, "make veth hd9dc6b6d0a8dd: interface eth0 exists already in the network namespace: file exists"},
		{"foreign host link", func(node, _ *space, p *plan.Pod) {
			node.ip("link add " + p.Host.Name + " type bridge")
		}, "a link of that name is there that Heddle did not make: file exists"},
		{"route inside", func(_, _ *space, p *plan.Pod) { p.Routes[0].Via = netip.MustParseAddr("10.9.9.9") }, "in the network namespace: route 0.0.0.0/0: network is unreachable"},
		{"neighbour", func(_, _ *space, p *plan.Pod) { p.Neighbors = []plan.Neighbor{{IP: p.Gateways[0], MAC: "nonsense"}} }, "neighbor 10.244.0.1: address nonsense: invalid MAC address"},
		{"sysctl", func(_, _ *space, p *plan.Pod) {
			p.HostSysctls = []plan.Sysctl{{Key: "net/ipv4/conf/" + p.Host.Name + "/nonsense", Value: "1"}}
		}, "sysctl net/ipv4/conf/hd9dc6b6d0a8dd/nonsense=1: no such file or directory"},
		{"foreign host route", func(node, _ *space, p *plan.Pod) {
			node.ip("route add 10.244.0.3/32 dev eth0")
			p.HostRoutes = []plan.Route{{Dst: netip.MustParsePrefix("10.244.0.3/32"), Link: p.Host.Name}}
		}, "a route is there that is not Heddle's: file exists"},
		{"mtu", func(_, _ *space, p *plan.Pod) { p.MTU = 10 }, "invalid argument"},
	} {
		t.Run(c.name, func(t *testing.T) {
			node, d := newNode(t)
			apply(t, d, bridgePlan())
			pods, pod := newPods(t, node), newSpace(t)
			p := bridged(3)
			p.Host.Name = model.HostLinkName("c3", "eth0")
			c.spoil(node, pod, &p)
			state := func() (out string) { // names only: the bridge's carrier comes and goes
				for _, l := range strings.Split(node.ip("-br link")+pod.ip("-br link"), "\n") {
					name, _, _ := strings.Cut(l, " ")
					out += name + "\n"
				}
				return out + strings.ReplaceAll(node.ip("route show"), "linkdown ", "")
			}
			before := state()
			err := pods.Attach(context.Background(), pod.file, p)
			want := strings.ReplaceAll(c.want, "hd9dc6b6d0a8dd", p.Host.Name)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if after := state(); after != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

func TestAttachReplacesItsOwnStaleVeth(t *testing.T) {
	node, d := newNode(t)
	apply(t, d, bridgePlan())
	pods, old, fresh := newPods(t, node), newSpace(t), newSpace(t)
	attach(t, pods, old, bridged(3))
	attach(t, pods, fresh, bridged(3))
	old.lacks("ip link show", "eth0")
	fresh.pings("10.244.0.1")
	// A crash right after the veth was made left it without an alias: its group marks it.
	host := bridged(3).Host.Name
	node.ip("link del " + host)
	node.ip("link add " + host + " group 104 type veth peer name eth0 netns " + old.path())
	attach(t, pods, old, bridged(3))
	old.pings("10.244.0.1")
	// The address is free again, and another pod gets it, with the old route still there.
	attach(t, pods, newSpace(t), routed(9))
	p, s := routed(10), newSpace(t)
	p.Addresses, p.HostRoutes = routed(9).Addresses, routed(9).HostRoutes
	for i := range p.HostRoutes {
		p.HostRoutes[i].Link = p.Host.Name
	}
	attach(t, pods, s, p)
	node.pings("10.244.0.9")
	node.pings("fd00:244::9")
}

func TestDetachLeavesForeignLinks(t *testing.T) {
	node, _ := newNode(t)
	err := newPods(t, node).Detach(context.Background(), "eth0")
	if err == nil || !strings.Contains(err.Error(), "link eth0: not removed: it carries no mark of Heddle") {
		t.Errorf("got %v", err)
	}
	node.wants("ip link show", "eth0")
}

func TestVerifyNamesTheFirstDifference(t *testing.T) {
	host := bridged(3).Host.Name
	for _, c := range []struct{ where, spoil, want string }{
		{"node", "link del " + host, "host end " + host + ": is missing"},
		{"node", "link set " + host + " nomaster", "host end " + host + `: is not a port of bridge "cni0"`},
		{"node", "link set " + host + " type bridge_slave hairpin off", "host end " + host + ": hairpin is false, want true"},
		{"node", "link set " + host + " mtu 1300", "host end " + host + ": mtu is 1300, want 1400"},
		{"node", "link set " + host + " down", "host end " + host + ": is down"},
		{"node", "link set " + host + " alias other", "host end " + host + `: is a veth with alias "other", want a veth with alias "heddle:default/pod3"`},
		{"node", "route del 10.244.0.3/32", "host end " + host + ": route 10.244.0.3/32 is missing"},
		{"pod", "link set eth0 down", "interface eth0: is down"},
		{"pod", "link set eth0 mtu 1300", "interface eth0: mtu is 1300, want 1400"},
		{"pod", "link set eth0 address 02:00:00:00:00:99", "interface eth0: mac is 02:00:00:00:00:99, want 02:00:00:00:07:03"},
		{"pod", "link set eth0 name eth7", "interface eth0: is missing"},
		{"pod", "addr del 10.244.0.3/24 dev eth0", "interface eth0: address 10.244.0.3/24 is missing"},
		{"pod", "-6 addr del fd00:244::3/64 dev eth0", "interface eth0: address fd00:244::3/64 is missing"},
		{"pod", "route del default", "interface eth0: route 0.0.0.0/0 via 10.244.0.1 is missing"},
		{"pod", "route replace default via 10.244.0.9", "interface eth0: route 0.0.0.0/0 via 10.244.0.1 is missing: there is one via 10.244.0.9"},
		{"pod", "-6 route del default", "interface eth0: route ::/0 via fd00:244::1 is missing"},
		{"pod", "neigh del 10.244.0.77 dev eth0", "interface eth0: neighbor 10.244.0.77 is missing"},
		{"pod", "neigh replace 10.244.0.77 lladdr 02:00:00:00:00:99 dev eth0 nud permanent", "interface eth0: neighbor 10.244.0.77 is 02:00:00:00:00:99, want 02:00:00:00:00:77"},
		{"pod", "addr add 10.77.0.1/24 dev eth0", ""}, // a workload's own business
	} {
		t.Run(c.spoil, func(t *testing.T) {
			node, d := newNode(t)
			apply(t, d, bridgePlan())
			pods, s := newPods(t, node), newSpace(t)
			pod := bridged(3)
			pod.HostRoutes = []plan.Route{{Dst: netip.MustParsePrefix("10.244.0.3/32"), Link: host}}
			pod.Neighbors = []plan.Neighbor{{Link: "eth0", IP: netip.MustParseAddr("10.244.0.77"), MAC: "02:00:00:00:00:77"}}
			attach(t, pods, s, pod)
			if err := pods.Verify(context.Background(), s.file, pod); err != nil {
				t.Fatal(err)
			}
			if c.where == "node" {
				node.ip(c.spoil)
			} else {
				s.ip(c.spoil)
			}
			got := ""
			if err := pods.Verify(context.Background(), s.file, pod); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestManyAttachAtOnce(t *testing.T) {
	node, d := newNode(t)
	apply(t, d, bridgePlan())
	pods := newPods(t, node)
	spaces := make([]*space, 24)
	for i := range spaces {
		spaces[i] = newSpace(t)
	}
	var g errgroup.Group
	g.SetLimit(8)
	for i, s := range spaces {
		pod := bridged(i + 2)
		if i%2 == 1 {
			pod = routed(i + 2)
		}
		g.Go(func() error {
			for round := range 2 {
				if err := pods.Attach(context.Background(), s.file, pod); err != nil {
					return err
				}
				if err := pods.Verify(context.Background(), s.file, pod); err != nil {
					return err
				}
				if round == 0 {
					if err := pods.Detach(context.Background(), pod.Host.Name); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	node.pings("10.244.0.2")
	spaces[1].pings("10.244.0.5")
	spaces[2].pings("fd00:244::6")
}

func TestAttachInADeadNamespaceFails(t *testing.T) {
	node, d := newNode(t)
	apply(t, d, bridgePlan())
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := newPods(t, node).Attach(context.Background(), f, bridged(3)); err == nil {
		t.Error("attached to something that is no namespace")
	}
	node.lacks("ip link show", bridged(3).Host.Name)
}
