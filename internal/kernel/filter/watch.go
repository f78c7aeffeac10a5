package filter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// watchBuffer holds the events of a large table that somebody else replaces, in bytes. When it runs over
// nothing is lost but detail: changed is called all the same.
const watchBuffer = 1 << 20

// Watch calls changed once when it listens, and then for every change that somebody else makes to the
// tables. What the driver writes itself is not heard.
func (d *Driver) Watch(ctx context.Context, changed func()) error {
	own, err := d.port()
	if err != nil {
		return fmt.Errorf("watch policy: %w", err)
	}
	c, err := dial(d.ns)
	if err != nil {
		return fmt.Errorf("watch policy: %w", err)
	}
	defer func() { _ = c.Close() }()
	if err := errors.Join(c.SetReadBuffer(watchBuffer), c.SetBPF(notFrom(own)), c.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		return fmt.Errorf("watch policy: %w", err)
	}
	d.watchers.Store(c, changed)
	defer d.watchers.Delete(c)
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()

	changed() // what happened before the group was joined was not heard
	for {
		concerned := false
		_, err := c.receive(func(h unix.NlMsghdr, data []byte) bool {
			concerned = concerned || concerns(h, data)
			return false
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed()
		case err != nil:
			return fmt.Errorf("watch policy: %w", err)
		case concerned:
			changed()
		}
	}
}

// loud is how many elements a transaction may have before nobody of the driver listens to it: the kernel
// keeps a page of memory for each until its end, while anybody does.
const loud = 2 * portion

// commit is a transaction.
func (d *Driver) commit(m *message) error {
	if m.n <= loud {
		return d.c.commit(m)
	}
	deaf := false
	d.watchers.Range(func(c, _ any) bool {
		deaf = c.(*conn).LeaveGroup(unix.NFNLGRP_NFTABLES) == nil || deaf
		return true
	})
	err := d.c.commit(m)
	d.watchers.Range(func(c, _ any) bool {
		if err := c.(*conn).JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
			d.log.Warn("cannot listen to the ruleset any more", "error", err)
			_ = c.(*conn).Close() // ends Watch
		}
		return true
	})
	d.missed = d.missed || deaf
	return err
}

// unlock ends a call, and has those look who missed what others changed meanwhile.
func (d *Driver) unlock() {
	missed := d.missed
	d.missed = false
	d.mu.Unlock()
	if missed {
		d.watchers.Range(func(_, changed any) bool { changed.(func())(); return true })
	}
}

// port is that of the socket by which the driver writes.
func (d *Driver) port() (uint32, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.open(); err != nil {
		return 0, err
	}
	return d.c.port, nil
}

// notFrom is a socket filter that drops datagrams whose first message answers to a request of port. All
// messages of a datagram come from one transaction.
func notFrom(port uint32) []bpf.RawInstruction {
	const pidOffset = 12 // of nlmsg_pid in struct nlmsghdr
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: pidOffset, Size: 4}, // as big endian
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(native(port)), SkipFalse: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 1<<32 - 1},
	})
	if err != nil {
		panic(err) // a constant program
	}
	return program
}

// concerns tells whether an event is about the own tables.
func concerns(h unix.NlMsghdr, data []byte) bool {
	if h.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || h.Type&0xff == unix.NFT_MSG_NEWGEN || len(data) < 4 {
		return false // a new generation ends every transaction, whatever it was about
	}
	for kind, v := range attributes(data[4:]) {
		if kind == unix.NFTA_TABLE_NAME { // the same number in messages about chains, rules, sets and elements
			return str(v) == TableName
		}
	}
	return false
}
