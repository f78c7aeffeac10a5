package kernel

import (
	"context"
	"net/netip"

	"github.com/heddle-net/heddle/internal/plan"
)

// HostPorts opens and closes ports of the node between two passes: a Driver may be one, too. Calls may come from
// several goroutines; they take effect one after the other.
type HostPorts interface {
	// SetHostPorts makes the node's ports that lead to workloads those of the list. The rest of what the driver keeps
	// stays, and has to be there: a pass made it. On error the ports are as they were.
	SetHostPorts(ctx context.Context, ports []plan.HostPort) error

	// CheckHostPorts returns an error that names the first port of the list that does not lead where it says.
	CheckHostPorts(ctx context.Context, ports []plan.HostPort) error
}

// Tracked is a tracked connection to this node, with its destination as who began it sees it, and where its packets
// really go.
type Tracked struct {
	Dst, To netip.AddrPort
}

// Forgetter makes the kernel forget connections: Flows may be one, too.
type Forgetter interface {
	// ForgetUDP has the kernel forget every tracked flow of UDP to an address of this node for which stale says true,
	// and no other: its next packet takes the way of a new one. It returns how many. Packets that were under way when it
	// was called are waited for.
	ForgetUDP(ctx context.Context, stale func(Tracked) bool) (int, error)
}
