package policy

import (
	"encoding/binary"
	"slices"
)

// because is a Reason in the making: equal texts mean the same.
type because struct {
	text   string
	reason Reason // without Staged
}

// live is a rule of which both ends are known and fulfilled.
type live struct {
	match
	action  Action
	because *because
}

// liveTier is a tier for one local end and one identity.
type liveTier struct {
	rules []live
	end   *because // when no rule decided; nil: go on with the next tier
}

// course is what decides: tiers, and what is past the last one.
type course struct {
	tiers []liveTier
	end   *because
	// silent: past the last tier nothing is said (VerdictContinue).
	silent bool
}

// outcome is what a course makes of a packet.
type outcome struct {
	because *because
	logged  bool // a Log rule matched before
	silent  bool
}

// decide walks the course. Rules whose protocol does not match are to be left out before.
func (c *course) decide(protocol int, src, dst uint16) (o outcome) {
tiers:
	for i := range c.tiers {
		t := &c.tiers[i]
		for j := range t.rules {
			r := &t.rules[j]
			if !r.portsMatch(protocol, src, dst) {
				continue
			}
			switch r.action {
			case Log:
				o.logged = true
			case Pass:
				continue tiers
			default:
				o.because = r.because
				return o
			}
		}
		if t.end != nil {
			o.because = t.end
			return o
		}
	}
	o.because, o.silent = c.end, c.silent
	return o
}

// of is the course for one protocol.
func (c *course) of(protocol int) *course {
	n := &course{end: c.end, silent: c.silent, tiers: make([]liveTier, len(c.tiers))}
	for i := range c.tiers {
		n.tiers[i].end = c.tiers[i].end
		for _, r := range c.tiers[i].rules {
			if r.protocolMatches(protocol) {
				n.tiers[i].rules = append(n.tiers[i].rules, r)
			}
		}
	}
	return n
}

func (c *course) each(f func(*live)) {
	if c == nil {
		return
	}
	for i := range c.tiers {
		for j := range c.tiers[i].rules {
			f(&c.tiers[i].rules[j])
		}
	}
}

// decision is a Decision that rows share.
type decision struct {
	Decision
	text   string
	serial uint64
	refs   int
}

// entry is one L4 entry of a row.
type entry struct {
	protocol uint8
	src, dst PortRange
	decision *decision
}

// row is a function from protocol and ports to a decision. Programs share equal ones.
type row struct {
	num     Row
	text    string
	base    *decision
	entries []entry
	refs    int
}

// rows knows all rows and decisions.
type rows struct {
	by        map[string]*row
	decisions map[string]*decision
	serial    uint64
	numbers   numbers
	kept      int // how many decisions the last sweep left
	fresh     []*row
	idle      []*row
}

func newRows() rows {
	return rows{by: map[string]*row{}, decisions: map[string]*decision{}}
}

// decision joins what is decided with what the staged policies would decide; staged may be nil.
func (s *rows) decision(real, staged outcome) *decision {
	d := Decision{}
	deny := real.because.reason.Action == Deny
	differs := staged.because != nil && (staged.because.reason.Action == Deny) != deny
	switch {
	case deny && real.logged:
		d.Verdict = VerdictDenyLog
	case deny:
		d.Verdict = VerdictDeny
	case real.silent:
		d.Verdict = VerdictContinue
	case real.logged || differs:
		d.Verdict = VerdictAllowLog
	default:
		d.Verdict = VerdictAllow
	}
	text := string(rune(d.Verdict)) + real.because.text
	if differs {
		text += "\x00" + staged.because.text
	}
	if known := s.decisions[text]; known != nil {
		return known
	}
	reason := real.because.reason
	d.Reason = &reason
	if differs {
		would := staged.because.reason
		would.Staged = true
		d.Staged = &would
	}
	s.serial++
	n := &decision{Decision: d, text: text, serial: s.serial}
	s.decisions[text] = n
	return n
}

// get returns the row for a function, with one reference more.
func (s *rows) get(base *decision, entries []entry) *row {
	text := make([]byte, 0, 10+20*len(entries))
	text = binary.AppendUvarint(text, base.serial)
	for _, e := range entries {
		text = append(text, e.protocol)
		for _, p := range [...]uint16{e.src.First, e.src.Last, e.dst.First, e.dst.Last} {
			text = binary.BigEndian.AppendUint16(text, p)
		}
		text = binary.AppendUvarint(text, e.decision.serial)
	}
	r := s.by[string(text)]
	if r == nil {
		r = &row{num: Row(s.numbers.take()), text: string(text), base: base, entries: slices.Clone(entries)}
		base.refs++
		for _, e := range entries {
			e.decision.refs++
		}
		s.by[r.text] = r
		s.fresh = append(s.fresh, r)
	}
	r.refs++
	return r
}

func (s *rows) release(r *row) {
	if r.refs--; r.refs == 0 {
		s.idle = append(s.idle, r)
	}
}

// forget takes an idle row out, and decisions that no other row makes.
func (s *rows) forget(r *row) {
	delete(s.by, r.text)
	s.numbers.give(uint32(r.num))
	s.drop(r.base)
	for _, e := range r.entries {
		s.drop(e.decision)
	}
}

func (s *rows) drop(d *decision) {
	if d.refs--; d.refs == 0 {
		delete(s.decisions, d.text)
	}
}

// rest is how many other numbers are given back before one is handed out again: until then a kernel has
// forgotten what it stood for, and need not be waited for.
const rest = 256

// numbers hands out numbers from 1, those that were given back in their order. A round takes before it gives
// back, so that a number means something else only after another Compile.
type numbers struct {
	last uint32
	free []uint32
}

func (n *numbers) take() uint32 {
	if len(n.free) > rest {
		v := n.free[0]
		n.free = n.free[1:]
		return v
	}
	n.last++
	return n.last
}

func (n *numbers) give(v uint32) { n.free = append(n.free, v) }
