package flannel

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// object is a JSON object as Flannel's users write it: names in any case, booleans and numbers also in
// quotes. It knows which of its fields somebody asked for, so that the others can be refused.
type object struct {
	noun   string            // of errors: net-conf.json
	path   string            // before the field's name: "Backend."
	fields map[string]member // by lower-case name
}

type member struct {
	name string // as its author spelled it
	raw  json.RawMessage
}

// parseObject reads one JSON object and nothing else. A null member counts as absent, as in Go's and so
// in Flannel's reading.
func parseObject(noun, path string, text []byte) (*object, error) {
	o := &object{noun: noun, path: path, fields: map[string]member{}}
	var whole json.RawMessage
	if err := json.Unmarshal(text, &whole); err != nil {
		return nil, malformed(noun, text, err)
	}
	where := strings.TrimSuffix(path, ".")
	if where == "" {
		where = "content"
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, &model.FieldError{Noun: noun, Field: where, Value: short(string(bytes.TrimSpace(text))), Want: "a JSON object"}
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, malformed(noun, text, err)
		}
		m := member{name: fmt.Sprint(tok)}
		if err := dec.Decode(&m.raw); err != nil {
			return nil, malformed(noun, text, err)
		}
		key := strings.ToLower(m.name)
		if old, ok := o.fields[key]; ok {
			return nil, &model.FieldError{Noun: noun, Field: path + short(m.name), Value: short(string(m.raw)), Want: fmt.Sprintf("the field once; it stands above as %s", short(old.name))}
		}
		o.fields[key] = m
	}
	for key, m := range o.fields {
		if string(m.raw) == "null" {
			m.raw = nil
			o.fields[key] = m
		}
	}
	return o, nil
}

// malformed says where: the decoder's offset as line and column, both from 1.
func malformed(noun string, text []byte, err error) error {
	at := int64(len(text))
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		at = min(at, syntax.Offset)
	}
	before := text[:max(0, at-1)]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - (bytes.LastIndexByte(before, '\n') + 1) + 1
	return fmt.Errorf("%s: line %d, column %d: %w", noun, line, column, err)
}

// has reports whether the field is there.
func (o *object) has(name string) bool {
	_, ok := o.raw(name)
	return ok
}

func (o *object) raw(name string) (json.RawMessage, bool) {
	m, ok := o.fields[strings.ToLower(name)]
	return m.raw, ok && m.raw != nil
}

// bad is the error about a field's value.
func (o *object) bad(name, want string) error {
	m := o.fields[strings.ToLower(name)]
	return &model.FieldError{Noun: o.noun, Field: o.path + name, Value: short(string(m.raw)), Want: want}
}

// text reads a string; "" when the field is absent.
func (o *object) text(name string) (string, error) {
	raw, ok := o.raw(name)
	if !ok {
		return "", nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", o.bad(name, "a text in quotes")
	}
	return s, nil
}

// boolean reads true, false, and both in quotes in any case.
func (o *object) boolean(name string, usual bool) (bool, error) {
	raw, ok := o.raw(name)
	if !ok {
		return usual, nil
	}
	switch strings.ToLower(unquoted(raw)) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, o.bad(name, "true or false")
}

// number reads a whole number that is not negative, also in quotes.
func (o *object) number(name string, usual int) (int, error) {
	raw, ok := o.raw(name)
	if !ok {
		return usual, nil
	}
	n, err := strconv.ParseUint(unquoted(raw), 10, 31)
	if err != nil {
		return 0, o.bad(name, "a whole number")
	}
	return int(n), nil
}

// only refuses a field, by name, that is none of the known ones.
func (o *object) only(known ...string) error {
	var left []string
	for key, m := range o.fields {
		if !slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, key) }) {
			left = append(left, m.name)
		}
	}
	if len(left) == 0 {
		return nil
	}
	slices.Sort(left)
	m := o.fields[strings.ToLower(left[0])]
	return &model.FieldError{Noun: o.noun, Field: "unknown field " + o.path + short(m.name), Value: short(string(m.raw)), Want: "one of " + strings.Join(known, ", ")}
}

func unquoted(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}

// short keeps what is repeated from outside in an error on one line and within 80 characters.
func short(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if r := []rune(s); len(r) > 80 {
		s = string(r[:80]) + "…"
	}
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
