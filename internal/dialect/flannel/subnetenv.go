package flannel

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// SubnetEnv is what subnet.env tells Flannel's CNI plugin about its node. A family that is not in use
// has zero prefixes.
type SubnetEnv struct {
	Network     netip.Prefix // the pool
	Subnet      netip.Prefix // the node's block, without host bits
	IPv6Network netip.Prefix
	IPv6Subnet  netip.Prefix
	MTU         int // bytes
	IPMasq      bool
}

const (
	subnetEnv    = "subnet.env"
	maxSubnetEnv = 4 << 10
)

// Format writes the file as flanneld 0.28 does: the block as the gateway's address, 10.244.1.1/24.
func (e SubnetEnv) Format() []byte {
	var b bytes.Buffer
	line := func(key string, value any) { fmt.Fprintf(&b, "FLANNEL_%s=%v\n", key, value) }
	for _, f := range []struct {
		prefix          string
		network, subnet netip.Prefix
	}{{"", e.Network, e.Subnet}, {"IPV6_", e.IPv6Network, e.IPv6Subnet}} {
		if !f.network.IsValid() {
			continue
		}
		line(f.prefix+"NETWORK", f.network)
		if f.subnet.IsValid() {
			line(f.prefix+"SUBNET", netip.PrefixFrom(f.subnet.Masked().Addr().Next(), f.subnet.Bits()))
		}
	}
	line("MTU", e.MTU)
	line("IPMASQ", e.IPMasq)
	return b.Bytes()
}

// ParseSubnetEnv reads such a file. Lines that are empty or begin with # are skipped; every other line must
// be a known variable, once.
func ParseSubnetEnv(text []byte) (SubnetEnv, error) {
	var e SubnetEnv
	bad := func(field, value, want string) (SubnetEnv, error) {
		return SubnetEnv{}, &model.FieldError{Noun: subnetEnv, Field: field, Value: short(value), Want: want}
	}
	if len(text) > maxSubnetEnv {
		return bad("size", fmt.Sprint(len(text)), fmt.Sprintf("at most %d bytes", maxSubnetEnv))
	}
	seen := map[string]bool{}
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return bad(fmt.Sprintf("line %d", i+1), line, "NAME=value")
		}
		if seen[key] {
			return bad(short(key), value, "the variable once")
		}
		seen[key] = true
		var err error
		switch key {
		case "FLANNEL_NETWORK":
			e.Network, err = envPrefix(value, model.IPv4)
		case "FLANNEL_SUBNET":
			e.Subnet, err = envPrefix(value, model.IPv4)
		case "FLANNEL_IPV6_NETWORK":
			e.IPv6Network, err = envPrefix(value, model.IPv6)
		case "FLANNEL_IPV6_SUBNET":
			e.IPv6Subnet, err = envPrefix(value, model.IPv6)
		case "FLANNEL_MTU":
			e.MTU, err = strconv.Atoi(value)
			if err != nil || e.MTU < 0 || e.MTU > 65535 {
				return bad(key, value, "bytes, 0..65535")
			}
		case "FLANNEL_IPMASQ":
			e.IPMasq = value == "true"
			if value != "true" && value != "false" {
				return bad(key, value, "true or false")
			}
		default:
			return bad(short(key), value, "one of FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_NETWORK, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ")
		}
		if err != nil {
			return bad(key, value, err.Error())
		}
	}
	return e, nil
}

func envPrefix(s string, f model.Family) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() || model.FamilyOf(p.Addr()) != f {
		return netip.Prefix{}, fmt.Errorf("an %s address with its prefix length", f)
	}
	return p.Masked(), nil
}
