package selector_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/selector"
)

const namespace = "projectcalico.org/namespace"

// expr is a selector in a form of the test's own: a naive tree that knows how it is written and what it means.
type expr struct {
	op     string // of a term, "!", "&&", "||", "all()", "global()"
	key    string
	values []string
	parts  []expr
}

var (
	keys   = []string{"a", "app.kubernetes.io/name", namespace, "in"}
	values = []string{"", "x", "xy", "say \"x\"", "y'x"}
)

// drawExpr draws a selector of at most the depth.
func drawExpr(t *rapid.T, depth int) expr {
	ops := []string{"==", "!=", "in", "not in", "has", "contains", "starts with", "ends with", "all()", "global()"}
	if depth > 0 {
		ops = append(ops, "!", "&&", "||", "!", "&&", "||")
	}
	e := expr{op: rapid.SampledFrom(ops).Draw(t, "op")}
	switch e.op {
	case "!":
		e.parts = []expr{drawExpr(t, depth-1)}
	case "&&", "||":
		for range rapid.IntRange(2, 3).Draw(t, "parts") {
			e.parts = append(e.parts, drawExpr(t, depth-1))
		}
	case "all()", "global()":
	case "in", "not in":
		e.key = rapid.SampledFrom(keys).Draw(t, "key")
		e.values = rapid.SliceOfN(rapid.SampledFrom(values), 0, 3).Draw(t, "values")
	default:
		e.key = rapid.SampledFrom(keys).Draw(t, "key")
		e.values = []string{rapid.SampledFrom(values).Draw(t, "value")}
	}
	return e
}

// text is the expression in Calico's language, with more parentheses than are needed.
func (e expr) text() string {
	var quoted []string
	for _, v := range e.values {
		q := `"`
		if strings.Contains(v, q) {
			q = "'"
		}
		quoted = append(quoted, q+v+q)
	}
	var parts []string
	for _, p := range e.parts {
		parts = append(parts, "("+p.text()+")")
	}
	switch e.op {
	case "!":
		return "!" + parts[0]
	case "&&", "||":
		return strings.Join(parts, e.op)
	case "all()", "global()":
		return e.op
	case "has":
		return "has(" + e.key + ")"
	case "in", "not in":
		return e.key + " " + e.op + " {" + strings.Join(quoted, ",") + "}"
	}
	return e.key + " " + e.op + " " + quoted[0]
}

// matches is what Calico's documentation says of the operators.
func (e expr) matches(labels map[string]string) bool {
	v, ok := labels[e.key]
	switch e.op {
	case "all()":
		return true
	case "global()":
		_, ok := labels[namespace]
		return !ok
	case "has":
		return ok
	case "==":
		return ok && v == e.values[0]
	case "!=":
		return !ok || v != e.values[0]
	case "in":
		return ok && slices.Contains(e.values, v)
	case "not in":
		return !ok || !slices.Contains(e.values, v)
	case "contains":
		return ok && strings.Contains(v, e.values[0])
	case "starts with":
		return ok && strings.HasPrefix(v, e.values[0])
	case "ends with":
		return ok && strings.HasSuffix(v, e.values[0])
	case "!":
		return !e.parts[0].matches(labels)
	}
	for _, p := range e.parts {
		if p.matches(labels) != (e.op == "&&") {
			return e.op != "&&"
		}
	}
	return e.op == "&&"
}

func drawLabels(t *rapid.T, of []string) map[string]string {
	labels := map[string]string{}
	for _, k := range of {
		if rapid.Bool().Draw(t, "has "+k) {
			labels[k] = rapid.SampledFrom(values).Draw(t, k)
		}
	}
	return labels
}

func parse(t *rapid.T, text string) selector.Selector {
	s, err := selector.Parse(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return s
}

func TestSelectorsMeanWhatCalicosDocumentationSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawExpr(t, 3)
		s := parse(t, e.text())
		again := parse(t, s.String())
		if again.String() != s.String() {
			t.Fatalf("%s is printed %q, and that %q", e.text(), s, again)
		}
		for range 8 {
			labels := drawLabels(t, keys)
			want := e.matches(labels)
			if s.Matches(selector.Map(labels)) != want || again.Matches(selector.Map(labels)) != want {
				t.Fatalf("%s, printed %q, of %v: want %v", e.text(), s, labels, want)
			}
		}
	})
}

