package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/model"
)

// explain finds the field that the decoder could not take, and says what it wants there.
func explain(text []byte, err error) error {
	raw, yerr := yaml.YAMLToJSON(text)
	if yerr != nil {
		return fmt.Errorf("heddle.yaml: %s", strings.TrimPrefix(yerr.Error(), "yaml: "))
	}
	if bad := badField("", raw, reflect.TypeFor[Config]()); bad != nil {
		return bad
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	// What only the strict reading finds, such as the same field twice.
	return fmt.Errorf("heddle.yaml: %s", strings.TrimPrefix(strings.TrimPrefix(err.Error(), "yaml: "), "unmarshal errors:\n  "))
}

// badField looks at one field after the other, and into structs; nil when each alone is right.
func badField(path string, raw []byte, into reflect.Type) error {
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil {
		return fieldError(strings.TrimSuffix(path, "."), raw, "fields with their values, such as node: n1")
	}
	known := map[string]reflect.Type{}
	var names []string
	for i := range into.NumField() {
		name, _, _ := strings.Cut(into.Field(i).Tag.Get("json"), ",")
		known[name], names = into.Field(i).Type, append(names, name)
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value := fields[name]
		t, ok := known[name]
		if !ok {
			return fieldError("unknown field "+path+name, value, "one of "+strings.Join(names, ", "))
		}
		if t.Kind() == reflect.Struct {
			if err := badField(path+name+".", value, t); err != nil {
				return err
			}
			continue
		}
		if json.Unmarshal(value, reflect.New(t).Interface()) != nil {
			return fieldError(path+name, value, wanted(t))
		}
	}
	return nil
}

// wanted says in words what a field of the type takes.
func wanted(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[Duration]():
		return "a duration with its unit, such as 90s or 24h"
	case t == reflect.TypeFor[[]netip.Addr]():
		return "a list of IP addresses, such as [192.168.0.4]"
	case t.Kind() == reflect.Slice:
		return `a list, such as ["https://192.168.0.4:2379"]`
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Bool:
		return "true or false"
	}
	return "a text"
}

func fieldError(field string, raw []byte, want string) error {
	var one bytes.Buffer
	value := string(raw)
	if json.Compact(&one, raw) == nil {
		value = one.String()
	}
	const most = 128
	if len(value) > most {
		value = strings.ToValidUTF8(value[:most], "") + "…"
	}
	if field == "" {
		field = "content"
	}
	return &model.FieldError{Noun: "heddle.yaml", Field: field, Value: value, Want: want}
}

// validListen takes host:port and unix:/path.
func validListen(s string) bool {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return filepath.IsAbs(path)
	}
	at := strings.LastIndexByte(s, ':')
	if at < 0 {
		return false
	}
	port, err := strconv.ParseUint(s[at+1:], 10, 16)
	return err == nil && port > 0
}
