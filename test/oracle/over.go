package oracle

import "github.com/heddle-net/heddle/internal/model"

// RandomOver makes a world around what runs already: its nodes and workloads are those that are given, what
// is said of them and who may talk to whom comes from the number. There are no host endpoints in it: policies
// for them could cut a real host off from its store.
func RandomOver(seed uint64, nodes []Node, endpoints []model.Endpoint) *World {
	g := newGenerator(seed, (&World{Node: nodes[0].Name, Nodes: nodes, Endpoints: endpoints}).Copy())
	for range 1 + g.n(4) {
		g.namespace()
	}
	for range g.n(3) {
		g.account()
	}
	for range g.n(8) {
		g.pod()
	}
	for range g.n(4) {
		g.slice()
	}
	for range 1 + g.n(2) {
		g.policies()
	}
	g.w.HostEndpoints = nil
	return g.w
}
