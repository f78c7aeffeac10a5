package filter

import (
	"bytes"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// elements writes elements to be added (NFT_MSG_NEWSETELEM) or taken out. With counted they get counters.
func (m *message) elements(t *tableSpec, s *setSpec, kind uint16, es elements, counted bool) {
	m.part(t, s, kind, s.sorted(es), es, counted)
}

// part writes those elements that are in keys, in as many messages as it takes: a list has at most 64 KiB.
func (m *message) part(t *tableSpec, s *setSpec, kind uint16, keys []ident, es elements, counted bool) {
	const enough = 60 << 10
	at, list := 0, 0
	flags := uint16(unix.NLM_F_REQUEST)
	if kind == unix.NFT_MSG_NEWSETELEM {
		flags = created
	}
	concat := s.flags&nftables.NFT_SET_CONCAT != 0
	for n := range keys {
		i := &keys[n]
		if list == 0 {
			at = m.header(kind, flags, t.family, 0)
			m.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
			m.text(unix.NFTA_SET_ELEM_LIST_SET, s.name)
			list = m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		}
		e := m.nest(unix.NFTA_LIST_ELEM)
		m.value(unix.NFTA_SET_ELEM_KEY, i[:s.keyLen])
		if concat {
			m.value(nftables.NFTA_SET_ELEM_KEY_END, i[s.keyLen:2*s.keyLen])
		}
		if i.ends() {
			m.u32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		} else if kind == unix.NFT_MSG_NEWSETELEM {
			if s.data {
				m.value(unix.NFTA_SET_ELEM_DATA, native(es[*i]))
			}
			if counted {
				x := m.nest(unix.NFTA_SET_ELEM_EXPR)
				m.text(unix.NFTA_EXPR_NAME, "counter")
				m.unnest(x)
			}
		}
		m.unnest(e)
		if n == len(keys)-1 || len(m.b)-list > enough {
			m.unnest(list)
			m.end(at)
			list = 0
		}
	}
	m.n += len(keys)
}

// sorted are the keys of elements: of intervals in order, as the kernel looks for overlaps as they come. One
// interval ends where the next begins.
func (s *setSpec) sorted(es elements) []ident {
	keys := make([]ident, 0, len(es))
	for i := range es {
		keys = append(keys, i)
	}
	if s.interval() {
		slices.SortFunc(keys, compareIdents)
	}
	return keys
}

func compareIdents(a, b ident) int {
	if c := bytes.Compare(a[:identSize], b[:identSize]); c != 0 {
		return c
	}
	return int(b[identSize]) - int(a[identSize])
}

// value writes a key or a datum.
func (m *message) value(kind uint16, b []byte) {
	at := m.nest(kind)
	m.bytes(unix.NFTA_DATA_VALUE, b)
	m.unnest(at)
}
