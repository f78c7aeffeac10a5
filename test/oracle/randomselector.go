package oracle

// selector is the text of a random selector over labels of workloads.
func (g *generator) selector() string { return g.expr(2, someKeys, someValues, true).String() }

func (g *generator) accountText() string {
	if g.once(4) {
		return g.test([]string{"projectcalico.org/name"}, someAccounts).String()
	}
	return g.expr(1, someKeys, someValues, false).String()
}

func (g *generator) namespaceText(rule bool) string {
	switch {
	case rule && g.once(4):
		return "global()"
	case g.once(4):
		return "all()"
	case g.once(2):
		return g.test([]string{"projectcalico.org/name", "kubernetes.io/metadata.name"}, someNamespaces).String()
	}
	return g.expr(1, someKeys, someValues, false).String()
}

// expr is a random selector of some depth.
func (g *generator) expr(depth int, keys, values []string, workloads bool) *expr {
	if depth > 0 && g.once(2) {
		switch g.n(3) {
		case 0:
			return &expr{op: "!", parts: []*expr{g.expr(depth-1, keys, values, workloads)}}
		default:
			e := &expr{op: pick(g, []string{"&&", "||"})}
			for range 2 + g.n(2) {
				e.parts = append(e.parts, g.expr(depth-1, keys, values, workloads))
			}
			return e
		}
	}
	switch {
	case g.once(12):
		return &expr{op: "all"}
	case workloads && g.once(8):
		return g.test([]string{"projectcalico.org/namespace"}, someNamespaces)
	case workloads && g.once(16):
		return &expr{op: "==", key: "projectcalico.org/orchestrator", values: []string{"k8s"}}
	}
	return g.test(keys, values)
}

// test is one question about a label.
func (g *generator) test(keys, values []string) *expr {
	e := &expr{op: pick(g, []string{"has", "==", "==", "!=", "in", "not in", "contains", "starts with", "ends with"}), key: pick(g, keys)}
	switch e.op {
	case "has":
	case "in", "not in":
		for range 1 + g.n(2) {
			e.values = append(e.values, pick(g, values))
		}
	case "contains", "starts with", "ends with":
		v := pick(g, values)
		if len(v) > 2 {
			v = pick(g, []string{v[:2], v[1:], v[1:2]})
		}
		e.values = []string{v}
	default:
		e.values = []string{pick(g, values)}
	}
	return e
}
