package policy

import "net/netip"

// ledger is one map of the table, with what was in it before the round where that was touched.
type ledger[K, V comparable] struct {
	now map[K]V
	was map[K]prior[V]
}

type prior[V any] struct {
	value V
	ok    bool
}

func newLedger[K, V comparable]() ledger[K, V] {
	return ledger[K, V]{map[K]V{}, map[K]prior[V]{}}
}

func (l *ledger[K, V]) put(k K, v V) {
	old, ok := l.now[k]
	if ok && old == v {
		return
	}
	l.remember(k, old, ok)
	l.now[k] = v
}

func (l *ledger[K, V]) del(k K) {
	if old, ok := l.now[k]; ok {
		l.remember(k, old, true)
		delete(l.now, k)
	}
}

func (l *ledger[K, V]) remember(k K, v V, ok bool) {
	if _, known := l.was[k]; !known {
		l.was[k] = prior[V]{v, ok}
	}
}

// end returns what the round changed.
func (l *ledger[K, V]) end() Change[K, V] {
	c := Change[K, V]{Put: map[K]V{}, Del: map[K]struct{}{}}
	for k, before := range l.was {
		v, ok := l.now[k]
		switch {
		case ok && (!before.ok || v != before.value):
			c.Put[k] = v
		case !ok && before.ok:
			c.Del[k] = struct{}{}
		}
	}
	if len(l.was) > 1024 {
		l.was = map[K]prior[V]{}
	} else {
		clear(l.was)
	}
	return c
}

// Empty tells whether nothing changed.
func (c *Change[K, V]) Empty() bool { return len(c.Put) == 0 && len(c.Del) == 0 }

// Empty tells whether the two states are the same.
func (d *Delta) Empty() bool {
	return d.Identities.Empty() && d.Nets.Empty() && d.Locals.Empty() && d.Rows.Empty() && d.L4.Empty() && d.Base.Empty() && d.Sources.Empty()
}

// NewTable returns an empty table: nothing is policed.
func NewTable() *Table {
	return &Table{
		Identities: map[netip.Addr]ID{}, Nets: map[AddrRange]ID{}, Locals: map[Local]Row{}, Rows: map[RowKey]Row{},
		L4: map[L4Key]Decision{}, Base: map[Row]Decision{}, Sources: map[Source]struct{}{},
	}
}

// Apply makes the table, in the state before the difference, that after it.
func (t *Table) Apply(d *Delta) {
	apply(t.Identities, d.Identities)
	apply(t.Nets, d.Nets)
	apply(t.Locals, d.Locals)
	apply(t.Rows, d.Rows)
	apply(t.L4, d.L4)
	apply(t.Base, d.Base)
	apply(t.Sources, d.Sources)
	t.reindex(d)
}

func apply[K, V comparable](m map[K]V, c Change[K, V]) {
	for k := range c.Del {
		delete(m, k)
	}
	for k, v := range c.Put {
		m[k] = v
	}
}
