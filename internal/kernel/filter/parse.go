package filter

import (
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// The skeleton's text is read once and encoded as nft would, so that there is one source for what people
// read and what the kernel gets. Only the words that the skeleton uses are known; a test compares the
// result with what nft makes of the same text.

// tableSpec is a table as it should be.
type tableSpec struct {
	name   string
	family nftables.TableFamily
	sets   []*setSpec
	chains []*chainSpec
}

// setSpec is a set or a map.
type setSpec struct {
	name   string
	flags  uint32
	typ    uint32   // of the key, as nft numbers types
	keyLen uint32   // bytes
	fields []string // types of the key's parts
	data   bool     // a map to class ids
	user   []byte
}

func (s *setSpec) interval() bool { return s.flags&unix.NFT_SET_INTERVAL != 0 }

// chainSpec is a chain.
type chainSpec struct {
	name     string
	base     bool
	kind     string
	hook     uint32
	priority int32
	rules    []ruleSpec
}

// ruleSpec is a rule, encoded. Its mark is what it carries in the kernel as user data: a digest of the
// text, by which it is told from anything else without decoding it. Rules cannot be changed, only replaced.
type ruleSpec struct {
	text  string
	exprs [][]byte
	mark  string
}

// markType is the type of the user data that rules carry: none of nft's own.
const markType = 104

func markOf(family nftables.TableFamily, chain, rule string) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %s", family, chain, rule)
	return string(h.Sum([]byte{markType, 8}))
}

// skeleton is Skeleton, read: the inet table and the bridge table.
var skeleton = mustRead(Skeleton())

// types are the types of keys: nft's number, and bytes.
var types = map[string]nftables.SetDatatype{
	"ipv4_addr": nftables.TypeIPAddr, "ipv6_addr": nftables.TypeIP6Addr, "classid": nftables.TypeClassID,
	"inet_service": nftables.TypeInetService, "inet_proto": nftables.TypeInetProto, "ifname": nftables.TypeIFName,
	"ether_addr": nftables.TypeEtherAddr, "icmpv6_type": nftables.TypeICMP6Type, "nf_proto": nftables.TypeNFProto,
	target: {Name: "integer", Bytes: 16},
}

// target stands for the type of `@th,64,128`, a neighbour advertisement's target address.
const target = "target"

var (
	hookNumbers = map[string]uint32{
		"prerouting": unix.NF_INET_PRE_ROUTING, "input": unix.NF_INET_LOCAL_IN,
		"forward": unix.NF_INET_FORWARD, "output": unix.NF_INET_LOCAL_OUT,
	}
	// priorities are those of linux/netfilter_ipv4.h; filter differs on bridges (netfilter_bridge.h).
	priorities     = map[string]int32{"raw": -300, "mangle": -150, "filter": 0, "filter - 10": -10}
	bridgeFilter   = int32(-200)
	familyOfTables = map[string]nftables.TableFamily{"inet": nftables.TableFamilyINet, "bridge": nftables.TableFamilyBridge}
)

// mustRead panics on what it does not know: the text is part of the program.
func mustRead(text string) []*tableSpec {
	var out []*tableSpec
	var table *tableSpec
	var set *setSpec
	var chain *chainSpec
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		w := strings.Fields(line)
		switch {
		case line == "":
		case line == "}":
			if set != nil && set.user == nil {
				set.user = set.printing()
			}
			set, chain = nil, nil
		case w[0] == "table":
			table = &tableSpec{name: w[2], family: familyOfTables[w[1]]}
			out = append(out, table)
		case w[0] == "set", w[0] == "map":
			set = &setSpec{name: w[1], data: w[0] == "map"}
			if set.data {
				set.flags |= unix.NFT_SET_MAP
			}
			table.sets = append(table.sets, set)
		case w[0] == "chain":
			chain = &chainSpec{name: w[1]}
			table.chains = append(table.chains, chain)
		case set != nil:
			set.read(line)
		case w[0] == "type":
			chain.base, chain.kind, chain.hook = true, w[1], hookNumbers[w[3]]
			priority := strings.TrimSuffix(strings.Join(w[5:], " "), "; policy accept;")
			chain.priority = priorities[priority]
			if table.family == nftables.TableFamilyBridge {
				chain.priority = bridgeFilter
			}
		default:
			c := compiler{family: table.family, sets: table.sets}
			c.rule(line)
			chain.rules = append(chain.rules, ruleSpec{text: line, exprs: c.encoded(), mark: markOf(table.family, chain.name, line)})
		}
	}
	return out
}

