package model

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
)

// Encap says between which nodes a pool's traffic is encapsulated (Calico's words).
type Encap string

// The settings of Encap. Flannel's DirectRouting is CrossSubnet.
const (
	EncapNever       Encap = "Never"
	EncapCrossSubnet Encap = "CrossSubnet"
	EncapAlways      Encap = "Always"
)

// Pool is a range of pod addresses and how it is carried.
type Pool struct {
	Name string `json:"name"`
	// CIDR is the whole range, without host bits.
	CIDR netip.Prefix `json:"cidr"`
	// BlockSize is the prefix length of the blocks that nodes own.
	BlockSize int `json:"blockSize"`
	// Min and Max bound the blocks handed out: base addresses of the first and the last block.
	Min netip.Addr `json:"min,omitzero"`
	Max netip.Addr `json:"max,omitzero"`
	// Path is the tunnel used where Encap asks for one; "direct", "bgp" and "none" go with Encap Never.
	Path  Path  `json:"path"`
	Encap Encap `json:"encap"`
	// VXLAN are the settings of the tunnel when Path is "vxlan".
	VXLAN VXLAN `json:"vxlan,omitzero"`
	// Masquerade hides pods behind their node's address when they talk to anything outside all pools.
	Masquerade bool `json:"masquerade,omitempty"`
	// Disabled pools give no more addresses; those in use go on working.
	Disabled bool `json:"disabled,omitempty"`
	// NodeSelector and NamespaceSelector say, in Calico's selector language, which nodes claim blocks of the
	// pool and which namespaces' workloads get addresses from it; empty: all.
	NodeSelector      string `json:"nodeSelector,omitempty"`
	NamespaceSelector string `json:"namespaceSelector,omitempty"`
	// Uses are what the pool's addresses are for; empty: workloads and tunnels.
	Uses []PoolUse `json:"uses,omitempty"`
	// Manual pools give an address only to a workload that names the pool or an address in it.
	Manual bool `json:"manual,omitempty"`
	// NoBGPExport keeps the pool's blocks out of BGP.
	NoBGPExport bool `json:"noBGPExport,omitempty"`
	// MaxBlocks is how many blocks of the pool one node claims, as it needs them; 0: one, as Flannel has it.
	MaxBlocks int `json:"maxBlocks,omitempty"`
}

// DefaultMaxBlocks is MaxBlocks of a pool in Calico's words (maxBlocksPerHost where nothing is written).
const DefaultMaxBlocks = 20

// Blocks is how many blocks of the pool one node claims.
func (p *Pool) Blocks() int { return max(p.MaxBlocks, 1) }

// PoolUse is what a pool's addresses are for (Calico's allowedUses).
type PoolUse string

// The uses.
const (
	UseWorkload     PoolUse = "Workload"
	UseTunnel       PoolUse = "Tunnel"
	UseLoadBalancer PoolUse = "LoadBalancer"
)

// For reports whether the pool's addresses may be put to a use.
func (p *Pool) For(u PoolUse) bool {
	if len(p.Uses) == 0 {
		return u == UseWorkload || u == UseTunnel
	}
	return slices.Contains(p.Uses, u)
}

// Equal reports whether two pools say the same.
func (p *Pool) Equal(q *Pool) bool { return reflect.DeepEqual(p, q) }

// VXLAN are the settings of a VXLAN device (RFC 7348; names as Flannel's backend has them).
type VXLAN struct {
	VNI      int  `json:"vni,omitempty"`  // 1..16777215
	Port     int  `json:"port,omitempty"` // UDP, 1..65535
	MTU      int  `json:"mtu,omitempty"`  // bytes inside; 0 derives it from the uplink
	GBP      bool `json:"gbp,omitempty"`  // group based policy extension
	Learning bool `json:"learning,omitempty"`
}

// Defaults of Flannel's vxlan backend on Linux.
const (
	DefaultVNI  = 1
	DefaultPort = 8472
)

// Kind implements Object.
func (p *Pool) Kind() Kind { return KindPool }

// Key implements Object.
func (p *Pool) Key() string { return p.Name }

// Family is the family of the pool's addresses.
func (p *Pool) Family() Family { return FamilyOf(p.CIDR.Addr()) }

