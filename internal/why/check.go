package why

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/policy"
)

// Outcome is one difference that a change of objects would make.
type Outcome struct {
	Workload  string         `json:"workload"`
	Direction string         `json:"direction"`
	Peers     []string       `json:"peers"` // workloads and addresses for which it is the same
	Protocol  uint8          `json:"protocol"`
	Ports     string         `json:"ports"`   // "80", "1-79", "any"
	Allowed   bool           `json:"allowed"` // afterwards
	Reason    *policy.Reason `json:"reason,omitempty"`
}

// Checked is the answer of Check.
type Checked struct {
	Outcomes []Outcome `json:"outcomes"`
	// Pairs is how many pairs of a workload's direction and a peer were compared; Left how many workloads were not looked at.
	Pairs int `json:"pairs"`
	Left  int `json:"left"`
}

// Bounds on what one Check looks at.
const (
	checkWorkloads = 500 // that a changed policy selects, or selected
	checkPeers     = 500 // one of each kind: namespace and labels
)

// Check compares what two sets of objects decide: for the workloads that policies of either set select,
// towards every kind of peer, and for the ports at which either changes its mind. nodes as in World.
func Check(before, after World) Checked {
	oldCompiler, _ := before.every()
	newCompiler, nows := after.every()
	old, now := index(oldCompiler.Table()), index(newCompiler.Table())
	out := Checked{Outcomes: []Outcome{}}
	peers := kinds(nows)
	found := map[string]*Outcome{}
	looked := 0
	for _, ep := range nows {
		locals := changedLocals(ep, old.Table, now.Table)
		if len(locals) == 0 {
			continue
		}
		if looked++; looked > checkWorkloads {
			out.Left++
			continue
		}
		for _, local := range locals {
			for _, p := range peers {
				if model4(p.addr) != model4(local.Addr) || p.addr == local.Addr {
					continue
				}
				out.Pairs++
				compare(ep, local, p, old, now, found)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(found)) {
		o := found[key]
		slices.Sort(o.Peers)
		o.Peers = slices.Compact(o.Peers)
		out.Outcomes = append(out.Outcomes, *o)
	}
	return out
}

func model4(a netip.Addr) bool { return a.Is4() }

// every makes a table in which all workloads are local, and lists them.
func (w World) every() (*policy.Compiler, []*policy.Endpoint) {
	c := policy.NewCompiler(policy.Options{Local: func(*policy.Endpoint) bool { return true }})
	var all []*policy.Endpoint
	for key, o := range w.Objects {
		c.Put(key, o)
		if ep, ok := o.(*policy.Endpoint); ok {
			all = append(all, ep)
		}
	}
	c.Compile()
	slices.SortFunc(all, func(a, b *policy.Endpoint) int { return cmp.Compare(a.Key, b.Key) })
	return c, all
}

// changedLocals are the local ends of a workload that some policy selects, before or after.
func changedLocals(ep *policy.Endpoint, old, now *policy.Table) []policy.Local {
	var out []policy.Local
	for _, a := range ep.Addresses {
		for _, h := range []policy.Hook{policy.WorkloadEgress, policy.WorkloadIngress} {
			l := policy.Local{Hook: h, Addr: a}
			_, was := old.Locals[l]
			_, is := now.Locals[l]
			if was || is {
				out = append(out, l)
			}
		}
	}
	return out
}

type peer struct {
	name string
	addr netip.Addr
}

// kinds picks one workload of each namespace and set of labels, and an address outside of each family
// (documentation ranges of RFC 5737 and RFC 3849).
func kinds(all []*policy.Endpoint) []peer {
	out := []peer{{"outside", netip.MustParseAddr("192.0.2.1")}, {"outside", netip.MustParseAddr("2001:db8::1")}}
	seen := map[string]int{}
	for _, ep := range all {
		labels := make([]string, 0, len(ep.Labels))
		for k, v := range ep.Labels {
			labels = append(labels, k+"="+v)
		}
		slices.Sort(labels)
		kind := ep.Namespace + "/" + strings.Join(labels, ",")
		if seen[kind]++; seen[kind] > 2 || len(out) > checkPeers {
			continue // two of a kind, so that each is also a peer of the other
		}
		for _, a := range ep.Addresses {
			out = append(out, peer{ep.Namespace + "/" + ep.Name, a})
		}
	}
	return out
}

// compare looks at every port at which either table changes its mind.
func compare(ep *policy.Endpoint, local policy.Local, p peer, old, now indexed, found map[string]*Outcome) {
	denied := func(t indexed, proto uint8, port uint16) (bool, policy.Decision) {
		d := t.Decide(local, p.addr, proto, sourcePort(proto), port)
		return d.Verdict == policy.VerdictDeny || d.Verdict == policy.VerdictDenyLog, d
	}
	direction := "ingress"
	if local.Hook == policy.WorkloadEgress {
		direction = "egress"
	}
	for _, proto := range []uint8{ProtocolTCP, ProtocolUDP, ProtocolSCTP, ping(local.Addr)} {
		ports := edges(proto, old.rows[old.RowOf(local, p.addr)], now.rows[now.RowOf(local, p.addr)])
		for i, first := range ports {
			last := uint16(65535)
			if i+1 < len(ports) {
				last = ports[i+1] - 1
			}
			was, _ := denied(old, proto, first)
			is, d := denied(now, proto, first)
			if was == is {
				continue
			}
			text := fmt.Sprintf("%d-%d", first, last)
			switch {
			case first == last:
				text = fmt.Sprint(first)
			case first == 0 && last == 65535:
				text = "any"
			}
			o := Outcome{Workload: ep.Namespace + "/" + ep.Name, Direction: direction, Protocol: proto, Ports: text, Allowed: !is, Reason: d.Reason}
			key := fmt.Sprintf("%s %s %03d %s %t", o.Workload, o.Direction, proto, text, is)
			if found[key] == nil {
				found[key] = &o
			}
			found[key].Peers = append(found[key].Peers, p.name)
		}
	}
}

func ping(a netip.Addr) uint8 {
	if a.Is4() {
		return ProtocolICMP
	}
	return ProtocolICMPv6
}

// indexed is a table with its entries by row.
type indexed struct {
	*policy.Table
	rows map[policy.Row][]policy.L4Key
}

func index(t *policy.Table) indexed {
	rows := map[policy.Row][]policy.L4Key{}
	for key := range t.L4 {
		rows[key.Row] = append(rows[key.Row], key)
	}
	return indexed{t, rows}
}

// edges are the ports at which one of two rows may change, from 0, ascending.
func edges(proto uint8, rows ...[]policy.L4Key) []uint16 {
	out := []uint16{0}
	for _, row := range rows {
		for _, key := range row {
			if key.Protocol != proto || key.Dst == policy.AllPorts {
				continue
			}
			out = append(out, key.Dst.First)
			if key.Dst.Last < 65535 {
				out = append(out, key.Dst.Last+1)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
