package dialect

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v2"

	"github.com/heddle-net/heddle/internal/dialect/kube"
	"github.com/heddle-net/heddle/internal/model"
)

// Limits of ReadYAML.
const (
	// MaxText is how many bytes a text may have.
	MaxText = 4 << 20
	// MaxObjects is how many objects there may be in it.
	MaxObjects = 20_000
	// MaxBody is how many bytes of JSON one of them may be.
	MaxBody = kube.MaxBody
)

// ReadYAML reads the objects of a text in YAML or JSON: documents, each with one object or a list of them (kind
// List, or a kind's own list such as NetworkPolicyList). All of them are checked as Check does, or none is
// returned: errors are a *model.FieldError, behind the place of the document.
//
// Unknown fields, a key given twice in a mapping, keys that are not text, and the same object given twice are
// refused. An object that names no namespace is returned without one: see SetNamespace. Bodies are canonical JSON
// (names of fields in order, nothing between them) without status and metadata.managedFields.
func ReadYAML(text []byte) ([]model.Resource, error) {
	if len(text) > MaxText {
		return nil, &model.FieldError{Noun: "text", Field: "size", Value: fmt.Sprint(len(text)), Want: fmt.Sprintf("at most %d bytes", MaxText)}
	}
	// A text in UTF-16 would be read, but not as what it looks like.
	if !utf8.Valid(text) {
		return nil, &model.FieldError{Noun: "text", Field: "encoding", Value: "unknown", Want: "UTF-8"}
	}
	r := reader{where: map[string]string{}}
	documents := yaml.NewDecoder(bytes.NewReader(text))
	documents.SetStrict(true)
	for n := 1; ; n++ {
		place := fmt.Sprintf("document %d", n)
		var document any
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) {
			return r.found, nil
		}
		if err != nil {
			return nil, syntaxError(place, err)
		}
		if document == nil {
			continue // nothing, or comments, between two marks
		}
		if err := r.document(place, document); err != nil {
			return nil, fmt.Errorf("%s: %w", place, err)
		}
	}
}

// syntaxError words what the decoder says.
func syntaxError(place string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	text, _, _ = strings.Cut(strings.TrimPrefix(text, "unmarshal errors:\n  "), "\n")
	return &model.FieldError{Noun: place, Field: "syntax:", Value: text, Want: "YAML or JSON, each key once"}
}

// reader gathers objects.
type reader struct {
	found []model.Resource
	where map[string]string // key to place
}

// document takes the objects of a document.
func (r *reader) document(place string, document any) error {
	value, bad := plain(document)
	if bad != nil {
		bad.Noun, bad.Field = "object", strings.TrimLeft(bad.Field, ". ")
		if bad.Field == "" {
			bad.Field = "content"
		}
		return bad
	}
	object, ok := value.(map[string]any)
	if !ok {
		return &model.FieldError{Noun: "object", Field: "content", Value: show(value), Want: "an object with apiVersion, kind and metadata"}
	}
	version, kind, err := typeOf(object)
	if err != nil {
		return err
	}
	of, isList := listOf(version, kind)
	if !isList {
		return r.add(place, object)
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if !slices.Contains([]string{"apiVersion", "kind", "metadata", "items"}, name) {
			return &model.FieldError{Noun: kind, Field: "unknown field " + name, Value: show(object[name]), Want: "one of apiVersion, items, kind, metadata"}
		}
	}
	items, ok := object["items"].([]any)
	if !ok {
		return &model.FieldError{Noun: kind, Field: "items", Value: show(object["items"]), Want: "a list of objects"}
	}
	for i, item := range items {
		at := fmt.Sprintf("items[%d]", i)
		object, ok := item.(map[string]any)
		if !ok {
			return &model.FieldError{Noun: kind, Field: at, Value: show(item), Want: "an object with apiVersion, kind and metadata"}
		}
		if of != nil { // items of such a list need not say again what they are
			if _, ok := object["apiVersion"]; !ok {
				object["apiVersion"] = of.APIVersion
			}
			if _, ok := object["kind"]; !ok {
				object["kind"] = of.Kind
			}
		}
		if err := r.add(place+", "+at, object); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	return nil
}

// listOf reports whether a kind is a list, and of what if its name says so.
func listOf(version, kind string) (of *Kind, ok bool) {
	name, ok := strings.CutSuffix(kind, "List")
	if !ok {
		return nil, false
	}
	if name == "" {
		return nil, version == coreV1
	}
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.APIVersion == version && k.Kind == name })
	if i < 0 {
		return nil, false
	}
	return &kinds[i], true
}

