package selector_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/selector"
)

func TestParseReadsCalicosLanguage(t *testing.T) {
	for _, c := range []struct {
		text, canonical string
		yes, no         []selector.Map
	}{
		{"", "all()", []selector.Map{{}, {"a": "b"}}, nil},
		{" \t\n", "all()", []selector.Map{{}}, nil},
		{"all()", "all()", []selector.Map{{}}, nil},
		{"all( )", "all()", []selector.Map{{}}, nil},
		{"!all()", "!all()", nil, []selector.Map{{}, {"a": "b"}}},
		{"global()", "global()", []selector.Map{{}, {"a": "b"}}, []selector.Map{{"projectcalico.org/namespace": "x"}}},
		{"!global()", "!global()", []selector.Map{{"projectcalico.org/namespace": "x"}}, []selector.Map{{}}},
		{"a=='b'", `a == "b"`, []selector.Map{{"a": "b"}}, []selector.Map{{}, {"a": ""}, {"a": "c"}, {"b": "b"}}},
		{"a = 'b'", `a == "b"`, []selector.Map{{"a": "b"}}, []selector.Map{{}}},
		{`a == ""`, `a == ""`, []selector.Map{{"a": ""}}, []selector.Map{{}, {"a": "b"}}},
		{`a == 'say "b"'`, `a == 'say "b"'`, []selector.Map{{"a": `say "b"`}}, []selector.Map{{}}},
		{`a == "it's"`, `a == "it's"`, []selector.Map{{"a": "it's"}}, []selector.Map{{}}},
		{"a != 'b'", `a != "b"`, []selector.Map{{}, {"a": "c"}, {"a": ""}}, []selector.Map{{"a": "b"}}},
		{"!a == 'b'", `a != "b"`, []selector.Map{{}, {"a": "c"}}, []selector.Map{{"a": "b"}}},
		{"!!a == 'b'", `a == "b"`, []selector.Map{{"a": "b"}}, []selector.Map{{}}},
		{"! ! !(a == 'b')", `a != "b"`, []selector.Map{{}}, []selector.Map{{"a": "b"}}},
		{"a in {'c', \"b\",'c'}", `a in {"b", "c"}`, []selector.Map{{"a": "b"}, {"a": "c"}}, []selector.Map{{}, {"a": "d"}}},
		{"a in{'b',}", `a == "b"`, []selector.Map{{"a": "b"}}, []selector.Map{{}}},
		{"a in {}", `a in {}`, nil, []selector.Map{{}, {"a": ""}}},
		{"a not in {}", `a not in {}`, []selector.Map{{}, {"a": ""}}, nil},
		{"a not  in { 'b', 'c' }", `a not in {"b", "c"}`, []selector.Map{{}, {"a": "d"}}, []selector.Map{{"a": "b"}, {"a": "c"}}},
		{"a notin {'b'}", `a != "b"`, []selector.Map{{}}, []selector.Map{{"a": "b"}}},
		{"!a not in {'b', 'c'}", `a in {"b", "c"}`, []selector.Map{{"a": "b"}}, []selector.Map{{}}},
		{"has(a)", "has(a)", []selector.Map{{"a": ""}}, []selector.Map{{}}},
		{"!has( a/b.c_d-e )", "!has(a/b.c_d-e)", []selector.Map{{}}, []selector.Map{{"a/b.c_d-e": ""}}},
		{"a contains 'x'", `a contains "x"`, []selector.Map{{"a": "axb"}, {"a": "x"}}, []selector.Map{{}, {"a": "b"}}},
		{"!a contains 'x'", `!a contains "x"`, []selector.Map{{}, {"a": "b"}}, []selector.Map{{"a": "axb"}}},
		{"a contains''", `a contains ""`, []selector.Map{{"a": ""}}, []selector.Map{{}}},
		{"a starts with 'x'", `a starts with "x"`, []selector.Map{{"a": "xb"}}, []selector.Map{{}, {"a": "bx"}}},
		{"a startswith 'x'", `a starts with "x"`, []selector.Map{{"a": "xb"}}, []selector.Map{{}}},
		{"a ends\twith 'x'", `a ends with "x"`, []selector.Map{{"a": "bx"}}, []selector.Map{{}, {"a": "xb"}}},
		{"a=='1'&&b=='2'", `a == "1" && b == "2"`, []selector.Map{{"a": "1", "b": "2"}}, []selector.Map{{"a": "1"}, {"b": "2"}, {}}},
		{"a=='1'||b=='2'", `a == "1" || b == "2"`, []selector.Map{{"a": "1"}, {"b": "2"}}, []selector.Map{{}}},
		{"a=='1'||b=='2'&&has(c)", `a == "1" || b == "2" && has(c)`, []selector.Map{{"a": "1"}, {"b": "2", "c": ""}}, []selector.Map{{"b": "2"}}},
		{"(a=='1'||b=='2')&&has(c)", `(a == "1" || b == "2") && has(c)`, []selector.Map{{"a": "1", "c": ""}}, []selector.Map{{"a": "1"}}},
		{"has(a)&&(has(b)&&has(c))", "has(a) && has(b) && has(c)", []selector.Map{{"a": "", "b": "", "c": ""}}, []selector.Map{{"a": "", "b": ""}}},
		{"!(has(a)&&has(b))", "!(has(a) && has(b))", []selector.Map{{}, {"a": ""}}, []selector.Map{{"a": "", "b": ""}}},
		{"((((has(a)))))", "has(a)", []selector.Map{{"a": ""}}, []selector.Map{{}}},
		{"in in {'in'}", `in == "in"`, []selector.Map{{"in": "in"}}, []selector.Map{{}}},
		{"contains contains 'contains'", `contains contains "contains"`, []selector.Map{{"contains": "contains"}}, []selector.Map{{}}},
		{"has == 'all' && all == 'has'", `has == "all" && all == "has"`, []selector.Map{{"has": "all", "all": "has"}}, []selector.Map{{}}},
		{"all() && has(a)", "all() && has(a)", []selector.Map{{"a": ""}}, []selector.Map{{}}},
		{"k8s-app == 'kube-dns'", `k8s-app == "kube-dns"`, []selector.Map{{"k8s-app": "kube-dns"}}, []selector.Map{{}}},
	} {
		s, err := selector.Parse(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if s.String() != c.canonical {
			t.Errorf("%q is printed %q, want %q", c.text, s, c.canonical)
		}
		for _, m := range c.yes {
			if !s.Matches(m) {
				t.Errorf("%q does not match %v", c.text, m)
			}
		}
		for _, m := range c.no {
			if s.Matches(m) {
				t.Errorf("%q matches %v", c.text, m)
			}
		}
	}
}

func TestParseSaysWhereAndWhatItExpected(t *testing.T) {
	const operator = "an operator: ==, !=, in, not in, contains, starts with or ends with"
	const term = "a label's key, has(…), all(), global(), ! or ("
	for _, c := range []struct{ text, want string }{
		{"a", "position 2: found the end: want " + operator},
		{"a ~ 'b'", `position 3: found "~": want ` + operator},
		{"a == b", `position 6: found "b": want a value in quotes`},
		{"a == 'b", `position 6: found "'b": want a closing '`},
		{`a == "b'`, `position 6: found "\"b'": want a closing "`},
		{"a == 'b' has(c)", `position 10: found "has(c)": want && or || or the end`},
		{"a == 'b' & has(c)", `position 10: found "&": want && or || or the end`},
		{"a == 'b' &&", "position 12: found the end: want " + term},
		{"&& a == 'b'", `position 1: found "&&": want ` + term},
		{"(a == 'b'", "position 10: found the end: want && or || or )"},
		{"a == 'b')", `position 9: found ")": want && or || or the end`},
		{"()", `position 2: found ")": want ` + term},
		{"has()", `position 5: found ")": want a label's key`},
		{"has(a", "position 6: found the end: want )"},
		{"has (a)", `position 5: found "(a)": want ` + operator},
		{"all(a)", `position 5: found "a)": want )`},
		{"global(", "position 8: found the end: want )"},
		{"a starts 'b'", `position 10: found "'b'": want with`},
		{"a ends 'b'", `position 8: found "'b'": want with`},
		{"a not 'b'", `position 7: found "'b'": want in`},
		{"a in 'b'", `position 6: found "'b'": want {`},
		{"a in {b}", `position 7: found "b}": want a value in quotes or }`},
		{"a in {'b' 'c'}", `position 11: found "'c'}": want , or }`},
		{"a in {,}", `position 7: found ",}": want a value in quotes or }`},
		{"a in {'b'", "position 10: found the end: want , or }"},
		{"é == 'b'", `position 1: found "é": want ` + term},
		{"a == 'b\x00'", `position 8: found "\x00'": want text without control characters, in UTF-8`},
		{"a == '\xff'", `position 7: found "\xff'": want text without control characters, in UTF-8`},
		{strings.Repeat("(", 65) + "has(a)" + strings.Repeat(")", 65), `position 65: found "(has(a))))))))))))))": want at most 64 open parentheses`},
		{strings.Repeat(" ", 65<<10), `position 65537: found "more": want at most 65536 bytes`},
		// Short as it is given, but not as it is printed.
		{strings.Repeat("a=''||", 10<<10) + "a=''", `position 65537: found "more": want at most 65536 bytes`},
	} {
		s, err := selector.Parse(c.text)
		var e *selector.Error
		if !errors.As(err, &e) || err.Error() != c.want {
			t.Errorf("%.40q: got %q and %v, want error %q", c.text, s, err, c.want)
		}
	}
	if _, err := selector.Parse("has(a)" + strings.Repeat("&& (has(a))", 100)); err != nil {
		t.Errorf("closed parentheses count: %v", err)
	}
	if _, err := selector.Parse(strings.Repeat("(", 64) + "has(a)" + strings.Repeat(")", 64)); err != nil {
		t.Error(err)
	}
}
