package filter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/policy"
)

// counting are the maps whose entries decide.
var counting = []*setSpec{portSet, rangeSet, protoSet, rows}

// errNotCounting says that nobody switched the counters on.
var errNotCounting = errors.New("the entries do not count: switch counting on first")

// SetCounting makes all entries that decide count, from nothing, or stop counting. It is one transaction,
// and no packet is judged otherwise meanwhile.
func (d *Driver) SetCounting(ctx context.Context, on bool) error {
	d.lock()
	defer d.unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.counted == on {
		return nil
	}
	if !d.known {
		d.counted = on // the next Apply sees to it
		return nil
	}
	m := newBatch(0)
	for _, s := range counting {
		es := elements{}
		err := d.c.each(inetTable, s, d.flags != 0, func() { clear(es) }, func(i ident, value uint32, _ []byte) { es[i] = value })
		if err != nil {
			return fmt.Errorf("map %s: %w", s.name, err)
		}
		m.elements(inetTable, s, unix.NFT_MSG_DELSETELEM, es, false)
		m.elements(inetTable, s, unix.NFT_MSG_NEWSETELEM, es, on)
	}
	if err := d.commit(m); err != nil {
		return fmt.Errorf("count: %w", err)
	}
	d.counted = on
	return nil
}

// Counting tells whether entries count.
func (d *Driver) Counting() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counted
}

// Counters reads the counts.
func (d *Driver) Counters(ctx context.Context) (kernel.Counters, error) {
	d.lock()
	defer d.mu.Unlock()
	out := kernel.Counters{L4: map[policy.L4Key]kernel.Count{}, Base: map[policy.Row]kernel.Count{}}
	if err := ctx.Err(); err != nil {
		return out, err
	}
	if !d.counted {
		return out, errNotCounting
	}
	if err := d.open(); err != nil {
		return out, err
	}
	for _, s := range counting {
		err := d.c.each(inetTable, s, d.flags != 0, func() {}, func(i ident, _ uint32, counter []byte) {
			addCount(&out, s, i, countOf(counter))
		})
		if err != nil {
			return out, fmt.Errorf("map %s: %w", s.name, err)
		}
	}
	return out, nil
}

func countOf(counter []byte) (c kernel.Count) {
	for kind, v := range attributes(counter) {
		switch {
		case len(v) != 8:
		case kind == unix.NFTA_COUNTER_PACKETS:
			c.Packets = binary.BigEndian.Uint64(v)
		case kind == unix.NFTA_COUNTER_BYTES:
			c.Bytes = binary.BigEndian.Uint64(v)
		}
	}
	return c
}

// addCount puts a count where its entry is. Row 0 is nobody's: it marks that a map is whole.
func addCount(c *kernel.Counters, s *setSpec, i ident, n kernel.Count) {
	if s == rows {
		if row := policy.Row(binary.NativeEndian.Uint32(i[:])); row != 0 {
			c.Base[row] = n
		}
		return
	}
	if k := l4Key(s, i); k.Row != 0 {
		c.L4[k] = n
	}
}

// l4Key is what l4Element made an element of.
func l4Key(s *setSpec, i ident) policy.L4Key {
	two := func(at int) uint16 { return binary.BigEndian.Uint16(i[at:]) }
	switch s {
	case protoSet:
		return policy.L4Key{Row: policy.Row(binary.NativeEndian.Uint32(i[4:])), Protocol: i[0], Src: policy.AllPorts, Dst: policy.AllPorts}
	case portSet:
		one := policy.PortRange{First: two(0), Last: two(0)}
		return policy.L4Key{Row: policy.Row(binary.NativeEndian.Uint32(i[8:])), Protocol: i[4], Src: policy.AllPorts, Dst: one}
	}
	k := policy.L4Key{
		Row: policy.Row(binary.BigEndian.Uint32(i[12:])), Protocol: i[8],
		Src: policy.PortRange{First: two(0), Last: two(16)}, Dst: policy.PortRange{First: two(4), Last: two(20)},
	}
	if k.Protocol == unix.IPPROTO_ICMP || k.Protocol == unix.IPPROTO_ICMPV6 {
		k.Src, k.Dst = k.Dst, k.Src
	}
	return k
}

// SetLogging makes allowed packets of policed ends be logged as well, or not any more.
func (d *Driver) SetLogging(ctx context.Context, on bool) error {
	d.lock()
	defer d.unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.logged == on {
		return nil
	}
	before, after := contents{}, contents{}
	fixed(before, d.stated)
	d.logged = on
	if !d.known {
		return nil // the next Apply sees to it
	}
	fixed(after, d.stated)
	set := named("logged")
	m := newBatch(0)
	m.elements(inetTable, set, unix.NFT_MSG_DELSETELEM, before[set], false)
	m.elements(inetTable, set, unix.NFT_MSG_NEWSETELEM, after[set], false)
	if err := d.commit(m); err != nil {
		d.known = false
		return fmt.Errorf("log what is allowed: %w", err)
	}
	return nil
}
