// Package why answers questions about who may talk to whom, from the decision table of the node where each
// direction is decided: the same values that the kernel holds there.
//
// It is pure: it asks compilers that it feeds with the objects it is given.
package why

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

// Protocol numbers (IANA).
const (
	ProtocolICMP   = 1
	ProtocolTCP    = 6
	ProtocolUDP    = 17
	ProtocolICMPv6 = 58
	ProtocolSCTP   = 132
)

var protocolNames = map[string]uint8{
	"icmp": ProtocolICMP, "tcp": ProtocolTCP, "udp": ProtocolUDP, "icmpv6": ProtocolICMPv6, "sctp": ProtocolSCTP, "udplite": 136,
}

// ProtocolName is "tcp", or the number where it has no name here.
func ProtocolName(p uint8) string {
	for name, n := range protocolNames {
		if n == p {
			return name
		}
	}
	return strconv.Itoa(int(p))
}

// Question asks whether a new connection from From to To would be let through.
type Question struct {
	From, To string // NAMESPACE/NAME of a workload, or an address
	Protocol uint8
	Port     uint16 // for ICMP: type<<8|code
}

// echo is the port of a ping: type<<8|code of an echo request (RFC 792, RFC 4443).
var echo = map[uint8]uint16{ProtocolICMP: 8 << 8, ProtocolICMPv6: 128 << 8}

// ParseQuestion reads the words of `heddle why`: from a source NS/POD or ADDRESS to NS/POD:PORT[/PROTO],
// ADDRESS:PORT[/PROTO], [ADDRESS6]:PORT[/PROTO], or without a port for a ping. The protocol is tcp unless named.
func ParseQuestion(from, to string) (Question, error) {
	q := Question{From: from}
	bad := func(field, value, want string) error {
		return &model.FieldError{Noun: "heddle why", Field: field, Value: value, Want: want}
	}
	if err := checkEnd(from); err != nil {
		return q, bad("FROM", from, err.Error())
	}
	q.To = to
	if at := strings.LastIndex(to, ":"); at >= 0 && !parse(to).IsValid() { // else an IPv6 address without a port
		q.To = strings.Trim(to[:at], "[]")
		port, proto, named := strings.Cut(to[at+1:], "/")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return q, bad("PORT", port, "0..65535")
		}
		q.Port, q.Protocol = uint16(n), ProtocolTCP
		if named {
			p, ok := protocolNames[strings.ToLower(proto)]
			if !ok || echo[p] != 0 {
				return q, bad("PROTO", proto, "tcp, udp or sctp; leave out the port for a ping")
			}
			q.Protocol = p
		}
	}
	if err := checkEnd(q.To); err != nil {
		return q, bad("TO", to, err.Error())
	}
	return q, nil
}

func parse(s string) netip.Addr {
	a, _ := netip.ParseAddr(s)
	return a
}

func checkEnd(s string) error {
	if parse(s).IsValid() {
		return nil
	}
	ns, name, ok := strings.Cut(s, "/")
	if !ok || ns == "" || name == "" || strings.Contains(name, "/") {
		return fmt.Errorf("NAMESPACE/NAME of a workload, or an address")
	}
	return nil
}

// Leg is what one direction says.
type Leg struct {
	Direction string         `json:"direction"` // "egress", "ingress"
	Workload  string         `json:"workload"`  // NAMESPACE/NAME
	Node      string         `json:"node"`      // where it is decided
	Allowed   bool           `json:"allowed"`
	Policed   bool           `json:"policed"` // some policy selects the workload for the direction
	Reason    *policy.Reason `json:"reason,omitempty"`
	Staged    *policy.Reason `json:"staged,omitempty"`
	Verdict   policy.Verdict `json:"-"`
	Local     netip.Addr     `json:"address"`
	Remote    netip.Addr     `json:"remote"`
}

// Answer is the verdict for one family of addresses.
type Answer struct {
	From, To string     // as asked
	Src      netip.Addr `json:"src"`
	Dst      netip.Addr `json:"dst"`
	Protocol uint8      `json:"protocol"`
	Port     uint16     `json:"port"`
	Allowed  bool       `json:"allowed"`
	Legs     []Leg      `json:"legs"` // none when both ends are outside
}

// World is what an answer depends on.
type World struct {
	Objects iter.Seq2[string, policy.Object]
	Nodes   []model.Node
}

