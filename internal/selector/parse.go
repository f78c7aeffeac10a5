package selector

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of Parse.
const (
	// MaxLength is how many bytes a selector may have, as it is given and as String prints it.
	MaxLength = 64 << 10
	// MaxDepth is how many parentheses may be open at once.
	MaxDepth = 64
)

// Error says where a selector's text is wrong.
type Error struct {
	Position int    // of the byte at fault, from 1
	Found    string // what stands there, shortened; empty at the end of the text
	Want     string // what was expected
}

// Error implements error.
func (e *Error) Error() string {
	found := "the end"
	if e.Found != "" {
		found = fmt.Sprintf("%q", e.Found)
	}
	return fmt.Sprintf("position %d: found %s: want %s", e.Position, found, e.Want)
}

// Parse reads a selector in Calico's language; text without anything in it is all(). Errors are *Error.
//
//	selector = and { "||" and }
//	and      = term { "&&" term }
//	term     = "!" term | "(" selector ")" | "all()" | "global()" | "has(" key ")"
//	         | key ( "==" | "=" | "!=" | "contains" | "starts with" | "ends with" ) value
//	         | key ( "in" | "not in" ) "{" [ value { "," value } [ "," ] ] "}"
//	key      = letters, digits, "_", ".", "/", "-"
//	value    = text in " or in ', without that quote in it
//
// White space may stand between all of these, and is not needed where a keyword meets a sign. Words such as
// in and has can be keys.
func Parse(text string) (Selector, error) {
	p := parser{text: text}
	if len(text) > MaxLength {
		return Selector{}, p.tooLong()
	}
	p.space()
	if p.at == len(text) {
		return All(), nil
	}
	n, err := p.or()
	if err != nil {
		return Selector{}, err
	}
	if p.at < len(text) {
		return Selector{}, p.wrong("&& or || or the end")
	}
	s := seal(n)
	if len(s.str) > MaxLength {
		return Selector{}, p.tooLong()
	}
	return s, nil
}

// parser goes through a text. Its methods leave white space behind them: at is always at a sign, a word or the end.
type parser struct {
	text  string
	at    int // byte that is next
	depth int // open parentheses
}

func (p *parser) tooLong() error {
	return &Error{Position: MaxLength + 1, Found: "more", Want: fmt.Sprintf("at most %d bytes", MaxLength)}
}

// wrong is the error that something else was expected here.
func (p *parser) wrong(want string) error {
	found := p.text[p.at:]
	if i := strings.IndexAny(found, " \t\r\n"); i > 0 {
		found = found[:i]
	}
	if len(found) > 20 {
		cut := 20
		for cut > 0 && !utf8.RuneStart(found[cut]) {
			cut--
		}
		found = found[:cut]
	}
	return &Error{p.at + 1, found, want}
}

func (p *parser) space() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

// take steps over a word or sign and the space behind it, if it is next.
func (p *parser) take(what string) bool {
	if !strings.HasPrefix(p.text[p.at:], what) {
		return false
	}
	p.at += len(what)
	p.space()
	return true
}

func (p *parser) or() (node, error)  { return p.list("||", p.and) }
func (p *parser) and() (node, error) { return p.list("&&", p.term) }

// list reads one or more with an operator between them.
func (p *parser) list(operator string, one func() (node, error)) (node, error) {
	var parts []node
	for {
		n, err := one()
		if err != nil {
			return nil, err
		}
		parts = append(parts, n)
		if !p.take(operator) {
			return join(operator == "&&", parts), nil
		}
	}
}

func (p *parser) term() (node, error) {
	negated := false
	for p.take("!") {
		negated = !negated
	}
	n, err := p.plainTerm()
	if err == nil && negated {
		n = negate(n)
	}
	return n, err
}

func (p *parser) plainTerm() (node, error) {
	switch {
	case p.take("("):
		if p.depth++; p.depth > MaxDepth {
			p.at = strings.LastIndexByte(p.text[:p.at], '(')
			return nil, p.wrong(fmt.Sprintf("at most %d open parentheses", MaxDepth))
		}
		n, err := p.or()
		if err != nil {
			return nil, err
		}
		p.depth--
		return n, p.closing("&& or || or )")
	case p.take("all("):
		return &all{}, p.closing(")")
	case p.take("global("):
		return &global{}, p.closing(")")
	case p.take("has("):
		key, err := p.key("a label's key")
		if err != nil {
			return nil, err
		}
		return &has{key}, p.closing(")")
	}
	key, err := p.key("a label's key, has(…), all(), global(), ! or (")
	if err != nil {
		return nil, err
	}
	return p.comparison(key)
}

// closing steps over a closing parenthesis.
func (p *parser) closing(want string) error {
	if !p.take(")") {
		return p.wrong(want)
	}
	return nil
}

// comparison reads what follows a key.
func (p *parser) comparison(key string) (node, error) {
	const operators = "an operator: ==, !=, in, not in, contains, starts with or ends with"
	switch {
	case p.take("=="), p.take("="):
		return p.single(key, false)
	case p.take("!="):
		return p.single(key, true)
	case p.take("contains"):
		return p.partial(key, contains)
	case p.take("starts"):
		if !p.take("with") {
			return nil, p.wrong("with")
		}
		return p.partial(key, startsWith)
	case p.take("ends"):
		if !p.take("with") {
			return nil, p.wrong("with")
		}
		return p.partial(key, endsWith)
	case p.take("not"):
		if !p.take("in") {
			return nil, p.wrong("in")
		}
		return p.several(key, true)
	case p.take("in"):
		return p.several(key, false)
	}
	return nil, p.wrong(operators)
}

func (p *parser) single(key string, not bool) (node, error) {
	v, err := p.value("a value in quotes")
	if err != nil {
		return nil, err
	}
	return newSet(key, []string{v}, not), nil
}

func (p *parser) partial(key string, op partOp) (node, error) {
	v, err := p.value("a value in quotes")
	if err != nil {
		return nil, err
	}
	return &part{key, v, op}, nil
}

func (p *parser) several(key string, not bool) (node, error) {
	if !p.take("{") {
		return nil, p.wrong("{")
	}
	var values []string
	for !p.take("}") {
		v, err := p.value("a value in quotes or }")
		if err != nil {
			return nil, err
		}
		values = append(values, v)
		if p.take(",") {
			continue
		}
		if !p.take("}") {
			return nil, p.wrong(", or }")
		}
		break
	}
	return newSet(key, values, not), nil
}

func isKeyByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_./-", c) >= 0
}

func (p *parser) key(want string) (string, error) {
	end := p.at
	for end < len(p.text) && isKeyByte(p.text[end]) {
		end++
	}
	if end == p.at {
		return "", p.wrong(want)
	}
	key := p.text[p.at:end]
	p.at = end
	p.space()
	return key, nil
}

func (p *parser) value(want string) (string, error) {
	if p.at == len(p.text) || p.text[p.at] != '"' && p.text[p.at] != '\'' {
		return "", p.wrong(want)
	}
	quote, start := p.text[p.at], p.at+1
	length := strings.IndexByte(p.text[start:], quote)
	if length < 0 {
		return "", p.wrong("a closing " + string(quote))
	}
	v := p.text[start : start+length]
	if i := strings.IndexFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError }); i >= 0 {
		p.at = start + i
		return "", p.wrong("text without control characters, in UTF-8")
	}
	p.at = start + length + 1
	p.space()
	return v, nil
}
