package nft

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// watchBuffer holds the events of a large ruleset that is replaced at once, in bytes. When it runs over
// nothing is lost but detail: changed is called all the same.
const watchBuffer = 1 << 20

// Watch calls changed once when it listens, and then for every change to the own table, to a chain with
// a hook, and to rules of tables that have a chain at the forward hook. Changes by the driver itself are among them.
func (d *Driver) Watch(ctx context.Context, changed func()) error {
	r, err := d.open()
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer r.close()
	if err := r.conn.SetReadBuffer(watchBuffer); err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	if err := r.conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, r.close)
	defer stop()

	changed() // what happened before the group was joined was not heard
	for {
		msgs, err := r.conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed()
			continue
		case err != nil:
			return fmt.Errorf("watch nftables: %w", err)
		}
		for _, m := range msgs {
			if d.concerns(m) {
				changed()
				break
			}
		}
	}
}

// concerns tells whether an event is about something that Apply looks at.
func (d *Driver) concerns(m netlink.Message) bool {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
		return false
	}
	var k tableKey
	hook := false
	k.family = nftables.TableFamily(m.Data[0])
	kind := m.Header.Type & 0xff
	err := each(m.Data[4:], func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_TABLE_NAME: // the same number in messages about chains, rules, sets and elements
			k.name = ad.String()
		case unix.NFTA_CHAIN_HOOK:
			hook = true
		}
	})
	if err != nil {
		return true
	}
	switch kind {
	case unix.NFT_MSG_NEWGEN:
		return false // one at the end of every transaction, whatever it was about
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		return k == ownTable || hook
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		foreign := d.foreign.Load()
		return k == ownTable || foreign != nil && (*foreign)[k]
	}
	return k.name == plan.Table && k.family == ownTable.family
}
