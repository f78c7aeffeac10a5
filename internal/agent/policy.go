package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"

	"github.com/heddle-net/heddle/internal/enforce"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/why"
)

// holdWorkloads tells the policy side of the workloads of an earlier life.
func (a *Agent) holdWorkloads() {
	for _, w := range a.ledger.List() {
		a.policy.Hold(w, a.macOf(w))
	}
}

// macOf is the MAC of a workload's own end.
func (a *Agent) macOf(w model.Workload) string { return plan.PodOf(plan.Input{}, w, w.MTU).MAC }

// ownAddresses are all by which a workload can mean the node that it runs on.
func ownAddresses(self *model.Node, host model.Host, p *plan.Plan) []netip.Addr {
	out := why.NodeAddresses(self)
	for _, a := range p.Addresses {
		out = append(out, a.Prefix.Addr())
	}
	for _, u := range host.Uplinks {
		out = append(out, u.Prefix.Addr())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func interfaces(host model.Host) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, u := range host.Uplinks {
		out[u.Link] = append(out[u.Link], u.Prefix.Addr())
	}
	return out
}

// maxQuestion bounds what is read of a question, in bytes.
const maxQuestion = 16 << 20

// servePolicy adds the policy side's answers: /flows, /why, /counters, /log-allowed, /check.
func (a *Agent) servePolicy(mux *http.ServeMux) {
	mux.HandleFunc("GET /flows", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		after, err := strconv.ParseUint(q.Get("after"), 10, 64)
		if err != nil && q.Get("after") != "" {
			http.Error(w, "after "+strconv.Quote(q.Get("after"))+": want a number", http.StatusBadRequest)
			return
		}
		reply(w, a.policy.FlowLog(enforce.FlowQuery{
			After: after, Denied: q.Has("denied"), Staged: q.Has("staged"), Namespace: q.Get("namespace"),
		}))
	})
	mux.HandleFunc("GET /why", func(w http.ResponseWriter, r *http.Request) {
		q, err := why.ParseQuestion(r.URL.Query().Get("from"), r.URL.Query().Get("to"))
		if err == nil {
			var answers []why.Answer
			if answers, err = a.policy.Why(q, a.nodes()); err == nil {
				reply(w, answers)
				return
			}
		}
		http.Error(w, err.Error(), statusOf(err))
	})
	mux.HandleFunc("GET /counters", func(w http.ResponseWriter, r *http.Request) {
		counts, err := a.policy.Counters(r.Context())
		if err != nil {
			http.Error(w, err.Error(), statusOf(err))
			return
		}
		reply(w, counts)
	})
	for path, set := range map[string]func(context.Context, bool) error{"POST /counters": a.policy.SetCounting, "POST /log-allowed": a.policy.SetLogging} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			var on bool
			err := json.NewDecoder(io.LimitReader(r.Body, maxQuestion)).Decode(&on)
			if err == nil {
				err = set(r.Context(), on)
			}
			if err != nil {
				http.Error(w, err.Error(), statusOf(err))
				return
			}
			reply(w, on)
		})
	}
	mux.HandleFunc("POST /check", func(w http.ResponseWriter, r *http.Request) {
		var change enforce.ResourceChange
		if err := json.NewDecoder(io.LimitReader(r.Body, maxQuestion)).Decode(&change); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		checked, err := a.policy.Check(change, a.nodes())
		if err != nil {
			http.Error(w, err.Error(), statusOf(err))
			return
		}
		reply(w, checked)
	})
}

func (a *Agent) nodes() []model.Node {
	c, _, _ := a.cluster()
	return c.Nodes
}

func statusOf(err error) int {
	var wrong *model.FieldError
	if errors.As(err, &wrong) {
		return http.StatusBadRequest
	}
	return http.StatusServiceUnavailable
}
