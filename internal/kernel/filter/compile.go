package filter

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// compiler turns one rule of the skeleton into expressions, the same that nft makes of it.
type compiler struct {
	family nftables.TableFamily
	sets   []*setSpec
	words  []string
	exprs  []expr.Any
	deps   map[string]bool // what the rule has already made sure of
}

// field is something of a packet that a rule looks at.
type field struct {
	typ  string
	load func(reg uint32) expr.Any
	size uint32 // bytes
	host bool   // in the machine's byte order
	deps string // what must hold before: names of dependencies
}

func meta(key expr.MetaKey) func(uint32) expr.Any {
	return func(reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }
}

func payload(base expr.PayloadBase, offset, size uint32) func(uint32) expr.Any {
	return func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: size}
	}
}

const (
	linkLayer = expr.PayloadBaseLLHeader
	network   = expr.PayloadBaseNetworkHeader
	transport = expr.PayloadBaseTransportHeader
)

var fields = map[string]field{
	"meta priority":   {"classid", meta(expr.MetaKeyPRIORITY), 4, true, ""},
	"meta l4proto":    {"inet_proto", meta(expr.MetaKeyL4PROTO), 1, false, ""},
	"meta nfproto":    {"nf_proto", meta(expr.MetaKeyNFPROTO), 1, false, ""},
	"iifname":         {"ifname", meta(expr.MetaKeyIIFNAME), 16, false, ""},
	"oifname":         {"ifname", meta(expr.MetaKeyOIFNAME), 16, false, ""},
	"iifgroup":        {"group", meta(expr.MetaKeyIIFGROUP), 4, true, ""},
	"oifgroup":        {"group", meta(expr.MetaKeyOIFGROUP), 4, true, ""},
	"ether saddr":     {"ether_addr", payload(linkLayer, 6, 6), 6, false, "ether"},
	"ip saddr":        {"ipv4_addr", payload(network, 12, 4), 4, false, "ip"},
	"ip daddr":        {"ipv4_addr", payload(network, 16, 4), 4, false, "ip"},
	"ip6 saddr":       {"ipv6_addr", payload(network, 8, 16), 16, false, "ip6"},
	"ip6 daddr":       {"ipv6_addr", payload(network, 24, 16), 16, false, "ip6"},
	"ip6 hoplimit":    {"number", payload(network, 7, 1), 1, false, "ip6"},
	"arp saddr ip":    {"ipv4_addr", payload(network, 14, 4), 4, false, "arp"},
	"arp saddr ether": {"ether_addr", payload(network, 8, 6), 6, false, "arp"},
	"th sport":        {"inet_service", payload(transport, 0, 2), 2, false, ""},
	"th dport":        {"inet_service", payload(transport, 2, 2), 2, false, ""},
	"icmp type":       {"icmp_type", payload(transport, 0, 1), 1, false, "icmp"},
	"icmpv6 type":     {"icmpv6_type", payload(transport, 0, 1), 1, false, "icmpv6"},
	"ether type":      {"ethertype", payload(linkLayer, 12, 2), 2, false, ""},
	"@nh,8,8":         {"number", payload(network, 1, 1), 1, false, ""},
	"@th,64,16":       {"number", payload(transport, 8, 2), 2, false, ""},
	"@th,64,128":      {target, payload(transport, 8, 16), 16, false, ""},
}

// names are constants that have one.
var names = map[string]uint64{
	"none": 0, "root": 1<<32 - 1,
	"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "icmp": unix.IPPROTO_ICMP, "ipv6-icmp": unix.IPPROTO_ICMPV6,
	"sctp": unix.IPPROTO_SCTP, "dccp": unix.IPPROTO_DCCP, "udplite": unix.IPPROTO_UDPLITE,
	"ipv4": unix.NFPROTO_IPV4, "ipv6": unix.NFPROTO_IPV6,
	"igmp": unix.IPPROTO_IGMP, "arp": unix.ETH_P_ARP, "8021q": unix.ETH_P_8021Q, "8021ad": unix.ETH_P_8021AD,
	"redirect": 5, "router-advertisement": 9,
	"nd-router-advert": 134, "nd-neighbor-advert": 136, "nd-redirect": 137,
}

// rule compiles the words of a rule.
func (c *compiler) rule(text string) {
	c.words, c.deps = split(text), map[string]bool{}
	for len(c.words) > 0 {
		if !c.statement() {
			c.match()
		}
	}
}

