package ipam

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

func books() Books {
	block := func(cidr, pool, node string) model.Block {
		return model.Block{CIDR: netip.MustParsePrefix(cidr), Pool: pool, Node: node}
	}
	endpoint := func(node, link, addr string) model.Endpoint {
		return model.Endpoint{Node: node, Link: link, Addresses: []netip.Addr{netip.MustParseAddr(addr)}}
	}
	w := model.Workload{ContainerID: "c1", IfName: "eth0", HostLink: "hd1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Created: dawn}
	return Books{
		Pools:     []model.Pool{pool("10.0.0.0/24", 26)},
		Nodes:     []model.Node{{Name: "n1"}, {Name: "n2"}},
		Blocks:    []model.Block{block("10.0.0.0/26", "a", "n1"), block("10.0.0.64/26", "a", "n2")},
		Endpoints: []model.Endpoint{endpoint("n1", "hd1", "10.0.0.2"), endpoint("n2", "hd2", "10.0.0.66")},
		Local:     &Local{Node: "n1", Blocks: []model.Block{block("10.0.0.0/26", "a", "n1")}, Workloads: []model.Workload{w}},
	}
}

func TestBooksThatFitHaveNoFinding(t *testing.T) {
	if found := Check(books()); len(found) > 0 {
		t.Errorf("found %+v", found)
	}
}

func TestLentAddressesFit(t *testing.T) {
	b := books()
	b.Blocks = append(b.Blocks,
		model.Block{CIDR: netip.MustParsePrefix("10.0.0.9/32"), Pool: "a", Node: "n2", Lender: "n1"},
		model.Block{CIDR: netip.MustParsePrefix("10.0.0.10/32"), Pool: "a", Node: "n1", For: "n2"})
	b.Endpoints = append(b.Endpoints, model.Endpoint{Node: "n2", Link: "hd3", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}})
	if found := Check(b); len(found) > 0 {
		t.Errorf("found %+v", found)
	}
	b.Blocks[2].Lender = "n3"
	if found := Check(b); len(found) != 1 || found[0].What != FindDouble {
		t.Errorf("found %+v, want an address that its owner has not lent", found)
	}
}

func TestCheckNamesWhatDoesNotFit(t *testing.T) {
	for name, c := range map[string]struct {
		spoil    func(*Books)
		want     string
		released string // key of what can be released
	}{
		"a node went with its block":    {func(b *Books) { b.Nodes = b.Nodes[:1]; b.Endpoints = b.Endpoints[:1] }, `orphan: block 10.0.0.64/26: its node "n2" is not in the network`, "10.0.0.64-26"},
		"a workload's entry stayed":     {func(b *Books) { b.Nodes = b.Nodes[:1]; b.Blocks = b.Blocks[:1] }, `orphan: endpoint hd2: its node "n2" is not in the network`, "n2:hd2"},
		"a workload lost its interface": {func(b *Books) { b.Local.Unplugged = map[string]time.Time{"c1/eth0": dawn} }, "leak: workload c1: it holds [10.0.0.2] since 2026-01-01", "c1/eth0"},
		"two have one address":          {func(b *Books) { b.Endpoints[1].Addresses = b.Endpoints[0].Addresses }, "claimed twice: address 10.0.0.2: hd1 on node \"n1\" and hd2", ""},
		"an address of another's block": {func(b *Books) { b.Endpoints[1].Addresses[0] = netip.MustParseAddr("10.0.0.9") }, `claimed twice: address 10.0.0.9: hd2 on node "n2" has it, and block 10.0.0.0/26 is node "n1"'s`, ""},
		"an address of no block":        {func(b *Books) { b.Endpoints[1].Addresses[0] = netip.MustParseAddr("10.0.0.200") }, "stray: address 10.0.0.200", ""},
		"blocks that overlap":           {func(b *Books) { b.Blocks[1].CIDR = netip.MustParsePrefix("10.0.0.32/27") }, "claimed twice: block 10.0.0.32/27", ""},
		"pools that overlap": {func(b *Books) {
			b.Pools = append(b.Pools, model.Pool{Name: "b", CIDR: netip.MustParsePrefix("10.0.0.0/16")})
		}, `pools overlap: pool "b"`, ""},
		"a block of no pool":                      {func(b *Books) { b.Blocks[1].Pool = "gone" }, `stray: block 10.0.0.64/26: of node "n2": its pool "gone" does not exist`, ""},
		"a stolen block":                          {func(b *Books) { b.Blocks[0].Node = "n2" }, `claimed twice: block 10.0.0.0/26: node "n1" uses it, and the store has it as node "n2"'s`, ""},
		"a block that is not filed":               {func(b *Books) { b.Blocks = b.Blocks[1:] }, `not in the store: block 10.0.0.0/26`, ""},
		"a block of which its node knows nothing": {func(b *Books) { b.Local.Blocks = nil }, `stray: block 10.0.0.0/26: the store has it as node "n1"'s, which does not use it`, ""},
		"a workload that nobody was told of":      {func(b *Books) { b.Endpoints = b.Endpoints[1:] }, "not published: workload c1", ""},
	} {
		b := books()
		c.spoil(&b)
		found := Check(b)
		var got []string
		hit := false
		for _, f := range found {
			line := f.What + ": " + f.Subject + ": " + f.Detail
			got = append(got, line)
			hit = hit || strings.Contains(line, c.want) && f.Release.Key == c.released
		}
		if !hit {
			t.Errorf("%s: found\n%s\nwant %s, to release %q", name, strings.Join(got, "\n"), c.want, c.released)
		}
	}
}

func TestOnlyWhatTwoLooksFindIsReleased(t *testing.T) {
	b := books()
	b.Local.Unplugged = map[string]time.Time{"c1/eth0": dawn}
	b.Blocks[1].Pool = "gone" // a finding that cannot be released
	first := Check(b)
	if both := Again(first, Check(b)); len(both) != 1 || both[0].Release.Key != "c1/eth0" {
		t.Fatalf("twice the same: %+v, want the leak alone", both)
	}
	b.Local.Unplugged = map[string]time.Time{"c1/eth0": dawn.Add(time.Second)} // the same container, added again
	if both := Again(first, Check(b)); len(both) != 0 {
		t.Fatalf("another one: %+v, want nothing", both)
	}
	b.Local.Unplugged = nil
	if both := Again(first, Check(b)); len(both) != 0 {
		t.Fatalf("gone at the second look: %+v, want nothing", both)
	}
}
