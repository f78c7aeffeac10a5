package plan

import (
	"fmt"
	"math"

	"github.com/heddle-net/heddle/internal/model"
)

// Queue is a token bucket filter at the root of a link: what leaves by the link is held to a rate.
type Queue struct {
	Rate  uint64 `json:"rate"`  // bytes per second
	Burst uint32 `json:"burst"` // bytes that may leave at once, after a rest
	Limit uint32 `json:"limit"` // bytes that may wait; more are dropped
}

const (
	// leastBurst is what a bucket holds at least where nobody says, in bytes.
	leastBurst = 32 << 10
	// leastLimit holds some of the largest packets that a stack hands over at once, of 64 KiB without their headers:
	// with room for less than one of them TCP comes to a stop.
	leastLimit = 256 << 10
	// header is what a packet has on a link beside its MTU: Ethernet's, and a VLAN tag.
	header = 18
)

// queue is the bucket of a rate in bits per second and a burst in bits (0: what passes in a tenth of a second);
// nil without a rate. A burst below one packet would let none through. What waits is worth 25 ms, as with the
// reference's bandwidth plugin, and not the burst too: that would be minutes where a runtime asks for no limit on it.
func queue(rate, burst uint64, mtu int) *Queue {
	if rate == 0 {
		return nil
	}
	q := &Queue{Rate: max(rate/8, 1)}
	if burst == 0 {
		burst = 8 * max(q.Rate/10, leastBurst)
	}
	q.Burst = uint32(min(max(burst/8, uint64(mtu+header)), math.MaxUint32))
	q.Limit = uint32(min(max(q.Rate/40, leastLimit), math.MaxUint32))
	return q
}

// queues gives both ends of the veth what the workload's bandwidth asks for: what the workload gets leaves by the
// node's end, what it sends by its own.
func (p *Pod) queues(b *model.Bandwidth) {
	if b == nil {
		return
	}
	p.HostQueue = queue(b.IngressRate, b.IngressBurst, p.MTU)
	p.Queue = queue(b.EgressRate, b.EgressBurst, p.MTU)
}

// queueWords are the words of `tc qdisc add`.
func queueWords(q *Queue, link string) []string {
	return []string{
		"qdisc", "add", "dev", link, "root", "tbf", "rate", fmt.Sprintf("%dbps", q.Rate),
		"burst", fmt.Sprint(q.Burst), "limit", fmt.Sprint(q.Limit),
	}
}
