// Package dialect knows every language in which people say who may talk to whom and how the network is made, and
// reads what they write: YAML or JSON, one or several objects at a time, in the words of Kubernetes or Calico. What
// the objects mean is said by its sub-packages; here is only which of them reads what.
//
// The package is pure. It never fills in a namespace by itself: that is for whoever knows where people are.
package dialect

import (
	"encoding/json"
	"fmt"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/dialect/kube"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

// Object returns what a resource of any kind of policy means; settings have no meaning by themselves, see
// calico.Network. Errors are *model.FieldError. What is not understood in a ClusterNetworkPolicy fails closed, as
// kube.Object has it.
func Object(r *model.Resource) (policy.Object, error) {
	k, err := kindOf(r)
	if err != nil {
		return nil, err
	}
	if !k.calico() {
		return kube.Object(r)
	}
	o, err := calico.Object(r)
	if err != nil {
		return nil, err
	}
	return o, nil
}

// Check refuses what Object refuses, and what Object understands only in part. It is for what people write.
func Check(r *model.Resource) error {
	k, err := kindOf(r)
	if err != nil {
		return err
	}
	if !k.calico() {
		return kube.Check(r)
	}
	if k.Setting {
		return calico.CheckSetting(r)
	}
	_, err = calico.Object(r)
	return err
}

// SetNamespace puts a resource that belongs into a namespace and names none into this one, its body included.
// It does nothing to others.
func SetNamespace(r *model.Resource, namespace string) error {
	k, err := kindOf(r)
	if err != nil || !k.Namespaced || r.Namespace != "" {
		return err
	}
	var body map[string]json.RawMessage
	if err := json.Unmarshal(r.Body, &body); err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	var metadata map[string]json.RawMessage
	if err := json.Unmarshal(body["metadata"], &metadata); err != nil {
		return fmt.Errorf("%s: metadata: %w", r, err)
	}
	metadata["namespace"], _ = json.Marshal(namespace) // text can always be written
	if body["metadata"], err = json.Marshal(metadata); err != nil {
		return fmt.Errorf("%s: metadata: %w", r, err)
	}
	whole, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	r.Namespace, r.Body = namespace, whole
	return nil
}