// A selector of namespaces, prefixed, matches what is in a namespace as the selector itself matches the
// namespace's labels with its name among them; and of what is in none, what global() and the like ask for.
func TestPrefixedSelectorsMatchByTheNamespace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawExpr(t, 2)
		s := parse(t, e.text())
		if s.UsesGlobal() {
			return // is about what is in the namespace, not about it
		}
		const name = "projectcalico.org/name"
		of, own := drawLabels(t, keys), selector.Map{namespace: "x"}
		of[name] = "x"
		for k, v := range of {
			own["pcns."+k] = v
		}
		if s.WithPrefix("pcns.").Matches(own) != e.matches(of) {
			t.Fatalf("%s as %q: want %v of what is in a namespace with %v", s, s.WithPrefix("pcns."), e.matches(of), of)
		}
	})
	for _, c := range []struct{ text, prefix, want string }{
		{"all()", "pcns.", "has(projectcalico.org/namespace)"},
		{"all() && a != 'b'", "pcns.", `has(projectcalico.org/namespace) && pcns.a != "b"`},
		{"!all()", "pcns.", "!has(projectcalico.org/namespace)"},
		{"global()", "pcns.", "global()"},
		{"has(a) || a contains 'b'", "pcns.", `has(pcns.a) || pcns.a contains "b"`},
		{"projectcalico.org/name in {'a', 'b'}", "pcns.", `projectcalico.org/namespace in {"a", "b"}`},
		{"projectcalico.org/name starts with 'a'", "pcsa.", `projectcalico.org/serviceaccount starts with "a"`},
		{"!has(projectcalico.org/name)", "pcsa.", "!has(projectcalico.org/serviceaccount)"},
		{"all()", "pcsa.", "has(projectcalico.org/serviceaccount)"},
		{"all()", "x.", "all()"},
		{"projectcalico.org/name == 'a'", "x.", `x.projectcalico.org/name == "a"`},
	} {
		s, err := selector.Parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.WithPrefix(c.prefix).String(); got != c.want {
			t.Errorf("%s with %s: got %s, want %s", c.text, c.prefix, got, c.want)
		}
		if s.String() != must(selector.Parse(c.text)).String() {
			t.Errorf("%s was changed to %s", c.text, s)
		}
	}
}

func must(s selector.Selector, err error) selector.Selector {
	if err != nil {
		panic(err)
	}
	return s
}

func TestEverythingThatMatchesFulfilsTheRequiredTerm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawExpr(t, 3)
		s := parse(t, e.text())
		key, value, ok := s.Requires()
		for range 8 {
			labels := drawLabels(t, keys)
			if ok && s.Matches(selector.Map(labels)) && (labels[key] != value || !e.matches(labels)) {
				t.Fatalf("%q requires %s == %q, and matches %v", s, key, value, labels)
			}
		}
	})
	for _, c := range []struct{ text, want string }{
		{"all()", ""},
		{"a == 'b'", "a=b"},
		{"a in {'b'}", "a=b"},
		{"!a != 'b'", "a=b"},
		{"a in {'b', 'c'}", ""},
		{"a != 'b'", ""},
		{"has(a)", ""},
		{"has(x) && a == 'b' && c == 'd'", "a=b"},
		{"projectcalico.org/orchestrator == 'k8s' && a == 'b'", "a=b"},
		{"projectcalico.org/orchestrator == 'k8s'", "projectcalico.org/orchestrator=k8s"},
		{"a == 'b' && projectcalico.org/namespace == 'n'", "projectcalico.org/namespace=n"},
		{"a == 'b' || c == 'd'", ""},
		{"(a == 'b' || c == 'd') && e == 'f'", "e=f"},
		{"!(a == 'b' && c == 'd')", ""},
	} {
		key, value, ok := must(selector.Parse(c.text)).Requires()
		got := ""
		if ok {
			got = key + "=" + value
		}
		if got != c.want {
			t.Errorf("%s requires %q, want %q", c.text, got, c.want)
		}
	}
}

