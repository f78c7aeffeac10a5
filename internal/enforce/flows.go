package enforce

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/policy"
)

// recorderSize is how many logged packets are kept.
const recorderSize = 4096

// FlowRecord is one logged packet, with what decided.
type FlowRecord struct {
	Number    uint64         `json:"number"` // of the record, from 1, in order
	At        time.Time      `json:"at"`
	Denied    bool           `json:"denied"`
	Direction string         `json:"direction"` // "ingress" of Dst, or "egress" of Src
	Src       string         `json:"src"`       // namespace/name, or the address
	Dst       string         `json:"dst"`
	SrcAddr   netip.AddrPort `json:"srcAddr"`
	DstAddr   netip.AddrPort `json:"dstAddr"`
	Protocol  uint8          `json:"protocol"`
	Length    int            `json:"length"` // bytes
	Hook      string         `json:"hook"`
	// Reason is what decided; nil when the table has changed since and decides otherwise now.
	Reason *policy.Reason `json:"reason,omitempty"`
	// Staged is what a staged policy would have decided instead.
	Staged *policy.Reason `json:"staged,omitempty"`
}

// recorder keeps the last logged packets.
type recorder struct {
	mu     sync.Mutex
	ring   []FlowRecord
	last   uint64
	missed int
}

func (r *recorder) add(f FlowRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	f.Number = r.last
	if len(r.ring) < recorderSize {
		r.ring = append(r.ring, f)
		return
	}
	r.ring[(r.last-1)%recorderSize] = f
}

func (r *recorder) miss(n int) {
	r.mu.Lock()
	r.missed += n
	r.mu.Unlock()
}

// seen records a packet with the names of its ends and what the table says of it.
func (e *Enforcer) seen(p kernel.Packet) {
	e.mu.Lock()
	d, direction := e.judge(p.Protocol, p.Src, p.Dst)
	src, dst := e.name(p.Src.Addr()), e.name(p.Dst.Addr())
	e.mu.Unlock()
	f := FlowRecord{
		At: time.Now().UTC(), Denied: p.Denied, Direction: "ingress", Src: src, Dst: dst,
		SrcAddr: p.Src, DstAddr: p.Dst, Protocol: p.Protocol, Length: p.Length, Hook: p.Hook, Staged: d.Staged,
	}
	if direction == policy.Egress {
		f.Direction = "egress"
	}
	if d.Reason != nil && (d.Reason.Action == policy.Deny) == p.Denied {
		f.Reason = d.Reason
	}
	e.record.add(f)
}

// FlowQuery chooses records.
type FlowQuery struct {
	After     uint64 // only those with a greater number
	Denied    bool   // only denied ones
	Staged    bool   // only those that a staged policy would decide otherwise
	Namespace string // of one of the ends
}

// FlowLog is the answer to a FlowQuery, oldest first.
type FlowLog struct {
	Flows  []FlowRecord `json:"flows"`
	Last   uint64       `json:"last"`   // the number to go on after
	Missed int          `json:"missed"` // packets that came too fast, since the agent's start
}

// FlowLog returns the kept records that the query chooses.
func (e *Enforcer) FlowLog(q FlowQuery) FlowLog {
	r := &e.record
	r.mu.Lock()
	defer r.mu.Unlock()
	out := FlowLog{Flows: []FlowRecord{}, Last: r.last, Missed: r.missed}
	for _, f := range r.ring {
		in := func(name string) bool { return strings.HasPrefix(name, q.Namespace+"/") }
		if f.Number <= q.After || q.Denied && !f.Denied || q.Staged && f.Staged == nil || q.Namespace != "" && !in(f.Src) && !in(f.Dst) {
			continue
		}
		out.Flows = append(out.Flows, f)
	}
	slices.SortFunc(out.Flows, func(a, b FlowRecord) int { return int(int64(a.Number) - int64(b.Number)) })
	return out
}
