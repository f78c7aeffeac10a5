package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
)

// All chains at the forward hook must let a packet through. Where iptables' own FORWARD chain drops what
// it does not know (Docker sets that policy), Heddle adds an accept for each pod range and direction, as
// iptables would encode it. In a chain of anybody else nothing is written: it is reported.

// Mark is the comment of Heddle's rules in foreign chains. iptables shows it as a comment and keeps it
// when rules are saved and restored.
const Mark = "heddle"

// applyForward makes the FORWARD chains accept what comes from and goes to pods. With no pods it takes
// the marked rules out again.
func (d *Driver) applyForward(r *reader, pods []netip.Prefix) (changed int, problems []model.Problem) {
	chains, err := r.chains()
	if err != nil {
		return 0, []model.Problem{problemOf("chains at the forward hook", err)}
	}
	foreign := map[tableKey]bool{}
	defer func() { d.foreign.Store(&foreign) }()
	for _, c := range chains {
		if c.table == ownTable || !c.base || c.hook != unix.NF_INET_FORWARD || c.kind != string(nftables.ChainTypeFilter) {
			continue
		}
		foreign[c.table] = true
		ranges := rangesOf(c.table.family, pods)
		subject := fmt.Sprintf("chain %s in table %s", c.name, c.table)
		all, err := r.rules(c.table, "")
		if err != nil {
			problems = append(problems, problemOf(subject, err))
			continue
		}
		f := forward{chain: c, rules: map[string][]rule{}}
		for _, u := range all {
			f.rules[u.chain] = append(f.rules[u.chain], u)
		}
		if !isIptables(c) {
			if missing := f.missing(ranges); len(missing) > 0 {
				problems = append(problems, f.problem(subject, missing))
			}
			continue
		}
		w := d.writer()
		n := f.repair(w, ranges)
		if n == 0 {
			continue
		}
		if err := w.Flush(); err != nil {
			problems = append(problems, problemOf(subject, err))
			continue
		}
		d.log.Info("accepts for pods written", "chain", subject, "changed", n)
		changed += n
	}
	return changed, append(problems, d.legacy(pods)...)
}

// isIptables tells whether iptables-nft keeps the chain.
func isIptables(c chain) bool {
	return (c.table.family == nftables.TableFamilyIPv4 || c.table.family == nftables.TableFamilyIPv6) &&
		c.table.name == "filter" && c.name == "FORWARD" && c.priority == 0
}

