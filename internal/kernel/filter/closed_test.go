package filter

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/policy"
)

// denying are tables in which all that is allowed for a workload is allowed by default, and something is
// denied by one entry of one map: without it the packet would pass.
func denying() map[string]*policy.Table {
	none := func() *policy.Table {
		return &policy.Table{
			Identities: map[netip.Addr]policy.ID{addr(a4): 1, addr(a6): 1, addr(b4): 2, addr(b6): 2},
			Nets:       map[policy.AddrRange]policy.ID{prefix("0.0.0.0/5"): 9, prefix("::/16"): 9},
			Locals:     map[policy.Local]policy.Row{in(b4): 1, in(b6): 1, out(a4): 1, out(a6): 1},
			Rows:       map[policy.RowKey]policy.Row{},
			L4:         map[policy.L4Key]policy.Decision{},
			Base:       map[policy.Row]policy.Decision{1: allow, 2: deny, 3: allow},
			Sources:    sources(),
		}
	}
	by := map[string]*policy.Table{}
	for _, dir := range []string{"in", "out"} {
		for _, how := range []string{"identity", "net", "rest"} {
			t := none()
			for _, l := range map[string][]policy.Local{"in": {in(b4), in(b6)}, "out": {out(a4), out(a6)}}[dir] {
				id := policy.ID(1)
				if dir == "out" {
					id = 2
				}
				if how == "net" {
					t.Identities = map[netip.Addr]policy.ID{}
					t.Nets[prefix("10.244.0.0/16")], t.Nets[prefix("fd00:244::/32")] = id, id
				}
				row := policy.Row(2)
				if how == "rest" {
					row = 3
				}
				t.Rows[policy.RowKey{Local: l, ID: id}] = row
			}
			t.L4[policy.L4Key{Row: 3, Protocol: 6, Src: policy.AllPorts, Dst: port(80)}] = deny
			t.L4[policy.L4Key{Row: 3, Protocol: 17, Src: policy.AllPorts, Dst: ports(5000, 5999)}] = deny
			t.L4[policy.L4Key{Row: 3, Protocol: 1, Src: policy.AllPorts, Dst: policy.AllPorts}] = deny
			t.L4[policy.L4Key{Row: 3, Protocol: 58, Src: policy.AllPorts, Dst: policy.AllPorts}] = deny
			by[dir+", "+how] = t
		}
	}
	return by
}

// TestFlushedMapsDeny takes away the elements of every map, one map at a time, as somebody by hand can on a
// kernel where the tables belong to nobody: what was denied stays denied.
func TestFlushedMapsDeny(t *testing.T) {
	for name, table := range denying() {
		for fam, to := range map[string]string{"4": b4, "6": b6} {
			if fam == "6" && !strings.HasSuffix(name, "identity") {
				continue // the maps of ports and rows are those of both families
			}
			t.Run(name+", IPv"+fam, func(t *testing.T) {
				t.Parallel() // most of the time it waits for what does not come
				testFlushed(t, table, fam, to, strings.HasSuffix(name, "rest"))
			})
		}
	}
}

func testFlushed(t *testing.T, table *policy.Table, fam, to string, rest bool) {
	w := newWorld(t, false)
	d := w.node.driver(false)
	probes := []string{"udp 5001"}
	if rest {
		probes = []string{"udp 5001", "tcp 80", "icmp"}
		if apply(t, d, table); !probed(t, true, w.a, w.b, to, "udp 80") {
			t.Error("what is allowed does not get through")
		}
	}
	for _, set := range append([]*setSpec{{name: "nothing"}}, inetTable.sets...) {
		other := strings.Trim(set.name, "46") != set.name && !strings.HasSuffix(set.name, fam)
		if other || set.name == "inside" || slices.ContainsFunc(hooks, func(h hook) bool { return strings.HasSuffix(set.name, h.Name) }) {
			continue // host endpoints are not what is looked at here
		}
		apply(t, d, table)
		if inetSets[set.name] != nil {
			w.node.run("nft", "flush", set.kind(), "inet", TableName, set.name)
		}
		for _, what := range probes {
			w.forget()
			if reached(t, w.a, w.b, to, what) {
				t.Errorf("%s passes without %s", what, set.name)
			}
		}
	}
}

func (s *setSpec) kind() string {
	if s.data {
		return "map"
	}
	return "set"
}
