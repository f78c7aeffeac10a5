package kube

import "github.com/heddle-net/heddle/internal/policy"

// direction says which end of a packet the peers of a rule are.
type direction bool

const (
	ingress direction = false
	egress  direction = true
)

// l4 is a protocol with its destination ports; all of them when ports is nil.
type l4 struct {
	protocol int
	ports    []policy.Port
}

// anyL4 is every packet.
var anyL4 = []l4{{protocol: policy.AnyProtocol}}

// expand makes the rules of one rule: peers times protocols. No peers match nothing.
func expand(d direction, action policy.Action, index int, peers []policy.Side, protocols []l4) []policy.Rule {
	var rules []policy.Rule
	for _, peer := range peers {
		for _, p := range protocols {
			r := policy.Rule{Action: action, Index: index, Protocol: p.protocol, NotProtocol: policy.AnyProtocol}
			if d == ingress {
				r.Source = peer
			} else {
				r.Dest = peer
			}
			r.Dest.Ports = p.ports
			rules = append(rules, r)
		}
	}
	return rules
}

// l4List gathers ports by protocol, in the order in which protocols first come.
type l4List []l4

// add adds a port; nil for all ports of the protocol.
func (l *l4List) add(protocol int, port *policy.Port) {
	for i := range *l {
		if e := &(*l)[i]; e.protocol == protocol {
			switch {
			case port == nil:
				e.ports = nil
			case e.ports != nil:
				e.ports = append(e.ports, *port)
			}
			return
		}
	}
	one := l4{protocol: protocol}
	if port != nil {
		one.ports = []policy.Port{*port}
	}
	*l = append(*l, one)
}
