package oracle

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// Probe is a packet that is asked about: at a local workload in one direction, or at a host endpoint.
type Probe struct {
	Hook      Hook       `json:"hook,omitempty"` // of a host endpoint, which Link names
	Link      string     `json:"link,omitempty"`
	Direction Direction  `json:"direction,omitempty"`
	Local     netip.Addr `json:"local,omitzero"`
	Remote    netip.Addr `json:"remote"` // of Local's family
	Protocol  uint8      `json:"protocol"`
	Sport     uint16     `json:"sport"`
	Dport     uint16     `json:"dport"` // for ICMP: type<<8|code
}

func (p Probe) String() string {
	if p.Hook != "" {
		return fmt.Sprintf("%s of %s: protocol %d, other end %s, source port %d, destination port %d (0x%[6]x)", p.Hook, p.Link, p.Protocol, p.Remote, p.Sport, p.Dport)
	}
	from, to := p.Local, p.Remote
	if p.Direction == Ingress {
		from, to = to, from
	}
	return fmt.Sprintf("%s of %s: protocol %d from %s port %d to %s port %d (0x%[7]x)", p.Direction, p.Local, p.Protocol, from, p.Sport, to, p.Dport)
}

// Questions are what can be asked about a world.
type Questions struct {
	Locals  []netip.Addr // of workloads on the world's node
	Hosts   []string     // interfaces of host endpoints on the world's node
	Remotes []netip.Addr // workloads, nodes, both sides of every network's edges, and what is outside
	Ports   []uint16     // both sides of every port that is named anywhere
	ICMP    []uint16     // type<<8|code, likewise
}

// Protocols are what is asked about: those with rules of their own, and others.
var Protocols = []uint8{6, 6, 17, 17, 132, 1, 58, 136, 47, 33, 255, 0}

// Questions finds what is worth asking: everything that is written down somewhere, and its neighbours.
func (w *World) Questions() *Questions {
	addrs, ports := map[netip.Addr]bool{}, map[uint16]bool{0: true, 1: true, 65535: true, 40000: true}
	icmp := map[uint16]bool{0: true, 8 << 8: true, 128 << 8: true, 255<<8 | 255: true}
	q := &Questions{}
	for _, a := range outside {
		addrs[a] = true
	}
	text, err := json.Marshal(w)
	if err != nil {
		panic(err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		panic(err)
	}
	each := func(leaf any) {
		switch leaf := leaf.(type) {
		case string:
			if n, err := netip.ParsePrefix(leaf); err == nil {
				n = n.Masked()
				last := lastOf(n)
				for _, a := range []netip.Addr{n.Addr().Prev(), n.Addr(), last, last.Next()} {
					if a.IsValid() {
						addrs[a] = true
					}
				}
			} else if a, err := netip.ParseAddr(leaf); err == nil {
				addrs[a] = true
			} else if first, last, name := portText(leaf); name == "" {
				for _, p := range []uint16{first, last} {
					ports[p-1], ports[p], ports[p+1] = true, true, true
				}
			}
		case float64:
			if leaf >= 0 && leaf <= 65535 && leaf == float64(uint16(leaf)) {
				p := uint16(leaf)
				ports[p-1], ports[p], ports[p+1] = true, true, true
				if p <= 255 {
					for _, code := range []uint16{0, 1, 3, 255} {
						icmp[p<<8|code] = true
					}
				}
			}
		}
	}
	walkLeaves(tree, each)
	owners := map[netip.Addr]int{}
	for i := range w.Endpoints {
		for _, a := range w.Endpoints[i].Addresses {
			owners[a]++
		}
	}
	for i := range w.Endpoints {
		for _, a := range w.Endpoints[i].Addresses {
			if w.Endpoints[i].Node == w.Node && owners[a] == 1 { // nobody says what two with one address mean
				q.Locals = append(q.Locals, a)
			}
		}
	}
	q.Hosts = w.clearHosts()
	q.Remotes = slices.SortedFunc(maps.Keys(addrs), netip.Addr.Compare)
	q.Ports, q.ICMP = slices.Sorted(maps.Keys(ports)), slices.Sorted(maps.Keys(icmp))
	return q
}

func walkLeaves(tree any, each func(any)) {
	switch tree := tree.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(tree)) {
			walkLeaves(tree[k], each)
		}
	case []any:
		for _, v := range tree {
			walkLeaves(v, each)
		}
	default:
		each(tree)
	}
}

func lastOf(n netip.Prefix) netip.Addr {
	b := n.Addr().AsSlice()
	for i := range b {
		for bit := range 8 {
			if i*8+bit >= n.Bits() {
				b[i] |= 0x80 >> bit
			}
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Probes asks so many times about every pair of a local workload and a remote address of its family, in
// both directions: about a random protocol and random ports of those that matter.
func (q *Questions) Probes(seed uint64, perPair int) []Probe {
	r := rand.New(rand.NewPCG(seed, 105))
	var all []Probe
	for _, local := range q.Locals {
		for _, remote := range q.Remotes {
			if local.Is4() != remote.Is4() {
				continue
			}
			for _, d := range []Direction{Ingress, Egress} {
				for range perPair {
					all = append(all, q.random(r, d, local, remote))
				}
			}
		}
	}
	for _, link := range q.Hosts {
		for _, remote := range q.Remotes {
			for range perPair {
				p := q.random(r, 0, netip.Addr{}, remote)
				p.Hook, p.Link = hostHooks[r.IntN(len(hostHooks))], link
				all = append(all, p)
			}
		}
	}
	return all
}

func (q *Questions) random(r *rand.Rand, d Direction, local, remote netip.Addr) Probe {
	p := Probe{Direction: d, Local: local, Remote: remote, Protocol: Protocols[r.IntN(len(Protocols))]}
	switch p.Protocol {
	case 1, 58:
		p.Dport = q.ICMP[r.IntN(len(q.ICMP))]
	case 6, 17, 132, 33, 136:
		p.Sport, p.Dport = 40000, q.Ports[r.IntN(len(q.Ports))]
		if r.IntN(4) == 0 {
			p.Sport = q.Ports[r.IntN(len(q.Ports))]
		}
	}
	return p
}

// Ask judges a probe; found is false when its local end is not there.
func (o *Oracle) Ask(p Probe) (now, staged Verdict, found bool) {
	if p.Hook != "" {
		return o.JudgeHost(p.Hook, p.Link, p.Remote, p.Protocol, p.Sport, p.Dport)
	}
	now, staged = o.Judge(p.Direction, p.Local, p.Remote, p.Protocol, p.Sport, p.Dport)
	return now, staged, now.Why != NoWorkload
}
