package plan

import (
	"crypto/sha256"
	"net"
	"net/netip"
	"strings"
	"unicode"

	"github.com/heddle-net/heddle/internal/model"
)

// Pod is what one workload's own namespace should hold, and the host end of its veth: made once when
// the workload is added, compared by CHECK.
type Pod struct {
	Key       string         `json:"key"`    // model.Workload.Key
	IfName    string         `json:"ifName"` // inside
	MAC       string         `json:"mac"`    // inside
	MTU       int            `json:"mtu"`
	Host      Link           `json:"host"`      // the host end, as in the node plan
	Addresses []netip.Prefix `json:"addresses"` // inside; the length is the block's (bridge) or 32/128 (routed)
	Gateways  []netip.Addr   `json:"gateways"`  // at most one of each family, order as Addresses
	// Routes inside, in the order in which they can be added; Link is IfName.
	Routes []Route `json:"routes"`
	// Neighbors inside: the routed style's gateway, permanent. The bridge style has none.
	Neighbors []Neighbor `json:"neighbors"`
	// HostAddresses are addresses of the host end (routed style with IPv6: fe80::1/64), as in the node
	// plan. Nothing waits for them: the workload has a permanent neighbour for its gateway.
	HostAddresses []netip.Prefix `json:"hostAddresses,omitempty"`
	// HostRoutes are the node's own routes to the workload (routed style), as in the node plan.
	HostRoutes []Route `json:"hostRoutes"`
	// HostSysctls are settings of the host end (routed style: proxy_arp, forwarding …) or its bridge, as in the
	// node plan.
	HostSysctls []Sysctl `json:"hostSysctls"`
	// HostQueue and Queue hold what leaves by the host end and by the inner end to a rate; nil: to none.
	HostQueue *Queue `json:"hostQueue,omitempty"`
	Queue     *Queue `json:"queue,omitempty"`
}

// PodOf makes the plan of one workload. It is pure, like Build, and Build holds the same host part.
// mtu is in bytes and counts where the workload has none of its own yet. An address outside the
// node's blocks is taken to be in a block of its pool's block size; one outside every pool stands alone.
func PodOf(in Input, w model.Workload, mtu int) Pod {
	return newBlocks(&in).pod(&w, mtu)
}

func (b *blocks) pod(w *model.Workload, mtu int) Pod {
	if w.MTU > 0 {
		mtu = w.MTU
	}
	p := Pod{Key: w.Key(), IfName: w.IfName, MAC: w.MAC, MTU: mtu}
	if p.MAC == "" {
		p.MAC = deriveMAC("workload", w.Key())
	}
	p.Host = Link{Name: w.HostLink, Kind: LinkVeth, Alias: alias(w.String()), MTU: mtu}
	if p.Host.Name == "" {
		p.Host.Name = model.HostLinkName(w.ContainerID, w.IfName)
	}
	link := p.Host.Name
	if b.attachment(w) == model.AttachRouted {
		b.routed(&p, w)
	} else {
		b.bridged(&p, w)
		link = b.bridge
	}
	p.HostSysctls = append(p.HostSysctls, b.loopbackOut(w, link)...)
	p.queues(w.Bandwidth)
	return p
}

// bridged is Flannel's way: a port of the bridge that holds the gateway address.
func (b *blocks) bridged(p *Pod, w *model.Workload) {
	p.Host.Master, p.Host.Hairpin = b.bridge, true
	for _, a := range w.Addresses {
		block := b.around(a)
		p.Addresses = append(p.Addresses, netip.PrefixFrom(a, block.Bits()))
		gw := gateway(block)
		if block.IsSingleIP() || hasFamily(p.Gateways, a) {
			continue
		}
		p.Gateways = append(p.Gateways, gw)
		p.Routes = append(p.Routes, Route{Dst: defaultOf(a), Via: gw, Link: w.IfName})
	}
}

// routed is Calico's way: alone behind the veth, with a gateway that exists only as a neighbour.
func (b *blocks) routed(p *Pod, w *model.Workload) {
	p.Host.MAC = model.RoutedMAC
	host := p.Host.Name
	for _, a := range w.Addresses {
		own := netip.PrefixFrom(a, a.BitLen())
		p.Addresses = append(p.Addresses, own)
		p.HostRoutes = append(p.HostRoutes, Route{Dst: own, Link: host})
		gw := model.RoutedGateway4
		if a.Is6() {
			gw = model.RoutedGateway6
		}
		if hasFamily(p.Gateways, a) {
			continue
		}
		p.Gateways = append(p.Gateways, gw)
		if a.Is4() {
			p.Routes = append(p.Routes, Route{Dst: netip.PrefixFrom(gw, 32), Link: w.IfName})
			// Strict rp_filter: a packet whose source is not this workload's never leaves its veth.
			p.HostSysctls = append(p.HostSysctls,
				Sysctl{"net/ipv4/conf/" + host + "/forwarding", "1"},
				Sysctl{"net/ipv4/conf/" + host + "/proxy_arp", "1"},
				Sysctl{"net/ipv4/conf/" + host + "/rp_filter", "1"})
		} else {
			p.HostAddresses = append(p.HostAddresses, netip.PrefixFrom(gw, 64))
			p.HostSysctls = append(p.HostSysctls,
				Sysctl{"net/ipv6/conf/" + host + "/accept_ra", "0"},
				Sysctl{"net/ipv6/conf/" + host + "/forwarding", "1"})
		}
		p.Routes = append(p.Routes, Route{Dst: defaultOf(a), Via: gw, Link: w.IfName})
		p.Neighbors = append(p.Neighbors, Neighbor{Link: w.IfName, IP: gw, MAC: model.RoutedMAC})
	}
}

func hasFamily(as []netip.Addr, a netip.Addr) bool {
	for _, b := range as {
		if b.Is4() == a.Is4() {
			return true
		}
	}
	return false
}

func defaultOf(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// gateway is the block's first address after its base: 10.244.0.1, fd00::1.
func gateway(block netip.Prefix) netip.Addr { return block.Masked().Addr().Next() }

// alias marks a link as ours and says what it is for. Names come from outside: what cannot be printed
// on one line is replaced, and the kernel takes at most 255 bytes (IFALIASZ is 256 with its end).
func alias(what string) string {
	s := AliasPrefix + printable(what)
	for len(s) > 255 {
		r := []rune(s)
		s = string(r[:len(r)-1])
	}
	return s
}

// printable replaces what does not belong on one line of text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// deriveMAC makes a locally administered unicast MAC that depends on the parts only.
func deriveMAC(parts ...string) string {
	h := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	m := net.HardwareAddr(h[:6])
	m[0] = m[0]&^0x01 | 0x02
	return m.String()
}