func TestConstructorsArePrintedAndMeanTheSame(t *testing.T) {
	a, b := selector.Equal("a", "1"), selector.Equal("b", "2")
	for _, c := range []struct {
		s    selector.Selector
		want string
	}{
		{selector.Selector{}, "all()"},
		{selector.All(), "all()"},
		{a, `a == "1"`},
		{selector.In("a", "2", "1", "2"), `a in {"1", "2"}`},
		{selector.In("a"), "a in {}"},
		{selector.NotIn("a", "1"), `a != "1"`},
		{selector.NotIn("a", "2", "1"), `a not in {"1", "2"}`},
		{selector.Has("a"), "has(a)"},
		{selector.Not(selector.Has("a")), "!has(a)"},
		{selector.Not(selector.Not(a)), `a == "1"`},
		{selector.Not(a), `a != "1"`},
		{selector.Not(selector.All()), "!all()"},
		{selector.Not(selector.Not(selector.All())), "all()"},
		{selector.Not(selector.And(a, b)), `!(a == "1" && b == "2")`},
		{selector.And(), "all()"},
		{selector.And(selector.All(), a), `a == "1"`},
		{selector.And(selector.And(a, b), selector.Or(a, b)), `a == "1" && b == "2" && (a == "1" || b == "2")`},
		{selector.Or(), "!all()"},
		{selector.Or(a, selector.All()), "all()"},
		{selector.Or(selector.Or(a, b), selector.And(a, b)), `a == "1" || b == "2" || a == "1" && b == "2"`},
		{must(selector.Parse("a in {'x', 'y'}")), must(selector.Parse("a in {'y', 'x', 'x'}")).String()},
	} {
		if c.s.String() != c.want {
			t.Errorf("got %s, want %s", c.s, c.want)
		}
		again := must(selector.Parse(c.s.String()))
		if again.String() != c.want {
			t.Errorf("%s is read as %s", c.want, again)
		}
		for i := range 16 {
			labels := selector.Map{}
			for j, k := range []string{"a", "b"} {
				if v := i >> (2 * j) & 3; v > 0 {
					labels[k] = fmt.Sprint(v)
				}
			}
			if again.Matches(labels) != c.s.Matches(labels) {
				t.Errorf("%s means another thing than its text, of %v", c.s, labels)
			}
		}
	}
	// What cannot be said in the language has a text of its own all the same.
	if x, y := selector.Equal("a", `'"`).String(), selector.In("a", `'`, `"`).String(); x == y || x == "" {
		t.Errorf("got %s and %s", x, y)
	}
	if s := selector.Or(a, b); s.IsAll() || !selector.And().IsAll() || !(selector.Selector{}).IsAll() {
		t.Errorf("IsAll is wrong")
	}
	for text, want := range map[string]bool{"all()": false, "global()": true, "has(a) && !(has(b) || global())": true, "a == 'global()'": false} {
		if got := must(selector.Parse(text)).UsesGlobal(); got != want {
			t.Errorf("UsesGlobal of %s: got %v", text, got)
		}
	}
}

// FuzzParse: what is read can be printed and read again, and means the same.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "all()", "!global() && has( a )", "a == 'b' || c != \"d\" && (e in {'f', \"g\",} || h not in {})", "a contains 'x' && b starts with 'y' && c ends with 'z'",
		"((((a='b'))))", "!!!a notin{'b'}", "in in {'in'}", "a == '", "a ~ b", "has(", "é == 'b'",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := selector.Parse(text)
		if err != nil {
			if s.String() != "all()" || err.Error() == "" {
				t.Fatalf("%q: got %q and %v", text, s, err)
			}
			return
		}
		again, err := selector.Parse(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q is printed %q, and that is read as %q: %v", text, s, again, err)
		}
		for _, labels := range []selector.Map{{}, {"a": "b"}, {"a": "x", "c": "d", "in": "in"}, {namespace: "y", "a": ""}} {
			if s.Matches(labels) != again.Matches(labels) {
				t.Fatalf("%q and %q differ on %v", text, s, labels)
			}
			if key, value, ok := s.Requires(); ok && s.Matches(labels) && labels[key] != value {
				t.Fatalf("%q does not require %s == %q", s, key, value)
			}
		}
		if p := s.WithPrefix("pcns."); !strings.Contains(p.String(), "(") && p.String() == s.String() && s.String() != "" {
			t.Fatalf("%q has no prefix", p)
		}
	})
}
