package cli

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

const podKind = "Pod"

// pod is the part of a Pod that tables show.
type pod struct {
	Metadata struct {
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		PodIPs []podIP `json:"podIPs"`
	} `json:"status"`
}

type podIP struct {
	IP netip.Addr `json:"ip"`
}

func podOf(r *model.Resource) pod {
	var p pod
	_ = json.Unmarshal(r.Body, &p) // what the dialect has read already, or we have made
	return p
}

func (p pod) addresses() []netip.Addr {
	var out []netip.Addr
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

// workload is what the nodes say of a pod.
type workload struct {
	nodes     []string
	addresses []netip.Addr
	labels    map[string]string
}

// workloads lists the pods that run, by namespace and name; one of each when both are given, those of all
// namespaces when none is. What its runtime gave no name is called by its node and interface.
func workloads(ctx context.Context, s store.Store, name, namespace string) (map[[2]string]*workload, error) {
	items, _, err := s.List(ctx, model.KindEndpoint)
	if err != nil {
		return nil, err
	}
	found := map[[2]string]*workload{}
	for _, it := range items {
		e := it.Object.(*model.Endpoint)
		id := [2]string{e.Namespace, e.Name}
		if e.Name == "" {
			id[1] = e.Key()
		}
		if name != "" && id[1] != name || namespace != "" && id[0] != namespace {
			continue
		}
		w := found[id]
		if w == nil {
			w = &workload{labels: map[string]string{}}
			found[id] = w
		}
		if !slices.Contains(w.nodes, e.Node) {
			w.nodes = append(w.nodes, e.Node)
		}
		w.addresses = append(w.addresses, e.Addresses...)
		maps.Copy(w.labels, e.Labels)
	}
	return found, nil
}

// withWorkloads adds to Pod resources what the nodes say of the pods, and the pods of which nobody has said
// anything.
func withWorkloads(ctx context.Context, s store.Store, list []*model.Resource, name, namespace string) ([]*model.Resource, error) {
	running, err := workloads(ctx, s, name, namespace)
	if err != nil {
		return nil, err
	}
	out := make([]*model.Resource, 0, len(list)+len(running))
	for _, r := range list {
		id := [2]string{r.Namespace, r.Name}
		if w := running[id]; w != nil {
			if r, err = merged(r, w); err != nil {
				return nil, err
			}
			delete(running, id)
		}
		out = append(out, r)
	}
	for id, w := range running {
		r, err := merged(newPod(id[0], id[1]), w)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// newPod is a Pod resource that says nothing yet.
func newPod(namespace, name string) *model.Resource {
	body, _ := json.Marshal(map[string]any{ // text alone
		"apiVersion": "v1", "kind": podKind, "metadata": map[string]any{"name": name, "namespace": namespace},
	})
	return &model.Resource{APIVersion: "v1", Type: podKind, Namespace: namespace, Name: name, Body: body}
}

// merged is the pod as policies see it: what people said of it wins.
func merged(r *model.Resource, w *workload) (*model.Resource, error) {
	body := tree(r.Body)
	labels := map[string]any{}
	for k, v := range w.labels {
		labels[k] = v
	}
	metadata := part(body, "metadata")
	maps.Copy(labels, part(metadata, "labels"))
	if len(labels) > 0 {
		metadata["labels"] = labels
	}
	part(body, "spec")["nodeName"] = strings.Join(w.nodes, ",")
	ips := make([]podIP, len(w.addresses))
	for i, a := range w.addresses {
		ips[i].IP = a
	}
	part(body, "status")["podIPs"] = ips
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	out := *r
	out.Body = text
	return &out, nil
}

// part is a field that holds fields; it is made when it is not there.
func part(of map[string]any, name string) map[string]any {
	p, ok := of[name].(map[string]any)
	if !ok {
		p = map[string]any{}
		of[name] = p
	}
	return p
}
