package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	strictjson "sigs.k8s.io/json"

	"github.com/heddle-net/heddle/internal/model"
)

// readStrict decodes JSON as the API server does: names of fields are case-sensitive. wrong are the fields that
// are unknown or that are there twice; they have no effect on what was decoded.
func readStrict(a at, body []byte, into any) (wrong []strictjson.FieldError, err error) {
	errs, err := strictjson.UnmarshalStrict(body, into)
	if err != nil {
		if bad := explain(a, body, reflect.TypeOf(into)); bad != nil {
			return nil, bad
		}
		return nil, fmt.Errorf("%s: %s", a.noun, strings.TrimPrefix(err.Error(), "json: "))
	}
	for _, e := range errs {
		var f strictjson.FieldError
		if !errors.As(e, &f) {
			return nil, fmt.Errorf("%s: %w", a.noun, e)
		}
		wrong = append(wrong, f)
	}
	return wrong, nil
}

// explainStrict says in full what is wrong about a field.
func explainStrict(a at, body []byte, into any, wrong strictjson.FieldError) error {
	if strings.HasPrefix(wrong.Error(), "duplicate") {
		return &model.FieldError{Noun: a.noun, Field: wrong.FieldPath(), Value: "given twice", Want: "each field once"}
	}
	if err := explain(a, body, reflect.TypeOf(into)); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", a.noun, wrong)
}

// explain finds the first value, in the order of names, that does not fit its type, or that is in no field of it;
// nil when there is none.
func explain(a at, raw json.RawMessage, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if string(raw) == "null" {
		return nil
	}
	_, own := reflect.New(t).Interface().(json.Unmarshaler)
	switch {
	case own:
	case t.Kind() == reflect.Struct, t.Kind() == reflect.Map:
		var values map[string]json.RawMessage
		if json.Unmarshal(raw, &values) != nil {
			return a.bad(raw, "fields with their values")
		}
		read := fields(t)
		known := read
		switch t {
		case reflect.TypeFor[PodSpec]():
			known = podFields
		case reflect.TypeFor[Container]():
			known = containerFields
		}
		for _, name := range slices.Sorted(maps.Keys(values)) {
			in := read[name]
			if t.Kind() == reflect.Map {
				in = t.Elem()
			}
			if in == nil && known[name] != nil {
				continue
			}
			if in == nil {
				return at{a.noun, "unknown field " + a.field(name).path}.bad(values[name], "one of "+strings.Join(slices.Sorted(maps.Keys(known)), ", "))
			}
			if err := explain(a.field(name), values[name], in); err != nil {
				return err
			}
		}
		return nil
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		var values []json.RawMessage
		if json.Unmarshal(raw, &values) != nil {
			return a.bad(raw, "a list")
		}
		for i, v := range values {
			if err := explain(a.item(i), v, t.Elem()); err != nil {
				return err
			}
		}
		return nil
	}
	if strictjson.UnmarshalCaseSensitivePreserveInts(raw, reflect.New(t).Interface()) != nil {
		return a.bad(raw, wanted(t))
	}
	return nil
}

// fields are the JSON names of a struct's fields with their types, those of inlined structs included.
func fields(t reflect.Type) map[string]reflect.Type {
	all := map[string]reflect.Type{}
	if t.Kind() != reflect.Struct {
		return all
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" && f.Anonymous {
			maps.Copy(all, fields(f.Type))
			continue
		}
		all[name] = f.Type
	}
	delete(all, "-")
	return all
}

// wanted says in words what a type takes.
func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "text; numbers and true or false need quotes"
	case reflect.Bool:
		return "true or false"
	case reflect.Int32:
		return "a whole number of 32 bits"
	case reflect.Int64:
		return "a whole number"
	}
	switch t.Name() {
	case "IntOrString":
		return "a whole number of 32 bits or text"
	case "Time", "MicroTime":
		return "a time such as 2006-01-02T15:04:05Z"
	}
	return "a value for " + t.Name()
}
