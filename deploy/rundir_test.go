package deploy_test

import (
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Pods outlive their agent, and so must both folders in which it knows them: the run folder too.
func TestFoldersOutliveTheAgent(t *testing.T) {
	unit, err := os.ReadFile("systemd/heddle-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"StateDirectory=heddle", "RuntimeDirectory=heddle", "RuntimeDirectoryPreserve=yes"} {
		if !strings.Contains(string(unit), "\n"+want+"\n") {
			t.Errorf("the unit has no %s", want)
		}
	}
	found := false
	for _, o := range objects(t, manifest) {
		if o.GetKind() != "DaemonSet" {
			continue
		}
		found = true
		volumes, _, err := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "volumes")
		if err != nil {
			t.Fatal(err)
		}
		kept := map[string]bool{}
		for _, v := range volumes {
			path, _, _ := unstructured.NestedString(v.(map[string]any), "hostPath", "path")
			kept[path] = true
		}
		if !kept["/run/heddle"] || !kept["/var/lib/heddle"] {
			t.Errorf("%s keeps %v of its host", o.GetName(), kept)
		}
	}
	if !found {
		t.Error("no DaemonSet")
	}
}
