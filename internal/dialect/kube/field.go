package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/selector"
)

// at is a place in an object, for errors.
type at struct{ noun, path string }

func (a at) field(name string) at {
	if a.path != "" {
		name = a.path + "." + name
	}
	return at{a.noun, name}
}

func (a at) item(i int) at { return at{a.noun, fmt.Sprintf("%s[%d]", a.path, i)} }

// bad is the error that the value here is not what is wanted. nil stands for no value.
func (a at) bad(value any, want string) error {
	text := ""
	if value != nil {
		text = show(value)
	}
	field := a.path
	if field == "" {
		field = "object"
	}
	return &model.FieldError{Noun: a.noun, Field: field, Value: text, Want: want}
}

// show is a value as JSON, shortened.
func show(value any) string {
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

// checkLabels holds labels to the API server's rules.
func checkLabels(a at, labels map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if why := validation.IsQualifiedName(key); len(why) > 0 {
			return a.bad(key, "a label's key: "+why[0])
		}
		if why := validation.IsValidLabelValue(labels[key]); len(why) > 0 {
			return a.field(key).bad(labels[key], "a label's value: "+why[0])
		}
	}
	return nil
}

// pods is the selector of all workloads, whatever namespace they are in, if any.
var pods = selector.Equal(policy.LabelOrchestrator, policy.Orchestrator)

// inNamespace selects the pods of one namespace that a selector selects.
func inNamespace(a at, namespace string, of *metav1.LabelSelector) (selector.Selector, error) {
	s, err := labelSelector(a, of, "")
	return selector.And(pods, selector.Equal(policy.LabelNamespace, namespace), s), err
}

// inNamespaces selects pods of the namespaces that a selector selects; of nil selects all of them. An empty
// selector of namespaces means every namespace, and not what is in none.
func inNamespaces(a at, namespaces *metav1.LabelSelector, b at, of *metav1.LabelSelector) (selector.Selector, error) {
	ns, err := labelSelector(a, namespaces, policy.PrefixNamespace)
	if err != nil {
		return ns, err
	}
	var s selector.Selector
	if of != nil {
		s, err = labelSelector(b, of, "")
	}
	return selector.And(pods, selector.Has(policy.LabelNamespace), ns, s), err
}

// labelSelector reads a selector with the error at its place.
func labelSelector(a at, of *metav1.LabelSelector, prefix string) (selector.Selector, error) {
	s, err := selector.FromKubernetes(of, prefix)
	var bad *model.FieldError
	if errors.As(err, &bad) {
		var value any
		if bad.Value != "" {
			value = bad.Value
		}
		return s, a.field(bad.Field).bad(value, bad.Want)
	}
	return s, err
}

// cidr reads a network. Bits beyond the prefix length are cleared, as the API server takes them to be by default;
// leading zeros and IPv4-mapped IPv6 addresses, which programs read in different ways, are refused.
func cidr(a at, text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return p, a.bad(text, "a network such as 10.0.0.0/8 or fd00::/8")
	}
	return p.Masked(), nil
}

// portNumber checks a port's number.
func portNumber(a at, n int32) (uint16, error) {
	if n < 1 || n > 65535 {
		return 0, a.bad(n, "a port, 1..65535")
	}
	return uint16(n), nil
}