// split takes a rule apart; what is in quotes is one word.
func split(text string) []string {
	var out []string
	for i, part := range strings.Split(text, `"`) {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

func (c *compiler) emit(es ...expr.Any) { c.exprs = append(c.exprs, es...) }

// take consumes the words of phrase when they come next.
func (c *compiler) take(phrase string) bool {
	want := strings.Fields(phrase)
	if len(c.words) < len(want) || strings.Join(c.words[:len(want)], " ") != phrase {
		return false
	}
	c.words = c.words[len(want):]
	return true
}

func (c *compiler) next() string {
	w := c.words[0]
	c.words = c.words[1:]
	return w
}

func (c *compiler) number() uint32 {
	n, err := strconv.ParseUint(c.next(), 10, 32)
	if err != nil {
		panic(err)
	}
	return uint32(n)
}

// statement compiles what is not a comparison.
func (c *compiler) statement() bool {
	switch {
	case c.take("accept"):
		c.emit(&expr.Verdict{Kind: expr.VerdictAccept})
	case c.take("drop"):
		c.emit(&expr.Verdict{Kind: expr.VerdictDrop})
	case c.take("return"):
		c.emit(&expr.Verdict{Kind: expr.VerdictReturn})
	case c.take("jump"):
		c.emit(&expr.Verdict{Kind: expr.VerdictJump, Chain: c.next()})
	case c.take("goto"):
		c.emit(&expr.Verdict{Kind: expr.VerdictGoto, Chain: c.next()})
	case c.take("counter"):
		c.emit(&expr.Counter{})
	case c.take("notrack"):
		c.emit(&expr.Notrack{})
	case c.take("limit rate 100/second burst 200 packets"):
		c.emit(&expr.Limit{Type: expr.LimitTypePkts, Rate: 100, Unit: expr.LimitTimeSecond, Burst: 200})
	case c.take("log prefix"):
		l := &expr.Log{Data: []byte(c.next()), Key: 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN}
		c.take("group")
		l.Group = uint16(c.number())
		c.take("snaplen")
		l.Snaplen = c.number()
		c.emit(l)
	case c.take("ct state established,related"):
		c.state(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	case c.take("ct state untracked"):
		c.state(expr.CtStateBitUNTRACKED)
	case c.take("meta priority set"):
		if b, ok := constant(field{typ: "classid", size: 4, host: true}, c.words[0]); ok {
			c.next()
			c.emit(&expr.Immediate{Register: unix.NFT_REG_1, Data: b})
		} else {
			c.concat("map")
			c.emit(&expr.Lookup{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, IsDestRegSet: true, SetName: strings.TrimPrefix(c.next(), "@")})
		}
		c.emit(&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: unix.NFT_REG_1})
	default:
		return false
	}
	return true
}

func (c *compiler) state(bit uint32) {
	c.emit(&expr.Ct{Register: unix.NFT_REG_1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: native(bit), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: unix.NFT_REG_1, Data: native(0)})
}

func native(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// match compiles a comparison with a set or with a constant.
func (c *compiler) match() {
	for proto, n := range map[string]uint64{"udp": unix.IPPROTO_UDP} { // nft loads both ports at once
		if len(c.words) > 5 && c.words[0] == proto && c.words[1] == "sport" && c.words[3] == proto {
			source, _ := strconv.ParseUint(c.words[2], 10, 16)
			dest, _ := strconv.ParseUint(c.words[5], 10, 16)
			c.words = c.words[6:]
			c.equal("meta l4proto", n)
			c.emit(payload(transport, 0, 4)(unix.NFT_REG_1),
				&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binary.BigEndian.AppendUint32(nil, uint32(source<<16|dest))})
			return
		}
	}
	last := c.concat("")
	invert := c.take("!=")
	c.take("==")
	word := c.next()
	if name, ok := strings.CutPrefix(word, "@"); ok {
		c.emit(&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: name, Invert: invert})
		return
	}
	if p, err := netip.ParsePrefix(word); err == nil {
		mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
		c.emit(&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: last.size, Mask: mask, Xor: make([]byte, last.size)})
		word = p.Addr().String()
	}
	b, ok := constant(last, word)
	if !ok {
		panic("constant " + word)
	}
	op := expr.CmpOpEq
	if invert {
		op = expr.CmpOpNeq
	}
	c.emit(&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: b})
}

