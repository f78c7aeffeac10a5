package agent

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
	"github.com/heddle-net/heddle/internal/plan"
)

// speakLoop makes BGP sessions equal to the plan that is in the kernel, so that nothing is announced before
// it can be delivered, and asks for a pass when BGP has learned something.
func (a *Agent) speakLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.Speaker.Changed():
			poke(a.kick)
		case <-a.speak:
			s := a.snapshot()
			issues := a.Speaker.Apply(ctx, s.plan.BGP)
			a.update(func(st *state) { st.bgpIssues, st.spoke = issues, true })
			if !s.spoke {
				poke(a.kick) // that pass did not know yet whom to wait for
			}
		}
	}
}

// learned is what BGP says, and whether it has not told all yet since this agent's start.
func (a *Agent) learned() (routes []peering.Route, relearning bool) {
	if a.Speaker == nil {
		return nil, false
	}
	return a.Speaker.Routes(), !a.snapshot().spoke || !a.Speaker.Settled()
}

// elected is that of the last plan.
func (a *Agent) elected() bool {
	p := a.snapshot().plan
	return p != nil && p.BGP != nil && p.BGP.Elected
}

// forgiven is after how many leases without a fault a node that was lost is counted on again: one that comes and goes
// does not move everybody's sessions.
const forgiven = 10

// stillSilent are the nodes that BGP does not count on as route reflectors, and when each was last seen to be lost.
// steady: the store has answered for the length of a lease, so that what is lost is the node and not the store.
func stillSilent(before map[string]time.Time, lost map[string]time.Duration, steady bool, now time.Time, lease time.Duration) map[string]time.Time {
	silent := map[string]time.Time{}
	for node, at := range before {
		if now.Sub(at) < forgiven*lease {
			silent[node] = at
		}
	}
	for node := range lost {
		if _, was := before[node]; steady || was {
			silent[node] = now
		}
	}
	return silent
}

func sameNodes(a, b map[string]time.Time) bool {
	return maps.EqualFunc(a, b, func(time.Time, time.Time) bool { return true })
}

// BGPStatus is the speaker as it is now.
type BGPStatus struct {
	ASN       uint32           `json:"asn"`
	RouterID  netip.Addr       `json:"routerID"`
	Mode      string           `json:"mode"` // in words
	Neighbors []peering.Status `json:"neighbors"`
	// Announced are own prefixes; Learned is how many routes BGP put into the kernel.
	Announced int `json:"announced"`
	Learned   int `json:"learned"`
	// Relearning: not every neighbour has told all yet since the start.
	Relearning bool `json:"relearning,omitempty"`
}

// bgpStatus is nil while the node does not speak BGP.
func (a *Agent) bgpStatus(p *plan.Plan) *BGPStatus {
	if a.Speaker == nil || p == nil || p.BGP == nil {
		return nil
	}
	st := &BGPStatus{
		ASN: p.BGP.ASN, RouterID: p.BGP.RouterID, Mode: p.BGP.Mode, Neighbors: a.Speaker.Status(),
		Announced: len(p.BGP.Announced), Relearning: p.Relearning,
	}
	for _, r := range p.Routes {
		if r.Learned {
			st.Learned++
		}
	}
	return st
}

// bgpCollector tells of sessions when asked, so that no series outlives its neighbour.
type bgpCollector struct {
	a                             *Agent
	up, flaps, prefixes, inKernel *prometheus.Desc
}

func newBGPCollector(a *Agent) *bgpCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &bgpCollector{
		a:        a,
		up:       desc("heddle_bgp_session_up", "1 while the session with a BGP neighbour is established.", "neighbor", "name", "asn"),
		flaps:    desc("heddle_bgp_session_flaps_total", "How often the session was lost since the agent's start.", "neighbor", "name", "asn"),
		prefixes: desc("heddle_bgp_prefixes", "Prefixes of a BGP neighbour: received, accepted, sent.", "neighbor", "name", "asn", "direction"),
		inKernel: desc("heddle_bgp_routes", "Routes in this node's plan that BGP told of."),
	}
}

func (c *bgpCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.flaps, c.prefixes, c.inKernel} {
		ch <- d
	}
}

func (c *bgpCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.a.snapshot()
	st := c.a.bgpStatus(s.plan)
	if st == nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(c.inKernel, prometheus.GaugeValue, float64(st.Learned))
	for _, n := range st.Neighbors {
		labels := []string{n.Address.String(), n.Name, strconv.FormatUint(uint64(n.RemoteASN), 10)}
		ch <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, truth(n.State == peering.Established), labels...)
		ch <- prometheus.MustNewConstMetric(c.flaps, prometheus.CounterValue, float64(n.Flaps), labels...)
		for direction, count := range map[string]int{"received": n.Received, "accepted": n.Accepted, "sent": n.Sent} {
			ch <- prometheus.MustNewConstMetric(c.prefixes, prometheus.GaugeValue, float64(count), append(slices.Clone(labels), direction)...)
		}
	}
}

// overlay is what the configuration says of this node beside its addresses.
func (a *Agent) overlay(n *model.Node) {
	n.Labels, n.ASN, n.ClusterID = maps.Clone(a.Config.Labels), a.Config.BGP.ASN, a.Config.BGP.ClusterID
}

// fromStore is a node with what only the store says of it: in Kubernetes labels and BGP's numbers are those of
// the Node object.
func fromStore(self model.Node, c *model.Cluster) model.Node {
	filed := c.Node(self.Name)
	if filed == nil {
		return self
	}
	if len(self.Labels) == 0 {
		self.Labels = filed.Labels
	}
	if self.ASN == 0 {
		self.ASN = filed.ASN
	}
	if !self.ClusterID.IsValid() {
		self.ClusterID = filed.ClusterID
	}
	return self
}
