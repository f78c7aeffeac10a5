package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
)

// word matches a label of that name, and cannot read "(".
func word(selector string, labels map[string]string) (bool, error) {
	if selector == "(" {
		return false, fmt.Errorf("a parenthesis")
	}
	_, ok := labels[selector]
	return selector == "" || ok, nil
}

func testPools() []model.Pool {
	p := func(name, cidr string, change ...func(*model.Pool)) model.Pool {
		p := model.Pool{Name: name, CIDR: netip.MustParsePrefix(cidr), BlockSize: 26, MaxBlocks: 4}
		if p.Family() == model.IPv6 {
			p.BlockSize = 122
		}
		for _, c := range change {
			c(&p)
		}
		return p
	}
	return []model.Pool{
		p("broken", "10.9.0.0/16", func(p *model.Pool) { p.NodeSelector = "(" }),
		p("dev", "10.1.0.0/16", func(p *model.Pool) { p.NamespaceSelector = "dev" }),
		p("general", "10.2.0.0/16"),
		p("manual", "10.3.0.0/16", func(p *model.Pool) { p.Manual = true }),
		p("off", "10.4.0.0/16", func(p *model.Pool) { p.Disabled = true }),
		p("rack", "10.5.0.0/16", func(p *model.Pool) { p.NodeSelector = "rack" }),
		p("six", "fd00::/64"),
		p("tunnels", "10.6.0.0/16", func(p *model.Pool) { p.Uses = []model.PoolUse{model.UseTunnel} }),
	}
}

func TestWorkloadsGetThePoolsThatAreForThem(t *testing.T) {
	addr := netip.MustParseAddr
	for _, c := range []struct {
		node, namespace string
		wishes          *model.Wishes
		want            string
	}{
		{"", "", nil, "general six"},
		{"", "dev", nil, "dev general six"},
		{"rack", "", nil, "general rack six"},
		{"", "", &model.Wishes{Pools4: []string{"manual", "10.5.0.0/16"}}, "manual rack six"}, // selectors aside, in this order
		{"", "", &model.Wishes{Pools6: []string{"six"}}, "general six"},
		{"", "", &model.Wishes{Addresses: []netip.Addr{addr("10.3.0.7")}}, "manual"},
		{"", "", &model.Wishes{Addresses: []netip.Addr{addr("10.5.0.7"), addr("fd00::7")}}, "rack six"},

		{"", "", &model.Wishes{Pools4: []string{"no"}}, "workload: ipv4pools no: want the name or the range of a pool"},
		{"", "", &model.Wishes{Pools4: []string{"six"}}, "want a pool of IPv4 addresses"},
		{"", "", &model.Wishes{Pools4: []string{"off"}}, "this one is disabled"},
		{"", "", &model.Wishes{Pools4: []string{"tunnels"}}, "this one is for [Tunnel]"},
		{"", "", &model.Wishes{Addresses: []netip.Addr{addr("10.200.0.7")}}, "want an address in one of the network's pools"},
		{"", "", &model.Wishes{Addresses: []netip.Addr{addr("10.4.0.7")}}, `pool "off" is disabled`},
		{"", "", &model.Wishes{Addresses: []netip.Addr{addr("10.2.0.65")}}, "10.2.0.64/26 is the block"}, // its gateway
		{"", "", &model.Wishes{Addresses: []netip.Addr{addr("10.2.0.63")}}, "10.2.0.0/26 is the block"},
	} {
		got, err := OfWorkload(testPools(), map[string]string{c.node: ""}, map[string]string{c.namespace: ""}, c.wishes, word)
		var names []string
		for _, p := range got {
			names = append(names, p.Name)
		}
		text := strings.Join(names, " ")
		if err != nil {
			text = err.Error()
		}
		if err == nil && text != c.want || !strings.Contains(text, c.want) {
			t.Errorf("node %q, namespace %q, %+v: %s: want %s", c.node, c.namespace, c.wishes, text, c.want)
		}
	}
}

func TestFirstBlocksAreClaimedWhereWorkloadsWouldWait(t *testing.T) {
	pools := testPools()
	one := model.Pool{Name: "flannel", CIDR: netip.MustParsePrefix("10.244.0.0/16"), BlockSize: 24}
	for _, c := range []struct {
		pools []model.Pool
		want  string
	}{
		{pools[1:3], "[general]"},
		{pools[1:2], "[dev]"}, // no workload but those of dev can live here, and the node is ready for them
		{pools[3:4], "[manual]"},
		{[]model.Pool{pools[2], pools[5], pools[6]}, "[general six]"},
		{[]model.Pool{one, pools[2]}, "[flannel]"},
	} {
		if got := fmt.Sprint(Eager(c.pools)); got != c.want {
			t.Errorf("of %v: %s, want %s", c.pools, got, c.want)
		}
	}
}

