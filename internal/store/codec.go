package store

import (
	"encoding/json"
	"fmt"
	"regexp"

	"github.com/heddle-net/heddle/internal/model"
)

// MaxObjectSize bounds the JSON form of one object, in bytes: a resource of the megabyte that dialects take
// fits. etcd itself refuses 1.5 MiB.
const MaxObjectSize = 1<<20 + 64<<10

// maxKey is enough for a resource whose kind, group, namespace and name are each as long as they may be.
const maxKey = 1000

var keyRE = regexp.MustCompile(fmt.Sprintf(`^[A-Za-z0-9._:-]{1,%d}$`, maxKey))

// CheckKey refuses a kind that nobody knows and a key that is not one path segment, so that neither
// can reach outside of the place where the kind is filed.
func CheckKey(kind model.Kind, key string) error {
	if model.New(kind) == nil {
		return &model.FieldError{Noun: "store", Field: "kind", Value: string(kind), Want: fmt.Sprintf("one of %v", model.Kinds())}
	}
	if !keyRE.MatchString(key) || key == "." || key == ".." {
		return &model.FieldError{Noun: string(kind), Field: "key", Value: fmt.Sprintf("%.64q", key), Want: fmt.Sprintf("1..%d characters of [A-Za-z0-9._:-]", maxKey)}
	}
	return nil
}

// CheckKinds refuses kinds that nobody knows, and none at all.
func CheckKinds(kinds []model.Kind) error {
	if len(kinds) == 0 {
		return &model.FieldError{Noun: "store", Field: "kinds", Want: "at least one kind"}
	}
	for _, k := range kinds {
		if err := CheckKey(k, "any"); err != nil {
			return err
		}
	}
	return nil
}

// Encode validates an object and returns its JSON form.
func Encode(o model.Object) ([]byte, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if err := CheckKey(o.Kind(), o.Key()); err != nil {
		return nil, err
	}
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", o.Kind(), o.Key(), err)
	}
	if len(b) > MaxObjectSize {
		return nil, &model.FieldError{Noun: fmt.Sprintf("%s %q", o.Kind(), o.Key()), Field: "size", Value: fmt.Sprint(len(b)), Want: fmt.Sprintf("at most %d bytes", MaxObjectSize)}
	}
	return b, nil
}

// Decode reads the JSON form of an object of the kind that is filed under the key, and validates it.
// Fields that this version does not know are passed over: a newer agent may have written them.
func Decode(kind model.Kind, key string, data []byte) (model.Object, error) {
	if err := CheckKey(kind, key); err != nil {
		return nil, err
	}
	if len(data) > MaxObjectSize {
		return nil, &model.FieldError{Noun: fmt.Sprintf("%s %q", kind, key), Field: "size", Value: fmt.Sprint(len(data)), Want: fmt.Sprintf("at most %d bytes", MaxObjectSize)}
	}
	o := model.New(kind)
	if err := json.Unmarshal(data, o); err != nil {
		return nil, fmt.Errorf("%s %q: %w", kind, key, err)
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Key() != key {
		return nil, &model.FieldError{Noun: fmt.Sprintf("%s %q", kind, key), Field: "key", Value: o.Key(), Want: "the key that it is filed under"}
	}
	return o, nil
}
