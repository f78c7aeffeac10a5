package enforce

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

// Of its own workloads the node knows addresses and interfaces first, from the runtime. Where the store tells
// of pods by name, as Kubernetes does, it is the one to know their labels, ports and service accounts: the
// compiler knows what was said of such a pod of this node under "p/" and the endpoint's key. A pod with an
// address that no ADD of ours made (another plugin did) is an endpoint as well.

// podPatience is how long an ADD waits for the store to tell of its pod: the runtime may be ahead.
const podPatience = 10 * time.Second

// ErrUnnamed says that a workload cannot be admitted yet, as its labels are not known.
var ErrUnnamed = errors.New("the store has not told of this pod yet, so its labels and policies are not known")

// byName tells whether a key is that of an endpoint without a link.
func byName(key string) bool { return strings.Count(key, ":") == 2 }

// podKey is the key by which the store tells of a workload of this node; "" for one without a name.
func (e *Enforcer) podKey(w *model.Workload) string {
	if w.Name == "" {
		return ""
	}
	o := model.Endpoint{Node: e.Node, Namespace: w.Namespace, Name: w.Name}
	return o.Key()
}

// putEndpoint takes what the store says of a workload.
func (e *Enforcer) putEndpoint(o *model.Endpoint) {
	switch {
	case o.Node != e.Node:
		e.put("e/"+o.Key(), endpoint(o))
	case o.Link == "":
		e.putPod(o)
	}
}

func (e *Enforcer) putPod(o *model.Endpoint) {
	key := o.Key()
	e.pods[key] = o
	e.put("p/"+key, &policy.Pod{
		Namespace: o.Namespace, Name: o.Name, Labels: o.Labels, ServiceAccount: o.ServiceAccount, Ports: o.Ports,
	})
	e.putForeign(key)
	close(e.told)
	e.told = make(chan struct{})
}

func (e *Enforcer) dropPod(key string) {
	delete(e.pods, key)
	e.drop("p/" + key)
	e.drop("e/" + key)
}

// putForeign makes a pod an endpoint while no workload of ours has its name.
func (e *Enforcer) putForeign(key string) {
	o := e.pods[key]
	if o == nil || e.held[key] > 0 || len(o.Addresses) == 0 {
		e.drop("e/" + key)
		return
	}
	e.put("e/"+key, endpoint(o))
}

// named tells whether the store has told of a workload, if it is one that tells of pods. mu is held.
func (e *Enforcer) named(w *model.Workload) bool {
	key := e.podKey(w)
	if !e.Named || key == "" {
		return true
	}
	o := e.pods[key]
	return o != nil && (w.UID == "" || o.UID == w.UID)
}

// AwaitPod waits until the store has told of a workload that Admit would refuse before that. It may take long, so
// whoever calls it holds no lock.
func (e *Enforcer) AwaitPod(ctx context.Context, w model.Workload) error {
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	for {
		e.mu.Lock()
		named, told := e.named(&w), e.told
		e.mu.Unlock()
		if named {
			return nil
		}
		select {
		case <-told:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", w.String(), ErrUnnamed)
		}
	}
}
