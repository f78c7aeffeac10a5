package selector_test

import (
	"errors"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/selector"
)

// Kubernetes' own matcher is the judge.
func TestKubernetesSelectorsMeanWhatKubernetesSays(t *testing.T) {
	keys, values := []string{"a", "example.com/b"}, []string{"", "x", "y"}
	rapid.Check(t, func(t *rapid.T) {
		ls := &metav1.LabelSelector{MatchLabels: rapid.MapOfN(rapid.SampledFrom(keys), rapid.SampledFrom(values), 0, 2).Draw(t, "matchLabels")}
		for range rapid.IntRange(0, 3).Draw(t, "expressions") {
			e := metav1.LabelSelectorRequirement{Key: rapid.SampledFrom(keys).Draw(t, "key")}
			e.Operator = rapid.SampledFrom([]metav1.LabelSelectorOperator{"In", "NotIn", "Exists", "DoesNotExist"}).Draw(t, "operator")
			if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
				e.Values = rapid.SliceOfN(rapid.SampledFrom(values), 1, 3).Draw(t, "values")
			}
			ls.MatchExpressions = append(ls.MatchExpressions, e)
		}
		judge, err := metav1.LabelSelectorAsSelector(ls)
		if err != nil {
			t.Fatal(err)
		}
		prefix := rapid.SampledFrom([]string{"", "pcns."}).Draw(t, "prefix")
		s, err := selector.FromKubernetes(ls, prefix)
		if err != nil {
			t.Fatal(err)
		}
		for range 8 {
			own, prefixed := labels.Set{}, selector.Map{"a": "x"} // what has no prefix does not count
			if prefix == "" {
				clear(prefixed)
			}
			for _, k := range keys {
				if rapid.Bool().Draw(t, "has "+k) {
					own[k] = rapid.SampledFrom(values).Draw(t, k)
					prefixed[prefix+k] = own[k]
				}
			}
			if s.Matches(prefixed) != judge.Matches(own) {
				t.Fatalf("%q of %v: want %v", s, own, judge.Matches(own))
			}
		}
		if again, err := selector.Parse(s.String()); err != nil || again.String() != s.String() {
			t.Fatalf("%q is read as %q: %v", s, again, err)
		}
	})
}

func TestKubernetesSelectorsAreRefusedByField(t *testing.T) {
	for _, c := range []struct {
		ls   metav1.LabelSelector
		want string
	}{
		{metav1.LabelSelector{MatchLabels: map[string]string{"a b": "c"}}, "matchLabels"},
		{metav1.LabelSelector{MatchLabels: map[string]string{"a": `"`}}, "matchLabels"},
		{metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Exists"}, {Key: "", Operator: "Exists"}}}, "matchExpressions[1]"},
		{metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "In", Values: []string{"-"}}}}, "matchExpressions[0]"},
		{metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "In"}}}, "matchExpressions[0].values"},
		{metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "NotIn"}}}, "matchExpressions[0].values"},
		{metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Exists", Values: []string{"b"}}}}, "matchExpressions[0].values"},
		{metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "DoesNotExist", Values: []string{"b"}}}}, "matchExpressions[0].values"},
		{metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "exists"}}}, "matchExpressions[0].operator"},
	} {
		_, err := selector.FromKubernetes(&c.ls, "")
		if wrong, ok := errors.AsType[*model.FieldError](err); !ok || wrong.Field != c.want || wrong.Want == "" {
			t.Errorf("%v: got %v, want field %s", c.ls, err, c.want)
		}
		// Kubernetes refuses the same.
		if _, theirs := metav1.LabelSelectorAsSelector(&c.ls); theirs == nil {
			t.Errorf("%v: Kubernetes takes it", c.ls)
		}
	}
}
