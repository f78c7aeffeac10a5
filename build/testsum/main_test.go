package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// goTest runs the real go test on a module made of the given test file, and sums it up.
func goTest(t *testing.T, source string) (string, bool) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module sample\n\ngo 1.24\n", "sample_test.go": source} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "test", "-json", "-vet=off", "./...")
	cmd.Dir = dir
	events, err := cmd.Output()
	if err != nil && len(events) == 0 {
		t.Fatalf("go test: %v", err)
	}
	var out bytes.Buffer
	s := newSum(&out)
	s.logs = true
	if err := s.read(bytes.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	ok := s.close()
	return out.String(), ok
}

func TestSumSpeaksOfWhatHappened(t *testing.T) {
	const head = "package sample\nimport \"testing\"\n"
	for _, c := range []struct {
		name, source string
		ok           bool
		want         []string
	}{
		{
			"all well", head + "func TestA(t *testing.T) { t.Log(\"a number\") }\nfunc TestB(t *testing.T) { t.Skip(\"needs root\") }",
			true,
			[]string{"ok  \tsample", "a number", "skipped 1: needs root", "1 passed, 0 failed, 1 skipped"},
		},
		{
			"a failure", head + "func TestA(t *testing.T) {}\nfunc TestB(t *testing.T) { t.Error(\"the cause\") }",
			false,
			[]string{"the cause", "FAIL\tsample", "failed: sample TestB", "1 passed, 1 failed, 0 skipped"},
		},
		{
			"does not build", head + "func TestA(t *testing.T) { undefined() }",
			false,
			[]string{"undefined: undefined", "failed: package sample", "0 passed, 1 failed"},
		},
		{
			"a dead test program", head + "import \"os\"\nfunc TestMain(m *testing.M) { println(\"last words\"); os.Exit(3) }",
			false,
			[]string{"last words", "failed: package sample", "0 passed, 1 failed"},
		},
		{
			"nothing to run", head + "var _ testing.TB",
			false,
			[]string{"0 passed, 0 failed, 0 skipped", "no test ran"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			out, ok := goTest(t, c.source)
			if ok != c.ok {
				t.Errorf("well: %v, want %v", ok, c.ok)
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("output lacks %q:\n%s", w, out)
				}
			}
		})
	}
}
