package dialect

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/model"
)

func TestLookupFindsKindsByWhatPeopleCallThem(t *testing.T) {
	for word, want := range map[string]string{
		"netpol":                               "networking.k8s.io/v1 NetworkPolicy",
		"NetworkPolicy":                        "networking.k8s.io/v1 NetworkPolicy",
		"networkpolicies":                      "networking.k8s.io/v1 NetworkPolicy",
		"networkpolicies.networking.k8s.io":    "networking.k8s.io/v1 NetworkPolicy",
		"networkpolicy.projectcalico.org":      "projectcalico.org/v3 NetworkPolicy",
		"networkpolicies.v3.projectcalico.org": "projectcalico.org/v3 NetworkPolicy",
		"networkpolicy.crd.projectcalico.org":  "crd.projectcalico.org/v1 NetworkPolicy",
		"caliconetworkpolicies":                "projectcalico.org/v3 NetworkPolicy",
		"cnp":                                  "policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy",
		"GNP":                                  "projectcalico.org/v3 GlobalNetworkPolicy",
		"ns":                                   "v1 Namespace",
		"pods":                                 "v1 Pod",
		"pods.v1":                              "",
		"tier":                                 "projectcalico.org/v3 Tier",
		"netpol.apps":                          "",
		"deployments":                          "",
		"":                                     "",
	} {
		k, ok := Lookup(word)
		got := strings.TrimSpace(k.APIVersion + " " + k.Kind)
		if got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", word, got, ok, want)
		}
	}
}

// Every kind of the table is one that its language reads, in a namespace where the table says so.
func TestEveryKindIsRead(t *testing.T) {
	names := map[string]string{}
	for _, k := range Kinds() {
		for _, word := range append(k.Short, k.Plural, strings.ToLower(k.Kind)) {
			full := word + "." + k.Group()
			if names[full] != "" {
				t.Errorf("%s is %s and %s", full, names[full], k.Kind)
			}
			names[full] = k.Kind
		}
		r := model.Resource{APIVersion: k.APIVersion, Type: k.Kind, Name: "a"}
		if slices.Contains([]string{"IPAMConfiguration", "IPAMConfig", "BGPConfiguration", "FelixConfiguration"}, k.Kind) {
			r.Name = "default"
		}
		if k.Namespaced {
			r.Namespace = "dev"
		}
		rest := map[string]string{
			"EndpointSlice":        `,"addressType":"IPv4"`,
			"ClusterNetworkPolicy": `,"spec":{"tier":"Admin","priority":0,"subject":{"namespaces":{}}}`,
			"HostEndpoint":         `,"spec":{"node":"n","interfaceName":"*"}`,
			"IPPool":               `,"spec":{"cidr":"10.0.0.0/16"}`,
			"BGPPeer":              `,"spec":{"peerIP":"10.0.0.1"}`,
		}[k.Kind]
		r.Body = json.RawMessage(fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":%q}%s}`, k.APIVersion, k.Kind, r.Name, rest))
		if err := Check(&r); err != nil {
			t.Errorf("%s %s: %v", k.APIVersion, k.Kind, err)
		}
		if _, err := Object(&r); (err != nil) != k.Setting {
			t.Errorf("%s %s as a policy: %v", k.APIVersion, k.Kind, err)
		}
		if calico.IsSetting(&r) != k.Setting {
			t.Errorf("%s %s: it is a setting, or is none, in one of two places only", k.APIVersion, k.Kind)
		}
		r.Namespace = map[bool]string{false: "dev"}[k.Namespaced]
		var bad *model.FieldError
		if err := Check(&r); !errors.As(err, &bad) || bad.Field != "metadata.namespace" {
			t.Errorf("%s %s in namespace %q: %v", k.APIVersion, k.Kind, r.Namespace, err)
		}
	}
}

func TestKindsCannotBeChangedFromOutside(t *testing.T) {
	k := Kinds()
	k[0].Kind, k[0].Short[0] = "x", "x"
	if Kinds()[0].Kind != "Namespace" || Kinds()[0].Short[0] != "ns" {
		t.Error("changed")
	}
}
