package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The kernel's ruleset is read here and not with the library's getters: those leave out expressions that
// they do not know, so that a rule with a condition looks like one without.

// tableKey names a table.
type tableKey struct {
	family nftables.TableFamily
	name   string
}

func (k tableKey) String() string { return familyName(k.family) + " " + k.name }

// table is what the kernel holds of a table.
type table struct {
	flags  uint32
	chains []chain
	sets   []set
	rules  []rule // of all chains, each chain's in its order
}

type chain struct {
	table    tableKey
	name     string
	base     bool // has a hook
	kind     string
	hook     uint32
	priority int32
	policy   uint32
}

type set struct {
	name     string
	flags    uint32
	keyType  uint32
	keyLen   uint32
	dataType uint32 // of maps
	dataLen  uint32
	elems    []elem
}

// elem is one edge of an interval, or one element of a set or map without intervals or with concatenated ones.
type elem struct {
	key  string // big endian bytes
	end  bool
	last string // of an interval of concatenated keys: its last key
	data string // of maps
}

type rule struct {
	chain  string
	handle uint64
	exprs  []any // as decodeExpr gives them
	user   []byte
}

// reader is one socket on which rulesets are read.
type reader struct{ conn *netlink.Conn }

func (d *Driver) open() (*reader, error) {
	cfg := &netlink.Config{}
	if d.ns >= 0 {
		cfg.NetNS = d.ns
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, cfg)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("%w: %w", errNone, err)
	}
	if err != nil {
		return nil, err
	}
	return &reader{conn}, nil
}

func (r *reader) close() { _ = r.conn.Close() }

// dump asks for all objects of a kind. A ruleset that changes meanwhile makes the kernel flag the answer
// as inconsistent; then it is asked again.
func (r *reader) dump(kind int, family nftables.TableFamily, attrs ...netlink.Attribute) ([]netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		msgs, err := r.conn.Execute(netlink.Message{
			Header: netlink.Header{
				Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind),
				Flags: netlink.Request | netlink.Dump,
			},
			Data: append([]byte{byte(family), unix.NFNETLINK_V0, 0, 0}, data...),
		})
		torn := errors.Is(err, unix.EINTR)
		for _, m := range msgs {
			torn = torn || m.Header.Flags&netlink.DumpInterrupted != 0
		}
		if !torn {
			return msgs, err
		}
		if try == 9 {
			return nil, fmt.Errorf("the ruleset changed during each of %d readings: %w", try+1, unix.EINTR)
		}
	}
}

// tables lists all tables with their flags.
func (r *reader) tables() (map[tableKey]uint32, error) {
	msgs, err := r.dump(unix.NFT_MSG_GETTABLE, nftables.TableFamilyUnspecified)
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%w: %w", errNone, err)
	}
	if err != nil {
		return nil, err
	}
	out := map[tableKey]uint32{}
	for _, m := range msgs {
		k, flags := tableKey{family: nftables.TableFamily(m.Data[0])}, uint32(0)
		err := each(m.Data[4:], func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_TABLE_NAME:
				k.name = ad.String()
			case unix.NFTA_TABLE_FLAGS:
				flags = ad.Uint32()
			}
		})
		if err != nil {
			return nil, err
		}
		out[k] = flags
	}
	return out, nil
}

// chains lists the chains of all tables.
func (r *reader) chains() ([]chain, error) {
	msgs, err := r.dump(unix.NFT_MSG_GETCHAIN, nftables.TableFamilyUnspecified)
	if err != nil {
		return nil, err
	}
	var out []chain
	for _, m := range msgs {
		c := chain{table: tableKey{family: nftables.TableFamily(m.Data[0])}}
		err := each(m.Data[4:], func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_CHAIN_TABLE:
				c.table.name = ad.String()
			case unix.NFTA_CHAIN_NAME:
				c.name = ad.String()
			case unix.NFTA_CHAIN_TYPE:
				c.kind = ad.String()
			case unix.NFTA_CHAIN_POLICY:
				c.policy = ad.Uint32()
			case unix.NFTA_CHAIN_HOOK:
				c.base = true
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						switch ad.Type() {
						case unix.NFTA_HOOK_HOOKNUM:
							c.hook = ad.Uint32()
						case unix.NFTA_HOOK_PRIORITY:
							c.priority = int32(ad.Uint32())
						}
					}
					return nil
				})
			}
		})
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// table reads one table whole; nil when there is none.
func (r *reader) table(k tableKey) (*table, error) {
	all, err := r.tables()
	if err != nil {
		return nil, err
	}
	flags, ok := all[k]
	if !ok {
		return nil, nil
	}
	t := &table{flags: flags}
	chains, err := r.chains()
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		if c.table == k {
			t.chains = append(t.chains, c)
		}
	}
	if t.sets, err = r.sets(k); err != nil {
		return nil, err
	}
	t.rules, err = r.rules(k, "")
	return t, err
}

