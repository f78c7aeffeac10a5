package plan_test

import (
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
	"github.com/heddle-net/heddle/internal/plan"
)

// TestNodeSpeaksBGPWhileAnybodyCountsOnIt: a pool that is not routed by BGP any more makes nobody silent to whom
// others still send.
func TestNodeSpeaksBGPWhileAnybodyCountsOnIt(t *testing.T) {
	for _, c := range []struct {
		name   string
		wanted bool
		sends  []model.Path // of a peer
		want   bool
	}{
		{"nobody asked for it", false, []model.Path{model.PathVXLAN}, false},
		{"somebody did", true, nil, true},
		{"a peer still sends where it says", false, []model.Path{model.PathBGP, model.PathVXLAN}, true},
	} {
		in := cluster(3, model.PathVXLAN, model.EncapAlways)
		in.BGP = peering.Config{Settings: peering.Settings{ASN: peering.DefaultASN, Mesh: true, ListenPort: peering.DefaultPort}, Wanted: c.wanted}
		in.Cluster.Nodes[2].Sends = c.sends
		p, err := plan.Build(in)
		if err != nil || (p.BGP != nil) != c.want {
			t.Errorf("%s: speaks %v, want %v: %v", c.name, p.BGP != nil, c.want, err)
		}
	}
}

// TestDeviceOfAnotherAddressIsNotKept: what a device was made for counts, not its name.
func TestDeviceOfAnotherAddressIsNotKept(t *testing.T) {
	in := cluster(3, model.PathIPIP, model.EncapAlways)
	before, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Keep, in.Published = before.Links, plan.Accepts(&before)
	in.Cluster.Pools[0].Path, in.Cluster.Pools[0].Encap = model.PathDirect, model.EncapNever
	in.Cluster.Nodes[0].Address4 = netip.MustParseAddr("172.16.0.99")
	in.Host.Uplinks[0].Prefix = netip.MustParsePrefix("172.16.0.99/16")
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range p.Links {
		if l.Kind == plan.LinkIPIP {
			t.Errorf("kept: %+v", l)
		}
	}
}

// BenchmarkBuildLearned5000 is a plan of a node that BGP told of 5,000 blocks.
func BenchmarkBuildLearned5000(b *testing.B) {
	in := cluster(2, model.PathBGP, model.EncapNever)
	via := netip.MustParseAddr("172.16.0.2")
	for i := range 5000 {
		in.Learned = append(in.Learned, peering.Route{
			Prefix:  netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(100 + i/1024), byte(i / 4), byte(i % 4 * 64)}), 26),
			NextHop: via, Neighbor: via, Best: true, Reason: "the only one",
		})
	}
	for b.Loop() {
		if p, err := plan.Build(in); err != nil || len(p.Routes) < 5000 {
			b.Fatalf("%d routes, %v", len(p.Routes), err)
		}
	}
}
