package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
)

// serveIPAM adds what `heddle ipam` asks: /ipam and /ipam/release.
func (a *Agent) serveIPAM(mux *http.ServeMux) {
	mux.HandleFunc("GET /ipam", func(w http.ResponseWriter, r *http.Request) {
		l, err := a.localBooks(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		reply(w, l)
	})
	mux.HandleFunc("POST /ipam/release", func(w http.ResponseWriter, r *http.Request) {
		var what ipam.Release
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&what); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		released, err := a.releaseLeak(r.Context(), what)
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		reply(w, released)
	})
}

// localBooks is this node's own account of its addresses.
func (a *Agent) localBooks(ctx context.Context) (*ipam.Local, error) {
	s := a.snapshot()
	l := &ipam.Local{Node: a.Config.Node, Pools: a.clusterPools(), Blocks: s.blocks, Workloads: a.ledger.List(), Unplugged: map[string]time.Time{}}
	for i := range l.Workloads {
		w := &l.Workloads[i]
		if unplugged(w) {
			l.Unplugged[w.Key()] = w.Created
		}
	}
	var err error
	l.Use, err = a.ledger.Usage(ctx, prefixes(s.blocks), a.ipamSettings().Reserved, time.Now())
	return l, err
}

// unplugged tells whether the host end of a workload's veth is not there.
func unplugged(w *model.Workload) bool {
	_, err := net.InterfaceByName(w.HostLink)
	return err != nil
}

var errNoLeak = errors.New("it is not, or not any more, a reservation without an interface")

// releaseLeak takes a workload off the record whose interface is gone. Nobody adds or removes it meanwhile.
func (a *Agent) releaseLeak(ctx context.Context, what ipam.Release) (*model.Workload, error) {
	defer a.keys.lock(what.Key)()
	a.attaching.RLock()
	defer a.attaching.RUnlock()
	w, ok := a.ledger.Get(what.Key)
	if !ok || !w.Created.Equal(what.Attached) || !unplugged(&w) {
		return nil, fmt.Errorf("workload %s: %w", what.Key, errNoLeak)
	}
	if _, _, err := a.ledger.Release(ctx, what.Key, time.Now()); err != nil {
		return nil, err
	}
	a.closePorts(ctx, w)
	a.policy.Dismiss(w, a.macOf(w))
	poke(a.endpoints)
	poke(a.kick)
	a.Log.Info("released: its interface is gone", "workload", w.String(), "addresses", w.Addresses)
	return &w, nil
}
