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
	if r.Via.IsValid() {
		w = append(w, "via", r.Via.String())
	}
	if r.Link != "" {
		w = append(w, "dev", r.Link)
	}
	if r.OnLink {
		w = append(w, "onlink")
	}
	if r.MTU > 0 {
		w = append(w, "mtu", fmt.Sprint(r.MTU))
	}
	if r.Type == RouteUnicast && !r.Via.IsValid() && r.Dst.Addr().Is4() {
		w = append(w, "scope", "link")
	}
	return w
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
