package cni

import (
	"bytes"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-net/heddle/internal/model"
)

// maxLabels bounds a workload's labels, so that they fit into what nodes tell each other of it.
const maxLabels = 256

// labelsKey is where a runtime that knows a workload's labels says them (CNI conventions, "Conventions
// for args in network config", area labels): [{"key":"app","value":"web"}].
const labelsKey = "args.cni.labels"

// parseLabels reads labelsKey and wants labels that Kubernetes would take.
func (c *conf) parseLabels(raw json.RawMessage) (map[string]string, *Error) {
	if raw == nil || empty(raw) {
		return nil, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, Errorf(CodeDecode, "network configuration: %s: %s", labelsKey, jsonReason(err))
	}
	bad := func(field, value, want string) *Error {
		return Errorf(CodeInvalidConfig, "%v", &model.FieldError{Noun: fmt.Sprintf("network %q", c.Name), Field: labelsKey + field, Value: short(value), Want: want})
	}
	if len(list) > maxLabels {
		return nil, bad("", fmt.Sprint(len(list)), fmt.Sprintf("at most %d labels", maxLabels))
	}
	labels := make(map[string]string, len(list))
	for i, one := range list {
		var l struct{ Key, Value string }
		d := json.NewDecoder(bytes.NewReader(one))
		d.DisallowUnknownFields()
		at := fmt.Sprintf("[%d]", i)
		if err := d.Decode(&l); err != nil {
			return nil, bad(at, string(one), `{"key":"…","value":"…"}`)
		}
		const characters = "63 characters of [A-Za-z0-9_.-] that begin and end with a letter or digit"
		if len(validation.IsQualifiedName(l.Key)) > 0 {
			return nil, bad(at+".key", l.Key, "a label's key as in Kubernetes: 1.."+characters+", perhaps with a domain and a slash before")
		}
		if len(validation.IsValidLabelValue(l.Value)) > 0 {
			return nil, bad(at+".value", l.Value, "a label's value as in Kubernetes: nothing, or at most "+characters)
		}
		if _, twice := labels[l.Key]; twice {
			return nil, bad(at+".key", l.Key, "every key once")
		}
		labels[l.Key] = l.Value
	}
	return labels, nil
}
