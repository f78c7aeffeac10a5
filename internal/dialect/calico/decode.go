// Package calico reads what people write in Calico's words: projectcalico.org/v3, and crd.projectcalico.org/v1,
// which is the same with another name. Object reads its policies, and Network what it has about the network itself.
//
// A policy becomes a value of package policy, or is refused with an error that names the field, its value and
// what was expected: nothing is skipped in silence, since a policy of which a part is not enforced is worse than
// one that is not accepted. What is refused is what Calico's own validation refuses, and what Heddle cannot
// honour (matches on HTTP, profiles of host endpoints, staged actions that only Calico's recommender knows).
//
// The package is pure.
package calico

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"

	kjson "sigs.k8s.io/json"

	"github.com/heddle-net/heddle/internal/model"
)

// The API groups.
const (
	Group    = "projectcalico.org"     // version v3
	CRDGroup = "crd.projectcalico.org" // version v1
)

// object is one of the types of this package.
type object interface{ meta() *Meta }

func (m *Meta) meta() *Meta { return m }

// kinds are the kinds that Decode knows.
var kinds = map[string]struct {
	namespaced bool
	empty      func() object
}{
	"NetworkPolicy":                 {true, func() object { return new(NetworkPolicy) }},
	"GlobalNetworkPolicy":           {false, func() object { return new(GlobalNetworkPolicy) }},
	"StagedNetworkPolicy":           {true, func() object { return new(StagedNetworkPolicy) }},
	"StagedGlobalNetworkPolicy":     {false, func() object { return new(StagedGlobalNetworkPolicy) }},
	"StagedKubernetesNetworkPolicy": {true, func() object { return new(StagedKubernetesNetworkPolicy) }},
	"Tier":                          {false, func() object { return new(Tier) }},
	"NetworkSet":                    {true, func() object { return new(NetworkSet) }},
	"GlobalNetworkSet":              {false, func() object { return new(GlobalNetworkSet) }},
	"HostEndpoint":                  {false, func() object { return new(HostEndpoint) }},
}

// Knows reports whether a resource is one of those that this package reads.
func Knows(r *model.Resource) bool {
	_, ok := kinds[r.Type]
	return ok && (r.APIVersion == Group+"/v3" || r.APIVersion == CRDGroup+"/v1")
}

// Decode returns the typed object of a resource, such as *NetworkPolicy, by its form alone: unknown fields,
// duplicates, wrong types and a name that is not the resource's are refused, wrong values are not. Errors are
// *model.FieldError.
func Decode(r *model.Resource) (any, error) {
	o, err := decode(r)
	if err != nil {
		return nil, err
	}
	return o, nil
}

func decode(r *model.Resource) (object, error) {
	kind, ok := kinds[r.Type]
	if !ok || !Knows(r) {
		return nil, &model.FieldError{Noun: r.String(), Field: "kind", Value: r.APIVersion + " " + r.Type, Want: "a kind of policy of " + Group + "/v3"}
	}
	o := kind.empty()
	strict, err := decodeInto(r, o, kind.namespaced)
	if len(strict) > 0 {
		return nil, strict[0]
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

// decodeInto reads a resource. Unknown and repeated fields are in strict; all else that is wrong is in err.
func decodeInto(r *model.Resource, o object, namespaced bool) (strict []error, err error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	unknown, err := kjson.UnmarshalStrict(r.Body, o)
	if err != nil {
		return nil, formError(r, err)
	}
	for _, err := range unknown {
		strict = append(strict, strictError(r, err))
	}
	m := o.meta()
	for _, c := range []struct{ field, value, want string }{
		{"apiVersion", m.APIVersion, r.APIVersion},
		{"kind", m.Kind, r.Type},
		{"metadata.name", m.Name, r.Name},
		{"metadata.namespace", m.Namespace, r.Namespace},
	} {
		if c.value != c.want && (c.field != "metadata.namespace" || c.value != "") {
			return strict, &model.FieldError{Noun: r.String(), Field: c.field, Value: c.value, Want: orNothing(c.want)}
		}
	}
	switch {
	case namespaced && r.Namespace == "":
		return strict, &model.FieldError{Noun: r.String(), Field: "metadata.namespace", Want: "a namespace"}
	case !namespaced && r.Namespace != "":
		return strict, &model.FieldError{Noun: r.String(), Field: "metadata.namespace", Value: r.Namespace, Want: "nothing: a " + r.Type + " is in no namespace"}
	}
	m.Namespace = r.Namespace
	return strict, nil
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// strictError words an unknown or repeated field.
func strictError(r *model.Resource, err error) error {
	e := &model.FieldError{Noun: r.String(), Field: err.Error(), Value: "given", Want: "a field of " + r.Type + ", once"}
	if at, ok := errors.AsType[kjson.FieldError](err); ok {
		e.Field = at.FieldPath()
		if strings.HasPrefix(err.Error(), "duplicate") {
			e.Value, e.Want = "given twice", "it once"
		} else {
			e.Value, e.Want = "given", "nothing: "+r.Type+" has no such field"
		}
	}
	return e
}

// formError words JSON of the wrong shape.
func formError(r *model.Resource, err error) error {
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		// The Go names of embedded structs are in the path; fields in JSON start with a small letter.
		path := slices.DeleteFunc(strings.Split(t.Field, "."), func(s string) bool { return s == "" || 'A' <= s[0] && s[0] <= 'Z' })
		field := strings.Join(path, ".")
		if field == "" {
			field = "body"
		}
		return &model.FieldError{Noun: r.String(), Field: field, Value: "a JSON " + t.Value, Want: shape(t.Type)}
	}
	return &model.FieldError{Noun: r.String(), Field: "body", Value: err.Error(), Want: "an object in JSON"}
}

// shape says in words what JSON a Go type is made of.
func shape(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map, reflect.Pointer, reflect.Interface:
		return "an object"
	case reflect.Float64:
		return "a number that a 64-bit float holds"
	default:
		return "a whole number"
	}
}
