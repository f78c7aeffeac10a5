package model

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func addr(s string) netip.Addr   { return netip.MustParseAddr(s) }
func cidr(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func goodPool() *Pool {
	return &Pool{
		Name: "a", CIDR: cidr("10.244.0.0/16"), BlockSize: 24, Path: PathVXLAN, Encap: EncapAlways,
		VXLAN: VXLAN{VNI: DefaultVNI, Port: DefaultPort},
	}
}

func goodNode() *Node { return &Node{Name: "n1", Address4: addr("192.168.0.4")} }

// TestValidationNamesFieldValueAndExpectation: every refusal is one sentence of one shape.
func TestValidationNamesFieldValueAndExpectation(t *testing.T) {
	pool := func(f func(*Pool)) Object { p := goodPool(); f(p); return p }
	node := func(f func(*Node)) Object { n := goodNode(); f(n); return n }
	for _, tt := range []struct {
		object Object
		want   string // empty: valid
	}{
		{goodPool(), ""},
		{goodNode(), ""},
		{&Block{CIDR: cidr("10.244.1.0/24"), Pool: "a", Node: "n1"}, ""},
		{&Heartbeat{Node: "n1", TTL: time.Second}, ""},
		{pool(func(p *Pool) { p.Name = "A b" }), `pool: name A b: want a lower-case RFC 1123 name of at most 253 characters`},
		{pool(func(p *Pool) { p.CIDR = cidr("10.244.1.0/16") }), `pool "a": cidr 10.244.1.0/16: want a network address with its prefix length, such as 10.244.0.0/16`},
		{pool(func(p *Pool) { p.CIDR = cidr("224.0.0.0/8") }), `pool "a": cidr 224.0.0.0/8: want a network address with its prefix length, such as 10.244.0.0/16`},
		{pool(func(p *Pool) { p.BlockSize = 15 }), `pool "a": blockSize 15: want 16..30 for IPv4 in 10.244.0.0/16`},
		{pool(func(p *Pool) { p.BlockSize = 31 }), `pool "a": blockSize 31: want 16..30 for IPv4 in 10.244.0.0/16`},
		{pool(func(p *Pool) { p.Min = addr("10.245.0.0") }), `pool "a": min 10.245.0.0: want the first address of a /24 inside 10.244.0.0/16`},
		{pool(func(p *Pool) { p.Max = addr("10.244.9.1") }), `pool "a": max 10.244.9.1: want the first address of a /24 inside 10.244.0.0/16`},
		{pool(func(p *Pool) { p.Min, p.Max = addr("10.244.9.0"), addr("10.244.8.0") }), `pool "a": max 10.244.8.0: want an address not below min 10.244.9.0`},
		{pool(func(p *Pool) { p.Encap = "Sometimes" }), `pool "a": encap Sometimes: want Never, CrossSubnet or Always`},
		{pool(func(p *Pool) { p.VXLAN.VNI = 1 << 24 }), `pool "a": vxlan.vni 16777216: want 1..16777215`},
		{pool(func(p *Pool) { p.VXLAN.Port = 0 }), `pool "a": vxlan.port 0: want 1..65535`},
		{pool(func(p *Pool) { p.VXLAN.MTU = 100 }), `pool "a": vxlan.mtu 100: want 576..65535, or 0 to derive it from the uplink`},
		{node(func(n *Node) { n.Name = "N1" }), `node: name N1: want a lower-case RFC 1123 name of at most 253 characters`},
		{node(func(n *Node) { n.Address4 = netip.Addr{} }), `node "n1": address (empty): want an IPv4 or IPv6 address that the other nodes can reach`},
		{node(func(n *Node) { n.Address4 = addr("127.0.0.1") }), `node "n1": address4 127.0.0.1: want a unicast IPv4 address`},
		{node(func(n *Node) { n.Address6 = addr("10.0.0.1") }), `node "n1": address6 10.0.0.1: want a unicast IPv6 address`},
		{node(func(n *Node) { n.Public4 = addr("0.0.0.0") }), `node "n1": public4 0.0.0.0: want a unicast IPv4 address`},
		{node(func(n *Node) { n.VTEP4 = "01:00:5e:00:00:01" }), `node "n1": vtep4 01:00:5e:00:00:01: want a unicast MAC of six lower-case hex pairs`},
		{&Block{CIDR: cidr("10.244.1.1/24"), Pool: "a", Node: "n1"}, `block: cidr 10.244.1.1/24: want a network address with its prefix length`},
		{&Block{CIDR: cidr("10.244.1.0/24"), Pool: "", Node: "n1"}, `block 10.244.1.0/24: pool (empty): want a pool's name`},
		{&Block{CIDR: cidr("10.244.1.0/24"), Pool: "a", Node: "$(id)"}, `block 10.244.1.0/24: node $(id): want a node's name`},
		{&Heartbeat{Node: "n1"}, `heartbeat "n1": ttl 0s: want a positive duration`},
	} {
		err := tt.object.Validate()
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%+v:\n got %s\nwant %s", tt.object, got, tt.want)
		}
	}
}

