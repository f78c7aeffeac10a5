package cli

import (
	"fmt"
	"io"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/dialect/kube"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

// printTables prints one table per kind. all says that the objects are of several namespaces.
func printTables(out io.Writer, list []*model.Resource, all, wide bool) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	last := ""
	for _, r := range list {
		head, cells := columns(r, wide)
		head, cells = append([]string{"NAME"}, head...), append([]string{r.Name}, cells...)
		if all && kindOf(r).Namespaced {
			head, cells = append([]string{"NAMESPACE"}, head...), append([]string{r.Namespace}, cells...)
		}
		if wide {
			head, cells = append(head, "APIVERSION"), append(cells, r.APIVersion)
		}
		if kind := r.Type + strings.Join(head, " "); kind != last {
			if last != "" {
				_ = w.Flush() // its error stays for the next one
				_, _ = fmt.Fprintln(w)
			}
			last = kind
			_, _ = fmt.Fprintln(w, strings.Join(head, "\t"))
		}
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

// columns are what a table says of an object beside its name.
func columns(r *model.Resource, wide bool) (head, cells []string) {
	if kindOf(r).Setting {
		return settingColumns(r, wide)
	}
	if r.Type == podKind { // with what the nodes say of it
		p := podOf(r)
		return []string{"NODE", "ADDRESSES", "LABELS"}, []string{dash(p.Spec.NodeName), few(p.addresses()), labelText(p.Metadata.Labels)}
	}
	o, err := dialect.Object(r)
	if err != nil {
		return []string{"WRONG"}, []string{err.Error()}
	}
	switch o := o.(type) {
	case *policy.Policy:
		return []string{"TIER", "ORDER", "TYPES", "SELECTS"}, []string{o.Tier, order(o.Order), types(o), selects(r, o)}
	case *policy.Tier:
		return []string{"ORDER", "DEFAULT"}, []string{order(o.Order), map[policy.Action]string{policy.Deny: "Deny", policy.Pass: "Pass"}[o.Default]}
	case *policy.NetworkSet:
		return []string{"NETS", "LABELS"}, []string{few(o.Nets), labelText(o.Labels)}
	case *policy.HostEndpoint:
		return []string{"NODE", "INTERFACE", "ADDRESSES", "LABELS"}, []string{o.Node, dash(o.Interface), few(o.Expected), labelText(o.Labels)}
	case *policy.EndpointSlice:
		return []string{"SERVICE", "ENDPOINTS"}, []string{dash(o.Service.Name), strconv.Itoa(len(o.Endpoints))}
	case *policy.Namespace:
		return []string{"LABELS"}, []string{labelText(o.Labels)}
	case *policy.ServiceAccount:
		return []string{"LABELS"}, []string{labelText(o.Labels)}
	}
	return nil, nil
}

// types are the directions for which a policy selects.
func types(p *policy.Policy) string {
	var out []string
	if p.AppliesIngress {
		out = append(out, "Ingress")
	}
	if p.AppliesEgress {
		out = append(out, "Egress")
	}
	if p.Deletion {
		out = append(out, "Delete")
	}
	return dash(strings.Join(out, ","))
}

// selects is whom a policy is about, in its author's language.
func selects(r *model.Resource, p *policy.Policy) string {
	if !strings.HasPrefix(r.APIVersion, networkingv1.GroupName+"/") {
		return p.Subject.String()
	}
	if o, err := kube.Decode(r); err == nil {
		if n, ok := o.(*networkingv1.NetworkPolicy); ok && len(n.Spec.PodSelector.MatchLabels)+len(n.Spec.PodSelector.MatchExpressions) > 0 {
			return metav1.FormatLabelSelector(&n.Spec.PodSelector)
		}
	}
	return "all"
}

func order(o float64) string {
	if math.IsInf(o, 0) {
		return "-"
	}
	return strconv.FormatFloat(o, 'f', -1, 64)
}

// labelText is app=web,tier=front, in the order of the keys.
func labelText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return dash(strings.Join(out, ","))
}

// few are the first of a list, and how many more there are.
func few[T netip.Addr | netip.Prefix](list []T) string {
	const most = 3
	var out []string
	for i, v := range list {
		if i == most {
			out = append(out, fmt.Sprintf("and %d more", len(list)-most))
			break
		}
		out = append(out, fmt.Sprint(v))
	}
	return dash(strings.Join(out, ","))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