func TestLimitsOfBlocksAreNamed(t *testing.T) {
	p := testPools()[2]
	own := func(n int) (b []model.Block) {
		for i := range n {
			b = append(b, model.Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, byte(i), 0}), 26), Pool: "general", Node: "n"})
		}
		return b
	}
	for _, c := range []struct {
		own  int
		set  model.IPAM
		want string
	}{
		{0, model.IPAM{}, ""},
		{3, model.DefaultIPAM(), ""},
		{4, model.DefaultIPAM(), `pool "general": this node has 4 blocks of it and claims no more: the pool allows 4 per node`},
		{1, model.IPAM{}, "autoAllocateBlocks is false"},
		{2, model.IPAM{AutoAllocate: true, MaxBlocksPerHost: 2}, "maxBlocksPerHost is 2, and it has 2 IPv4 blocks"},
	} {
		err := MayClaim(&p, own(c.own), c.set)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("with %d blocks and %+v: %v, want %q", c.own, c.set, err, c.want)
		}
	}
}

// TestReservedAddressesAreNeverPicked compares with a look at every address.
func TestReservedAddressesAreNeverPicked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		block := netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.0/27", "fd00::/123"}).Draw(t, "block"))
		first, end, _ := Range(block)
		var all []netip.Addr
		for a := block.Addr(); block.Contains(a); a = a.Next() {
			all = append(all, a)
		}
		var reserved []netip.Prefix
		for range rapid.IntRange(0, 5).Draw(t, "ranges") {
			a := rapid.SampledFrom(all).Draw(t, "at")
			reserved = append(reserved, netip.PrefixFrom(a, rapid.IntRange(block.Bits()-1, a.BitLen()).Draw(t, "bits")).Masked())
		}
		s := NewState(block)
		s.Last = rapid.SampledFrom(all).Draw(t, "last")
		free := 0
		for _, a := range all {
			if a.Less(first) || end.Less(a) || slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(a) }) {
				continue
			}
			free++
			if rapid.Bool().Draw(t, "used") {
				s.Used[a] = "somebody"
			}
		}
		if got := Size(block, reserved...); got != uint64(free) {
			t.Fatalf("size %d of %s without %v: want %d", got, block, reserved, free)
		}
		a, err := s.Pick(dawn, DefaultCoolDown, reserved...)
		if left := free - len(s.Used); (left > 0) != (err == nil) {
			t.Fatalf("picked %s, %v: %d are left", a, err, left)
		}
		if err == nil && (s.Used[a] != "" || !Given(block, a) || slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(a) })) {
			t.Fatalf("picked %s, which is reserved, in use or no workload's", a)
		}
	})
}

func TestHugeReservationCostsNothing(t *testing.T) {
	block := netip.MustParsePrefix("fd00::/64")
	a, err := NewState(block).Pick(dawn, DefaultCoolDown, netip.MustParsePrefix("fd00::/65"))
	if err != nil || a.String() != "fd00::8000:0:0:0" {
		t.Fatalf("picked %s, %v: want the first address of the other half", a, err)
	}
	if _, err := NewState(block).Pick(dawn, DefaultCoolDown, block); err == nil {
		t.Fatal("picked of a block that is reserved as a whole")
	}
}

func TestAnnotationsAreReadAsCalicoSpellsThem(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{AnnotationAddresses, `["10.0.0.7","fd00::7"]`, "[10.0.0.7 fd00::7]"},
		{AnnotationPools4, `["fast","10.0.0.0/16"]`, "[fast 10.0.0.0/16]"},
		{AnnotationMAC, "1C:0C:0A:C0:FF:EE", "1c:0c:0a:c0:ff:ee"},
		{AnnotationFloating, `["192.0.2.7"]`, "[192.0.2.7]"},
		{AnnotationAddresses, `10.0.0.7`, "annotation: cni.projectcalico.org/ipAddrs"},
		{AnnotationAddresses, `["10.0.0.7","10.0.0.8"]`, "at most one of each family"},
		{AnnotationAddresses, `["nonsense"]`, "a JSON list of addresses"},
		{AnnotationMAC, "01:00:00:00:00:01", "a unicast MAC"},
		{annotationNoIPAM, `["10.0.0.7"]`, "want it to be absent"},
	} {
		w := Annotated(map[string]string{c.key: c.value})
		if w == nil {
			t.Errorf("%s %s: nothing", c.key, c.value)
			continue
		}
		if got := fmt.Sprint(w.Addresses, w.Pools4, w.MAC, w.Floating, w.Invalid); !strings.Contains(got, c.want) {
			t.Errorf("%s %s: %s, want %s", c.key, c.value, got, c.want)
		}
	}
	if w := Annotated(map[string]string{"else": "x"}); w != nil {
		t.Errorf("wishes %+v of a pod without any", *w)
	}
}
