package path_test

import (
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/path"
)

const mac4, mac6 = "9a:b5:4f:2e:10:16", "9a:b5:4f:2e:60:16"

var (
	self = model.Node{Name: "a", Address4: addr("192.168.0.4"), Address6: addr("2001:db8::4")}
	host = model.Host{Uplinks: []model.Uplink{
		{Link: "eth0", Prefix: netip.MustParsePrefix("192.168.0.4/24"), MTU: 1500},
		{Link: "eth0", Prefix: netip.MustParsePrefix("2001:db8::4/64"), MTU: 1500},
		{Link: "eth1", Prefix: netip.MustParsePrefix("10.9.0.4/16"), MTU: 9000},
	}}
	tunnels = []model.Path{model.PathDirect, model.PathVXLAN}
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func pool(p model.Path, e model.Encap, mtu int) model.Pool {
	return model.Pool{Name: "p", Path: p, Encap: e, VXLAN: model.VXLAN{VNI: 7, Port: 8472, MTU: mtu}}
}

func TestChoiceFollowsPolicyAndWhatThePeerPublishes(t *testing.T) {
	always, cross := pool(model.PathVXLAN, model.EncapAlways, 0), pool(model.PathVXLAN, model.EncapCrossSubnet, 0)
	never, none := pool(model.PathVXLAN, model.EncapNever, 0), pool(model.PathNone, model.EncapNever, 0)
	direct := pool(model.PathDirect, model.EncapNever, 0)
	near := model.Node{Name: "b", Address4: addr("192.168.0.16"), Address6: addr("2001:db8::16"), VTEP4: mac4, VTEP6: mac6, Accepts: tunnels}
	second := model.Node{Name: "b", Address4: addr("10.9.0.5")}
	far := model.Node{Name: "b", Address4: addr("192.168.9.16"), Address6: addr("2001:db8:9::16"), VTEP4: mac4, VTEP6: mac6, Accepts: tunnels}
	far4 := model.Node{Name: "b", Address4: addr("192.168.9.16"), VTEP4: mac4, Accepts: tunnels}
	far6 := model.Node{Name: "b", Address6: addr("2001:db8:9::16"), VTEP6: mac6, Accepts: tunnels}
	nat := far4
	nat.Public4 = addr("203.0.113.9")
	nearNAT := near
	nearNAT.Public4 = addr("203.0.113.9")
	deaf, late, twin := near, far, near
	deaf.Accepts = nil
	late.VTEP4, late.VTEP6 = "", ""
	half := far
	half.VTEP6 = ""
	twin.Address4 = self.Address4
	ipip, ipipCross := pool(model.PathIPIP, model.EncapAlways, 0), pool(model.PathIPIP, model.EncapCrossSubnet, 0)
	inIP := []model.Path{model.PathDirect, model.PathIPIP}
	nearIPIP, farIPIP, natIPIP, lacking := near, far, nat, near
	nearIPIP.Accepts, farIPIP.Accepts, natIPIP.Accepts, lacking.Lacks = inIP, inIP, inIP, []model.Path{model.PathIPIP}
	farIPIP4 := farIPIP
	farIPIP4.Address6 = netip.Addr{}
	for _, c := range []struct {
		name string
		peer model.Node
		pool model.Pool
		fam  model.Family
		want path.Choice
		code string // of the problem
		text string // of the problem
	}{
		{"never, near", near, never, 4, path.Choice{model.PathDirect, 4, addr("192.168.0.16"), "eth0", 1500, "same segment 192.168.0.0/24", ""}, "", ""},
		{"direct, near, IPv6", near, direct, 6, path.Choice{model.PathDirect, 6, addr("2001:db8::16"), "eth0", 1500, "same segment 2001:db8::/64", ""}, "", ""},
		{"direct by another uplink", second, direct, 4, path.Choice{model.PathDirect, 4, addr("10.9.0.5"), "eth1", 9000, "same segment 10.9.0.0/16", ""}, "", ""},
		{"direct ignores the NAT outside", nearNAT, direct, 4, path.Choice{model.PathDirect, 4, addr("192.168.0.16"), "eth0", 1500, "same segment 192.168.0.0/24", ""}, "", ""},
		{"never, far", far, never, 4, path.Choice{}, "peer-not-on-link", `node "b": 192.168.9.16 is not in a segment of this node (192.168.0.0/24 on eth0, 10.9.0.0/16 on eth1): host-gw (direct) needs the same segment`},
		{"direct, no such address", second, direct, 6, path.Choice{}, "peer-not-on-link", `node "b": it has no IPv6 address, and host-gw (direct) needs one in a segment of this node`},
		{"direct, our own address", twin, direct, 4, path.Choice{}, "peer-address-conflict", `node "b": it says that its address is 192.168.0.4, which is this node's own on eth0`},
		{"cross, near", near, cross, 4, path.Choice{model.PathDirect, 4, addr("192.168.0.16"), "eth0", 1500, "same segment 192.168.0.0/24", ""}, "", ""},
		{"cross, far", far, cross, 4, path.Choice{model.PathVXLAN, 4, addr("192.168.9.16"), "flannel.7", 1450, "another segment, vxlan over IPv4", ""}, "", ""},
		{"always, near", near, always, 4, path.Choice{model.PathVXLAN, 4, addr("192.168.0.16"), "flannel.7", 1450, `pool "p" asks for vxlan always, over IPv4`, ""}, "", ""},
		{"always, IPv6", near, always, 6, path.Choice{model.PathVXLAN, 6, addr("2001:db8::16"), "flannel-v6.7", 1430, `pool "p" asks for vxlan always, over IPv6`, ""}, "", ""},
		{"IPv6 inside IPv4", far4, always, 6, path.Choice{model.PathVXLAN, 4, addr("192.168.9.16"), "flannel.7", 1450, `pool "p" asks for vxlan always, over IPv4`, ""}, "", ""},
		{"IPv4 inside IPv6", far6, cross, 4, path.Choice{model.PathVXLAN, 6, addr("2001:db8:9::16"), "flannel-v6.7", 1430, "another segment, vxlan over IPv6", ""}, "", ""},
		{"IPv6 device not yet up, IPv4 one is", half, cross, 6, path.Choice{model.PathVXLAN, 4, addr("192.168.9.16"), "flannel.7", 1450, "another segment, vxlan over IPv4", ""}, "", ""},
		{"behind a NAT", nat, cross, 4, path.Choice{model.PathVXLAN, 4, addr("203.0.113.9"), "flannel.7", 1450, "another segment, vxlan over IPv4", ""}, "", ""},
		{"near, with a NAT outside", nearNAT, always, 4, path.Choice{model.PathVXLAN, 4, addr("192.168.0.16"), "flannel.7", 1450, `pool "p" asks for vxlan always, over IPv4`, ""}, "", ""},
		{"smaller MTU asked for", far, pool(model.PathVXLAN, model.EncapAlways, 1400), 4, path.Choice{model.PathVXLAN, 4, addr("192.168.9.16"), "flannel.7", 1400, `pool "p" asks for vxlan always, over IPv4`, ""}, "", ""},
		{"bigger MTU asked for", far, pool(model.PathVXLAN, model.EncapAlways, 9000), 4, path.Choice{model.PathVXLAN, 4, addr("192.168.9.16"), "flannel.7", 1450, `pool "p" asks for vxlan always, over IPv4`, ""}, "", ""},
		{"near peer does not accept yet", deaf, always, 4, path.Choice{model.PathDirect, 4, addr("192.168.0.16"), "eth0", 1500, "same segment 192.168.0.0/24, waiting for b to accept vxlan", "waiting for b to accept vxlan"}, "", ""},
		{"far peer has no device yet", late, always, 4, path.Choice{Waiting: "waiting for b to publish its vxlan device"}, "peer-path-not-ready", `node "b": IPv4 blocks of pool "p" are out of reach: waiting for b to publish its vxlan device`},
		{"tunnel to our own address", twin, always, 4, path.Choice{Waiting: "b says that its address is 192.168.0.4, which is this node's own on eth0"}, "peer-path-not-ready", `node "b": IPv4 blocks of pool "p" are out of reach: b says that its address is 192.168.0.4, which is this node's own on eth0`},
		{"ipip cross, near", near, ipipCross, 4, path.Choice{model.PathDirect, 4, addr("192.168.0.16"), "eth0", 1500, "same segment 192.168.0.0/24", ""}, "", ""},
		{"ipip cross, far", farIPIP, ipipCross, 4, path.Choice{model.PathIPIP, 4, addr("192.168.9.16"), "tunl0", 1480, "another segment, ipip over IPv4", ""}, "", ""},
		{"ipip always, near", nearIPIP, ipip, 4, path.Choice{model.PathIPIP, 4, addr("192.168.0.16"), "tunl0", 1480, `pool "p" asks for ipip always, over IPv4`, ""}, "", ""},
		{"ipip, IPv6 inside IPv6", farIPIP, ipip, 6, path.Choice{model.PathIPIP, 6, addr("2001:db8:9::16"), "tunl6", 1460, `pool "p" asks for ipip always, over IPv6`, ""}, "", ""},
		{"ipip does not carry IPv6 inside IPv4", farIPIP4, ipip, 6, path.Choice{Waiting: "the two nodes have no IPv6 addresses, and ipip carries IPv6 in IPv6"}, "peer-path-not-ready", `node "b": IPv6 blocks of pool "p" are out of reach: the two nodes have no IPv6 addresses, and ipip carries IPv6 in IPv6`},
		{"ipip never, far", farIPIP, pool(model.PathIPIP, model.EncapNever, 0), 4, path.Choice{}, "peer-not-on-link", `node "b": 192.168.9.16 is not in a segment of this node (192.168.0.0/24 on eth0, 10.9.0.0/16 on eth1): host-gw (direct) needs the same segment`},
		{"ipip behind a NAT", natIPIP, ipip, 4, path.Choice{model.PathIPIP, 4, addr("203.0.113.9"), "tunl0", 1480, `pool "p" asks for ipip always, over IPv4`, ""}, "", ""},
		{"ipip has no size of its own", farIPIP, pool(model.PathIPIP, model.EncapAlways, 1400), 4, path.Choice{model.PathIPIP, 4, addr("192.168.9.16"), "tunl0", 1480, `pool "p" asks for ipip always, over IPv4`, ""}, "", ""},
		{"far peer takes vxlan, not yet ipip", far, ipip, 4, path.Choice{Waiting: "waiting for b to accept ipip"}, "peer-path-not-ready", `node "b": IPv4 blocks of pool "p" are out of reach: waiting for b to accept ipip`},
		{"near peer's kernel has no ipip", lacking, ipip, 4, path.Choice{model.PathDirect, 4, addr("192.168.0.16"), "eth0", 1500, "same segment 192.168.0.0/24, the kernel of b has no ipip", "the kernel of b has no ipip"}, "", ""},
		{"addresses only", far, none, 4, path.Choice{Path: model.PathNone, Reason: `pool "p" carries no packets`}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, problem := path.Choose(&self, host, &c.peer, &c.pool, c.fam)
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			switch {
			case problem == nil && c.code != "":
				t.Errorf("got no problem, want %s", c.code)
			case problem != nil && (problem.Code != c.code || problem.String() != c.text || problem.Next == ""):
				t.Errorf("got problem %s %q (next %q), want %s %q", problem.Code, problem, problem.Next, c.code, c.text)
			}
		})
	}
}

