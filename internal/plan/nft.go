package plan

import (
	_ "embed" // the skeleton
	"net/netip"
	"strconv"
	"strings"
)

// Skeleton is the nftables table in nft's own words, without elements: what every node has, whatever its
// pools. All that changes are the elements of its sets, which Filter holds:
//
//   - pods4, pods6: Filter.Pods; masq4, masq6: Filter.Masquerade; local4, local6: Filter.Local;
//   - nothing stands at the forward hook: an accept there cannot undo another table's drop, and would cost
//     every packet. Where somebody's FORWARD chain drops, the nft driver adds its accepts in that chain;
//   - tunnels: Filter.Tunnels. What a pod sends to a node's tunnel, this one's or another's, is dropped; between
//     pods the port is as good as any. In chains for NAT this costs only the first packet of a flow;
//   - protocols: Filter.Protocols, the same for IP in IP, which has no ports; nodes4, nodes6: Filter.Nodes, the only
//     ones from whom a node unwraps it;
//   - postrouting masquerades pods that talk to the outside (never to multicast), and outsiders that this
//     node forwards to a pod of another node, so that the replies come back through it. The meaning is
//     that of Flannel's rules for --ip-masq, of which a pool without Masquerade has none;
//   - hostports4, hostports6, hostports_at4, hostports_at6: Filter.HostPorts, for all addresses of the node and
//     for single ones, which go first; hide4, hide6: who is masqueraded on that way. Only what is for an address of
//     the node's own is looked up: what merely passes through keeps its way (CVE-2025-67499). The chains come after
//     those of kube-proxy, at priority dstnat, so that a Service's address stays the Service's;
//   - bridges: Filter.Bridges. A host port of 127.0.0.1 makes the kernel take packets with loopback addresses from
//     workloads' links; localnet takes only answers to what the node itself began. The veths of the routed style are
//     told by their link group.
//
//go:embed skeleton.nft
var Skeleton string

// Set is one set or map of the table with its elements, sorted: prefixes, ports, protocols, links or host ports.
type Set struct {
	Name      string
	Elements  []netip.Prefix
	Ports     []uint16
	Protocols []uint8
	Links     []string
	HostPorts []HostPort
}

// words are the elements in nft's words.
func (s Set) words() []string {
	var out []string
	for _, e := range s.Elements {
		out = append(out, e.String())
	}
	for _, p := range s.Ports {
		out = append(out, strconv.Itoa(int(p)))
	}
	for _, p := range s.Protocols {
		out = append(out, strconv.Itoa(int(p)))
	}
	for _, l := range s.Links {
		out = append(out, strconv.Quote(l))
	}
	for _, p := range s.HostPorts {
		out = append(out, p.words(s.Name)...)
	}
	return out
}

// Sets are all sets of the table, in the skeleton's order; those without elements are there too.
func (f Filter) Sets() []Set {
	out := bothFamilies("pods", f.Pods)
	out = append(out, bothFamilies("masq", f.Masquerade)...)
	out = append(out, bothFamilies("local", f.Local)...)
	out = append(out, Set{Name: "tunnels", Ports: f.Tunnels}, Set{Name: "protocols", Protocols: f.Protocols})
	out = append(out, bothFamilies("nodes", f.Nodes)...)
	out = append(out, Set{Name: "bridges", Links: f.Bridges})
	return append(out, f.hostPortSets()...)
}

// bothFamilies are the two sets of a name's prefixes.
func bothFamilies(name string, elems []netip.Prefix) []Set {
	v4, v6 := Set{Name: name + "4"}, Set{Name: name + "6"}
	for _, e := range elems {
		if e.Addr().Is4() {
			v4.Elements = append(v4.Elements, e)
		} else {
			v6.Elements = append(v6.Elements, e)
		}
	}
	return []Set{v4, v6}
}

// NFT is the filter as text for `nft -f -`, which loads it as one transaction in place of whatever the
// table held.
func (f Filter) NFT() string {
	var b strings.Builder
	b.WriteString("table inet " + Table + "\ndelete table inet " + Table + "\n")
	b.WriteString(Skeleton)
	for _, s := range f.Sets() {
		words := s.words()
		if len(words) == 0 {
			continue
		}
		b.WriteString("add element inet " + Table + " " + s.Name + " { " + strings.Join(words, ", ") + " }\n")
	}
	return b.String()
}
