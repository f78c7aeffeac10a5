package filter

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Flags of a table, of linux/netfilter/nf_tables.h. With both, nobody but the socket that made the table can
// change it, `nft flush ruleset` of others passes it by, and it outlives the socket.
const (
	tableOwner   = 0x2
	tablePersist = 0x4 // Linux 6.9
)

// form is what the kernel holds of a table, without elements.
type form struct {
	flags  uint32
	owner  uint32 // port of the socket that owns it
	sets   map[string]setForm
	chains map[string]chainForm
	marks  map[string][]string // of the rules of each chain
}

type setForm struct {
	flags, typ, keyLen, dataType, dataLen uint32
}

type chainForm struct {
	base     bool
	kind     string
	hook     uint32
	priority int32
	policy   uint32
}

// generation is the number of the ruleset, which grows with every transaction of anybody.
func (c *conn) generation() (n uint32, err error) {
	err = c.dumpOne(unix.NFT_MSG_GETGEN, nftables.TableFamilyUnspecified, nil, func(_ byte, attrs []byte) error {
		for kind, v := range attributes(attrs) {
			if kind == unix.NFTA_GEN_ID {
				n = be32(v)
			}
		}
		return nil
	})
	return n, err
}

// dumpOne asks for one object.
func (c *conn) dumpOne(kind uint16, family nftables.TableFamily, attrs []byte, f func(byte, []byte) error) error {
	c.seq++
	m := &message{}
	at := m.header(kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK, family, c.seq)
	m.b = append(m.b, attrs...)
	m.end(at)
	if err := c.send(m.b); err != nil {
		return err
	}
	var err error
	for {
		last, rerr := c.receive(func(h unix.NlMsghdr, data []byte) bool {
			switch {
			case h.Seq != c.seq:
			case h.Type == unix.NLMSG_ERROR:
				if e := ackError(h, data); e != nil {
					err = e
				}
				return true
			case len(data) >= 4 && err == nil:
				err = f(data[0], data[4:])
			}
			return false
		})
		if rerr != nil {
			return rerr
		}
		if last {
			return err
		}
	}
}

// form reads a table; nil when there is none.
func (c *conn) form(t *tableSpec) (*form, error) {
	family := t.family
	var f *form
	err := c.dump(unix.NFT_MSG_GETTABLE, family, nil, false, func() { f = nil }, func(fam byte, attrs []byte) error {
		got, name := &form{}, ""
		for kind, v := range attributes(attrs) {
			switch kind {
			case unix.NFTA_TABLE_NAME:
				name = str(v)
			case unix.NFTA_TABLE_FLAGS:
				got.flags = be32(v)
			case nftaTableOwner:
				got.owner = be32(v)
			}
		}
		if name == t.name && fam == byte(family) {
			f = got
		}
		return nil
	})
	if err != nil || f == nil {
		return nil, err
	}
	if err := c.chains(t, f); err != nil {
		return nil, fmt.Errorf("chains: %w", err)
	}
	if err := c.sets(t, f); err != nil {
		return nil, fmt.Errorf("sets: %w", err)
	}
	if err := c.marks(t, f); err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	return f, nil
}

// nftaTableOwner is NFTA_TABLE_OWNER of linux/netfilter/nf_tables.h.
const nftaTableOwner = 7

func (c *conn) chains(t *tableSpec, f *form) error {
	return c.dump(unix.NFT_MSG_GETCHAIN, t.family, nil, false, func() { f.chains = map[string]chainForm{} }, func(_ byte, attrs []byte) error {
		var got chainForm
		table, name := "", ""
		for kind, v := range attributes(attrs) {
			switch kind {
			case unix.NFTA_CHAIN_TABLE:
				table = str(v)
			case unix.NFTA_CHAIN_NAME:
				name = str(v)
			case unix.NFTA_CHAIN_TYPE:
				got.kind = str(v)
			case unix.NFTA_CHAIN_POLICY:
				got.policy = be32(v)
			case unix.NFTA_CHAIN_HOOK:
				got.base = true
				for kind, v := range attributes(v) {
					switch kind {
					case unix.NFTA_HOOK_HOOKNUM:
						got.hook = be32(v)
					case unix.NFTA_HOOK_PRIORITY:
						got.priority = int32(be32(v))
					}
				}
			}
		}
		if table == t.name {
			f.chains[name] = got
		}
		return nil
	})
}

func (c *conn) sets(t *tableSpec, f *form) error {
	return c.dump(unix.NFT_MSG_GETSET, t.family, t.request(unix.NFTA_SET_TABLE), false, func() { f.sets = map[string]setForm{} }, func(_ byte, attrs []byte) error {
		var got setForm
		name := ""
		for kind, v := range attributes(attrs) {
			switch kind {
			case unix.NFTA_SET_NAME:
				name = str(v)
			case unix.NFTA_SET_FLAGS:
				got.flags = be32(v)
			case unix.NFTA_SET_KEY_TYPE:
				got.typ = be32(v)
			case unix.NFTA_SET_KEY_LEN:
				got.keyLen = be32(v)
			case unix.NFTA_SET_DATA_TYPE:
				got.dataType = be32(v)
			case unix.NFTA_SET_DATA_LEN:
				got.dataLen = be32(v)
			}
		}
		f.sets[name] = got
		return nil
	})
}

