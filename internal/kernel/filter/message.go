package filter

import (
	"encoding/binary"
	"iter"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// message is netlink messages being written: a batch, or one request.
type message struct {
	b     []byte
	count uint32
	n     int // objects of the kernel that change
}

// newBatch begins a transaction. A generation that is not 0 is the ruleset's that it was made for.
func newBatch(generation uint32) *message {
	m := &message{b: make([]byte, 0, 4096)}
	at := m.typed(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, 0, unix.NFNL_SUBSYS_NFTABLES)
	if generation != 0 {
		m.u32(unix.NFNL_BATCH_GENID, generation)
	}
	m.end(at)
	return m
}

func (m *message) empty() bool { return m.count <= 1 }

// close ends the transaction: its messages get their numbers, and the last that does something asks for an
// answer. It returns the last number.
func (m *message) close(seq uint32) uint32 {
	m.end(m.typed(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, 0, unix.NFNL_SUBSYS_NFTABLES))
	for at := uint32(0); at < uint32(len(m.b)); seq++ {
		binary.NativeEndian.PutUint32(m.b[at+8:], seq)
		size := align(binary.NativeEndian.Uint32(m.b[at:]))
		if next := at + size; next < uint32(len(m.b)) && next+align(binary.NativeEndian.Uint32(m.b[next:])) >= uint32(len(m.b)) {
			flags := binary.NativeEndian.Uint16(m.b[at+6:])
			binary.NativeEndian.PutUint16(m.b[at+6:], flags|unix.NLM_F_ACK)
		}
		at += size
	}
	return seq - 1
}

// typed begins a message of any type and returns where; end ends it.
func (m *message) typed(kind, flags uint16, family byte, res uint16) int {
	at := len(m.b)
	m.b = append(m.b, make([]byte, unix.SizeofNlMsghdr)...)
	binary.NativeEndian.PutUint16(m.b[at+4:], kind)
	binary.NativeEndian.PutUint16(m.b[at+6:], flags)
	m.b = append(m.b, family, unix.NFNETLINK_V0)
	m.b = binary.BigEndian.AppendUint16(m.b, res)
	m.count++
	return at
}

// header begins a message of nftables.
func (m *message) header(kind, flags uint16, family nftables.TableFamily, seq uint32) int {
	at := m.typed(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, byte(family), 0)
	binary.NativeEndian.PutUint32(m.b[at+8:], seq)
	return at
}

func (m *message) end(at int) {
	binary.NativeEndian.PutUint32(m.b[at:], uint32(len(m.b)-at))
}

func (m *message) attr(kind uint16, size int) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(unix.SizeofNlAttr+size))
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
}

func (m *message) pad() {
	for len(m.b)%unix.NLA_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *message) bytes(kind uint16, b []byte) {
	m.attr(kind, len(b))
	m.b = append(m.b, b...)
	m.pad()
}

func (m *message) text(kind uint16, s string) {
	m.attr(kind, len(s)+1)
	m.b = append(append(m.b, s...), 0)
	m.pad()
}

// u32 writes a number in network order.
func (m *message) u32(kind uint16, n uint32) {
	m.attr(kind, 4)
	m.b = binary.BigEndian.AppendUint32(m.b, n)
}

// nest begins an attribute that holds attributes, and returns where; unnest ends it.
func (m *message) nest(kind uint16) int {
	at := len(m.b)
	m.attr(kind|unix.NLA_F_NESTED, 0)
	return at
}

func (m *message) unnest(at int) {
	binary.NativeEndian.PutUint16(m.b[at:], uint16(len(m.b)-at))
}

// attributes are the attributes in b: type without flags, and value. It ends where they make no sense.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofNlAttr || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&nlaTypeMask, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min(len(b), int(align(uint32(size)))):]
		}
	}
}

// nlaTypeMask is NLA_TYPE_MASK of linux/netlink.h.
const nlaTypeMask = 0x3fff

func be32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func str(b []byte) string { return unix.ByteSliceToString(b) }

// created is what makes something that need not be there before.
const created = unix.NLM_F_REQUEST | unix.NLM_F_CREATE

