package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Places where a runtime asks for an address or a MAC: CNI_ARGS (IP, MAC), args.cni.ips, and the capabilities ips and
// mac of runtimeConfig. Two that say different things are refused. The pools to choose from are in ipam, as Calico
// spells them.
const (
	capabilityIPs = "ips"
	capabilityMAC = "mac"
)

// maxWishes bounds how many addresses or pools are asked for.
const maxWishes = 64

// wish is one that was read, and where: for errors.
type wish struct {
	value any
	at    string
}

// parseAddr takes an address, with or without a prefix length, which is the network's to say.
func parseAddr(text string) (netip.Addr, bool) {
	text, _, _ = strings.Cut(text, "/")
	a, err := netip.ParseAddr(text)
	a = a.Unmap()
	return a, err == nil && a.Zone() == "" && a.IsGlobalUnicast()
}

const addressWant = "unicast addresses, at most one of each family"

// parseAddrs reads a list; ok is false when one is none.
func parseAddrs(list []string) (out []netip.Addr, ok bool) {
	for _, text := range list {
		a, ok := parseAddr(text)
		if !ok || slices.ContainsFunc(out, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			return nil, false
		}
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, true
}

// parseIPs reads ["10.0.0.7/24","fd00::7"] of a field.
func (c *conf) parseIPs(field string, raw json.RawMessage) ([]netip.Addr, *Error) {
	list, err := c.texts(field, raw)
	if err != nil {
		return nil, err
	}
	addrs, ok := parseAddrs(list)
	if !ok {
		return nil, c.badWish(field, string(raw), addressWant)
	}
	return addrs, nil
}

func (c *conf) texts(field string, raw json.RawMessage) (list []string, _ *Error) {
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, Errorf(CodeDecode, "network configuration: %s: %s", field, jsonReason(err))
	}
	if len(list) > maxWishes {
		return nil, c.badWish(field, fmt.Sprint(len(list)), fmt.Sprintf("at most %d", maxWishes))
	}
	return list, nil
}

func (c *conf) badWish(field, value, want string) *Error {
	return Errorf(CodeInvalidConfig, "%v", &model.FieldError{Noun: fmt.Sprintf("network %q", c.Name), Field: field, Value: short(value), Want: want})
}

// parseMAC reads a MAC in any case.
func parseMAC(text string) (string, bool) {
	mac := strings.ToLower(text)
	return mac, model.ValidMAC(mac)
}

func (c *conf) parseRuntimeMAC(raw json.RawMessage) (string, *Error) {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return "", Errorf(CodeDecode, "network configuration: runtimeConfig.%s: %s", capabilityMAC, jsonReason(err))
	}
	mac, ok := parseMAC(text)
	if !ok {
		return "", c.badWish("runtimeConfig."+capabilityMAC, text, "a unicast MAC such as 1c:0c:0a:c0:ff:ee")
	}
	return mac, nil
}

// parseIPAM reads {"ipv4_pools":["fast"],"ipv6_pools":["fd00::/48"]}, whatever plugin it is written for.
func (c *conf) parseIPAM(raw json.RawMessage) *Error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return Errorf(CodeDecode, "network configuration: ipam: %s", jsonReason(err))
	}
	for _, key := range sortedKeys(fields) {
		var err *Error
		switch key {
		case "type":
			var plugin string
			if json.Unmarshal(fields[key], &plugin) != nil || plugin != "heddle" && plugin != "calico-ipam" {
				err = c.unsupported("ipam.type", fields[key], `"heddle", or ipam to be absent: heddle gives the addresses itself`)
			}
		case "ipv4_pools":
			c.Pools4, err = c.texts("ipam."+key, fields[key])
		case "ipv6_pools":
			c.Pools6, err = c.texts("ipam."+key, fields[key])
		default:
			if !empty(fields[key]) {
				err = c.unsupported("ipam."+key, fields[key], "it to be absent: heddle gives the addresses itself")
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wishes puts together what was asked for in several places; nil: nothing.
func (c *conf) wishes(p *podArgs) (*model.Wishes, *Error) {
	w := &model.Wishes{Pools4: c.Pools4, Pools6: c.Pools6}
	for _, of := range []struct {
		field string
		wish  []wish
		take  func(any)
	}{
		{"address", []wish{{p.ips, "CNI_ARGS"}, {c.ArgIPs, "args.cni.ips"}, {c.RuntimeIPs, "runtimeConfig.ips"}}, func(v any) { w.Addresses = v.([]netip.Addr) }},
		{"MAC", []wish{{p.mac, "CNI_ARGS"}, {c.MAC, "runtimeConfig.mac"}}, func(v any) { w.MAC = v.(string) }},
	} {
		var first *wish
		for i := range of.wish {
			one := &of.wish[i]
			switch text := fmt.Sprint(one.value); {
			case text == "" || text == "[]":
			case first == nil:
				first = one
				of.take(one.value)
			case fmt.Sprint(first.value) != text:
				return nil, c.badWish(of.field, fmt.Sprintf("%v in %s, %v in %s", first.value, first.at, one.value, one.at), "one and the same wherever it is asked for")
			}
		}
	}
	if w.Addresses == nil && w.MAC == "" && len(w.Pools4)+len(w.Pools6) == 0 {
		return nil, nil
	}
	return w, nil
}