// add takes one object.
func (r *reader) add(place string, object map[string]any) error {
	if len(r.found) == MaxObjects {
		return &model.FieldError{Noun: "text", Field: "objects", Value: "more", Want: fmt.Sprintf("at most %d", MaxObjects)}
	}
	one, err := resource(object)
	if err != nil {
		return err
	}
	if before, ok := r.where[one.Key()]; ok {
		return &model.FieldError{Noun: one.String(), Field: "it is", Value: "given twice", Want: "each object once; it is " + before + " too"}
	}
	r.where[one.Key()] = place
	check := *one
	if err := SetNamespace(&check, "default"); err != nil {
		return err
	}
	if err := Check(&check); err != nil {
		// The error is about the object as it was written.
		var bad *model.FieldError
		if errors.As(err, &bad) && bad.Noun == check.String() {
			bad.Noun = one.String()
		}
		return err
	}
	r.found = append(r.found, *one)
	return nil
}

// typeOf reads apiVersion and kind.
func typeOf(object map[string]any) (version, kind string, err error) {
	version, _ = object["apiVersion"].(string)
	kind, _ = object["kind"].(string)
	switch {
	case version == "":
		err = &model.FieldError{Noun: "object", Field: "apiVersion", Value: show(object["apiVersion"]), Want: "text such as " + networkV1}
	case kind == "":
		err = &model.FieldError{Noun: "object", Field: "kind", Value: show(object["kind"]), Want: "text such as NetworkPolicy"}
	}
	return version, kind, err
}

// resource files an object, by what it says of itself.
func resource(object map[string]any) (*model.Resource, error) {
	r := &model.Resource{}
	var err error
	if r.APIVersion, r.Type, err = typeOf(object); err != nil {
		return nil, err
	}
	metadata, ok := object["metadata"].(map[string]any)
	if !ok {
		return nil, &model.FieldError{Noun: r.Type, Field: "metadata", Value: show(object["metadata"]), Want: "fields with name"}
	}
	for _, f := range []struct {
		name string
		into *string
	}{{"name", &r.Name}, {"namespace", &r.Namespace}} {
		value, ok := metadata[f.name].(string)
		if !ok && metadata[f.name] != nil {
			return nil, &model.FieldError{Noun: r.Type, Field: "metadata." + f.name, Value: show(metadata[f.name]), Want: "text; numbers and true or false need quotes"}
		}
		*f.into = value
	}
	delete(object, "status")
	delete(metadata, "managedFields")
	if r.Body, err = json.Marshal(object); err != nil {
		return nil, fmt.Errorf("%s: %w", r, err) // plain leaves nothing that cannot be written
	}
	if len(r.Body) > MaxBody {
		return nil, &model.FieldError{Noun: r.String(), Field: "size", Value: fmt.Sprint(len(r.Body)), Want: fmt.Sprintf("at most %d bytes of JSON", MaxBody)}
	}
	if _, err := kindOf(r); err != nil {
		return nil, err
	}
	return r, r.Validate()
}

// plain turns what the YAML decoder makes into what JSON can say. The path of an error is put together on the way
// back: texts may be deep.
func plain(v any) (any, *model.FieldError) {
	switch v := v.(type) {
	case nil, bool, int, int64, uint64:
		return v, nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, &model.FieldError{Value: fmt.Sprint(v), Want: "a number that JSON has"}
		}
		return v, nil
	case string:
		if !utf8.ValidString(v) {
			return nil, &model.FieldError{Value: "binary", Want: "text in UTF-8"}
		}
		return v, nil
	case []any:
		for i := range v {
			one, bad := plain(v[i])
			if bad != nil {
				bad.Field = fmt.Sprintf("[%d]%s", i, bad.Field)
				return nil, bad
			}
			v[i] = one
		}
		return v, nil
	case map[any]any:
		object := make(map[string]any, len(v))
		for key, value := range v {
			name, ok := key.(string)
			if !ok || !utf8.ValidString(name) {
				return nil, &model.FieldError{Field: " key", Value: fmt.Sprint(key), Want: "text; numbers, yes, no, on and off need quotes"}
			}
			one, bad := plain(value)
			if bad != nil {
				bad.Field = "." + name + bad.Field
				return nil, bad
			}
			object[name] = one
		}
		return object, nil
	}
	return nil, &model.FieldError{Value: fmt.Sprintf("%T", v), Want: "text, a number, true, false, a list or fields"}
}

// show is a value as JSON, shortened; empty for none.
func show(value any) string {
	if value == nil {
		return ""
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprintf("%T", value)
	}
	const most = 128
	if len(raw) > most {
		return strings.ToValidUTF8(string(raw[:most]), "") + "…"
	}
	return string(raw)
}