func TestNoTunnelFromAnAddressThatIsNotOurs(t *testing.T) {
	moved := model.Host{Uplinks: []model.Uplink{{Link: "eth0", Prefix: netip.MustParsePrefix("192.168.3.4/24"), MTU: 1500}}}
	peer := model.Node{Name: "b", Address4: addr("192.168.9.16"), VTEP4: mac4, Accepts: tunnels}
	p := pool(model.PathVXLAN, model.EncapAlways, 0)
	got, problem := path.Choose(&self, moved, &peer, &p, 4)
	if problem == nil || got.Path != "" {
		t.Fatalf("got %+v", got)
	}
	if want := `node "b": IPv4 blocks of pool "p" are out of reach: this node's own address is on none of its uplinks`; problem.String() != want {
		t.Errorf("got %q, want %q", problem, want)
	}
}

func TestNodeWhoseKernelLacksTheTunnelSaysSo(t *testing.T) {
	me := self
	me.Lacks = []model.Path{model.PathIPIP}
	peer := model.Node{Name: "b", Address4: addr("192.168.9.16"), Accepts: []model.Path{model.PathIPIP}}
	p := pool(model.PathIPIP, model.EncapAlways, 0)
	got, problem := path.Choose(&me, host, &peer, &p, 4)
	if want := "the kernel of this node has no ipip"; problem == nil || got.Path != "" || got.Waiting != want {
		t.Errorf("got %+v, %v", got, problem)
	}
}
