// Package flow looks after connections that the kernel tracks: it ends those that policy denies now (Cut), and
// hears which packets the policy chains logged (Listen). All of it is netlink; no binary is run.
//
// It decides nothing about who may talk to whom, writes no rules, and changes no entry but those it ends.
package flow

import (
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/model"
)

var (
	_ kernel.Flows   = (*Driver)(nil)
	_ kernel.Packets = (*Driver)(nil)
)

// Options say where the driver works.
type Options struct {
	// NS is an open network namespace, or -1 for the one of the calling thread: where packets between
	// workloads are forwarded, tracked and logged. It stays the caller's and must stay open as long as the
	// driver is used.
	NS  int
	Log *slog.Logger // nil: slog.Default()
}

// Driver is a kernel.Flows and a kernel.Packets. Its methods may be called by several goroutines.
type Driver struct {
	ns  int
	log *slog.Logger

	mu sync.Mutex // one Cut at a time
	// protocol is the one whose sockets are destroyed: TCP, or in tests one that the kernel cannot.
	protocol uint8
	// destroys is nil until the kernel has been asked whether it can destroy sockets.
	destroys *bool
}

// New returns a driver. It does not talk to the kernel yet.
func New(o Options) (*Driver, error) {
	if o.NS < -1 {
		return nil, &model.FieldError{Noun: "flow driver", Field: "NS", Value: fmt.Sprint(o.NS), Want: "an open file or -1"}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Driver{ns: o.NS, log: o.Log.With("driver", "flow"), protocol: unix.IPPROTO_TCP}, nil
}
