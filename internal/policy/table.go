package policy

import "net/netip"

// The decision table: what the kernel's maps hold, as plain values. A packet between a local end and a
// remote one is decided by a walk of constant length:
//
//	id   = Identities[remote] or the entry of Nets that holds remote, or 0
//	row  = Rows[local, id] or Locals[local]
//	verdict = L4[row, protocol, ports] (at most one entry matches) or Base[row]
//
// A local end that is not in Locals is not policed in that direction.

// Hook is the point of the packet's path at which a local end is judged.
type Hook uint8

// The hooks. The first two judge workloads by their address, the others host interfaces by their name.
const (
	WorkloadIngress Hook = iota // to a local workload; the remote end is the source
	WorkloadEgress              // from a local workload; the remote end is the destination
	HostInput
	HostOutput
	HostForwardIn  // forwarded, came in by the interface
	HostForwardOut // forwarded, leaves by the interface
	HostPreDNATIn
	HostUntrackedIn
	HostUntrackedOut
	Hooks // their number
)

// ID is a number that this node gives to a set of remote addresses which its policies cannot tell apart.
// 0 is everything that no policy here names.
type ID uint32

// Row numbers a function from protocol and ports to a verdict. Never 0 in an entry.
type Row uint32

// Verdict is what becomes of a packet.
type Verdict uint8

// The verdicts.
const (
	VerdictAllow    Verdict = iota + 1
	VerdictDeny             // logged, within limits
	VerdictAllowLog         // allowed, and logged: a Log rule or a staged policy stands before
	VerdictDenyLog          // denied, and a Log rule stands before
	VerdictContinue         // nothing was said: only at the hooks before DNAT and tracking
)

// Local is one local end at one hook.
type Local struct {
	Hook Hook
	Addr netip.Addr // of a workload
	Link string     // of a host endpoint: the interface, or "*" for all
}

// RowKey is a local end towards one identity.
type RowKey struct {
	Local Local
	ID    ID
}

// AddrRange is first to last, both included, of one family.
type AddrRange struct{ First, Last netip.Addr }

// PortRange is first to last, both included.
type PortRange struct{ First, Last uint16 }

// AllPorts is every port, for protocols with ports and without.
var AllPorts = PortRange{0, 65535}

// L4Key is a set of packets by protocol and ports. Entries of one row do not overlap, except that an entry
// with both ranges AllPorts (a whole protocol) gives way to those with narrower ones. For ICMP and ICMPv6,
// Dst is type<<8|code and Src is AllPorts.
type L4Key struct {
	Row      Row
	Protocol uint8
	Src, Dst PortRange
}

// Decision is a verdict with what decided. Values are shared; do not write to them.
type Decision struct {
	Verdict Verdict
	Reason  *Reason
	// Staged is what the staged policies would have decided; nil when there are none or they agree.
	Staged *Reason
}

// Reason names what decided.
type Reason struct {
	Action Action `json:"action"` // Allow or Deny
	Tier   string `json:"tier,omitempty"`
	// Policy and Rule are set when a rule decided: Rule is its Index.
	Policy *Ref `json:"policy,omitempty"`
	Rule   int  `json:"rule"`
	// Selecting are, when a tier's default decided, the policies of the tier that select the workload
	// and of which no rule matched.
	Selecting []Ref `json:"selecting,omitempty"`
	// Staged marks what would be decided if the staged policies were in force.
	Staged bool `json:"staged,omitempty"`
	// Builtin is set when no policy decided but one of the fixed rules did.
	Builtin string `json:"builtin,omitempty"`
}

// The fixed rules of Reason.Builtin. Past the last tier there is no such text: Reason{Action: Allow}.
const (
	BuiltinOwnNode = "own node"                     // a node reaches the workloads on it
	BuiltinItself  = "itself"                       // a workload reaches itself
	BuiltinHost    = "host endpoint without policy" // a named host endpoint is closed where no policy opens it
)

// Source is what a local workload may send: frames from its interface with its MAC and one of its addresses.
type Source struct {
	Link string // host end
	MAC  string // aa:bb:cc:dd:ee:ff
	Addr netip.Addr
}

// Table is the decision table of one node. It is made by a Compiler and read by everybody else.
type Table struct {
	Identities map[netip.Addr]ID
	Nets       map[AddrRange]ID // disjoint
	Locals     map[Local]Row
	Rows       map[RowKey]Row
	L4         map[L4Key]Decision
	Base       map[Row]Decision
	Sources    map[Source]struct{}
	indexed    *indexed // by Apply and by a Compiler; not needed
}

// Change is the difference between two states of one map. A key whose value changed is in Put only.
type Change[K comparable, V any] struct {
	Put map[K]V
	Del map[K]struct{}
}

// Delta is the difference between two states of a Table: what the kernel needs to be told, as one transaction.
type Delta struct {
	Identities Change[netip.Addr, ID]
	Nets       Change[AddrRange, ID]
	Locals     Change[Local, Row]
	Rows       Change[RowKey, Row]
	L4         Change[L4Key, Decision]
	Base       Change[Row, Decision]
	Sources    Change[Source, struct{}]
}