// rangesOf are the pods' ranges that packets of a table's family can have.
func rangesOf(f nftables.TableFamily, pods []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range pods {
		v4 := p.Addr().Is4()
		if p.Bits() > 0 && (f == nftables.TableFamilyINet || f == nftables.TableFamilyIPv4 && v4 || f == nftables.TableFamilyIPv6 && !v4) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// forward is a foreign chain at the forward hook, with all rules of its table by chain.
type forward struct {
	chain chain
	rules map[string][]rule
}

// accept is an accept of everything from (or to) a range.
type accept struct {
	to     bool
	prefix netip.Prefix
}

func (a accept) String() string {
	family, end := "ip", "saddr"
	if a.prefix.Addr().Is6() {
		family = "ip6"
	}
	if a.to {
		end = "daddr"
	}
	return family + " " + end + " " + a.prefix.String() + " accept"
}

func acceptsFor(ranges []netip.Prefix) []accept {
	var out []accept
	for _, p := range ranges {
		out = append(out, accept{false, p}, accept{true, p})
	}
	return out
}

// wall is the index of the first rule of the chain that drops everything which reaches it; its length
// when only the policy drops; -1 when nothing does.
func (f *forward) wall() int {
	end, at := f.fate(f.chain.name, 0)
	switch {
	case end == fateDrop:
		return at
	case end == fateNone && f.chain.policy == policyDrop:
		return len(f.rules[f.chain.name])
	}
	return -1
}

type fate int

const (
	fateNone   fate = iota // falls off the end of the chain
	fateAccept             // the rest is accepted
	fateDrop               // the rest is dropped
)

// fate tells what happens to a packet that no rule with a condition catches, and the deciding rule.
func (f *forward) fate(name string, depth int) (fate, int) {
	if depth > 16 { // as deep as the kernel allows jumps
		return fateNone, 0
	}
	for i, u := range f.rules[name] {
		for _, e := range u.exprs {
			end, decided := fateNone, false
			switch e := e.(type) {
			case *expr.Counter:
				continue
			case *expr.Match:
				if e.Name == "comment" {
					continue
				}
			case opaque:
				if e == "log" {
					continue
				}
				if e == "reject" {
					end, decided = fateDrop, true
				}
			case *expr.Target:
				switch e.Name {
				case "LOG":
					continue
				case "REJECT", "DROP":
					end, decided = fateDrop, true
				}
			case *expr.Verdict:
				switch e.Kind {
				case expr.VerdictAccept:
					end, decided = fateAccept, true
				case expr.VerdictDrop:
					end, decided = fateDrop, true
				case expr.VerdictReturn:
					return fateNone, i
				case expr.VerdictJump:
					end, _ = f.fate(e.Chain, depth+1)
					decided = end != fateNone
				case expr.VerdictGoto:
					end, _ = f.fate(e.Chain, depth+1)
					return end, i
				}
			}
			if decided {
				return end, i
			}
			break // a condition, or something done to the packet
		}
	}
	return fateNone, 0
}

// missing are the accepts that the chain needs and does not have before its wall.
func (f *forward) missing(ranges []netip.Prefix) []accept {
	wall := f.wall()
	if wall < 0 {
		return nil
	}
	var out []accept
	for _, a := range acceptsFor(ranges) {
		if !slices.ContainsFunc(f.rules[f.chain.name][:wall], func(u rule) bool { b, ok := acceptOf(u); return ok && a == b }) {
			out = append(out, a)
		}
	}
	return out
}

// repair buffers what takes away marked rules that are not wanted, doubled or without effect, and adds
// those that are missing: in front of the wall, so that everybody's own rules still come first. A rule
// of the same content counts whoever wrote it; only marked ones are ever removed.
func (f *forward) repair(c *nftables.Conn, ranges []netip.Prefix) int {
	t := &nftables.Table{Name: f.chain.table.name, Family: f.chain.table.family}
	ch := &nftables.Chain{Name: f.chain.name, Table: t}
	missing := f.missing(ranges)
	wanted := map[accept]bool{}
	wall := f.wall()
	if wall >= 0 {
		for _, a := range acceptsFor(ranges) {
			wanted[a] = true
		}
	}
	n := 0
	for i, u := range f.rules[f.chain.name] {
		if !marked(u) {
			continue
		}
		a, ok := acceptOf(u)
		if ok && wanted[a] && i < wall {
			wanted[a] = false // one is enough
			continue
		}
		_ = c.DelRule(&nftables.Rule{Table: t, Chain: ch, Handle: u.handle}) // fails without a handle only
		n++
	}
	for _, a := range missing {
		r := &nftables.Rule{Table: t, Chain: ch, Exprs: a.exprs(), UserData: comment(Mark)}
		if wall < len(f.rules[f.chain.name]) {
			r.Position = f.rules[f.chain.name][wall].handle
			c.InsertRule(r)
		} else {
			c.AddRule(r)
		}
		n++
	}
	return n
}

func (f *forward) problem(subject string, missing []accept) model.Problem {
	words := make([]string, len(missing))
	for i, a := range missing {
		words[i] = fmt.Sprintf("nft insert rule %s %s %s", f.chain.table, f.chain.name, a)
	}
	return model.Problem{
		Code: codeForward, Severity: model.Warning, Subject: subject,
		Detail: "it drops what it does not know and may drop pods' packets: no accept elsewhere can undo that",
		Next:   strings.Join(words, "; "),
	}
}

// exprs encode the accept as iptables-nft does: whole bytes are compared without a mask, and every rule
// counts. Without the counter iptables calls the table incompatible.
func (a accept) exprs() []expr.Any {
	offset, addr, bits := uint32(12), a.prefix.Addr().AsSlice(), a.prefix.Bits()
	if len(addr) == 16 {
		offset = 8
	}
	if a.to {
		offset += uint32(len(addr))
	}
	var out []expr.Any
	if bits%8 == 0 {
		addr = addr[:bits/8]
		out = append(out, load(offset, uint32(len(addr))))
	} else {
		mask := make([]byte, len(addr))
		for i := range bits {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		out = append(out, load(offset, uint32(len(addr))),
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(addr)), Mask: mask, Xor: make([]byte, len(addr))})
	}
	return append(out, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr}, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})
}

