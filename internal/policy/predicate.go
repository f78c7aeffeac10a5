package policy

import (
	"encoding/binary"
	"strconv"

	"github.com/heddle-net/heddle/internal/model"
)

// pred is everything that a rule asks of an address: one Side, without its numbered ports. Sides that ask
// the same share one.
type pred struct {
	text      string
	serial    uint64
	refs      int
	listed    int // how many of them ask it of remote ends: then identities tell of it
	has       []*atom
	hasNot    []*atom
	ports     []portsOf
	usual     value // of an address of which nothing is known
	ids       map[*identity]struct{}
	programs  map[*program]struct{}
	relisting bool // in preds.changed
}

// everyProtocol takes a list of ports as it is; AnyProtocol only those of TCP, UDP and SCTP.
const everyProtocol = AnyProtocol - 1

// portsOf is an atom that tells ports, and of which protocol they count. That of a service comes first.
type portsOf struct {
	atom     *atom
	protocol int
}

// value is what a predicate makes of an address: "" when it is not fulfilled, otherwise "1" and for each of
// its ports the length of a list (four bytes) and the list (encodePorts).
type value string

const (
	no  value = ""
	yes value = "1"
)

// evaluate tells the value for an address.
func (p *pred) evaluate(f facts) value {
	for _, a := range p.has {
		if len(f.find(a)) == 0 {
			return no
		}
	}
	for _, a := range p.hasNot {
		if len(f.find(a)) > 0 {
			return no
		}
	}
	if len(p.ports) == 0 {
		return yes
	}
	v := []byte(yes)
	for _, s := range p.ports {
		var list string
		for _, e := range f.find(s.atom) {
			list += e.ports
		}
		list = ofProtocol(canonicalPorts(list), s.protocol)
		v = binary.BigEndian.AppendUint32(v, uint32(len(list)))
		v = append(v, list...)
	}
	return value(v)
}

// anyValue is a value that is fulfilled, with no ports by name.
func (p *pred) anyValue() value {
	return yes + value(make([]byte, 4*len(p.ports)))
}

// ofProtocol filters a list of encodePorts.
func ofProtocol(list string, protocol int) string {
	if protocol == everyProtocol {
		return list
	}
	var out []byte
	for i := 0; i < len(list); i += 3 {
		if p := list[i]; protocol == int(p) || protocol < 0 && anyPorts(p) {
			out = append(out, list[i:i+3]...)
		}
	}
	return string(out)
}

// lists takes the lists of ports out of a value.
func (v value) lists() []string {
	var out []string
	for rest := string(v[1:]); len(rest) >= 4; {
		n := int(rest[0])<<24 | int(rest[1])<<16 | int(rest[2])<<8 | int(rest[3])
		out = append(out, rest[4:4+n])
		rest = rest[4+n:]
	}
	return out
}

// preds knows all predicates.
type preds struct {
	by      map[string]*pred
	serial  uint64
	changed []*pred // listed went from or to 0
	idle    []*pred
}

// sideContext is where a rule's Side stands.
type sideContext struct {
	remote   bool
	dest     bool
	protocol int
	family   model.Family // of the rule where addresses of both come, at host endpoints; 0: both
}

// get returns what the side asks, with a reference; nil when it asks nothing. never: no address fulfils it.
func (s *preds) get(as *atoms, side *Side, in sideContext) (p *pred, never bool) {
	if side.Nets != nil && len(side.Nets) == 0 {
		return nil, true
	}
	p = &pred{}
	if side.Nets != nil {
		p.has = append(p.has, as.net(side.Nets, side.NotNets))
	}
	if in.family != 0 {
		p.has = append(p.has, as.net(familyNets(in.family), nil))
	}
	if side.Selector != nil {
		p.has = append(p.has, as.selector(*side.Selector))
	}
	if side.OwnNode {
		p.has = append(p.has, as.ownNode())
	}
	if side.Service != nil {
		a := as.endpoints(*side.Service)
		p.has = append(p.has, a)
		if in.dest {
			a.refs++ // it is in both lists
			p.ports = append(p.ports, portsOf{a, everyProtocol})
		}
	}
	if len(side.NotNets) > 0 && side.Nets == nil {
		p.hasNot = append(p.hasNot, as.net(side.NotNets, nil))
	}
	if side.NotSelector != nil {
		p.hasNot = append(p.hasNot, as.selector(*side.NotSelector))
	}
	for _, list := range [][]Port{side.Ports, side.NotPorts} {
		for _, n := range list {
			if n.Name != "" {
				p.ports = append(p.ports, portsOf{as.port(n.Name), in.protocol})
			}
		}
	}
	if len(p.has)+len(p.hasNot)+len(p.ports) == 0 {
		return nil, false
	}
	var text []byte
	for _, a := range p.has {
		text = strconv.AppendUint(append(text, '+'), a.serial, 10)
	}
	for _, a := range p.hasNot {
		text = strconv.AppendUint(append(text, '-'), a.serial, 10)
	}
	for _, a := range p.ports {
		text = strconv.AppendUint(append(text, ':'), a.atom.serial, 10)
		text = strconv.AppendInt(append(text, '/'), int64(a.protocol), 10)
	}
	if known := s.by[string(text)]; known != nil {
		p.each(as.release)
		p = known
	} else {
		s.serial++
		p.text, p.serial = string(text), s.serial
		p.usual = p.evaluate(nil)
		p.ids, p.programs = map[*identity]struct{}{}, map[*program]struct{}{}
		p.each(func(a *atom) { a.preds[p] = struct{}{} })
		s.by[p.text] = p
	}
	p.refs++
	if in.remote {
		if p.listed++; p.listed == 1 {
			s.relist(p)
		}
	}
	return p, false
}

func (s *preds) relist(p *pred) {
	if !p.relisting {
		p.relisting = true
		s.changed = append(s.changed, p)
	}
}

// release gives back a reference that get returned.
func (s *preds) release(p *pred, remote bool) {
	if p == nil {
		return
	}
	if remote {
		if p.listed--; p.listed == 0 {
			s.relist(p)
		}
	}
	if p.refs--; p.refs == 0 {
		s.idle = append(s.idle, p)
	}
}

// each calls f for every atom as often as the predicate holds it.
func (p *pred) each(f func(*atom)) {
	for _, a := range p.has {
		f(a)
	}
	for _, a := range p.hasNot {
		f(a)
	}
	for _, a := range p.ports {
		f(a.atom)
	}
}
