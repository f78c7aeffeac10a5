package selector

import (
	"slices"
	"strconv"
	"strings"
)

// node is one part of the condition. Nodes never change once made.
type node interface {
	matches(l Labels) bool
	// text is the part in Calico's language; equal texts mean the same.
	text() string
	prefixed(prefix string) node
}

// all matches everything.
type all struct{}

func (*all) matches(Labels) bool { return true }
func (*all) text() string        { return "all()" }

func (n *all) prefixed(prefix string) node {
	if label, ok := within[prefix]; ok {
		return &has{label}
	}
	return n
}

// prefixedKey is the key of what a namespace's or service account's label becomes on what is in it.
func prefixedKey(prefix, key string) string {
	if label, ok := within[prefix]; ok && key == labelName {
		return label
	}
	return prefix + key
}

// global matches what is in no namespace.
type global struct{}

func (*global) matches(l Labels) bool {
	_, ok := l.Label(labelNamespace)
	return !ok
}
func (*global) text() string           { return "global()" }
func (n *global) prefixed(string) node { return n }

// has matches when there is such a label.
type has struct{ key string }

func (n *has) matches(l Labels) bool {
	_, ok := l.Label(n.key)
	return ok
}
func (n *has) text() string                { return "has(" + n.key + ")" }
func (n *has) prefixed(prefix string) node { return &has{prefixedKey(prefix, n.key)} }

// set matches when the label has one of the values; with not, when it does not, also for want of the label.
// With one value it is written == and !=.
type set struct {
	key    string
	values []string // sorted, each once
	not    bool
}

func newSet(key string, values []string, not bool) *set {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return &set{key, slices.Compact(sorted), not}
}

func (n *set) matches(l Labels) bool {
	v, ok := l.Label(n.key)
	if ok {
		_, ok = slices.BinarySearch(n.values, v)
	}
	return ok != n.not
}

func (n *set) text() string {
	if len(n.values) == 1 {
		if n.not {
			return n.key + " != " + quote(n.values[0])
		}
		return n.key + " == " + quote(n.values[0])
	}
	var b strings.Builder
	b.WriteString(n.key)
	if n.not {
		b.WriteString(" not")
	}
	b.WriteString(" in {")
	for i, v := range n.values {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(v))
	}
	b.WriteString("}")
	return b.String()
}

func (n *set) prefixed(prefix string) node { return &set{prefixedKey(prefix, n.key), n.values, n.not} }

// part compares the label with a part of a value.
type part struct {
	key, value string
	op         partOp
}

// partOp is how; its value is its spelling.
type partOp string

const (
	contains   partOp = "contains"
	startsWith partOp = "starts with"
	endsWith   partOp = "ends with"
)

func (n *part) matches(l Labels) bool {
	v, ok := l.Label(n.key)
	if !ok {
		return false
	}
	switch n.op {
	case startsWith:
		return strings.HasPrefix(v, n.value)
	case endsWith:
		return strings.HasSuffix(v, n.value)
	}
	return strings.Contains(v, n.value)
}

func (n *part) text() string { return n.key + " " + string(n.op) + " " + quote(n.value) }

func (n *part) prefixed(prefix string) node { return &part{prefixedKey(prefix, n.key), n.value, n.op} }

// not matches what the other does not.
type not struct{ of node }

// negate is the opposite of a condition, in its shortest form.
func negate(n node) node {
	switch n := n.(type) {
	case *not:
		return n.of
	case *set:
		return &set{n.key, n.values, !n.not}
	}
	return &not{n}
}

func (n *not) matches(l Labels) bool { return !n.of.matches(l) }
func (n *not) text() string {
	if _, ok := n.of.(*joined); ok {
		return "!(" + n.of.text() + ")"
	}
	return "!" + n.of.text()
}
func (n *not) prefixed(prefix string) node { return negate(n.of.prefixed(prefix)) }

// joined is an and or an or of at least two parts, none of which is the same kind of join.
type joined struct {
	and   bool
	parts []node
}

// join puts at least one part together.
func join(and bool, parts []node) node {
	var flat []node
	for _, p := range parts {
		if j, ok := p.(*joined); ok && j.and == and {
			flat = append(flat, j.parts...)
			continue
		}
		flat = append(flat, p)
	}
	if len(flat) == 1 {
		return flat[0]
	}
	return &joined{and, flat}
}

func (n *joined) matches(l Labels) bool {
	for _, p := range n.parts {
		if p.matches(l) != n.and {
			return !n.and
		}
	}
	return n.and
}

func (n *joined) text() string {
	texts := make([]string, 0, len(n.parts))
	for _, p := range n.parts {
		text := p.text()
		if j, ok := p.(*joined); ok && n.and && !j.and {
			text = "(" + text + ")"
		}
		texts = append(texts, text)
	}
	if n.and {
		return strings.Join(texts, " && ")
	}
	return strings.Join(texts, " || ")
}

func (n *joined) prefixed(prefix string) node {
	parts := make([]node, 0, len(n.parts))
	for _, p := range n.parts {
		parts = append(parts, p.prefixed(prefix))
	}
	return &joined{n.and, parts}
}

func usesGlobal(n node) bool {
	switch n := n.(type) {
	case *global:
		return true
	case *not:
		return usesGlobal(n.of)
	case *joined:
		return slices.ContainsFunc(n.parts, usesGlobal)
	}
	return false
}

// quote spells a value. The language has no escapes: what has both kinds of quotes in it cannot be said, and
// is spelled as Go would.
func quote(v string) string {
	switch {
	case !strings.Contains(v, `"`):
		return `"` + v + `"`
	case !strings.Contains(v, `'`):
		return "'" + v + "'"
	}
	return strconv.Quote(v)
}