// Ask answers for each family that both ends have, IPv4 first.
func Ask(w World, q Question) ([]Answer, error) {
	from, srcs, err := w.end("FROM", q.From)
	if err != nil {
		return nil, err
	}
	to, dsts, err := w.end("TO", q.To)
	if err != nil {
		return nil, err
	}
	c := w.compilers(from, to)
	var out []Answer
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		src, dst := ofFamily(srcs, f), ofFamily(dsts, f)
		if !src.IsValid() || !dst.IsValid() {
			continue
		}
		proto, port := q.Protocol, q.Port
		if proto == 0 {
			proto = ProtocolICMP
			if f == model.IPv6 {
				proto = ProtocolICMPv6
			}
			port = echo[proto]
		}
		a := Answer{From: q.From, To: q.To, Src: src, Dst: dst, Protocol: proto, Port: port, Allowed: true}
		for _, end := range []struct {
			ep    *policy.Endpoint
			hook  policy.Hook
			name  string
			local netip.Addr
			far   netip.Addr
		}{{from, policy.WorkloadEgress, "egress", src, dst}, {to, policy.WorkloadIngress, "ingress", dst, src}} {
			if end.ep == nil {
				continue
			}
			local := policy.Local{Hook: end.hook, Addr: end.local}
			t := c[end.ep.Node].Table()
			// Any source port will do: a high one stands for all that a client would take.
			d := t.Decide(local, end.far, proto, sourcePort(proto), port)
			_, policed := t.Locals[local]
			leg := Leg{
				Direction: end.name, Workload: end.ep.Namespace + "/" + end.ep.Name, Node: end.ep.Node, Policed: policed,
				Allowed: d.Verdict != policy.VerdictDeny && d.Verdict != policy.VerdictDenyLog,
				Reason:  d.Reason, Staged: d.Staged, Verdict: d.Verdict, Local: end.local, Remote: end.far,
			}
			a.Allowed = a.Allowed && leg.Allowed
			a.Legs = append(a.Legs, leg)
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, &model.FieldError{Noun: "heddle why", Field: "TO", Value: q.To, Want: "an address of a family that " + q.From + " has too"}
	}
	return out, nil
}

func sourcePort(proto uint8) uint16 {
	if _, ping := echo[proto]; ping {
		return 0
	}
	return 40000
}

func ofFamily(as []netip.Addr, f model.Family) netip.Addr {
	i := slices.IndexFunc(as, func(a netip.Addr) bool { return model.FamilyOf(a) == f })
	if i < 0 {
		return netip.Addr{}
	}
	return as[i]
}

// end finds a workload by name or address. An address that nobody has stands for itself.
func (w World) end(field, s string) (*policy.Endpoint, []netip.Addr, error) {
	addr := parse(s)
	ns, name, _ := strings.Cut(s, "/")
	for _, o := range w.Objects {
		ep, ok := o.(*policy.Endpoint)
		if !ok {
			continue
		}
		if addr.IsValid() && slices.Contains(ep.Addresses, addr) {
			return ep, []netip.Addr{addr}, nil
		}
		if !addr.IsValid() && ep.Namespace == ns && ep.Name == name {
			return ep, ep.Addresses, nil
		}
	}
	if addr.IsValid() {
		return nil, []netip.Addr{addr}, nil
	}
	return nil, nil, &model.FieldError{Noun: "heddle why", Field: field, Value: s, Want: "a workload that is there: heddle get pods -A lists them"}
}

// compilers make the tables of the nodes where the two ends are. Other workloads do not matter to them.
func (w World) compilers(ends ...*policy.Endpoint) map[string]*policy.Compiler {
	out := map[string]*policy.Compiler{}
	for _, e := range ends {
		if e != nil && out[e.Node] == nil {
			c := policy.NewCompiler(policy.Options{Node: e.Node})
			for i := range w.Nodes {
				if n := &w.Nodes[i]; n.Name == e.Node {
					c.SetNode(NodeAddresses(n))
				}
			}
			out[e.Node] = c
		}
	}
	for key, o := range w.Objects {
		if ep, ok := o.(*policy.Endpoint); ok && !slices.Contains(ends, ep) {
			continue
		}
		for _, c := range out {
			c.Put(key, o)
		}
	}
	for _, c := range out {
		c.Compile()
	}
	return out
}

// NodeAddresses are the addresses that a node has towards others.
func NodeAddresses(n *model.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Addr{n.Address4, n.Address6, n.Public4, n.Public6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	for _, u := range n.Uplinks {
		out = append(out, u.Prefix.Addr())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
