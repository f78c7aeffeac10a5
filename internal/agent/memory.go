package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/ledger"
)

// What the ledger remembers beside workloads.
const (
	metaID      = "node-id"
	metaBoot    = "boot-id" // of the machine when workloads were last on record
	metaBlocks  = "own-blocks"
	metaCluster = "cluster" // the last known cluster, for a start without the store
	metaKeep    = "keep"    // the last applied plan's tunnels, which peers may still send to
)

// rememberRest is how many times as long as a writing of the cluster the next one waits: it is one large
// value, and hundreds of nodes may join in a second.
const rememberRest = 20

// recall reads what an earlier life of this agent left behind, so that a start without the store
// keeps every route and can add pods.
func (a *Agent) recall() error {
	if id := a.ledger.Meta(metaID); len(id) > 0 {
		a.id = string(id)
	} else {
		a.id = rand.Text()
		if err := a.ledger.SetMeta(context.Background(), metaID, []byte(a.id)); err != nil {
			return err
		}
	}
	if err := a.forgetBeforeBoot(ledger.BootIDFile); err != nil {
		return err
	}
	if b := a.ledger.Meta(metaBlocks); len(b) > 0 {
		if err := json.Unmarshal(b, &a.state.blocks); err != nil {
			return fmt.Errorf("ledger: own blocks: %w", err)
		}
	}
	return nil
}

// mayHold tells whether a workload may have an interface here, by the names of host ends.
func mayHold() bool {
	links, err := net.Interfaces()
	return err != nil || slices.ContainsFunc(links, func(l net.Interface) bool { return model.IsHostLink(l.Name) })
}

// forgetBeforeBoot frees what workloads held when the machine was last up: a reboot ends every network
// namespace, and not every runtime sends a DEL afterwards for what it lost.
func (a *Agent) forgetBeforeBoot(file string) error {
	boot, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	last := a.ledger.Meta(metaBoot)
	if bytes.Equal(last, boot) {
		return nil
	}
	for _, w := range a.ledger.List() {
		if len(last) == 0 {
			break // nothing is known of the boot before
		}
		if _, _, err := a.ledger.Release(context.Background(), w.Key(), time.Now()); err != nil {
			return err
		}
		a.Log.Info("freed, as the machine was started anew since", "workload", w.String(), "addresses", w.Addresses)
	}
	return a.ledger.SetMeta(context.Background(), metaBoot, boot)
}

// rememberLoop writes what the next life needs if the store is away then.
func (a *Agent) rememberLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			a.remember(context.WithoutCancel(ctx))
			return nil
		case <-a.applied:
		}
		begin := time.Now()
		a.remember(ctx)
		store.Pause(ctx, rememberRest*time.Since(begin))
	}
}

// remember writes nothing when nothing changed. The view hands out the same lists until they change.
func (a *Agent) remember(ctx context.Context) {
	a.remembering.Lock()
	defer a.remembering.Unlock()
	c, synced := a.view.Snapshot()
	s := a.snapshot()
	if !synced || s.plan == nil || sameLists(c, s.remembered) && s.plan == s.rememberedPlan {
		return
	}
	for key, v := range map[string]any{metaCluster: c, metaKeep: tunnels(s.plan)} {
		b, err := json.Marshal(v)
		if err != nil || string(a.ledger.Meta(key)) == string(b) {
			continue
		}
		if err := a.ledger.SetMeta(ctx, key, b); err != nil {
			a.Log.Error("cannot remember the cluster", "error", err)
			return
		}
	}
	a.update(func(st *state) { st.remembered, st.rememberedPlan = c, s.plan })
}

// rememberedCluster is the cluster as an earlier life knew it.
func (a *Agent) rememberedCluster() (c model.Cluster, known bool) {
	b := a.ledger.Meta(metaCluster)
	known = len(b) > 0 && json.Unmarshal(b, &c) == nil
	return c, known
}

func sameLists(a, b model.Cluster) bool {
	return sameList(a.Pools, b.Pools) && sameList(a.Nodes, b.Nodes) && sameList(a.Blocks, b.Blocks) && sameList(a.Settings, b.Settings)
}

func sameList[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// keep are the tunnel devices of the last applied plan: Build keeps those that peers still send to.
func (a *Agent) keep() []plan.Link {
	var links []plan.Link
	if p := a.snapshot().plan; p != nil {
		return tunnels(p)
	}
	if b := a.ledger.Meta(metaKeep); len(b) > 0 {
		_ = json.Unmarshal(b, &links) // our own writing; at worst a device is made anew
	}
	return links
}

func tunnels(p *plan.Plan) []plan.Link {
	return slices.DeleteFunc(slices.Clone(p.Links), func(l plan.Link) bool { return l.Kind != plan.LinkVXLAN && l.Kind != plan.LinkIPIP })
}
