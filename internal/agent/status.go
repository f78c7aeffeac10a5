package agent

import (
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/enforce"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store"
)

// Status is one honest look at a node: what `heddle status -o json` prints.
type Status struct {
	Node       string           `json:"node"`
	Version    string           `json:"version"`
	PID        int              `json:"pid"`
	Started    time.Time        `json:"started"`
	Ready      bool             `json:"ready"`
	Reason     string           `json:"reason,omitempty"` // why not ready
	Address4   netip.Addr       `json:"address4,omitzero"`
	Address6   netip.Addr       `json:"address6,omitzero"`
	Attachment model.Attachment `json:"attachment"`
	MTU        int              `json:"mtu"` // of new workloads, bytes
	Store      StoreStatus      `json:"store"`
	Pools      []model.Pool     `json:"pools"`
	Blocks     []BlockStatus    `json:"blocks"`
	Peers      []PeerStatus     `json:"peers"`
	Workloads  []model.Workload `json:"workloads"`
	Pass       Pass             `json:"pass"`
	Policy     enforce.Status   `json:"policy"`
	BGP        *BGPStatus       `json:"bgp,omitempty"` // nil: the node does not speak
	Problems   []model.Problem  `json:"problems"`
}

// StoreStatus tells of the connection to the store.
type StoreStatus struct {
	Type      config.StoreType `json:"type"`
	Endpoints []string         `json:"endpoints"`
	Connected bool             `json:"connected"`
	Since     time.Time        `json:"since,omitzero"`
	Error     string           `json:"error,omitempty"`
}

// BlockStatus is an own block with the number of addresses that workloads hold.
type BlockStatus struct {
	model.Block
	Used int `json:"used"`
}

// PeerState says how a peer's block is reached at the moment.
type PeerState string

// The states.
const (
	PeerUp         PeerState = "up"          // in the kernel
	PeerNoPath     PeerState = "no path"     // the reason says why
	PeerLost       PeerState = "lost"        // no heartbeat; its routes stay until its grace time is over
	PeerPending    PeerState = "pending"     // a kernel object is missing; see the problems
	PeerNotCarried PeerState = "not carried" // on purpose: its pool hands out addresses only
)

// PeerStatus is one remote block, its path and its state.
type PeerStatus struct {
	plan.Peer
	State   PeerState     `json:"state"`
	LostFor time.Duration `json:"lostFor,omitempty"` // nanoseconds
}

// Status looks at the agent's state.
func (a *Agent) Status() Status {
	s := a.snapshot()
	r := Status{
		Node: a.Config.Node, Version: a.Version, PID: pid(), Started: a.started, Ready: s.ready == nil,
		Attachment: a.Config.Attachment, Pass: s.pass, Workloads: a.ledger.List(),
		Pools: a.clusterPools(), Blocks: []BlockStatus{}, Peers: []PeerStatus{}, Problems: []model.Problem{},
		Store: StoreStatus{Type: a.Config.Store.Type, Endpoints: a.Config.Store.Endpoints, Connected: s.synced && s.storeErr == nil, Since: s.storeSince},
	}
	if p, ok := a.Store.(store.Placed); ok {
		r.Store.Endpoints = []string{p.Endpoint()}
	}
	if s.ready != nil {
		r.Reason = s.ready.Error()
	}
	if s.self != nil {
		r.Address4, r.Address6 = s.self.Address4, s.self.Address6
	}
	if s.storeErr != nil {
		r.Store.Error = s.storeErr.Error()
	}
	for _, b := range s.blocks {
		st := BlockStatus{Block: b}
		for _, w := range r.Workloads {
			if slices.ContainsFunc(w.Addresses, b.CIDR.Contains) {
				st.Used++
			}
		}
		r.Blocks = append(r.Blocks, st)
	}
	if s.plan != nil {
		r.MTU = s.plan.MTU
		r.Peers = peerStates(&s)
		r.BGP = a.bgpStatus(s.plan)
	}
	var policyIssues []model.Problem
	r.Policy, policyIssues = a.policy.Status()
	s.passIssues = slices.Concat(s.passIssues, policyIssues)
	r.Problems = a.problems(&s, r.Store)
	return r
}

func peerStates(s *state) []PeerStatus {
	bad := map[string]bool{}
	for _, i := range s.passIssues {
		if i.Severity == model.Failure {
			bad[i.Subject] = true
		}
	}
	out := make([]PeerStatus, 0, len(s.plan.Peers))
	for _, p := range s.plan.Peers {
		st := PeerStatus{Peer: p, State: PeerUp, LostFor: s.lost[p.Node]}
		switch {
		case p.Path == "":
			st.State = PeerNoPath
		case st.LostFor > 0:
			st.State = PeerLost
		case p.Path == model.PathNone:
			st.State = PeerNotCarried
		case bad["route "+p.Block.String()]:
			st.State = PeerPending
		}
		out = append(out, st)
	}
	return out
}

// unsaid leaves out the warnings about what is an error already: of a block in use that its pool does not
// hold, the registration says that it is kept, and the plan that it does not work.
func unsaid(warnings, errors []model.Problem) []model.Problem {
	return slices.DeleteFunc(slices.Clone(warnings), func(w model.Problem) bool {
		return w.Severity == model.Warning && slices.ContainsFunc(errors, func(e model.Problem) bool {
			return e.Severity == model.Failure && e.Subject == w.Subject
		})
	})
}

// lookAtStore is what to do about a store that is away or refuses: elsewhere than in Kubernetes, what is told.
func (a *Agent) lookAtStore(elsewhere string) string {
	if a.Config.Store.Type == config.StoreKubernetes {
		return "kubectl get --raw /readyz; kubectl auth can-i --list --as=system:serviceaccount:heddle-system:heddle"
	}
	return elsewhere
}

// problems gathers what every loop has to say, worst first.
func (a *Agent) problems(s *state, st StoreStatus) []model.Problem {
	all := []model.Problem{}
	if !st.Connected {
		detail := "not reached since this agent started"
		if err := a.view.Err(); err != nil {
			detail += ": " + err.Error()
		}
		if st.Error != "" {
			detail = st.Error
		}
		all = append(all, model.Problem{
			Code: "store-unreachable", Severity: model.Failure, Subject: "store", Next: a.lookAtStore("systemctl status heddle-store; check store.endpoints and the certificates"),
			Detail: detail + "; packets flow and pods can still be added from this node's own blocks",
		})
	}
	if s.synced && len(a.clusterPools()) == 0 {
		all = append(all, model.Problem{
			Code: "no-pool", Severity: model.Failure, Subject: "network", Detail: "the store holds no pool of addresses",
			Next: "heddle network set net-conf.json",
		})
	}
	all = append(all, s.netConf...)
	all = append(all, s.certificate...)
	all = append(all, s.writtenIssues...)
	all = append(all, s.bgpIssues...)
	all = append(all, unsaid(s.storeIssues, s.passIssues)...)
	all = append(all, s.unpublished...)
	all = append(all, s.passIssues...)
	slices.SortStableFunc(all, func(x, y model.Problem) int {
		rank := func(p model.Problem) int {
			if p.Severity == model.Failure {
				return 0
			}
			return 1
		}
		return rank(x) - rank(y)
	})
	return all
}
