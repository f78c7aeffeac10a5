package ledger

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// content is what the records of both files say together.
type content struct {
	workloads map[string]model.Workload
	lent      map[netip.Addr]string       // to which node
	owner     map[netip.Addr]string       // of addresses of workloads, and of those that are lent
	cooling   map[netip.Addr]time.Time    // when it was released
	last      map[netip.Prefix]netip.Addr // given out, by block
}

func newContent() *content {
	return &content{
		workloads: map[string]model.Workload{},
		lent:      map[netip.Addr]string{},
		owner:     map[netip.Addr]string{},
		cooling:   map[netip.Addr]time.Time{},
		last:      map[netip.Prefix]netip.Addr{},
	}
}

// add takes a record in, or changes nothing and returns ErrDamaged with the reason.
func (c *content) add(r record) error {
	if err := c.parse(r.key, r.value); err != nil {
		return fmt.Errorf("%w: record %q: %w", ErrDamaged, r.key, err)
	}
	return nil
}

func (c *content) parse(key string, value []byte) error {
	if name, ok := strings.CutPrefix(key, workloadPrefix); ok {
		var w model.Workload
		if err := json.Unmarshal(value, &w); err != nil {
			return err
		}
		if w.Key() != name {
			return fmt.Errorf("it holds workload %q", w.Key())
		}
		if err := c.own(name, w.Addresses...); err != nil {
			return err
		}
		c.workloads[name] = w
		return nil
	}
	if name, ok := strings.CutPrefix(key, coolingPrefix); ok {
		addr, err := netip.ParseAddr(name)
		if err != nil {
			return err
		}
		if len(value) != 8 {
			return fmt.Errorf("%d bytes: want 8", len(value))
		}
		c.cooling[addr] = time.Unix(0, int64(binary.BigEndian.Uint64(value))) //nolint:gosec // bits as they are
		return nil
	}
	if name, ok := strings.CutPrefix(key, blockPrefix); ok {
		p, err := netip.ParsePrefix(name)
		if err != nil {
			return err
		}
		addr, err := netip.ParseAddr(string(value))
		if err != nil {
			return err
		}
		c.last[p] = addr
		return nil
	}
	if name, ok := strings.CutPrefix(key, lentPrefix); ok {
		addr, err := netip.ParseAddr(name)
		if err != nil {
			return err
		}
		if err := c.own(lentTo(string(value)), addr); err != nil {
			return err
		}
		c.lent[addr] = string(value)
		return nil
	}
	return errors.New("unknown kind of record")
}

func (c *content) own(owner string, addrs ...netip.Addr) error {
	for _, addr := range addrs {
		if other, used := c.owner[addr]; used {
			return fmt.Errorf("address %s belongs to %q already", addr, other)
		}
	}
	for _, addr := range addrs {
		c.owner[addr] = owner
	}
	return nil
}

// addresses is the part that new addresses are chosen by. What has an owner does not rest: Returned writes first that
// an address rests and then that it is not lent any more, and a crash comes in between.
func (c *content) addresses(l *Ledger) *addresses {
	a := newAddresses(l.CoolDown())
	a.taken = l.opts.Taken
	a.owner, a.cooling, a.last = c.owner, c.cooling, c.last
	maps.DeleteFunc(a.cooling, func(addr netip.Addr, _ time.Time) bool { _, used := a.owner[addr]; return used })
	return a
}