func (m *message) table(t *tableSpec, flags uint32) {
	at := m.header(unix.NFT_MSG_NEWTABLE, created, t.family, 0)
	m.text(unix.NFTA_TABLE_NAME, t.name)
	m.u32(unix.NFTA_TABLE_FLAGS, flags)
	m.end(at)
	m.n++
}

func (m *message) delTable(t *tableSpec) {
	at := m.header(unix.NFT_MSG_DELTABLE, unix.NLM_F_REQUEST, t.family, 0)
	m.text(unix.NFTA_TABLE_NAME, t.name)
	m.end(at)
	m.n++
}

func (m *message) set(t *tableSpec, s *setSpec, id uint32) {
	at := m.header(unix.NFT_MSG_NEWSET, created, t.family, 0)
	m.text(unix.NFTA_SET_TABLE, t.name)
	m.text(unix.NFTA_SET_NAME, s.name)
	m.u32(unix.NFTA_SET_FLAGS, s.flags)
	m.u32(unix.NFTA_SET_KEY_TYPE, s.typ)
	m.u32(unix.NFTA_SET_KEY_LEN, s.keyLen)
	m.u32(unix.NFTA_SET_ID, id)
	if s.data {
		m.u32(unix.NFTA_SET_DATA_TYPE, nftables.TypeClassID.GetNFTMagic())
		m.u32(unix.NFTA_SET_DATA_LEN, nftables.TypeClassID.Bytes)
	}
	if s.flags&nftables.NFT_SET_CONCAT != 0 {
		desc := m.nest(unix.NFTA_SET_DESC)
		concat := m.nest(nftables.NFTA_SET_DESC_CONCAT)
		for _, f := range s.fields {
			part := m.nest(unix.NFTA_LIST_ELEM)
			m.u32(nftaSetFieldLen, types[f].Bytes)
			m.unnest(part)
		}
		m.unnest(concat)
		m.unnest(desc)
	}
	if s.user != nil {
		m.bytes(unix.NFTA_SET_USERDATA, s.user)
	}
	m.end(at)
	m.n++
}

// nftaSetFieldLen is NFTA_SET_FIELD_LEN of linux/netfilter/nf_tables.h.
const nftaSetFieldLen = 1

func (m *message) chain(t *tableSpec, c *chainSpec) {
	at := m.header(unix.NFT_MSG_NEWCHAIN, created, t.family, 0)
	m.text(unix.NFTA_CHAIN_TABLE, t.name)
	m.text(unix.NFTA_CHAIN_NAME, c.name)
	if c.base {
		hook := m.nest(unix.NFTA_CHAIN_HOOK)
		m.u32(unix.NFTA_HOOK_HOOKNUM, c.hook)
		m.u32(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
		m.unnest(hook)
		m.u32(unix.NFTA_CHAIN_POLICY, policyAccept)
		m.text(unix.NFTA_CHAIN_TYPE, c.kind)
	}
	m.end(at)
	m.n++
}

// policyAccept is NF_ACCEPT.
const policyAccept = 1

func (m *message) delChain(t *tableSpec, c *chainSpec) {
	for _, kind := range []uint16{unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELCHAIN} {
		at := m.header(kind, unix.NLM_F_REQUEST, t.family, 0)
		m.text(unix.NFTA_CHAIN_TABLE, t.name) // the same numbers in messages about rules
		chain := uint16(unix.NFTA_CHAIN_NAME)
		if kind == unix.NFT_MSG_DELRULE {
			chain = unix.NFTA_RULE_CHAIN
		}
		m.text(chain, c.name)
		m.end(at)
	}
	m.n++
}

func (m *message) rules(t *tableSpec, c *chainSpec) {
	for _, r := range c.rules {
		at := m.header(unix.NFT_MSG_NEWRULE, created|unix.NLM_F_APPEND, t.family, 0)
		m.text(unix.NFTA_RULE_TABLE, t.name)
		m.text(unix.NFTA_RULE_CHAIN, c.name)
		exprs := m.nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range r.exprs {
			m.bytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, e)
		}
		m.unnest(exprs)
		m.bytes(unix.NFTA_RULE_USERDATA, []byte(r.mark))
		m.end(at)
		m.n++
	}
}
