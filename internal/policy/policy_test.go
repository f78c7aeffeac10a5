package policy

import (
	"net/netip"

	"github.com/heddle-net/heddle/internal/selector"
)

// sel parses a selector of a test.
func sel(text string) *selector.Selector {
	s, err := selector.Parse(text)
	if err != nil {
		panic(err)
	}
	return &s
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func nets(s ...string) []netip.Prefix {
	out := []netip.Prefix{}
	for _, n := range s {
		out = append(out, netip.MustParsePrefix(n))
	}
	return out
}

func ports(n ...uint16) []Port {
	out := []Port{}
	for _, p := range n {
		out = append(out, Port{First: p, Last: p})
	}
	return out
}

// rule is a rule that asks nothing.
func rule(a Action) Rule { return Rule{Action: a, Protocol: AnyProtocol, NotProtocol: AnyProtocol} }

// world is the objects that most tests share, by key.
func world() map[string]Object {
	labels := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	return map[string]Object{
		"ns/dev":  &Namespace{"dev", labels("team", "blue")},
		"ns/prod": &Namespace{"prod", labels("team", "red")},
		"web":     &Endpoint{Key: "a:web", Node: "a", Namespace: "dev", Name: "web", Labels: labels("app", "web"), Ports: []NamedPort{{Name: "http", Protocol: 6, Port: 8080}, {Name: "dns", Protocol: 17, Port: 53}}, Addresses: []netip.Addr{addr("10.0.0.1"), addr("fd00::1")}},
		"db":      &Endpoint{Key: "a:db", Node: "a", Namespace: "prod", Name: "db", Labels: labels("app", "db"), ServiceAccount: "dba", Addresses: []netip.Addr{addr("10.0.0.2"), addr("fd00::2")}},
		"far":     &Endpoint{Key: "b:far", Node: "b", Namespace: "dev", Name: "far", Labels: labels("app", "client"), Ports: []NamedPort{{Name: "http", Protocol: 6, Port: 80}}, Addresses: []netip.Addr{addr("10.0.1.1"), addr("fd00:1::1")}},
		"alien":   &Endpoint{Key: "b:alien", Node: "b", Namespace: "prod", Name: "alien", Labels: labels("app", "client"), Ports: []NamedPort{{Name: "http", Protocol: 6, Port: 81}}, Addresses: []netip.Addr{addr("10.0.1.2"), addr("fd00:1::2")}},
		"sa":      &ServiceAccount{"prod", "dba", labels("role", "admin")},
		"set":     &NetworkSet{Ref: Ref{Kind: "GlobalNetworkSet", Name: "office"}, Labels: labels("net", "office"), Nets: nets("192.0.2.0/24", "198.51.100.7/32")},
	}
}

func feed(c *Compiler, objects map[string]Object) {
	for k, o := range objects {
		c.Put(k, o)
	}
}

func compiled(objects ...map[string]Object) *Compiler {
	c := NewCompiler(Options{Node: "a"})
	c.SetNode([]netip.Addr{addr("172.16.0.1"), addr("fd01::1")})
	for _, o := range objects {
		feed(c, o)
	}
	c.Compile()
	return c
}

func in(a string) Local  { return Local{Hook: WorkloadIngress, Addr: addr(a)} }
func out(a string) Local { return Local{Hook: WorkloadEgress, Addr: addr(a)} }
