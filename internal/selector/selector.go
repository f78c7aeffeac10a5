// Package selector holds label selectors: Calico's language whole, and Kubernetes' as a part of it.
//
// A Selector is a value. The package is pure: parsing and matching, nothing else.
package selector

// Labels are what a selector looks at.
type Labels interface {
	// Label returns the value of a label, and whether there is one.
	Label(key string) (string, bool)
}

// Map is a set of labels.
type Map map[string]string

// Label implements Labels.
func (m Map) Label(key string) (string, bool) {
	v, ok := m[key]
	return v, ok
}

// Selector is a condition on labels. The zero value matches everything.
//
// Keys and values that come from Parse and FromKubernetes can always be written in Calico's language. For
// those given to the constructors that is the caller's business: a key is made of letters, digits and
// "_./-", and a value has no more than one kind of quotes in it.
type Selector struct {
	root node   // nil: all()
	str  string // of root
}

// seal makes a selector of a condition.
func seal(n node) Selector {
	if _, ok := n.(*all); ok || n == nil {
		return Selector{}
	}
	return Selector{n, n.text()}
}

// node is the condition, for those who put others together.
func (s Selector) node() node {
	if s.root == nil {
		return &all{}
	}
	return s.root
}

// Matches reports whether the labels fulfil the condition.
func (s Selector) Matches(l Labels) bool { return s.root == nil || s.root.matches(l) }

// String is the selector in Calico's language. Selectors with equal texts mean the same.
func (s Selector) String() string {
	if s.root == nil {
		return "all()"
	}
	return s.str
}

// IsAll reports whether the selector is all(): it matches everything by its form. Others may, too.
func (s Selector) IsAll() bool { return s.root == nil }

// All matches everything.
func All() Selector { return Selector{} }

// Equal matches when the label is there and has the value.
func Equal(key, value string) Selector { return In(key, value) }

// In matches when the label is there and has one of the values; without values, nothing does.
func In(key string, values ...string) Selector { return seal(newSet(key, values, false)) }

// NotIn matches when the label has none of the values, also when there is no such label.
func NotIn(key string, values ...string) Selector { return seal(newSet(key, values, true)) }

// Has matches when there is such a label.
func Has(key string) Selector { return seal(&has{key}) }

// Not matches what s does not.
func Not(s Selector) Selector { return seal(negate(s.node())) }

// And matches what all of them match. Those that are all() are left out; And() is all().
func And(s ...Selector) Selector {
	var parts []node
	for _, p := range s {
		if p.root != nil {
			parts = append(parts, p.root)
		}
	}
	if len(parts) == 0 {
		return All()
	}
	return seal(join(true, parts))
}

// Or matches what at least one of them matches; Or() matches nothing.
func Or(s ...Selector) Selector {
	parts := make([]node, 0, len(s))
	for _, p := range s {
		if p.root == nil {
			return All()
		}
		parts = append(parts, p.root)
	}
	if len(parts) == 0 {
		return Not(All())
	}
	return seal(join(false, parts))
}

// The labels that global() and prefixed selectors speak of, and the prefixes of those: see WithPrefix.
const (
	labelNamespace      = "projectcalico.org/namespace"
	labelServiceAccount = "projectcalico.org/serviceaccount"
	labelOrchestrator   = "projectcalico.org/orchestrator"
	labelName           = "projectcalico.org/name" // of a namespace or service account: its name
	prefixNamespace     = "pcns."
	prefixServiceAcct   = "pcsa."
)

// within is the label that names the namespace or service account that something is in, by the prefix of the
// labels which that one lends it.
var within = map[string]string{prefixNamespace: labelNamespace, prefixServiceAcct: labelServiceAccount}

// WithPrefix turns a selector of namespaces ("pcns.") or service accounts ("pcsa.") into one of what is in
// them: every key gets the prefix. As Calico has it, all() becomes "is in some namespace" ("runs as some
// service account"), since all namespaces are meant and not what is in none; global(), which only selectors of
// namespaces may say, stays what it is: in no namespace; and the label projectcalico.org/name, which every
// namespace and service account carries unwritten, becomes the label that names it.
func (s Selector) WithPrefix(prefix string) Selector {
	return seal(s.node().prefixed(prefix))
}

// UsesGlobal reports whether global() is said anywhere in it.
func (s Selector) UsesGlobal() bool { return s.root != nil && usesGlobal(s.root) }

// Requires returns a term key == value that everything fulfils which matches, if there is one: what a
// selector can be found by in an index of labels. Of several it takes one that is likely to be shared by few.
func (s Selector) Requires() (key, value string, ok bool) {
	terms := []node{s.root}
	if j, is := s.root.(*joined); is && j.and {
		terms = j.parts
	}
	for _, t := range terms {
		set, is := t.(*set)
		switch {
		case !is || set.not || len(set.values) != 1:
		case set.key == labelNamespace:
			return set.key, set.values[0], true
		case !ok || key == labelOrchestrator:
			key, value, ok = set.key, set.values[0], true
		}
	}
	return key, value, ok
}
