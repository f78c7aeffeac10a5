// Package flannel reads and writes Flannel's own words: net-conf.json, subnet.env, and the keys and
// values of its etcd layout. It is pure: text in, values out.
//
// What a field asks for and Heddle cannot do is refused by the field's name, never ignored.
package flannel

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Names of the pools that a net-conf.json makes.
const (
	PoolName  = "flannel"  // from Network
	PoolName6 = "flannel6" // from IPv6Network
)

const (
	netConf = "net-conf.json"
	// maxNetConf bounds a net-conf.json, in bytes: Kubernetes takes no ConfigMap above 1 MiB, and a real one
	// has a few hundred bytes.
	maxNetConf = 64 << 10
	// encapsulation takes these bytes from a transport MTU, as Flannel's MTU field counts.
	overhead4, overhead6 = 50, 70
)

// ParseNetConf turns a net-conf.json into pools, IPv4 first, valid alone and together. Field names match
// in any case, `"true"` and true are the same, numbers may stand in quotes. Defaults are Flannel's: a /24
// (IPv6: /64) for each node, and the first block of a network stays unused. Masquerade is not in the
// file (Flannel's --ip-masq); the caller sets it. Errors are a *model.FieldError, or name line and column.
func ParseNetConf(text []byte) ([]model.Pool, error) {
	if len(text) > maxNetConf {
		return nil, &model.FieldError{Noun: netConf, Field: "size", Value: fmt.Sprint(len(text)), Want: fmt.Sprintf("at most %d bytes", maxNetConf)}
	}
	o, err := parseObject(netConf, "", text)
	if err != nil {
		return nil, err
	}
	if err := o.only("Network", "IPv6Network", "EnableIPv4", "EnableIPv6", "EnableNFTables", "SubnetLen", "SubnetMin", "SubnetMax",
		"IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "Backend"); err != nil {
		return nil, err
	}
	enable4, err := o.boolean("EnableIPv4", true)
	if err != nil {
		return nil, err
	}
	enable6, err := o.boolean("EnableIPv6", false)
	if err != nil {
		return nil, err
	}
	// Heddle always uses nftables, so that both answers are met.
	if _, err = o.boolean("EnableNFTables", false); err != nil {
		return nil, err
	}
	if !enable6 && o.has("IPv6Network") && !o.has("EnableIPv6") {
		return nil, o.bad("EnableIPv6", "true with an IPv6Network, or false to leave that out")
	}
	if !enable4 && !enable6 {
		return nil, o.bad("EnableIPv4", "true, or EnableIPv6 true")
	}
	var pools []model.Pool
	for _, f := range []struct {
		on   bool
		name string
		fam  family
	}{{enable4, PoolName, v4}, {enable6, PoolName6, v6}} {
		if !f.on {
			continue
		}
		p, err := o.network(f.fam)
		if err != nil {
			return nil, err
		}
		p.Name = f.name
		pools = append(pools, p)
	}
	if err := o.backend(pools, enable6); err != nil {
		return nil, err
	}
	if err := model.ValidatePools(pools); err != nil {
		return nil, fmt.Errorf("%s: %w", netConf, err)
	}
	return pools, nil
}

// family are the fields and limits of one IP version.
type family struct {
	network, length, min, max string
	version                   model.Family
	example                   string
	// usual is the block's prefix length; longest the longest allowed; smallest the longest network that
	// still holds four blocks.
	usual, longest, smallest int
}

var (
	v4 = family{"Network", "SubnetLen", "SubnetMin", "SubnetMax", model.IPv4, "10.244.0.0/16", 24, 30, 28}
	v6 = family{"IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", model.IPv6, "fd00:244::/48", 64, 126, 124}
)

// network reads the fields of one family.
func (o *object) network(f family) (model.Pool, error) {
	var p model.Pool
	var err error
	if p.CIDR, err = o.prefix(f); err != nil {
		return p, err
	}
	if p.BlockSize, err = o.blockSize(f, p.CIDR); err != nil {
		return p, err
	}
	for _, b := range []struct {
		field string
		addr  *netip.Addr
		usual netip.Addr
	}{
		{f.min, &p.Min, second(p.CIDR.Addr(), p.BlockSize)},
		{f.max, &p.Max, last(p.CIDR, p.BlockSize)},
	} {
		if *b.addr, err = o.base(b.field, p.CIDR, p.BlockSize, b.usual); err != nil {
			return p, err
		}
	}
	if p.Max.Less(p.Min) {
		return p, o.bad(f.max, fmt.Sprintf("an address not below %s %s", f.min, p.Min))
	}
	return p, nil
}

