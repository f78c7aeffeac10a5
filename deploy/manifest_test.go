// Package deploy_test keeps the manifests true: a real API server takes them, the admission policy leaves an agent its
// own node and no more, the Helm chart says the same, and what they grant suffices for an agent.
package deploy_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const manifest = "heddle.yaml"

// objects are those of a file of YAML documents, in its order.
func objects(t *testing.T, file string) []*unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return objectsOf(t, file, text)
}

func objectsOf(t *testing.T, name string, text []byte) (all []*unstructured.Unstructured) {
	t.Helper()
	d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		u := &unstructured.Unstructured{}
		err := d.Decode(u)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: document %d: %v", name, len(all)+1, err)
		}
		if len(u.Object) > 0 {
			all = append(all, u)
		}
	}
}

// find is the one object of a kind and name.
func find(t *testing.T, all []*unstructured.Unstructured, kind, name string) *unstructured.Unstructured {
	t.Helper()
	for _, u := range all {
		if u.GetKind() == kind && u.GetName() == name {
			return u
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}