// concat loads fields, joined by dots, into consecutive registers, up to the word end or what is no field.
// It returns the last.
func (c *compiler) concat(end string) field {
	type part struct {
		field
		mask []byte
	}
	var parts []part
	for {
		f, ok := c.field()
		if !ok {
			panic(fmt.Sprintf("word %q", c.words[0]))
		}
		p := part{field: f}
		if c.take("&") {
			p.mask, _ = constant(f, c.next())
		}
		parts = append(parts, p)
		if !c.take(".") {
			break
		}
	}
	if end != "" && !c.take(end) {
		panic("want " + end)
	}
	for _, p := range parts {
		c.depend(p.deps)
	}
	slot, hton := uint32(0), c.ordered()
	for _, p := range parts {
		reg := unix.NFT_REG32_00 + slot
		if slot%4 == 0 {
			reg = unix.NFT_REG_1 + slot/4
		}
		c.emit(p.load(reg))
		if p.mask != nil {
			c.emit(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: p.size, Mask: p.mask, Xor: make([]byte, p.size)})
		}
		if hton && (p.host || p.typ == "inet_proto") { // one byte has no order, but nft does it too
			c.emit(&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: p.size, Size: max(p.size, 2)})
		}
		slot += padded(p.size) / 4
	}
	return parts[len(parts)-1].field
}

// ordered tells whether the set that comes next has intervals of concatenations: their parts are compared as
// big endian.
func (c *compiler) ordered() bool {
	name, ok := strings.CutPrefix(c.words[0], "@")
	for _, s := range c.sets {
		if ok && s.name == name {
			return s.interval() && len(s.fields) > 1
		}
	}
	return false
}

func (c *compiler) field() (field, bool) {
	for n := 3; n > 0; n-- {
		if len(c.words) < n {
			continue
		}
		if f, ok := fields[strings.Join(c.words[:n], " ")]; ok {
			c.words = c.words[n:]
			return f, true
		}
	}
	return field{}, false
}

// depend makes sure of what a field needs, as nft does: which header is there.
func (c *compiler) depend(name string) {
	if name == "" || c.deps[name] {
		return
	}
	bridge := c.family == nftables.TableFamilyBridge
	c.deps[name] = true
	switch name {
	case "ether":
		if !bridge {
			c.emit(meta(expr.MetaKeyIIFTYPE)(unix.NFT_REG_1),
				&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_ETHER)})
		}
	case "ip", "ip6":
		ethertype, nfproto := uint16(unix.ETH_P_IP), uint64(unix.NFPROTO_IPV4)
		if name == "ip6" {
			ethertype, nfproto = unix.ETH_P_IPV6, unix.NFPROTO_IPV6
		}
		switch {
		case !bridge && c.deps["ether"]:
			c.ethertype(ethertype)
		case bridge:
			c.emit(meta(expr.MetaKeyPROTOCOL)(unix.NFT_REG_1),
				&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binary.BigEndian.AppendUint16(nil, ethertype)})
		default:
			c.equal("meta nfproto", nfproto)
		}
	case "arp":
		c.ethertype(unix.ETH_P_ARP)
	case "icmp", "icmpv6":
		ethertype, nfproto, proto := uint16(unix.ETH_P_IP), uint64(unix.NFPROTO_IPV4), uint64(unix.IPPROTO_ICMP)
		if name == "icmpv6" {
			ethertype, nfproto, proto = unix.ETH_P_IPV6, unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6
			c.deps["ip6"] = true
		}
		if bridge {
			c.ethertype(ethertype)
		} else {
			c.equal("meta nfproto", nfproto)
		}
		c.equal("meta l4proto", proto)
	}
}

func (c *compiler) ethertype(t uint16) {
	c.emit(payload(linkLayer, 12, 2)(unix.NFT_REG_1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binary.BigEndian.AppendUint16(nil, t)})
}

func (c *compiler) equal(name string, n uint64) {
	f := fields[name]
	c.emit(f.load(unix.NFT_REG_1), &expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: sized(f, n)})
}

// constant is a word as the bytes that a field is compared with.
func constant(f field, word string) ([]byte, bool) {
	switch f.typ {
	case "ifname":
		return append([]byte(word), make([]byte, int(f.size)-len(word))...), true
	case "ipv4_addr", "ipv6_addr":
		a, err := netip.ParseAddr(word)
		return a.AsSlice(), err == nil
	}
	if n, ok := names[word]; ok {
		return sized(f, n), true
	}
	if major, minor, ok := strings.Cut(word, ":"); ok && f.typ == "classid" {
		a, err1 := strconv.ParseUint(major, 16, 16)
		b, err2 := strconv.ParseUint(minor, 16, 16)
		return sized(f, a<<16|b), err1 == nil && err2 == nil
	}
	n, err := strconv.ParseUint(word, 0, 64)
	return sized(f, n), err == nil
}

// sized is a number as a field of its size.
func sized(f field, n uint64) []byte {
	if f.host {
		return native(uint32(n))
	}
	return binary.BigEndian.AppendUint64(nil, n)[8-f.size:]
}
