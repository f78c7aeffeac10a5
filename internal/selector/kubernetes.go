package selector

import (
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-net/heddle/internal/model"
)

// FromKubernetes turns a label selector of Kubernetes into ours, with keyPrefix before every key: "pcns."
// for a selector of namespaces. As in Kubernetes NotIn and DoesNotExist match when there is no such label,
// and a selector without terms matches everything; nil, which Kubernetes takes for nothing, must not be given.
//
// Errors are *model.FieldError without a noun: the caller knows what the selector stands in.
func FromKubernetes(ls *metav1.LabelSelector, keyPrefix string) (Selector, error) {
	var terms []Selector
	for _, key := range slices.Sorted(maps.Keys(ls.MatchLabels)) {
		v := ls.MatchLabels[key]
		if err := checkLabel("matchLabels", key, v); err != nil {
			return Selector{}, err
		}
		terms = append(terms, Equal(keyPrefix+key, v))
	}
	for i, e := range ls.MatchExpressions {
		field := fmt.Sprintf("matchExpressions[%d]", i)
		if err := checkLabel(field, e.Key, e.Values...); err != nil {
			return Selector{}, err
		}
		key, wantValues := keyPrefix+e.Key, false
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			terms, wantValues = append(terms, In(key, e.Values...)), true
		case metav1.LabelSelectorOpNotIn:
			terms, wantValues = append(terms, NotIn(key, e.Values...)), true
		case metav1.LabelSelectorOpExists:
			terms = append(terms, Has(key))
		case metav1.LabelSelectorOpDoesNotExist:
			terms = append(terms, Not(Has(key)))
		default:
			return Selector{}, &model.FieldError{Field: field + ".operator", Value: string(e.Operator), Want: "In, NotIn, Exists or DoesNotExist"}
		}
		switch {
		case wantValues && len(e.Values) == 0:
			return Selector{}, &model.FieldError{Field: field + ".values", Want: "at least one value for operator " + string(e.Operator)}
		case !wantValues && len(e.Values) > 0:
			return Selector{}, &model.FieldError{Field: field + ".values", Value: fmt.Sprint(e.Values), Want: "no values for operator " + string(e.Operator)}
		}
	}
	return And(terms...), nil
}

// checkLabel holds a key and values to Kubernetes' rules.
func checkLabel(field, key string, values ...string) error {
	if why := validation.IsQualifiedName(key); len(why) > 0 {
		return &model.FieldError{Field: field, Value: key, Want: "a label's key: " + why[0]}
	}
	for _, v := range values {
		if why := validation.IsValidLabelValue(v); len(why) > 0 {
			return &model.FieldError{Field: field, Value: v, Want: "a label's value: " + why[0]}
		}
	}
	return nil
}
