package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/heddle-net/heddle/internal/model"
)

// HostPort is a port of the node that leads to a workload on it, of one family.
type HostPort struct {
	Protocol string         `json:"protocol"` // one of model.HostPortProtocols
	Address  netip.Addr     `json:"address"`  // of the node; unspecified: every one of the family
	Port     uint16         `json:"port"`
	To       netip.AddrPort `json:"to"`
	// Hide are the sources that are masqueraded on this way: those whose answers would not come back
	// through the node otherwise. They are the node's own loopback, and what the workload takes for its neighbour:
	// the subnet of the bridge, or itself alone where it is routed. Anybody else is seen as who they are.
	Hide []netip.Prefix `json:"hide"`
}

// every reports whether it holds for all addresses of the node.
func (p HostPort) every() bool { return p.Address.IsUnspecified() }

// compareHostPort orders by what is asked for.
func compareHostPort(a, b HostPort) int {
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

// takes reports whether a packet of that protocol to dst is for the port.
func (p HostPort) takes(protocol string, dst netip.AddrPort) bool {
	return p.Protocol == protocol && p.Port == dst.Port() && (p.Address == dst.Addr() || p.every() && p.Address.Is4() == dst.Addr().Is4())
}

// LeadsTo is where a packet of that protocol to an address of the node goes by its host ports; not valid when by none.
func LeadsTo(ports []HostPort, protocol string, dst netip.AddrPort) (to netip.AddrPort) {
	for _, p := range ports {
		if p.takes(protocol, dst) {
			to = p.To
			if !p.every() {
				break // one for a single address goes first
			}
		}
	}
	return to
}

var loopback4 = netip.MustParsePrefix("127.0.0.0/8")

// HostPorts are the ports of the node that lead to its workloads, sorted. Where two workloads ask for the same
// one, as a pod's new sandbox does while the old one is still on record, the newer has it.
func HostPorts(in Input) []HostPort { return newBlocks(&in).hostPorts(in.Workloads) }

func (b *blocks) hostPorts(ws []model.Workload) []HostPort {
	newest := make([]*model.Workload, len(ws))
	for i := range ws {
		newest[i] = &ws[i]
	}
	slices.SortFunc(newest, func(v, w *model.Workload) int {
		return cmp.Or(w.Created.Compare(v.Created), cmp.Compare(v.Key(), w.Key()))
	})
	out := []HostPort{}
	for _, w := range newest {
		for _, p := range w.HostPorts {
			for _, f := range []model.Family{model.IPv4, model.IPv6} {
				if h, ok := b.hostPort(w, p, f); ok {
					out = append(out, h)
				}
			}
		}
	}
	sorted(&out, compareHostPort)
	return out
}

// hostPort is one port for the workload's address of one family, if there is one.
func (b *blocks) hostPort(w *model.Workload, p model.HostPort, f model.Family) (HostPort, bool) {
	i := slices.IndexFunc(w.Addresses, func(a netip.Addr) bool { return model.FamilyOf(a) == f })
	if i < 0 || !p.Of(f) {
		return HostPort{}, false
	}
	a := w.Addresses[i]
	h := HostPort{Protocol: p.Protocol, Address: p.HostIP, Port: p.HostPort, To: netip.AddrPortFrom(a, p.ContainerPort)}
	if !h.Address.IsValid() {
		h.Address = defaultOf(a).Addr()
	}
	near := netip.PrefixFrom(a, a.BitLen())
	if b.attachment(w) == model.AttachBridge {
		near = b.around(a)
	}
	h.Hide = []netip.Prefix{near.Masked()}
	if h.fromLoopback() {
		h.Hide = append(h.Hide, loopback4)
		slices.SortFunc(h.Hide, netip.Prefix.Compare)
	}
	return h, true
}

// fromLoopback reports whether the node reaches the port by its loopback addresses. IPv6's ::1 never leaves a
// node, whatever is done to it.
func (p HostPort) fromLoopback() bool {
	return p.Address == netip.IPv4Unspecified() || loopback4.Contains(p.Address)
}

// loopbackOut is the setting without which the kernel lets no packet with a loopback address out by the link, nor
// its answer in. What else could come in by it then, chain localnet drops.
func (b *blocks) loopbackOut(w *model.Workload, link string) []Sysctl {
	for _, p := range w.HostPorts {
		if h, ok := b.hostPort(w, p, model.IPv4); ok && h.fromLoopback() {
			return []Sysctl{{"net/ipv4/conf/" + link + "/route_localnet", "1"}}
		}
	}
	return nil
}

// hostPortSets are the sets and maps of host ports: what is asked for of every address of the node, and of single
// ones, and who is masqueraded on the way.
func (f Filter) hostPortSets() []Set {
	names := map[string]*Set{}
	var out []Set
	for _, family := range []string{"4", "6"} {
		out = append(out, Set{Name: "hostports" + family}, Set{Name: "hostports_at" + family}, Set{Name: "hide" + family})
	}
	for i := range out {
		names[out[i].Name] = &out[i]
	}
	for _, p := range f.HostPorts {
		family, name := "4", "hostports"
		if p.To.Addr().Is6() {
			family = "6"
		}
		if !p.every() {
			name = "hostports_at"
		}
		for _, s := range []*Set{names[name+family], names["hide"+family]} {
			s.HostPorts = append(s.HostPorts, p)
		}
	}
	for _, family := range []string{"4", "6"} {
		s := names["hide"+family]
		s.HostPorts = hidden(s.HostPorts)
	}
	return out
}

// hidden drops what has the same elements in a hide set as another, or part of them: sets take no overlapping
// intervals, and the set does not tell protocols and the node's addresses apart.
func hidden(ps []HostPort) []HostPort {
	type key struct {
		to   netip.AddrPort
		port uint16
	}
	at := map[key]int{}
	var out []HostPort
	for _, p := range ps {
		k := key{p.To, p.Port}
		i, ok := at[k]
		if !ok {
			at[k] = len(out)
			out = append(out, HostPort{Port: p.Port, To: p.To, Hide: slices.Clone(p.Hide)})
			continue
		}
		hide := append(out[i].Hide, p.Hide...)
		slices.SortFunc(hide, netip.Prefix.Compare)
		out[i].Hide = slices.Compact(hide)
	}
	return out
}

// words is the element in nft's words, in the set of that name.
func (p HostPort) words(set string) []string {
	to := fmt.Sprintf("%s . %d", p.To.Addr(), p.To.Port())
	switch set[:len(set)-1] {
	case "hostports":
		return []string{fmt.Sprintf("%s . %d : %s", p.Protocol, p.Port, to)}
	case "hostports_at":
		return []string{fmt.Sprintf("%s . %s . %d : %s", p.Address, p.Protocol, p.Port, to)}
	}
	var out []string
	for _, s := range p.Hide {
		out = append(out, fmt.Sprintf("%s . %s . %d", s, to, p.Port))
	}
	return out
}