func (o *object) prefix(f family) (netip.Prefix, error) {
	want := fmt.Sprintf("an %s network with its prefix length, such as %s", f.version, f.example)
	s, err := o.text(f.network)
	if err != nil {
		return netip.Prefix{}, err
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() || model.FamilyOf(p.Addr()) != f.version {
		return netip.Prefix{}, o.bad(f.network, want)
	}
	return p.Masked(), nil // Flannel takes 10.244.3.0/16 for 10.244.0.0/16 as well
}

// blockSize applies Flannel's rules: a network holds at least four blocks, one of which stays unused.
func (o *object) blockSize(f family, network netip.Prefix) (int, error) {
	n, err := o.number(f.length, 0)
	if err != nil {
		return 0, err
	}
	switch {
	case n == 0 && network.Bits() > f.smallest:
		return 0, o.bad(f.network, fmt.Sprintf("a network of at least /%d, so that it holds four blocks", f.smallest))
	case n == 0 && network.Bits() <= f.usual-2:
		return f.usual, nil
	case n == 0:
		return network.Bits() + 2, nil
	case n < network.Bits()+2 || n > f.longest:
		return 0, o.bad(f.length, fmt.Sprintf("%d..%d, so that %s %s holds at least four blocks", network.Bits()+2, f.longest, f.network, network))
	}
	return n, nil
}

// base reads the first address of the lowest or highest block handed out.
func (o *object) base(field string, network netip.Prefix, size int, usual netip.Addr) (netip.Addr, error) {
	if !o.has(field) {
		return usual, nil
	}
	s, err := o.text(field)
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || !network.Contains(a) || netip.PrefixFrom(a, size).Masked().Addr() != a {
		return netip.Addr{}, o.bad(field, fmt.Sprintf("the first address of a /%d inside %s", size, network))
	}
	return a, nil
}

// second is the base of the block after the one that begins at a.
func second(a netip.Addr, size int) netip.Addr {
	b := a.AsSlice()
	for i, carry := (size-1)/8, 1<<(7-(size-1)%8); i >= 0 && carry > 0; i-- {
		sum := int(b[i]) + carry
		b[i], carry = byte(sum), sum>>8
	}
	next, _ := netip.AddrFromSlice(b)
	return next
}

// last is the base of the network's last block.
func last(network netip.Prefix, size int) netip.Addr {
	b := network.Addr().AsSlice()
	for i := network.Bits(); i < size; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// backend reads the Backend object into the pools.
func (o *object) backend(pools []model.Pool, enable6 bool) error {
	raw, ok := o.raw("Backend")
	if !ok {
		return o.bad("Backend.Type", "vxlan, ipip, host-gw or alloc (without a Backend Flannel takes udp, which is not one of them)")
	}
	b, err := parseObject(netConf, "Backend.", raw)
	if err != nil {
		return err
	}
	kind, err := b.text("Type")
	if err != nil {
		return err
	}
	switch strings.ToLower(kind) {
	case "vxlan":
		if err := b.only("Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting"); err != nil {
			return err
		}
		return b.vxlan(pools, enable6)
	case "host-gw":
		carry(pools, model.PathDirect, model.EncapNever, model.VXLAN{})
	case "ipip":
		if err := b.only("Type", "DirectRouting"); err != nil {
			return err
		}
		direct, err := b.boolean("DirectRouting", false)
		if err != nil {
			return err
		}
		carry(pools, model.PathIPIP, always(direct), model.VXLAN{})
		return nil
	case "alloc":
		carry(pools, model.PathNone, model.EncapNever, model.VXLAN{})
	default:
		return b.bad("Type", "vxlan, ipip, host-gw or alloc")
	}
	return b.only("Type")
}

func carry(pools []model.Pool, p model.Path, e model.Encap, v model.VXLAN) {
	for i := range pools {
		pools[i].Path, pools[i].Encap, pools[i].VXLAN = p, e, v
	}
}

func (o *object) vxlan(pools []model.Pool, enable6 bool) error {
	v := model.VXLAN{}
	for _, n := range []struct {
		field     string
		to        *int
		low, high int
		usual     int
	}{
		{"VNI", &v.VNI, 1, 1<<24 - 1, model.DefaultVNI},
		{"Port", &v.Port, 0, 65535, 0},
		{"MTU", &v.MTU, 0, 65535, 0},
	} {
		var err error
		if *n.to, err = o.number(n.field, n.usual); err != nil {
			return err
		}
		if *n.to < n.low || *n.to > n.high {
			return o.bad(n.field, fmt.Sprintf("%d..%d", n.low, n.high))
		}
	}
	if v.Port == 0 {
		v.Port = model.DefaultPort // Flannel's 0 is the kernel's default, which is the same
	}
	if v.MTU > 0 {
		// Flannel's MTU is that of the transport; ours is what is left inside.
		least, over := 576, overhead4
		if enable6 {
			least, over = 1280, overhead6
		}
		if v.MTU -= over; v.MTU < least {
			return o.bad("MTU", fmt.Sprintf("%d..65535, or 0 to derive it from the uplink", least+over))
		}
	}
	direct := false
	for _, b := range []struct {
		field string
		to    *bool
	}{{"GBP", &v.GBP}, {"Learning", &v.Learning}, {"DirectRouting", &direct}} {
		var err error
		if *b.to, err = o.boolean(b.field, false); err != nil {
			return err
		}
	}
	carry(pools, model.PathVXLAN, always(direct), v)
	return nil
}

// always is what DirectRouting means for a tunnel.
func always(direct bool) model.Encap {
	if direct {
		return model.EncapCrossSubnet
	}
	return model.EncapAlways
}