// concatBits are the bits that nft gives each part of a concatenated type.
const concatBits = 6

// read takes one line of a set.
func (s *setSpec) read(line string) {
	if line == "flags interval" {
		s.flags |= unix.NFT_SET_INTERVAL
		if len(s.fields) > 1 {
			s.flags |= nftables.NFT_SET_CONCAT
		}
		return
	}
	line, _, _ = strings.Cut(line, " : ")
	if rest, ok := strings.CutPrefix(line, "typeof "); ok {
		line = strings.NewReplacer("iifname", "type ifname", "ether saddr", "ether_addr", "@th,64,128", target).Replace(rest)
		s.user = targetUserData
	}
	s.fields = strings.Split(strings.TrimPrefix(line, "type "), " . ")
	for _, f := range s.fields {
		t, ok := types[f]
		if !ok {
			panic("type " + f)
		}
		magic := t.GetNFTMagic()
		if f == target {
			magic = nftables.TypeInteger.GetNFTMagic()
		}
		s.typ = s.typ<<concatBits | magic
		s.keyLen += padded(t.Bytes)
	}
	if len(s.fields) == 1 {
		s.keyLen = types[s.fields[0]].Bytes
	}
}

// printing is the user data from which nft knows how to print a set: the byte orders of key and datum.
func (s *setSpec) printing() []byte {
	const concatenated, host, network = 0, 1, 2
	order := uint32(concatenated)
	if len(s.fields) == 1 {
		order = network
		if f := s.fields[0]; f == "ifname" || f == "classid" {
			order = host
		}
	}
	b := userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, order)
	if s.data {
		b = userdata.AppendUint32(b, userdata.NFTNL_UDATA_SET_DATABYTEORDER, host)
	}
	return b
}

// padded is what a part of a key takes, in bytes: whole registers.
func padded(n uint32) uint32 { return (n + 3) / 4 * 4 }

// targetUserData is what nft 1.0.6 gives the set of target addresses, so that it can print its type: the
// typeof of key iifname . ether saddr . @th,64,128, as libnftnl's NFTNL_UDATA_SET_KEY_TYPEOF.
var targetUserData = []byte{
	0x00, 0x04, 0x00, 0x00, 0x00, 0x00, 0x03, 0x56, 0x00, 0x04, 0x0d, 0x00, 0x00, 0x00, 0x01, 0x4e,
	0x00, 0x0e, 0x00, 0x04, 0x09, 0x00, 0x00, 0x00, 0x01, 0x06, 0x00, 0x04, 0x06, 0x00, 0x00, 0x00,
	0x01, 0x14, 0x00, 0x04, 0x07, 0x00, 0x00, 0x00, 0x01, 0x0c, 0x00, 0x04, 0x11, 0x00, 0x00, 0x00,
	0x01, 0x04, 0x02, 0x00, 0x00, 0x00, 0x02, 0x26, 0x00, 0x04, 0x07, 0x00, 0x00, 0x00, 0x01, 0x1e,
	0x00, 0x04, 0x00, 0x00, 0x00, 0x00, 0x01, 0x04, 0x00, 0x00, 0x00, 0x00, 0x02, 0x04, 0x03, 0x00,
	0x00, 0x00, 0x03, 0x04, 0x40, 0x00, 0x00, 0x00, 0x04, 0x04, 0x80, 0x00, 0x00, 0x00,
}

// encoded are the expressions in netlink's form.
func (c *compiler) encoded() [][]byte {
	var out [][]byte
	for _, e := range c.exprs {
		b, err := expr.Marshal(byte(c.family), e)
		if err != nil {
			panic(err)
		}
		out = append(out, b)
	}
	return out
}
