package deploy_test

import (
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

func TestDocumentNamesEveryRightCapabilityFolderAndValue(t *testing.T) {
	text, err := os.ReadFile("../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	named := func(what, word string) {
		t.Helper()
		if !strings.Contains(string(text), "`"+word+"`") {
			t.Errorf("docs/kubernetes.md does not name the %s %s", what, word)
		}
	}
	all := objects(t, manifest)
	rules, _, err := unstructured.NestedSlice(find(t, all, "ClusterRole", "heddle").Object, "rules")
	if err != nil || len(rules) == 0 {
		t.Fatalf("rules: %v, %v", rules, err)
	}
	for _, r := range rules {
		resources, _, _ := unstructured.NestedStringSlice(r.(map[string]any), "resources")
		verbs, _, _ := unstructured.NestedStringSlice(r.(map[string]any), "verbs")
		for _, resource := range resources {
			named("right", resource)
			for line := range strings.Lines(string(text)) {
				if strings.HasPrefix(line, "| `"+resource+"`") && !strings.Contains(line, "| "+strings.Join(verbs, ", ")+" |") {
					t.Errorf("docs/kubernetes.md has other verbs for %s than %v", resource, verbs)
				}
			}
		}
	}
	pod, _, err := unstructured.NestedMap(find(t, all, "DaemonSet", "heddle").Object, "spec", "template", "spec")
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range []string{"containers", "initContainers"} {
		containers, _, _ := unstructured.NestedSlice(pod, list)
		for _, c := range containers {
			add, _, _ := unstructured.NestedStringSlice(c.(map[string]any), "securityContext", "capabilities", "add")
			for _, capability := range add {
				named("capability", capability)
			}
		}
	}
	volumes, _, _ := unstructured.NestedSlice(pod, "volumes")
	folders := 0
	for _, v := range volumes {
		if path, ok, _ := unstructured.NestedString(v.(map[string]any), "hostPath", "path"); ok {
			named("host path", path)
			folders++
		}
	}
	if folders < 5 {
		t.Errorf("%d host paths found in the manifest", folders)
	}
	values, err := os.ReadFile("helm/heddle/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]any{}
	if err := yaml.Unmarshal(values, &keys); err != nil {
		t.Fatal(err)
	}
	for key := range keys {
		named("value", key)
	}
}
