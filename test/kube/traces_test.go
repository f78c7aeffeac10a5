//go:build kube

package kube

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// traces lists what a machine still has of a lab: files, namespaces, cgroups, processes.
func traces(t *testing.T, name string) (found []string) {
	t.Helper()
	for _, pattern := range []string{filepath.Join(lab.Root(), name), "/run/netns/hk-" + name + "-*"} {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, matches...)
	}
	err := filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "heddle-kube-"+name+"-") {
			found = append(found, p)
		}
		return nil // cgroups of others come and go
	})
	if err != nil {
		t.Fatal(err)
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		line, err := os.ReadFile(c)
		if err == nil && strings.Contains(string(line), filepath.Join(lab.Root(), name)+"/") {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
