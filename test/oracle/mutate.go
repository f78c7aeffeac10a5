package oracle

import "slices"

// policies adds policies of one language, or of all.
func (g *generator) policies() {
	kube, cluster, calico := g.once(2), g.once(2), g.once(2)
	if !kube && !cluster && !calico {
		kube, calico = true, true
	}
	many := 1
	if g.once(4) {
		many = 3
	}
	if kube {
		for range many * (2 + g.n(6)) {
			g.kubePolicy()
		}
	}
	if cluster {
		for range many * (1 + g.n(5)) {
			g.clusterPolicy()
		}
	}
	if !calico {
		return
	}
	for range g.n(4) {
		g.tier()
	}
	for range g.n(4) {
		g.networkSet()
	}
	if g.hosts {
		for range 1 + g.n(3) {
			g.hostEndpoint()
		}
	}
	for range many * (2 + g.n(6)) {
		g.calicoPolicy(false)
	}
	if g.once(3) {
		for range 1 + g.n(4) {
			g.calicoPolicy(true)
		}
		if g.once(2) {
			g.stagedKubernetes()
		}
	}
}

// mutate adds, changes or takes away one thing. What it adds may have the name of something that is there:
// then it takes its place.
func (g *generator) mutate() {
	w := g.w
	kinds := []struct{ add, remove func() }{
		{g.endpoint, func() { drop(g, &w.Endpoints) }},
		{g.relabel, g.relabel},
		{g.relabel, g.readdress},
		{g.move, g.renumber},
		{g.namespace, func() { drop(g, &w.Namespaces) }},
		{g.pod, func() { drop(g, &w.Pods) }},
		{g.pod, g.pod},
		{g.account, func() { drop(g, &w.ServiceAccounts) }},
		{g.slice, func() { drop(g, &w.EndpointSlices) }},
	}
	if len(w.NetworkPolicies) > 0 || g.once(4) {
		kinds = append(kinds, struct{ add, remove func() }{g.kubePolicy, func() { drop(g, &w.NetworkPolicies) }})
	}
	if len(w.ClusterPolicies) > 0 || g.once(4) {
		kinds = append(kinds, struct{ add, remove func() }{g.clusterPolicy, func() { drop(g, &w.ClusterPolicies) }})
	}
	if len(w.CalicoPolicies) > 0 || g.once(4) {
		kinds = append(kinds, []struct{ add, remove func() }{
			{g.tier, func() { drop(g, &w.Tiers) }},
			{g.networkSet, func() { drop(g, &w.NetworkSets) }},
			{g.hostEndpoint, func() { drop(g, &w.HostEndpoints) }},
			{func() { g.calicoPolicy(g.once(3)) }, func() { drop(g, &w.CalicoPolicies) }},
			{func() { g.calicoPolicy(false) }, func() { drop(g, &w.StagedKubernetes) }},
			{g.stagedKubernetes, func() { drop(g, &w.CalicoPolicies) }},
		}...)
	}
	kind := pick(g, kinds)
	if g.once(3) {
		kind.remove()
	} else {
		kind.add()
	}
}

// relabel gives a running workload other labels.
func (g *generator) relabel() {
	if len(g.w.Endpoints) > 0 {
		g.w.Endpoints[g.n(len(g.w.Endpoints))].Labels = g.labels()
	}
}

// readdress lets a workload take over what another had: a pod that comes back under another name.
func (g *generator) readdress() {
	if len(g.w.Endpoints) == 0 {
		return
	}
	e := &g.w.Endpoints[g.n(len(g.w.Endpoints))]
	for range 10 {
		namespace, name := pick(g, someNamespaces), pick(g, somePods)
		taken := false
		for _, other := range g.w.Endpoints {
			taken = taken || other.Namespace == namespace && other.Name == name
		}
		if !taken {
			e.Namespace, e.Name, e.Labels = namespace, name, g.labels()
			return
		}
	}
}

// move lets a workload go to another node, with its address.
func (g *generator) move() {
	if len(g.w.Endpoints) == 0 {
		return
	}
	e := &g.w.Endpoints[g.n(len(g.w.Endpoints))]
	node := pick(g, g.w.Nodes).Name
	for _, other := range g.w.Endpoints {
		if other.Node == node && other.Link == e.Link {
			return
		}
	}
	e.Node = node
}

// renumber gives a node an address more, or one less.
func (g *generator) renumber() {
	n := &g.w.Nodes[g.n(len(g.w.Nodes))]
	if len(n.Addresses) > 1 && g.once(2) {
		n.Addresses = n.Addresses[:len(n.Addresses)-1]
		return
	}
	more := addrs("192.168.1.77", "fd00:1::77")
	if g.once(3) {
		more = outside // of both families
	}
	if a := pick(g, more); !slices.Contains(n.Addresses, a) {
		n.Addresses = append(n.Addresses, a)
	}
}
