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
type Selector struct {
	root node // nil: all()
}

// node is one part of the condition.
type node interface {
	matches(l Labels) bool
	// text is the part in Calico's language; equal texts mean the same.
	text() string
}

// Matches reports whether the labels fulfil the condition.
func (s Selector) Matches(l Labels) bool { return s.root == nil || s.root.matches(l) }

// String is the selector in Calico's language. Selectors with equal texts mean the same.
func (s Selector) String() string {
	if s.root == nil {
		return "all()"
	}
	return s.root.text()
}