func (r *reader) sets(k tableKey) ([]set, error) {
	msgs, err := r.dump(unix.NFT_MSG_GETSET, k.family, text(unix.NFTA_SET_TABLE, k.name))
	if err != nil {
		return nil, err
	}
	var out []set
	for _, m := range msgs {
		var s set
		err := each(m.Data[4:], func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_SET_NAME:
				s.name = ad.String()
			case unix.NFTA_SET_FLAGS:
				s.flags = ad.Uint32()
			case unix.NFTA_SET_KEY_TYPE:
				s.keyType = ad.Uint32()
			case unix.NFTA_SET_KEY_LEN:
				s.keyLen = ad.Uint32()
			case unix.NFTA_SET_DATA_TYPE:
				s.dataType = ad.Uint32()
			case unix.NFTA_SET_DATA_LEN:
				s.dataLen = ad.Uint32()
			}
		})
		if err != nil {
			return nil, err
		}
		if s.elems, err = r.elems(k, s.name); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func (r *reader) elems(k tableKey, name string) ([]elem, error) {
	msgs, err := r.dump(unix.NFT_MSG_GETSETELEM, k.family,
		text(unix.NFTA_SET_ELEM_LIST_TABLE, k.name), text(unix.NFTA_SET_ELEM_LIST_SET, name))
	if err != nil {
		return nil, err
	}
	var out []elem
	value := func(to *string) func(*netlink.AttributeDecoder) error {
		return func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				if ad.Type() == unix.NFTA_DATA_VALUE {
					*to = string(ad.Bytes())
				}
			}
			return nil
		}
	}
	one := func(ad *netlink.AttributeDecoder) error {
		var e elem
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_SET_ELEM_KEY:
				ad.Nested(value(&e.key))
			case nftables.NFTA_SET_ELEM_KEY_END:
				ad.Nested(value(&e.last))
			case unix.NFTA_SET_ELEM_DATA:
				ad.Nested(value(&e.data))
			case unix.NFTA_SET_ELEM_FLAGS:
				e.end = ad.Uint32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
			}
		}
		out = append(out, e)
		return nil
	}
	for _, m := range msgs {
		err := each(m.Data[4:], func(ad *netlink.AttributeDecoder) {
			if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return
			}
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					ad.Nested(one)
				}
				return nil
			})
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// rules lists the rules of a chain in order; of all chains of the table when chain is empty.
func (r *reader) rules(k tableKey, chain string) ([]rule, error) {
	attrs := []netlink.Attribute{text(unix.NFTA_RULE_TABLE, k.name)}
	if chain != "" {
		attrs = append(attrs, text(unix.NFTA_RULE_CHAIN, chain))
	}
	msgs, err := r.dump(unix.NFT_MSG_GETRULE, k.family, attrs...)
	if err != nil {
		return nil, err
	}
	out := make([]rule, 0, len(msgs))
	for _, m := range msgs {
		var u rule
		err := each(m.Data[4:], func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				u.chain = ad.String()
			case unix.NFTA_RULE_HANDLE:
				u.handle = ad.Uint64()
			case unix.NFTA_RULE_USERDATA:
				u.user = ad.Bytes()
			case unix.NFTA_RULE_EXPRESSIONS:
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						ad.Nested(func(ad *netlink.AttributeDecoder) error {
							e, err := decodeExpr(byte(k.family), ad)
							u.exprs = append(u.exprs, e)
							return err
						})
					}
					return nil
				})
			}
		})
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}

// each runs f for every attribute in b.
func each(b []byte, f func(*netlink.AttributeDecoder)) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		f(ad)
	}
	return ad.Err()
}

func text(kind uint16, s string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: append([]byte(s), 0)}
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprintf("family %d", f)
}
