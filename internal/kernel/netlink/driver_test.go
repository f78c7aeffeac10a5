package netlink

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	nll "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// newNode makes a namespace with an uplink eth0, 192.168.0.4/24 and fd00:192::4/64, and a driver in it.
func newNode(t testing.TB) (*space, *Driver) {
	t.Helper()
	node, seg := newSpace(t), newSpace(t)
	wire(node, "eth0", seg, "eth0")
	node.ip("addr add 192.168.0.4/24 dev eth0")
	node.ip("addr add fd00:192::4/64 dev eth0 nodad")
	seg.ip("addr add 192.168.0.16/24 dev eth0")
	seg.ip("addr add fd00:192::16/64 dev eth0 nodad")
	d, err := New(Options{NS: node.fd(), StrayGrace: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return node, d
}

func mac(i int) string { return fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&0xff) }

// tunnelPlan is walkthrough A for both families: bridge, tunnels, and remote blocks by them.
func tunnelPlan(peers int) *plan.Plan {
	p := &plan.Plan{
		Links: []plan.Link{
			{Name: "cni0", Kind: plan.LinkBridge, Alias: "heddle:bridge", MTU: 1430, MAC: "02:00:00:00:aa:01"},
			{Name: "flannel-v6.1", Kind: plan.LinkVXLAN, Alias: "heddle:vxlan6", MTU: 1430, MAC: "02:00:00:00:bb:06", VXLAN: &plan.VXLANDevice{VNI: 1, Port: 8472, Local: netip.MustParseAddr("fd00:192::4"), Uplink: "eth0"}},
			{Name: "flannel.1", Kind: plan.LinkVXLAN, Alias: "heddle:vxlan", MTU: 1450, MAC: "02:00:00:00:bb:04", VXLAN: &plan.VXLANDevice{VNI: 1, Port: 8472, Local: netip.MustParseAddr("192.168.0.4"), Uplink: "eth0"}},
		},
		Addresses: []plan.Address{
			{Link: "cni0", Prefix: netip.MustParsePrefix("10.244.0.1/24")},
			{Link: "cni0", Prefix: netip.MustParsePrefix("fd00:244::1/64")},
			{Link: "flannel-v6.1", Prefix: netip.MustParsePrefix("fd00:244::/128")},
			{Link: "flannel.1", Prefix: netip.MustParsePrefix("10.244.0.0/32")},
		},
		Sysctls: []plan.Sysctl{
			{Key: "net/ipv4/ip_forward", Value: "1"},
			{Key: "net/ipv6/conf/all/forwarding", Value: "1"},
			{Key: "net/ipv4/conf/flannel.1/rp_filter", Value: "2"},
		},
	}
	for i := 1; i <= peers; i++ {
		base4 := netip.AddrFrom4([4]byte{10, byte(245 + i>>8), byte(i), 0})
		base6 := netip.MustParseAddr(fmt.Sprintf("fd00:244:0:%x::", i))
		node4 := netip.AddrFrom4([4]byte{192, 168, byte(10 + i>>8), byte(i)})
		p.Routes = append(p.Routes, plan.Route{Dst: netip.PrefixFrom(base4, 24), Via: base4, Link: "flannel.1", OnLink: true})
		p.Neighbors = append(p.Neighbors, plan.Neighbor{Link: "flannel.1", IP: base4, MAC: mac(i)})
		p.FDB = append(p.FDB, plan.FDB{Link: "flannel.1", MAC: mac(i), Dst: node4})
		if i > 3 {
			continue
		}
		p.Routes = append(p.Routes, plan.Route{Dst: netip.PrefixFrom(base6, 64), Via: base6, Link: "flannel-v6.1", OnLink: true, MTU: 1400})
		p.Neighbors = append(p.Neighbors, plan.Neighbor{Link: "flannel-v6.1", IP: base6, MAC: mac(i)})
		p.FDB = append(p.FDB, plan.FDB{Link: "flannel-v6.1", MAC: mac(i), Dst: netip.MustParseAddr("fd00:192::16")})
	}
	return p
}

func apply(t testing.TB, d *Driver, p *plan.Plan) int {
	t.Helper()
	n, problems := d.Apply(context.Background(), p)
	for _, x := range problems {
		t.Errorf("%s: %s (%s)", x.Code, x, x.Next)
	}
	return n
}

// applyFor expects exactly one problem of the code.
func applyFor(t testing.TB, d *Driver, p *plan.Plan, code string) model.Problem {
	t.Helper()
	_, problems := d.Apply(context.Background(), p)
	if len(problems) != 1 || problems[0].Code != code {
		t.Fatalf("got %+v, want one problem %s", problems, code)
	}
	if problems[0].Detail == "" || problems[0].Next == "" || problems[0].Subject == "" {
		t.Errorf("a problem without detail, subject or next step: %+v", problems[0])
	}
	return problems[0]
}

func TestApplyMakesKernelEqualPlan(t *testing.T) {
	node, d := newNode(t)
	p := tunnelPlan(3)
	p.Routes = append(p.Routes,
		plan.Route{Dst: netip.MustParsePrefix("10.9.0.0/24"), Via: netip.MustParseAddr("192.168.0.16"), Link: "eth0"},
		plan.Route{Dst: netip.MustParsePrefix("10.10.0.0/26"), Type: plan.RouteBlackhole},
		plan.Route{Dst: netip.MustParsePrefix("10.10.0.5/32"), Link: "cni0"},
		plan.Route{Dst: netip.MustParsePrefix("fd00:9::/64"), Via: netip.MustParseAddr("fd00:192::16"), Link: "eth0"},
		plan.Route{Dst: netip.MustParsePrefix("fd00:10::/122"), Type: plan.RouteBlackhole},
		plan.Route{Dst: netip.MustParsePrefix("fd00:10::5/128"), Link: "cni0"})
	p.Rules = []plan.Rule{{Priority: 100, From: netip.MustParsePrefix("10.244.0.0/16"), Table: 104}, {Priority: 101, Table: 104}}
	if n := apply(t, d, p); n == 0 {
		t.Fatal("nothing was changed")
	}
	node.wants("ip -d link show flannel.1", "vxlan id 1 local 192.168.0.4 dev eth0", "dstport 8472 nolearning", "mtu 1450", "02:00:00:00:bb:04", "alias heddle:vxlan", ",UP,", "addrgenmode none")
	node.wants("ip -d link show flannel-v6.1", "vxlan id 1 local fd00:192::4 dev eth0", "mtu 1430", "alias heddle:vxlan6")
	node.wants("ip -d link show cni0", "bridge ", "mtu 1430", "02:00:00:00:aa:01", "alias heddle:bridge")
	node.wants("ip address show cni0", "10.244.0.1/24", "fd00:244::1/64")
	node.lacks("ip -6 address show cni0", "tentative")
	node.wants("ip address show flannel.1", "10.244.0.0/32")
	node.lacks("ip address show flannel.1", "fe80")
	node.wants("ip route show proto 104", "10.245.2.0/24 via 10.245.2.0 dev flannel.1 onlink", "10.9.0.0/24 via 192.168.0.16 dev eth0",
		"blackhole 10.10.0.0/26", "10.10.0.5 dev cni0 scope link")
	node.wants("ip -6 route show proto 104", "fd00:244:0:2::/64 via fd00:244:0:2:: dev flannel-v6.1 metric 1024 onlink mtu 1400",
		"fd00:9::/64 via fd00:192::16 dev eth0", "blackhole fd00:10::/122", "fd00:10::5 dev cni0")
	node.wants("ip neigh show dev flannel.1", "10.245.2.0 lladdr 02:00:00:00:00:02 PERMANENT")
	node.wants("ip -6 neigh show dev flannel-v6.1", "fd00:244:0:3:: lladdr 02:00:00:00:00:03 PERMANENT")
	node.wants("bridge fdb show dev flannel.1", "02:00:00:00:00:02 dst 192.168.10.2 self permanent")
	node.wants("bridge fdb show dev flannel-v6.1", "02:00:00:00:00:02 dst fd00:192::16 self permanent")
	node.wants("ip rule show", "100:	from 10.244.0.0/16 lookup 104 proto 104", "101:	from all lookup 104 proto 104")
	node.wants("ip -6 rule show", "101:	from all lookup 104 proto 104")
	if v := node.sysctl("net/ipv4/conf/flannel.1/rp_filter"); v != "2" {
		t.Errorf("rp_filter of flannel.1 is %s, want 2", v)
	}
	if n := apply(t, d, p); n != 0 {
		t.Errorf("the second pass changed %d objects, want 0", n)
	}
	// Everything goes, but for the sysctls.
	apply(t, d, &plan.Plan{})
	if n := apply(t, d, &plan.Plan{}); n != 0 {
		t.Errorf("the second empty pass changed %d objects, want 0", n)
	}
	for _, f := range []string{"-4", "-6"} {
		node.lacks("ip "+f+" route show table all", "104")
		node.lacks("ip "+f+" rule show", "104")
	}
	node.lacks("ip link show", "heddle:", "flannel", "cni0")
}

func TestApplyRepairs(t *testing.T) {
	// Each spoils one thing in another way.
	for _, spoil := range []string{
		"ip route del 10.245.1.0/24", "ip -6 route del fd00:244:0:1::/64", "ip link del flannel.1", "ip link del cni0",
		"ip addr flush dev cni0", "ip link set flannel.1 mtu 1400", "ip link set cni0 address 02:00:00:00:aa:02",
		"ip link set cni0 down", "ip link set flannel-v6.1 down", "ip neigh flush dev flannel.1 nud permanent",
		"ip neigh replace 10.245.1.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
		"ip neigh add 10.245.77.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
		"bridge fdb del 02:00:00:00:00:01 dev flannel.1", "bridge fdb replace 02:00:00:00:00:01 dst 1.2.3.4 dev flannel.1",
		"bridge fdb add 02:00:00:00:00:77 dst 1.2.3.4 dev flannel.1",
		"sysctl -qw net.ipv4.ip_forward=0", "ip link set flannel.1 alias other", "ip link set flannel.1 alias heddle:wrong",
		"ip route add 10.99.0.0/24 dev cni0 proto 104", "ip route add 10.245.1.0/24 dev cni0 proto 104 metric 5",
		"ip -6 route append fd00:244:0:1::/64 via fd00:192::16 dev eth0 proto 104", "ip -6 route replace fd00:244:0:1::/64 dev cni0 proto 104",
		"ip route replace blackhole 10.245.1.0/24 proto 104", "ip addr add 10.1.1.1/24 dev cni0", "ip addr add 10.244.0.9/24 dev cni0",
	} {
		t.Run(strings.ReplaceAll(spoil, "/", "|"), func(t *testing.T) {
			node, d := newNode(t)
			p := tunnelPlan(2)
			apply(t, d, p)
			show := func() string {
				out := ""
				for _, cmd := range []string{"ip -o route show table main", "ip -o -6 route show table main proto 104", "ip -o neigh show nud permanent", "bridge fdb show dev flannel.1", "ip -br addr show dev cni0", "sysctl net.ipv4.ip_forward"} {
					lines := strings.Split(node.run(strings.Fields(cmd)...), "\n")
					slices.Sort(lines)
					out += strings.Join(lines, "\n") + "\n"
				}
				return out
			}
			want := show()
			node.run(strings.Fields(spoil)...)
			if n := apply(t, d, p); n == 0 {
				t.Error("nothing was repaired")
			}
			if n := apply(t, d, p); n != 0 {
				t.Errorf("the pass after the repair changed %d objects", n)
			}
			drop := func(s string) string { // a new bridge has another automatic link-local address or none yet
				return strings.Join(slices.DeleteFunc(strings.Fields(s), func(f string) bool {
					return strings.HasPrefix(f, "fe80:") || f == "linkdown" || f == "UNKNOWN" || f == "DOWN" || f == "UP"
				}), " ")
			}
			if got := show(); drop(got) != drop(want) {
				t.Errorf("the kernel holds\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestTunnelWithOtherSettingsIsMadeAnew(t *testing.T) {
	node, d := newNode(t)
	node.ip("addr add 192.168.0.5/24 dev eth0")
	p := tunnelPlan(2)
	apply(t, d, p)
	for _, c := range []struct {
		change func(*plan.VXLANDevice)
		want   string
	}{
		{func(v *plan.VXLANDevice) { v.VNI = 7 }, "vxlan id 7 "},
		{func(v *plan.VXLANDevice) { v.Port = 4789 }, "dstport 4789"},
		{func(v *plan.VXLANDevice) { v.Local = netip.MustParseAddr("192.168.0.5") }, "local 192.168.0.5"},
		{func(v *plan.VXLANDevice) { v.GBP = true }, " gbp "},
		{func(v *plan.VXLANDevice) { v.Learning = true }, "dstport 4789 ttl"},
	} {
		c.change(p.Links[2].VXLAN)
		apply(t, d, p)
		node.wants("ip -d link show flannel.1", c.want)
		node.wants("ip route show proto 104", "10.245.2.0/24 via 10.245.2.0 dev flannel.1 onlink")
		if n := apply(t, d, p); n != 0 {
			t.Errorf("%s: the second pass changed %d objects", c.want, n)
		}
	}
}

func TestForeignDeviceIsReportedNotTouched(t *testing.T) {
	node, d := newNode(t)
	node.ip("link add flannel.1 type vxlan id 9 dstport 4789 local 192.168.0.4 dev eth0")
	node.ip("link add cni0 type veth peer name other")
	before := node.run("ip", "-d", "link", "show")
	p := tunnelPlan(3)
	p.Links = slices.Delete(p.Links, 1, 2)
	p.Routes, p.Neighbors, p.FDB, p.Sysctls = p.Routes[:1], p.Neighbors[:1], p.FDB[:1], nil
	_, problems := d.Apply(context.Background(), p)
	if len(problems) != 2 || problems[0].Code != "foreign-device" || problems[1].Code != "foreign-device" {
		t.Fatalf("got %+v, want two foreign devices and nothing that follows from them", problems)
	}
	want := "link flannel.1: a device of that name is there that Heddle did not make, and it has VNI 9 port 4789 local 192.168.0.4 dev eth0 learning, not VNI 1 port 8472 local 192.168.0.4 dev eth0"
	if got := problems[1].String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if after := node.run("ip", "-d", "link", "show"); after != before {
		t.Errorf("links are now\n%s\nwant\n%s", after, before)
	}
	apply(t, d, &plan.Plan{})
	if err := d.Sweep(context.Background()); err != nil {
		t.Error(err)
	}
	node.wants("ip link show", "flannel.1", "cni0")
}

func TestFlannelsDevicesAreTakenOver(t *testing.T) {
	node, d := newNode(t)
	pod := newSpace(t)
	node.ip("link add flannel.1 type vxlan id 1 dstport 8472 local 192.168.0.4 dev eth0 nolearning")
	node.ip("link add cni0 type bridge")
	node.ip("link set cni0 up")
	wire(node, "vethold", pod, "eth0")
	node.ip("link set vethold master cni0")
	node.ip("addr add 10.244.0.1/24 dev cni0")
	node.ip("addr add 10.244.0.0/32 dev flannel.1")
	node.ip("link set flannel.1 up")
	node.ip("route add 10.245.1.0/24 via 10.245.1.0 dev flannel.1 onlink")
	pod.ip("addr add 10.244.0.7/24 dev eth0")
	pod.pings("10.244.0.1")
	index := node.run("cat", "/proc/net/dev_snmp6/flannel.1")
	p := tunnelPlan(1)
	apply(t, d, p)
	if got := node.run("cat", "/proc/net/dev_snmp6/flannel.1"); strings.Fields(got)[1] != strings.Fields(index)[1] {
		t.Error("flannel.1 was made anew")
	}
	node.wants("ip link show vethold", "master cni0")
	node.wants("ip link show cni0", "alias heddle:bridge", "02:00:00:00:aa:01")
	node.wants("ip route show", "10.245.1.0/24 via 10.245.1.0 dev flannel.1 proto 104 onlink")
	// The bridge's MAC changed, and the pod was told: its entry is the new one without asking.
	eventually(t, "the pod knows the bridge's new MAC", func() bool {
		return strings.Contains(pod.ip("neigh show 10.244.0.1"), "02:00:00:00:aa:01")
	})
	pod.pings("10.244.0.1")
	if v := node.sysctl("net/ipv4/conf/cni0/arp_notify"); v != "0" {
		t.Errorf("arp_notify stays %s", v)
	}
}

func TestForeignRoutesSurvive(t *testing.T) {
	node, d := newNode(t)
	foreign := []string{
		"route add 10.50.0.0/24 via 192.168.0.16 proto static", "route add default via 192.168.0.16", "-6 route add fd00:50::/64 via fd00:192::16",
		"route add 10.245.1.0/24 via 192.168.0.16 proto bird", "-6 route add fd00:244:0:1::/64 via fd00:192::16 dev eth0",
		"route add 10.245.2.0/24 via 192.168.0.16 metric 50", "route add 10.245.3.0/24 via 192.168.0.16 table 77",
		"neigh add 192.168.0.99 lladdr 02:00:00:00:00:99 dev eth0 nud permanent", "addr add 10.50.50.1/24 dev eth0", "rule add from 10.50.0.0/24 lookup 77",
	}
	for _, f := range foreign {
		node.ip(f)
	}
	show := func() (out string) {
		for _, cmd := range []string{"route show table all proto static", "route show proto bird", "route show proto boot", "-6 route show proto boot", "route show table 77", "neigh show nud permanent dev eth0", "addr show dev eth0", "rule show"} {
			out += node.ip(cmd)
		}
		return out
	}
	before := show()
	_, problems := d.Apply(context.Background(), tunnelPlan(3))
	if len(problems) != 2 || problems[0].Code != "foreign-route" || problems[1].Code != "foreign-route" {
		t.Errorf("got %+v, want two foreign routes reported", problems)
	}
	node.wants("ip route show proto 104", "10.245.2.0/24 via 10.245.2.0 dev flannel.1 onlink", "10.245.3.0/24")
	apply(t, d, &plan.Plan{})
	if after := show(); after != before {
		t.Errorf("foreign state is now\n%s\nwant\n%s", after, before)
	}
	_, problems = d.Apply(context.Background(), tunnelPlan(3))
	if len(problems) != 2 {
		t.Errorf("got %+v, want the two again", problems)
	}
	if err := d.Sweep(context.Background()); err != nil {
		t.Error(err)
	}
	if after := show(); after != before {
		t.Errorf("after a sweep foreign state is\n%s\nwant\n%s", after, before)
	}
	node.lacks("ip route show table all", "proto 104")
	node.lacks("ip link show", "heddle:")
}

func TestRouteReplaceHasNoGap(t *testing.T) {
	node, d := newNode(t)
	p := tunnelPlan(1)
	apply(t, d, p)
	direct := tunnelPlan(1)
	direct.Routes[0] = plan.Route{Dst: p.Routes[0].Dst, Via: netip.MustParseAddr("192.168.0.16"), Link: "eth0"}
	direct.Routes[1] = plan.Route{Dst: p.Routes[1].Dst, Via: netip.MustParseAddr("fd00:192::16"), Link: "eth0"}
	hole := tunnelPlan(1)
	hole.Routes[0] = plan.Route{Dst: p.Routes[0].Dst, Type: plan.RouteBlackhole}
	hole.Routes[1] = plan.Route{Dst: p.Routes[1].Dst, Type: plan.RouteBlackhole}

	events, done := make(chan nll.RouteUpdate, 100), make(chan struct{})
	defer close(done)
	if err := nll.RouteSubscribeAt(netns.NsHandle(node.fd()), events, done); err != nil {
		t.Fatal(err)
	}
	for _, step := range []*plan.Plan{direct, p, hole, direct} {
		if n := apply(t, d, step); n != 2 {
			t.Errorf("%d objects changed, want the two routes", n)
		}
		for n := 0; n < 2; {
			select {
			case e := <-events:
				if e.Dst.String() != p.Routes[0].Dst.String() && e.Dst.String() != p.Routes[1].Dst.String() {
					continue // the kernel's own, of a new link
				}
				n++
				if e.Type != unix.RTM_NEWROUTE || e.NlFlags&unix.NLM_F_REPLACE == 0 {
					t.Errorf("event %d flags %#x for %s: want a replacement", e.Type, e.NlFlags, e.Dst)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("no event")
			}
		}
		for _, cmd := range []string{"route show 10.245.1.0/24", "-6 route show fd00:244:0:1::/64"} {
			if out := strings.TrimSpace(node.ip(cmd)); strings.Count(out, "\n") != 0 || out == "" || strings.Contains(out, "nexthop") {
				t.Errorf("%s: want exactly one route:\n%s", cmd, out)
			}
		}
	}
}

func TestRefusalsCarryTheKernelsReason(t *testing.T) {
	t.Run("port in use", func(t *testing.T) {
		node, d := newNode(t)
		c := udpSocket(t, node, 8472)
		defer unix.Close(c)
		p := tunnelPlan(3)
		p.Links = slices.Delete(p.Links, 1, 2)
		p.Addresses = slices.Delete(p.Addresses, 2, 3)
		p.Routes, p.Neighbors, p.FDB, p.Sysctls = p.Routes[:1], p.Neighbors[:1], p.FDB[:1], nil
		x := applyFor(t, d, p, "link-failed")
		if x.String() != "link flannel.1: up: address already in use" || x.Next != "ss -lunp 'sport = :8472'" {
			t.Errorf("got %s, next %s", x, x.Next)
		}
	})
	t.Run("VNI in use", func(t *testing.T) {
		node, d := newNode(t)
		node.ip("link add vx type vxlan id 1 dstport 8472 local 192.168.0.4 dev eth0")
		p := &plan.Plan{Links: tunnelPlan(0).Links[2:]}
		if x := applyFor(t, d, p, "link-failed"); !strings.Contains(x.Detail, "file exists (A VXLAN device with the specified VNI already exists") {
			t.Errorf("got %s", x.Detail)
		}
	})
	t.Run("gateway out of reach", func(t *testing.T) {
		_, d := newNode(t)
		p := &plan.Plan{Routes: []plan.Route{{Dst: netip.MustParsePrefix("10.9.0.0/24"), Via: netip.MustParseAddr("172.16.0.1"), Link: "eth0"}}}
		if x := applyFor(t, d, p, "route-failed"); !strings.Contains(x.Detail, "network is unreachable") {
			t.Errorf("got %s", x.Detail)
		}
	})
	t.Run("no such setting", func(t *testing.T) {
		_, d := newNode(t)
		p := &plan.Plan{Sysctls: []plan.Sysctl{{Key: "net/ipv4/no_such_thing", Value: "1"}}}
		if x := applyFor(t, d, p, "sysctl-failed"); x.String() != "sysctl net/ipv4/no_such_thing: want 1: no such file or directory" {
			t.Errorf("got %s", x)
		}
	})
	t.Run("no uplink", func(t *testing.T) {
		node, d := newNode(t)
		node.ip("link del eth0")
		p := &plan.Plan{Links: tunnelPlan(0).Links[2:]}
		if x := applyFor(t, d, p, "link-failed"); x.Detail != "there is no link eth0 to carry it" {
			t.Errorf("got %s", x.Detail)
		}
	})
	t.Run("mtu too large", func(t *testing.T) {
		_, d := newNode(t)
		p := &plan.Plan{Links: tunnelPlan(0).Links[2:]}
		p.Links[0].MTU = 70000
		if x := applyFor(t, d, p, "link-failed"); !strings.Contains(x.Detail, "invalid argument") {
			t.Errorf("got %s", x.Detail)
		}
	})
}

func udpSocket(t *testing.T, s *space, port int) (fd int) {
	t.Helper()
	err := Do(s.fd(), func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrInet4{Port: port})
	})
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
