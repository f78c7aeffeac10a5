package oracle

import (
	"fmt"
	"strings"
)

// A selector of Calico's language, read by the table of operators in its reference: a label test, or other
// selectors put together with !, && and ||. It is apart from internal/selector on purpose.
type expr struct {
	op     string // "all", "global", "has", "==", "!=", "in", "not in", "contains", "starts with", "ends with", "!", "&&", "||"
	key    string
	values []string
	parts  []*expr
}

// labelled is what a selector is asked about.
type labelled struct {
	labels map[string]string
	global bool // it is in no namespace
	// outside: it is not what the selector is about, such as a global network set for a selector of
	// namespaces. Then all() does not match, and the labels are none.
	outside bool
}

func (e *expr) matches(on labelled) bool {
	value, has := on.labels[e.key]
	switch e.op {
	case "all":
		return !on.outside
	case "global":
		return on.global
	case "has":
		return has
	case "==":
		return has && value == e.values[0]
	case "!=":
		return !has || value != e.values[0]
	case "in":
		for _, v := range e.values {
			if has && value == v {
				return true
			}
		}
		return false
	case "not in":
		for _, v := range e.values {
			if has && value == v {
				return false
			}
		}
		return true
	case "contains":
		return has && strings.Contains(value, e.values[0])
	case "starts with":
		return has && strings.HasPrefix(value, e.values[0])
	case "ends with":
		return has && strings.HasSuffix(value, e.values[0])
	case "!":
		return !e.parts[0].matches(on)
	case "&&":
		for _, p := range e.parts {
			if !p.matches(on) {
				return false
			}
		}
		return true
	case "||":
		for _, p := range e.parts {
			if p.matches(on) {
				return true
			}
		}
		return false
	}
	panic("no such operator: " + e.op)
}

// String writes the selector with as few brackets as the precedence of its operators asks for.
func (e *expr) String() string {
	quoted := make([]string, len(e.values))
	for i, v := range e.values {
		quoted[i] = "'" + v + "'"
		if strings.Contains(v, "'") {
			quoted[i] = `"` + v + `"`
		}
	}
	switch e.op {
	case "all", "global":
		return e.op + "()"
	case "has":
		return "has(" + e.key + ")"
	case "in", "not in":
		return e.key + " " + e.op + " {" + strings.Join(quoted, ", ") + "}"
	case "!":
		if p := e.parts[0]; p.op == "&&" || p.op == "||" {
			return "!(" + p.String() + ")"
		}
		return "!" + e.parts[0].String()
	case "&&", "||":
		texts := make([]string, len(e.parts))
		for i, p := range e.parts {
			texts[i] = p.String()
			if p.op == "||" || p.op == e.op {
				texts[i] = "(" + texts[i] + ")"
			}
		}
		return strings.Join(texts, " "+e.op+" ")
	}
	return e.key + " " + e.op + " " + quoted[0]
}

// parseSelector reads a selector. The text comes from our generators and from files in testdata: what it
// cannot read is an error, and nothing more is promised.
func parseSelector(text string) (*expr, error) {
	p := &selectorReader{rest: text}
	e := p.or()
	if p.space(); p.failed == nil && p.rest != "" {
		p.fail("the end")
	}
	if p.failed != nil {
		return nil, fmt.Errorf("selector %q: %w", text, p.failed)
	}
	return e, nil
}

type selectorReader struct {
	rest   string
	failed error
}

func (p *selectorReader) space() { p.rest = strings.TrimLeft(p.rest, " \t") }

func (p *selectorReader) fail(want string) {
	if p.failed == nil {
		p.failed = fmt.Errorf("at %q: want %s", p.rest, want)
	}
	p.rest = ""
}

// take eats one of the texts if it is next.
func (p *selectorReader) take(token string) bool {
	p.space()
	if !strings.HasPrefix(p.rest, token) {
		return false
	}
	p.rest = p.rest[len(token):]
	return true
}

func (p *selectorReader) or() *expr {
	parts := []*expr{p.and()}
	for p.take("||") {
		parts = append(parts, p.and())
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return &expr{op: "||", parts: parts}
}

func (p *selectorReader) and() *expr {
	parts := []*expr{p.one()}
	for p.take("&&") {
		parts = append(parts, p.one())
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return &expr{op: "&&", parts: parts}
}

func (p *selectorReader) one() *expr {
	switch {
	case p.take("!"):
		return &expr{op: "!", parts: []*expr{p.one()}}
	case p.take("("):
		e := p.or()
		if !p.take(")") {
			p.fail("a closing bracket")
		}
		return e
	case p.take("all()"):
		return &expr{op: "all"}
	case p.take("global()"):
		return &expr{op: "global"}
	case p.take("has("):
		e := &expr{op: "has", key: p.key()}
		if !p.take(")") {
			p.fail("a closing bracket")
		}
		return e
	}
	e := &expr{key: p.key()}
	for _, op := range []string{"==", "!=", "contains", "starts with", "ends with"} {
		if p.take(op) {
			e.op = op
			e.values = []string{p.quoted()}
			return e
		}
	}
	for _, op := range []string{"in", "not in"} {
		if p.take(op) {
			e.op = op
			e.values = p.set()
			return e
		}
	}
	p.fail("an operator")
	return e
}

func (p *selectorReader) key() string {
	p.space()
	n := 0
	for n < len(p.rest) && (p.rest[n] == '.' || p.rest[n] == '/' || p.rest[n] == '-' || p.rest[n] == '_' ||
		'a' <= p.rest[n] && p.rest[n] <= 'z' || 'A' <= p.rest[n] && p.rest[n] <= 'Z' || '0' <= p.rest[n] && p.rest[n] <= '9') {
		n++
	}
	if n == 0 {
		p.fail("a label")
		return ""
	}
	key := p.rest[:n]
	p.rest = p.rest[n:]
	return key
}

func (p *selectorReader) quoted() string {
	p.space()
	for _, quote := range []string{"'", `"`} {
		if inner, ok := strings.CutPrefix(p.rest, quote); ok {
			value, rest, ok := strings.Cut(inner, quote)
			if ok {
				p.rest = rest
				return value
			}
		}
	}
	p.fail("a quoted value")
	return ""
}

func (p *selectorReader) set() []string {
	if !p.take("{") {
		p.fail("a set in braces")
	}
	var values []string
	for !p.take("}") && p.failed == nil {
		values = append(values, p.quoted())
		p.take(",")
	}
	return values
}