// Validate implements Object.
func (p *Pool) Validate() error {
	if !ValidName(p.Name) {
		return &FieldError{"pool", "name", p.Name, "a lower-case RFC 1123 name of at most 253 characters"}
	}
	noun := fmt.Sprintf("pool %q", p.Name)
	if !p.CIDR.IsValid() || p.CIDR != p.CIDR.Masked() || !usable(p.CIDR.Addr()) {
		return &FieldError{noun, "cidr", p.CIDR.String(), "a network address with its prefix length, such as 10.244.0.0/16"}
	}
	lo, hi := p.CIDR.Bits(), 30
	if p.Family() == IPv6 {
		hi = 126
	}
	if p.BlockSize < lo || p.BlockSize > hi {
		return &FieldError{noun, "blockSize", fmt.Sprint(p.BlockSize), fmt.Sprintf("%d..%d for %s in %s", lo, hi, p.Family(), p.CIDR)}
	}
	for _, b := range []struct {
		field string
		addr  netip.Addr
	}{{"min", p.Min}, {"max", p.Max}} {
		if !b.addr.IsValid() {
			continue
		}
		if !p.CIDR.Contains(b.addr) || netip.PrefixFrom(b.addr, p.BlockSize).Masked().Addr() != b.addr {
			return &FieldError{noun, b.field, b.addr.String(), fmt.Sprintf("the first address of a /%d inside %s", p.BlockSize, p.CIDR)}
		}
	}
	if p.MaxBlocks < 0 {
		return &FieldError{noun, "maxBlocks", fmt.Sprint(p.MaxBlocks), "a number from 0"}
	}
	if p.Min.IsValid() && p.Max.IsValid() && p.Max.Less(p.Min) {
		return &FieldError{noun, "max", p.Max.String(), "an address not below min " + p.Min.String()}
	}
	return p.validatePath(noun)
}

func (p *Pool) validatePath(noun string) error {
	switch p.Path {
	case PathDirect, PathNone, PathBGP:
		if p.Encap != EncapNever {
			return &FieldError{noun, "encap", string(p.Encap), "Never with path " + string(p.Path)}
		}
		return nil
	case PathVXLAN, PathIPIP:
	default:
		return &FieldError{noun, "path", string(p.Path), "direct, bgp, vxlan, ipip or none"}
	}
	if !slices.Contains([]Encap{EncapNever, EncapCrossSubnet, EncapAlways}, p.Encap) {
		return &FieldError{noun, "encap", string(p.Encap), "Never, CrossSubnet or Always"}
	}
	if p.Path != PathVXLAN {
		return nil
	}
	v := p.VXLAN
	if v.VNI < 1 || v.VNI > 1<<24-1 {
		return &FieldError{noun, "vxlan.vni", fmt.Sprint(v.VNI), "1..16777215"}
	}
	if v.Port < 1 || v.Port > 65535 {
		return &FieldError{noun, "vxlan.port", fmt.Sprint(v.Port), "1..65535"}
	}
	if v.MTU != 0 && (v.MTU < 576 || v.MTU > 65535) {
		return &FieldError{noun, "vxlan.mtu", fmt.Sprint(v.MTU), "576..65535, or 0 to derive it from the uplink"}
	}
	return nil
}

// ValidatePools checks what no pool can see alone: overlaps, and VXLAN settings that disagree for
// one VNI.
func ValidatePools(pools []Pool) error {
	for i := range pools {
		p := &pools[i]
		if err := p.Validate(); err != nil {
			return err
		}
		for j := range pools[:i] {
			q := &pools[j]
			if p.CIDR.Overlaps(q.CIDR) {
				return &FieldError{fmt.Sprintf("pool %q", p.Name), "cidr", p.CIDR.String(), fmt.Sprintf("a range apart from pool %q %s", q.Name, q.CIDR)}
			}
			if p.Path == PathVXLAN && q.Path == PathVXLAN && p.VXLAN != q.VXLAN {
				return &FieldError{fmt.Sprintf("pool %q", p.Name), "vxlan", fmt.Sprintf("%+v", p.VXLAN), fmt.Sprintf("the settings of pool %q, %+v: one node has one VXLAN network", q.Name, q.VXLAN)}
			}
		}
	}
	return nil
}

// Block is a part of a pool that one node owns.
type Block struct {
	CIDR netip.Prefix `json:"cidr"`
	Pool string       `json:"pool"`
	Node string       `json:"node"`
	// Lender is the node out of whose block a single address is lent to Node; empty: the block is Node's own.
	Lender string `json:"lender,omitempty"`
	// For is the node that asks Node to lend it this single address; empty: nobody does.
	For string `json:"for,omitempty"`
}

// Kind implements Object.
func (b *Block) Kind() Kind { return KindBlock }

// Key implements Object: 10.244.1.0-24, fd00:244:0:1::-64.
func (b *Block) Key() string { return prefixKey(b.CIDR) }

// Family is the family of the block's addresses.
func (b *Block) Family() Family { return FamilyOf(b.CIDR.Addr()) }

// Validate implements Object.
func (b *Block) Validate() error {
	if !b.CIDR.IsValid() || b.CIDR != b.CIDR.Masked() {
		return &FieldError{"block", "cidr", b.CIDR.String(), "a network address with its prefix length"}
	}
	noun := fmt.Sprintf("block %s", b.CIDR)
	if !ValidName(b.Pool) {
		return &FieldError{noun, "pool", b.Pool, "a pool's name"}
	}
	if !ValidName(b.Node) {
		return &FieldError{noun, "node", b.Node, "a node's name"}
	}
	for _, n := range []struct{ field, name string }{{"lender", b.Lender}, {"for", b.For}} {
		switch {
		case n.name == "":
		case !ValidName(n.name) || n.name == b.Node:
			return &FieldError{noun, n.field, n.name, "another node's name"}
		case !b.CIDR.IsSingleIP():
			return &FieldError{noun, n.field, n.name, "nothing: only single addresses are lent"}
		}
	}
	return nil
}
