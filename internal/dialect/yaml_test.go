package dialect

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
)

const denyAll = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: deny-all-ingress
  namespace: dev
spec:
  podSelector: {}
  policyTypes:
  - Ingress
`

// keys are the keys of what a text holds.
func keys(t *testing.T, text string) string {
	t.Helper()
	found, err := ReadYAML([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	var out []string
	for _, r := range found {
		out = append(out, r.Key())
	}
	return strings.Join(out, " ")
}

func TestReadYAMLTakesDocumentsAndLists(t *testing.T) {
	const ns = "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n"
	for name, c := range map[string]struct{ text, want string }{
		"nothing":       {"", ""},
		"comments only": {"# nothing\n---\n# here\n---\n", ""},
		"one":           {denyAll, "NetworkPolicy.networking.k8s.io:dev:deny-all-ingress"},
		"several": {
			"---\n" + fmt.Sprintf(ns, "a") + "---\n---\n# comment\n" + fmt.Sprintf(ns, "b") + "...\n---\n" + denyAll,
			"Namespace::a Namespace::b NetworkPolicy.networking.k8s.io:dev:deny-all-ingress",
		},
		"on the line of the mark":  {"--- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n--- {apiVersion: v1, kind: Namespace, metadata: {name: b}}", "Namespace::a Namespace::b"},
		"lines that end in CR LF":  {strings.ReplaceAll(fmt.Sprintf(ns, "a")+"---\n"+fmt.Sprintf(ns, "b"), "\n", "\r\n"), "Namespace::a Namespace::b"},
		"lines that end in CR":     {strings.ReplaceAll(fmt.Sprintf(ns, "a")+"---\n"+fmt.Sprintf(ns, "b"), "\n", "\r"), "Namespace::a Namespace::b"},
		"JSON":                     {"{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Namespace\",\n\t\"metadata\": {\"name\": \"a\"}\n}\n", "Namespace::a"},
		"anchors":                  {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {a: &x b, c: *x}}", "Namespace::a"},
		"list":                     {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}}\n", "Namespace::a Pod:a:p"},
		"list without items in it": {"apiVersion: v1\nkind: List\nmetadata: {resourceVersion: ''}\nitems: []\n", ""},
		"a kind's list":            {"apiVersion: v1\nkind: NamespaceList\nitems:\n- {metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n", "Namespace::a Namespace::b"},
		"no namespace":             {"{apiVersion: v1, kind: Pod, metadata: {name: p}}", "Pod::p"},
		"Calico's": {
			"{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: a}, spec: {nets: [10.0.0.0/8]}}\n---\n{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: a, namespace: dev}, spec: {selector: all()}}",
			"GlobalNetworkSet.projectcalico.org::a NetworkPolicy.projectcalico.org:dev:a",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := keys(t, c.text); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// Two ways to write the same give the same bytes, and the store's own writing does not change them.
func TestBodiesAreCanonical(t *testing.T) {
	const want = `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"annotations":{"why":"a \u003c b"},"labels":{"a":"b"},"name":"np","namespace":"dev"},"spec":{"ingress":[{"ports":[{"port":80}]}],"podSelector":{}}}`
	for _, text := range []string{
		"kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata:\n  namespace: dev\n  name: np\n  annotations: {why: a < b}\n  labels: {a: b}\n  managedFields: [{manager: kubectl}]\nspec:\n  podSelector: {}\n  ingress:\n  - ports: [{port: 80}]\nstatus: {any: thing}\n",
		want,
	} {
		found, err := ReadYAML([]byte(text))
		if err != nil || len(found) != 1 {
			t.Fatalf("%v, %v", found, err)
		}
		if got := string(found[0].Body); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		stored, err := json.Marshal(&found[0])
		if err != nil || !strings.Contains(string(stored), want) {
			t.Errorf("stored as %s, %v", stored, err)
		}
	}
}

func TestReadYAMLRefusesBadTextAndReturnsNothing(t *testing.T) {
	const good = "{apiVersion: v1, kind: Namespace, metadata: {name: good}}\n---\n"
	for _, c := range []struct{ text, want string }{
		{good + "just text", `document 2: object: content "just text": want an object with apiVersion, kind and metadata`},
		{good + "[1, 2]", `document 2: object: content [1,2]: want an object with apiVersion, kind and metadata`},
		{good + "a: [", `document 2: syntax: line 3: `},
		{good + "\ta: b", `document 2: syntax: `},
		{good + "a: 1\na: 2", `document 2: syntax: line 4: key "a" already set in map: want YAML or JSON, each key once`},
		{good + "{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {a: b, a: c}}}", `document 2: syntax: line 3: key "a" already set in map: want YAML or JSON, each key once`},
		{`{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}` + "\n" + `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}`, `document 2: syntax: `},
		{"{apiVersion: v1, kind: Namespace, metadata: {name: a}} more", `document 2: syntax: `},
		{good + "kind: Pod\nmetadata: {name: p}", `document 2: object: apiVersion (empty): want text such as networking.k8s.io/v1`},
		{good + "apiVersion: v1\nmetadata: {name: p}", `document 2: object: kind (empty): want text such as NetworkPolicy`},
		{good + "apiVersion: 1\nkind: Pod", `document 2: object: apiVersion 1: want text such as networking.k8s.io/v1`},
		{good + "apiVersion: v1\nkind: [Pod]", `document 2: object: kind ["Pod"]: want text such as NetworkPolicy`},
		{good + "apiVersion: v1\nkind: Pod", `document 2: Pod: metadata (empty): want fields with name`},
		{good + "apiVersion: v1\nkind: Pod\nmetadata: p", `document 2: Pod: metadata "p": want fields with name`},
		{good + "apiVersion: v1\nkind: Pod\nmetadata: {}", `document 2: Pod "": metadata.name "": want a lower-case RFC 1123 name of at most 253 characters`},
		{good + "apiVersion: v1\nkind: Pod\nmetadata: {name: 7}", `document 2: Pod: metadata.name 7: want text; numbers and true or false need quotes`},
		{good + "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: true}", `document 2: Pod: metadata.namespace true: want text; numbers and true or false need quotes`},
		{good + "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: A}", `document 2: Pod "a": metadata.namespace "A": want a lower-case RFC 1123 name`},
		{good + "apiVersion: v1\nkind: Service\nmetadata: {name: a}", `document 2: Service a: kind "Service": want one of Namespace, Pod, ServiceAccount, EndpointSlice, NetworkPolicy, ClusterNetworkPolicy, GlobalNetworkPolicy, Tier, NetworkSet, GlobalNetworkSet, HostEndpoint, StagedNetworkPolicy, StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, IPPool, IPReservation, IPAMConfiguration, IPAMConfig, BGPConfiguration, BGPPeer, BGPFilter, FelixConfiguration, Node`},
		{good + "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}", `document 2: NetworkPolicy a: apiVersion "extensions/v1beta1": want networking.k8s.io/v1 or projectcalico.org/v3 or crd.projectcalico.org/v1`},
		{good + "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {ingress: [{from: [{podselector: {}}]}]}", `document 2: NetworkPolicy a: unknown field spec.ingress[0].from[0].podselector {}: want one of ipBlock, namespaceSelector, podSelector`},
		{good + "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {ingress: [{ports: [{port: 0}]}]}", `document 2: NetworkPolicy a: spec.ingress[0].ports[0].port 0: want a port, 1..65535`},
		{good + "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: a}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{nodes: {}}]}]}", `document 2: ClusterNetworkPolicy a: spec.egress[0].to[0].nodes {}: want namespaces, pods or networks, one of them: labels of nodes are not known here`},
		{good + "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}", `document 2: Namespace b/a: metadata.namespace "b": want none: a Namespace is in no namespace`},
		{good + "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: a}\nspec: {selectr: all()}", `document 2: GlobalNetworkPolicy a: `},
		{good + "apiVersion: v1\nkind: Namespace\nmetadata: {name: good}", `document 2: Namespace good: it is given twice: want each object once; it is document 1 too`},
		{good + "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {on: b}}", `document 2: object: metadata.labels key true: want text; numbers, yes, no, on and off need quotes`},
		{good + "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {b: on}}", `document 2: Namespace a: metadata.labels.b true: want text; numbers and true or false need quotes`},
		{good + "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {b: .nan}}", `document 2: object: metadata.labels.b NaN: want a number that JSON has`},
		{good + "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, annotations: {b: [1, !!binary /w==]}}", `document 2: object: metadata.annotations.b[1] binary: want text in UTF-8`},
		{good + "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, annotations: {!!binary /w==: b}}", "document 2: object: metadata.annotations key \xff: want text; "},
		{good + ".inf", `document 2: object: content +Inf: want a number that JSON has`},
		{good + "apiVersion: v1\nkind: List", `document 2: List: items (empty): want a list of objects`},
		{good + "apiVersion: v1\nkind: List\nitems: {}", `document 2: List: items {}: want a list of objects`},
		{good + "apiVersion: v1\nkind: List\nitems: [7]", `document 2: List: items[0] 7: want an object with apiVersion, kind and metadata`},
		{good + "apiVersion: v1\nkind: List\nitems: []\nspec: {}", `document 2: List: unknown field spec {}: want one of apiVersion, items, kind, metadata`},
		{good + "apiVersion: v1\nkind: List\nitems: [{kind: Pod}]", `document 2: items[0]: object: apiVersion (empty): want text such as networking.k8s.io/v1`},
		{good + "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List, items: []}]", `document 2: items[0]: List: metadata (empty): want fields with name`},
		{good + "apiVersion: v1\nkind: NamespaceList\nitems: [{metadata: {name: good}}]", `document 2: items[0]: Namespace good: it is given twice: want each object once; it is document 1 too`},
		{"apiVersion: v1\nkind: NamespaceList\nitems: [{metadata: {name: a}}, {metadata: {name: a}}]", `document 1: items[1]: Namespace a: it is given twice: want each object once; it is document 1, items[0] too`},
		{good + "apiVersion: apps/v1\nkind: DeploymentList\nitems: []", `document 2: DeploymentList: metadata (empty): want fields with name`},
		{good + "\xff\xfe", `text: encoding unknown: want UTF-8`},
		{strings.Repeat("#", MaxText+1), fmt.Sprintf(`text: size %d: want at most %d bytes`, MaxText+1, MaxText)},
		{good + "{apiVersion: v1, kind: Namespace, metadata: {name: a, annotations: {a: " + strings.Repeat("b", MaxBody) + "}}}", `document 2: Namespace a: size `},
	} {
		found, err := ReadYAML([]byte(c.text))
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || found != nil {
			text := c.text
			if len(text) > 500 {
				text = text[:500]
			}
			t.Errorf("of\n%s\ngot %d objects, error\n  %v\nwant\n  %s", text, len(found), err, c.want)
		}
		var bad *model.FieldError
		if err != nil && !errors.As(err, &bad) {
			t.Errorf("%q is no FieldError", err)
		}
	}
}

func TestReadYAMLBoundsTheNumberOfObjects(t *testing.T) {
	text := func(n int) []byte {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "--- {apiVersion: v1, kind: Pod, metadata: {name: p%d}}\n", i)
		}
		return []byte(b.String())
	}
	if found, err := ReadYAML(text(MaxObjects)); err != nil || len(found) != MaxObjects {
		t.Errorf("%d objects, %v", len(found), err)
	}
	if found, err := ReadYAML(text(MaxObjects + 1)); err == nil || found != nil || !strings.HasSuffix(err.Error(), "text: objects more: want at most 20000") {
		t.Errorf("%d objects, %v", len(found), err)
	}
}

func TestObjectWithoutNamespaceIsPutIntoOne(t *testing.T) {
	found, err := ReadYAML([]byte("{apiVersion: v1, kind: Pod, metadata: {name: p}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: q, namespace: prod}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: one}}\n---\n{apiVersion: projectcalico.org/v3, kind: NetworkSet, metadata: {name: s}}"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range found {
		if err := SetNamespace(&r, "dev"); err != nil {
			t.Fatal(err)
		}
		o, err := Object(&r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %T %s", r.String(), o, r.Body))
	}
	want := `Pod dev/p *policy.Pod {"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"dev"}}
Pod prod/q *policy.Pod {"apiVersion":"v1","kind":"Pod","metadata":{"name":"q","namespace":"prod"}}
Namespace one *policy.Namespace {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"one"}}
NetworkSet dev/s *policy.NetworkSet {"apiVersion":"projectcalico.org/v3","kind":"NetworkSet","metadata":{"name":"s","namespace":"dev"}}`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	if _, err := Object(&found[0]); err == nil {
		t.Error("Object takes a pod that is in no namespace")
	}
}

// A rule of a ClusterNetworkPolicy that is not understood is refused when it is written, and closed when it is there.
func TestObjectClosesWhatCheckRefuses(t *testing.T) {
	r := model.Resource{APIVersion: clusterV1, Type: "ClusterNetworkPolicy", Name: "a", Body: json.RawMessage(
		`{"apiVersion":"policy.networking.k8s.io/v1alpha2","kind":"ClusterNetworkPolicy","metadata":{"name":"a"},"spec":{"tier":"Admin","priority":1,"subject":{"namespaces":{}},"egress":[{"action":"Deny","to":[{"later":{}}]}]}}`)}
	o, err := Object(&r)
	if err != nil || len(o.(*policy.Policy).Egress) != 1 {
		t.Errorf("got %+v, %v", o, err)
	}
	if err := Check(&r); err == nil {
		t.Error("Check takes it")
	}
	if o, err := Object(&model.Resource{APIVersion: calicoV3, Type: "Tier", Name: "a", Body: json.RawMessage(`{}`)}); err == nil || o != nil {
		t.Errorf("got %v, %v", o, err)
	}
}
