package netlink

import (
	"errors"
	"fmt"

	"github.com/safchain/ethtool"

	"github.com/heddle-net/heddle/internal/plan"
)

// txChecksum is the feature that leaves checksums to the device, by the name that `ethtool -k` prints.
const txChecksum = "tx-checksum-ip-generic"

// settleTxChecksum makes a VXLAN device's checksum offload as the plan has it.
func (r *round) settleTxChecksum(w *plan.Link) {
	want := !w.VXLAN.NoTxChecksum
	changed := false
	err := Do(r.d.ns, func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		have, err := e.Features(w.Name)
		if err != nil || have[txChecksum] == want {
			return err
		}
		changed = true
		if err := e.Change(w.Name, map[string]bool{txChecksum: want}); err != nil {
			return err
		}
		if have, err = e.Features(w.Name); err == nil && have[txChecksum] != want {
			err = errors.New("the kernel accepted the change, but does not hold it")
		}
		return err
	})
	if err != nil {
		r.fail("link-failed", "link "+w.Name, fmt.Errorf("%s: %w", txChecksum, err), "ethtool -k "+w.Name)
		return
	}
	if changed {
		r.changed++
	}
}
