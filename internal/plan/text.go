package plan

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// The words of each noun, as `ip`, `bridge` and `sysctl` spell them: Shell quotes them into commands,
// Diff joins them into lines.

func linkWords(l Link) []string {
	w := []string{"name", l.Name}
	if l.MAC != "" {
		w = append(w, "address", l.MAC)
	}
	if l.MTU > 0 {
		w = append(w, "mtu", fmt.Sprint(l.MTU))
	}
	if l.IPIP != nil && l.IPIP.Local.Is6() {
		return append(w, "type", "ip6tnl", "external", "mode", "ip6ip6")
	}
	w = append(w, "type", string(l.Kind))
	if l.NFCall {
		w = append(w, "nf_call_iptables", "1", "nf_call_ip6tables", "1")
	}
	v := l.VXLAN
	if v == nil {
		return w
	}
	w = append(w, "id", fmt.Sprint(v.VNI), "local", v.Local.String())
	if v.Uplink != "" {
		w = append(w, "dev", v.Uplink)
	}
	w = append(w, "dstport", fmt.Sprint(v.Port))
	if v.Learning {
		w = append(w, "learning")
	} else {
		w = append(w, "nolearning")
	}
	if v.GBP {
		w = append(w, "gbp")
	}
	return w
}

func addressWords(a netip.Prefix, link string) []string {
	w := []string{a.String(), "dev", link}
	if a.Addr().Is6() {
		w = append(w, "nodad") // nobody else can have it, and packets need not wait
	}
	return w
}

func routeWords(r Route) []string {
	var w []string
	if r.Type != RouteUnicast {
		w = append(w, string(r.Type))
	}
	if r.Dst.Bits() == 0 {
		w = append(w, "default")
	} else {
		w = append(w, r.Dst.String())
	}
	if r.Encap.IsValid() {
		w = append(w, "encap", "ip6", "dst", r.Encap.String())
	}
	w = append(w, hopWords(r.Via, r.Link, r.OnLink)...)
	if r.MTU > 0 {
		w = append(w, "mtu", fmt.Sprint(r.MTU))
	}
	if r.Type == RouteUnicast && !r.Via.IsValid() && len(r.NextHops) == 0 && r.Dst.Addr().Is4() {
		w = append(w, "scope", "link")
	}
	return w
}

func hopWords(via netip.Addr, link string, onLink bool) []string {
	var w []string
	if via.IsValid() {
		w = append(w, "via", via.String())
	}
	if link != "" {
		w = append(w, "dev", link)
	}
	if onLink {
		w = append(w, "onlink")
	}
	return w
}

// protocolWords are the mark of a route, and what has to stand after it.
func protocolWords(r Route) []string {
	w := []string{"proto", fmt.Sprint(r.protocol())}
	for _, h := range r.NextHops {
		w = append(append(w, "nexthop"), hopWords(h.Via, h.Link, h.OnLink)...)
	}
	return w
}

// routeLine is a route as a line of a difference; one that BGP told of says so.
func routeLine(r Route) string {
	w := routeWords(r)
	if r.Learned {
		w = append(w, protocolWords(r)...)
	}
	return strings.Join(w, " ")
}

func neighborWords(n Neighbor) []string {
	return []string{n.IP.String(), "lladdr", n.MAC, "dev", n.Link, "nud", "permanent"}
}

func fdbWords(f FDB) []string {
	return []string{f.MAC, "dev", f.Link, "dst", f.Dst.String(), "self", "permanent"}
}

func ruleWords(r Rule) []string {
	w := []string{"priority", fmt.Sprint(r.Priority)}
	if r.From.IsValid() {
		w = append(w, "from", r.From.String())
	}
	if r.To.IsValid() {
		w = append(w, "to", r.To.String())
	}
	return append(w, "table", fmt.Sprint(r.Table))
}

func family(p netip.Prefix) model.Family { return model.FamilyOf(p.Addr()) }

// plain reports whether a shell takes the word as it stands.
func plain(s string) bool {
	const safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-"
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune(safe, r) }) < 0
}

// quote makes a value one word of a POSIX shell, whatever is in it.
func quote(s string) string {
	if plain(s) {
		return s
	}
	return "'" + strings.ReplaceAll(strings.ReplaceAll(s, "\x00", ""), "'", `'\''`) + "'"
}

func command(words ...string) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = quote(w)
	}
	return strings.Join(q, " ")
}