// request are the attributes of a request for what is in the table.
func (t *tableSpec) request(kind uint16) []byte {
	m := &message{}
	m.text(kind, t.name)
	return m.b
}

func (c *conn) marks(t *tableSpec, f *form) error {
	return c.dump(unix.NFT_MSG_GETRULE, t.family, t.request(unix.NFTA_RULE_TABLE), false, func() { f.marks = map[string][]string{} }, func(_ byte, attrs []byte) error {
		chain, mark := "", ""
		for kind, v := range attributes(attrs) {
			switch kind {
			case unix.NFTA_RULE_CHAIN:
				chain = str(v)
			case unix.NFTA_RULE_USERDATA:
				mark = string(v)
			}
		}
		f.marks[chain] = append(f.marks[chain], mark)
		return nil
	})
}

// same tells whether the table has the form that it should have; with are its chains.
func (f *form) same(t *tableSpec, with []*chainSpec) bool {
	if len(f.sets) != len(t.sets) || len(f.chains) != len(with) {
		return false
	}
	for _, s := range t.sets {
		want := setForm{flags: s.flags, typ: s.typ, keyLen: s.keyLen}
		if s.data {
			want.dataType, want.dataLen = nftables.TypeClassID.GetNFTMagic(), nftables.TypeClassID.Bytes
		}
		if f.sets[s.name] != want {
			return false
		}
	}
	for _, c := range with {
		want := chainForm{base: c.base, kind: c.kind, hook: c.hook, priority: c.priority}
		if c.base {
			want.policy = policyAccept
		}
		have, ok := f.chains[c.name]
		if !ok || have != want || !slices.EqualFunc(f.marks[c.name], c.rules, func(m string, r ruleSpec) bool { return m == r.mark }) {
			return false
		}
	}
	return true
}

// difference is what has to be done to a set.
type difference struct {
	gone, missing elements
}

// compare reads the elements of a set and tells what makes them those wanted. With settled nobody else can
// have changed them meanwhile. With counted they are to carry counters, otherwise not to.
func (c *conn) compare(t *tableSpec, s *setSpec, want elements, settled, counted bool) (d difference, err error) {
	begin := func() { d = difference{gone: elements{}, missing: maps.Clone(want)} }
	err = c.each(t, s, settled, begin, func(i ident, value uint32, counter []byte) {
		wanted, ok := want[i]
		switch {
		case !ok:
			d.gone[i] = 0
		case wanted != value || (counter != nil) != (counted && !i.ends()):
			d.gone[i] = 0
		default:
			delete(d.missing, i)
		}
	})
	return d, err
}

// each calls f for every element of a set. counter are the attributes of its counter, nil when it has none.
func (c *conn) each(t *tableSpec, s *setSpec, settled bool, begin func(), f func(i ident, value uint32, counter []byte)) error {
	req := &message{}
	req.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
	req.text(unix.NFTA_SET_ELEM_LIST_SET, s.name)
	return c.dump(unix.NFT_MSG_GETSETELEM, t.family, req.b, settled, begin, func(_ byte, attrs []byte) error {
		listed(s, attrs, f)
		return nil
	})
}

// listed calls f for every element in a message.
func listed(s *setSpec, attrs []byte, f func(i ident, value uint32, counter []byte)) {
	for kind, list := range attributes(attrs) {
		if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		for _, e := range attributes(list) {
			f(element(s, e))
		}
	}
}

// element reads one element.
func element(s *setSpec, attrs []byte) (i ident, value uint32, counter []byte) {
	for kind, v := range attributes(attrs) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			copy(i[:s.keyLen], datum(v))
		case nftables.NFTA_SET_ELEM_KEY_END:
			copy(i[s.keyLen:identSize], datum(v))
		case unix.NFTA_SET_ELEM_DATA:
			if b := datum(v); len(b) == 4 {
				value = binary.NativeEndian.Uint32(b)
			}
		case unix.NFTA_SET_ELEM_FLAGS:
			if be32(v)&unix.NFT_SET_ELEM_INTERVAL_END != 0 {
				i[identSize] = 1
			}
		case unix.NFTA_SET_ELEM_EXPR:
			counter = []byte{}
			for kind, v := range attributes(v) {
				if kind == unix.NFTA_EXPR_DATA {
					counter = v
				}
			}
		}
	}
	return i, value, counter
}

func datum(attrs []byte) []byte {
	for kind, v := range attributes(attrs) {
		if kind == unix.NFTA_DATA_VALUE {
			return v
		}
	}
	return nil
}
