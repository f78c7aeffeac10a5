package calico

import (
	"fmt"
	"net/netip"
	"strconv"
	"unicode/utf8"

	"github.com/heddle-net/heddle/internal/model"
)

// place is a place in an object, for errors.
type place struct{ noun, path string }

func (p place) field(name string) place {
	if p.path != "" {
		name = p.path + "." + name
	}
	return place{p.noun, name}
}

func (p place) item(i int) place { return place{p.noun, fmt.Sprintf("%s[%d]", p.path, i)} }

// given stands for a value where it is at fault that there is one.
type given struct{}

func (given) String() string { return "given" }

// bad is the error that the value here is not what is wanted. Empty text stands for no value.
func (p place) bad(value any, want string) error {
	text := fmt.Sprint(value)
	if s, ok := value.(string); ok && s != "" {
		text = strconv.Quote(shorten(s))
	}
	return &model.FieldError{Noun: p.noun, Field: p.path, Value: text, Want: want}
}

// shorten cuts what is too long to be shown.
func shorten(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// network reads a network as rules have it: with its length, and no bits behind that.
func (p place) network(text string) (netip.Prefix, error) {
	n, err := netip.ParsePrefix(text)
	if err != nil || n.Masked() != n || n.Addr().Is4In6() {
		return netip.Prefix{}, p.bad(text, "a network address with its prefix length, such as 10.0.0.0/8 or fd00::/8; names of domains cannot be enforced")
	}
	return n, nil
}

// looseNetwork reads a network as network sets have it: an address stands for itself, and bits behind the
// length do not count.
func (p place) looseNetwork(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	n, err := netip.ParsePrefix(text)
	if err != nil || n.Addr().Is4In6() {
		return netip.Prefix{}, p.bad(text, "a network such as 10.0.0.0/8, or an address; names of domains cannot be enforced")
	}
	return n.Masked(), nil
}

// address reads an address.
func (p place) address(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Addr{}, p.bad(text, "an IPv4 or IPv6 address")
	}
	return a, nil
}
