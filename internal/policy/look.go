package policy

import (
	"iter"
	"maps"
	"net/netip"
)

// Object returns what was put under a key; nil when there is nothing.
func (c *Compiler) Object(key string) Object {
	if r, ok := c.objects[key]; ok {
		return r.object()
	}
	return nil
}

// Keys yields the keys of everything that was put and not deleted, in no order.
func (c *Compiler) Keys() iter.Seq[string] { return maps.Keys(c.objects) }

// RowOf is the row by which a local end's packets from or to a remote address are decided; 0 when the end
// is not policed.
func (t *Table) RowOf(l Local, remote netip.Addr) Row {
	base, ok := t.Locals[l]
	if !ok {
		return 0
	}
	if row, ok := t.Rows[RowKey{l, t.identity(remote)}]; ok {
		return row
	}
	return base
}
