package filter

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// nftMsgDestroySetElem is NFT_MSG_DESTROYSETELEM of linux/netfilter/nf_tables.h: Linux 6.3.
const nftMsgDestroySetElem = 30

// probe finds out what the kernel can do, in transactions after which nothing is different.
func (d *Driver) probe() error {
	t := &tableSpec{name: TableName + "-probe", family: nftables.TableFamilyINet}
	able := func(flags uint32, f func(*message)) (bool, error) {
		m := newBatch(0)
		m.table(t, flags)
		f(m)
		m.delTable(t)
		err := d.c.commit(m)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return false, nil
		}
		return err == nil, err
	}
	can, err := able(0, func(*message) {})
	if err != nil || !can {
		return errors.Join(fmt.Errorf("make a table: %w", errNone), err)
	}
	if can, err = able(d.flags, func(*message) {}); err == nil && !can {
		d.log.Info("the kernel has no tables that belong to a process and outlive it (Linux 6.9): they are watched")
		d.flags = 0
	}
	if err == nil && d.destroys {
		d.destroys, err = able(0, func(m *message) {
			m.set(t, rows, 1)
			m.elements(t, rows, nftMsgDestroySetElem, elements{keyOf(native(codeDeny)): 0}, false)
		})
	}
	return err
}