func TestPoolsAreValidTogether(t *testing.T) {
	a, b := *goodPool(), *goodPool()
	b.Name, b.CIDR = "b", cidr("10.245.0.0/16")
	if err := ValidatePools([]Pool{a, b}); err != nil {
		t.Errorf("two good pools: %v", err)
	}
	b.CIDR = cidr("10.244.128.0/17")
	if err := ValidatePools([]Pool{a, b}); err == nil || err.Error() != `pool "b": cidr 10.244.128.0/17: want a range apart from pool "a" 10.244.0.0/16` {
		t.Errorf("overlap: %v", err)
	}
	b.CIDR, b.VXLAN.Port = cidr("10.245.0.0/16"), 4789
	if err := ValidatePools([]Pool{a, b}); err == nil || !strings.Contains(err.Error(), "one node has one VXLAN network") {
		t.Errorf("two ports: %v", err)
	}
}

// TestNamesFromOutsideAreHeldToTheRule of CNI and of the kernel.
func TestNamesFromOutsideAreHeldToTheRule(t *testing.T) {
	for id, want := range map[string]bool{
		"a": true, "A1_.-z": true, strings.Repeat("x", 255): true,
		"": false, "-a": false, ".a": false, "a/b": false, "a b": false, "a\n": false, "é": false, strings.Repeat("x", 256): false,
	} {
		if ValidContainerID(id) != want {
			t.Errorf("container id %q: %v, want %v", id, !want, want)
		}
	}
	for name, want := range map[string]bool{
		"eth0": true, "a": true, strings.Repeat("x", 15): true,
		"": false, ".": false, "..": false, "a/b": false, "a b": false, "a:b": false, "a\tb": false, strings.Repeat("x", 16): false,
	} {
		if ValidIfName(name) != want {
			t.Errorf("interface name %q: %v, want %v", name, !want, want)
		}
	}
}

func TestHostLinkNamesFitTheKernelAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, id := range []string{"a", "b", "ab"} {
		for _, ifName := range []string{"eth0", "eth1"} {
			n := HostLinkName(id, ifName)
			if !ValidIfName(n) || seen[n] || !IsHostLink(n) {
				t.Errorf("%s/%s: %q is too long or taken, or not known again", id, ifName, n)
			}
			seen[n] = true
		}
	}
	for _, n := range []string{"", "hd", "eth0", "hd0123456789", "hd0123456789abcd", "hd0123456789AB", "hd0123456789xy", "0123456789abcd"} {
		if IsHostLink(n) {
			t.Errorf("%q passes for the name of a host end", n)
		}
	}
}

func TestLostCountsFromTheEndOfTheLease(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	h := Heartbeat{Node: "n1", Renewed: now.Add(-90 * time.Second), TTL: time.Minute}
	if got := h.Lost(now); got != 30*time.Second {
		t.Errorf("lost for %s, want 30s", got)
	}
}