// acceptOf reads a rule back, in any of the encodings in use. A rule with any further condition is none.
func acceptOf(u rule) (accept, bool) {
	var plain []any
	for _, e := range u.exprs {
		switch e := e.(type) {
		case *expr.Counter:
			continue
		case *expr.Match:
			if e.Name == "comment" {
				continue
			}
		}
		plain = append(plain, e)
	}
	if len(plain) > 2 { // in an inet table nft asks for the family first
		if m, ok := plain[0].(*expr.Meta); ok && m.Key == expr.MetaKeyNFPROTO {
			plain = plain[2:]
		}
	}
	if len(plain) != 3 && len(plain) != 4 {
		return accept{}, false
	}
	p, ok1 := plain[0].(*expr.Payload)
	c, ok2 := plain[len(plain)-2].(*expr.Cmp)
	v, ok3 := plain[len(plain)-1].(*expr.Verdict)
	if !ok1 || !ok2 || !ok3 || v.Kind != expr.VerdictAccept || c.Op != expr.CmpOpEq ||
		p.Base != expr.PayloadBaseNetworkHeader || int(p.Len) != len(c.Data) {
		return accept{}, false
	}
	bits := len(c.Data) * 8
	if len(plain) == 4 {
		b, ok := plain[1].(*expr.Bitwise)
		if !ok {
			return accept{}, false
		}
		bits = 0
		for bits < len(b.Mask)*8 && b.Mask[bits/8]&(0x80>>(bits%8)) != 0 {
			bits++
		}
		for i := bits; i < len(b.Mask)*8; i++ {
			if b.Mask[i/8]&(0x80>>(i%8)) != 0 {
				return accept{}, false
			}
		}
	}
	length := 4
	if p.Offset == 8 || p.Offset == 24 {
		length = 16
	} else if p.Offset != 12 && p.Offset != 16 {
		return accept{}, false
	}
	if len(c.Data) > length {
		return accept{}, false
	}
	addr, _ := netip.AddrFromSlice(append(slices.Clone(c.Data), make([]byte, length-len(c.Data))...))
	prefix := netip.PrefixFrom(addr, bits)
	return accept{p.Offset == 16 || p.Offset == 24, prefix}, prefix == prefix.Masked() && prefix.IsValid()
}

// comment encodes a rule's comment as user data, in libnftnl's type-length-value form (udata.h).
func comment(s string) []byte {
	return append([]byte{0, byte(len(s) + 1)}, append([]byte(s), 0)...)
}

// marked tells whether the rule carries Mark: as user data, or as the comment match which iptables
// makes of it when rules are restored.
func marked(u rule) bool {
	for b := u.user; len(b) >= 2; {
		kind, n := b[0], int(b[1])
		if len(b) < 2+n {
			break
		}
		if kind == 0 && strings.TrimRight(string(b[2:2+n]), "\x00") == Mark {
			return true
		}
		b = b[2+n:]
	}
	for _, e := range u.exprs {
		if m, ok := e.(*expr.Match); ok && m.Name == "comment" {
			if c, ok := m.Info.(*xt.Comment); ok && string(*c) == Mark {
				return true
			}
		}
	}
	return false
}
