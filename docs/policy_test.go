package docs_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/dialect"
)

func TestPolicyDocumentNamesEveryKindAndFlag(t *testing.T) {
	text := documents(t)["policy.md"]
	for _, k := range dialect.Kinds() {
		name, text := "policy.md", text
		if k.Setting {
			name, text = "calico.md", documents(t)["calico.md"]
		}
		if !strings.Contains(text, "| `"+k.Kind+"` |") || !strings.Contains(text, "`"+k.APIVersion+"`") {
			t.Errorf("%s lacks %s %s", name, k.APIVersion, k.Kind)
		}
		if len(k.Short) > 0 && !strings.Contains(text, "`"+k.Short[0]+"`") {
			t.Errorf("%s lacks %s, which is short for %s", name, k.Short[0], k.Kind)
		}
	}
	for _, command := range []string{"apply", "get", "delete", "label"} {
		usage, fault := help(command)
		if fault != "" {
			t.Fatal(fault)
		}
		for _, f := range flagRE.FindAllStringSubmatch(usage, -1) {
			if f[1] != "--help" && !strings.Contains(text, "`"+f[1]+"`") {
				t.Errorf("policy.md lacks the flag %s of heddle %s", f[1], command)
			}
		}
	}
}

func TestPoliciesInDocumentsAreTaken(t *testing.T) {
	blocks := regexp.MustCompile("(?s)```yaml\n(apiVersion:.*?)```")
	n := 0
	for name, text := range documents(t) {
		for _, b := range blocks.FindAllStringSubmatch(text, -1) {
			n++
			if _, err := dialect.ReadYAML([]byte(b[1])); err != nil {
				t.Errorf("%s: %v\n%s", name, err, b[1])
			}
		}
	}
	if n < 4 {
		t.Errorf("found %d policies in all documents, want those of policy.md and of the step by step page", n)
	}
}
