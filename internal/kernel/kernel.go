// Package kernel is the seam between a plan and the drivers that make a kernel equal to it.
package kernel

import (
	"context"
	"net/netip"
	"os"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/policy"
)

// Driver makes one part of a kernel equal to a plan.
type Driver interface {
	// Apply makes the kernel equal to the plan's part that is the driver's, reads back what it
	// changed, sweeps what is marked as Heddle's and not wanted, and leaves everything else alone.
	// It is idempotent, does as much as it can, and returns what it could not do, each with the
	// kernel's own reason. The number is of kernel objects changed: 0 means nothing differed.
	// With a plan that is Recalled, what is missing is added, and the links, addresses and ways to other
	// nodes that are there stay.
	Apply(ctx context.Context, p *plan.Plan) (changed int, problems []model.Problem)

	// Watch calls changed whenever something that the driver owns may have been changed by anybody
	// (also by the driver itself: a pass then finds nothing to do). It blocks until ctx ends, and
	// returns nil then.
	Watch(ctx context.Context, changed func()) error

	// Sweep removes everything that is marked as Heddle's: for uninstall and `lab down`.
	Sweep(ctx context.Context) error
}

// Pods makes and takes away workloads' own interfaces. Calls for different workloads may run at once.
type Pods interface {
	// Attach makes the veth, with its inner end in netns, and everything that p says of both ends. It
	// returns when packets can flow. On error nothing is left behind. A host link of the same name that is marked as
	// Heddle's and is not in use any more (a DEL that never came) is replaced.
	Attach(ctx context.Context, netns *os.File, p plan.Pod) error

	// Detach removes the host end and so the whole veth. An absent link is success; a link that is
	// not marked as Heddle's is an error and stays.
	Detach(ctx context.Context, hostLink string) error

	// Verify compares both ends with p and returns an error that names the first difference: the
	// interface, an address, a route, a neighbour.
	Verify(ctx context.Context, netns *os.File, p plan.Pod) error
}

// Filter makes the kernel's policy maps equal to a decision table. Calls may come from several goroutines;
// they take effect one after the other.
type Filter interface {
	// Update applies a difference to a kernel that holds the state before it, as one atomic transaction.
	// On error the kernel is as it was, or no longer known: the caller goes on with Apply.
	Update(ctx context.Context, d *policy.Delta) error

	// Apply reads the kernel, compares it with the whole table and repairs it in one atomic transaction.
	// Established flows are not interrupted. The number is of kernel objects changed.
	Apply(ctx context.Context, t *policy.Table) (changed int, problems []model.Problem)

	// Watch calls changed when somebody else, or the driver itself, may have changed what the driver owns.
	// It blocks until ctx ends, and returns nil then.
	Watch(ctx context.Context, changed func()) error

	// Sweep removes everything that the driver owns: then nothing is policed.
	Sweep(ctx context.Context) error

	// SetCounting makes all entries that decide count, from nothing, or stop counting.
	SetCounting(ctx context.Context, on bool) error

	// SetLogging makes allowed packets of policed ends be logged as well, or not any more.
	SetLogging(ctx context.Context, on bool) error

	// Counting tells whether entries count.
	Counting() bool

	// Counters reads the counts.
	Counters(ctx context.Context) (Counters, error)
}

// Count is what an entry has decided. Only packets that are judged count: the first of each flow.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Counters are the counts of all entries: with the table's Decisions they are those of rules.
type Counters struct {
	L4   map[policy.L4Key]Count
	Base map[policy.Row]Count
}

// Flow is one tracked connection, from who began it: addresses and ports as the workloads see them
// (after destination NAT, before source NAT). For ICMP, Dst's port is type<<8|code.
type Flow struct {
	Protocol uint8
	Src, Dst netip.AddrPort
}

// Flows ends connections.
type Flows interface {
	// Cut ends every tracked flow for which denied says true, and no other: the kernel forgets it, and the
	// ends of a TCP connection see a reset. netns opens the network namespace of the local workload that has
	// an address, nil when there is none. It returns how many it ended.
	Cut(ctx context.Context, denied func(Flow) bool, netns func(netip.Addr) *os.File) (int, error)
}

// Packet is one that the policy chains logged.
type Packet struct {
	Denied   bool
	Hook     string // of the chain: "forward", "input", "output", "prerouting"
	In, Out  string // interfaces, where known
	Protocol uint8
	Src, Dst netip.AddrPort // for ICMP, Dst's port is type<<8|code
	Length   int            // bytes, of the IP packet
}

// Packets hears what the policy chains log.
type Packets interface {
	// Listen calls seen for every logged packet until ctx ends, and returns nil then. Packets that come faster
	// than seen takes them are dropped by the kernel; missed is called with how many.
	Listen(ctx context.Context, seen func(Packet), missed func(int)) error
}

// Facts observes the machine.
type Facts interface {
	// Host lists the addresses by which peers could reach this node: global unicast, on links that
	// are up and are neither loopback, bridges, veth ports of a bridge, tunnels nor Heddle's own.
	Host(ctx context.Context) (model.Host, error)

	// SourceFor asks the kernel which of its addresses it would use to reach dst.
	SourceFor(ctx context.Context, dst netip.Addr) (netip.Addr, error)
}
