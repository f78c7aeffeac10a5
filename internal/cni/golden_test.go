package cni_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/cni/wire"
)

// compare checks got against a section of a golden archive, or files it there with -update.
func compare(t *testing.T, a *txtar.Archive, name, got string) {
	t.Helper()
	for i := range a.Files {
		if a.Files[i].Name != name {
			continue
		}
		if *update {
			a.Files[i].Data = []byte(got)
		} else if string(a.Files[i].Data) != got {
			t.Errorf("%s:\n got %s\nwant %s", name, got, a.Files[i].Data)
		}
		return
	}
	if !*update {
		t.Errorf("%s: not in the golden file; got\n%s", name, got)
		return
	}
	a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(got)})
}

func archive(t *testing.T, path string) *txtar.Archive {
	t.Helper()
	a, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if *update && !t.Failed() {
			if err := os.WriteFile(path, txtar.Format(a), 0o600); err != nil {
				t.Error(err)
			}
		}
	})
	return a
}

func TestEveryVersionGetsItsOwnResult(t *testing.T) {
	a := archive(t, "testdata/results.txtar")
	for _, v := range wire.Versions() {
		t.Run(v, func(t *testing.T) {
			s := serve(t)
			ns := netns(t)
			stdin := fmt.Sprintf(`{"cniVersion":%q,"name":"heddle","type":"heddle-cni","socket":%q,"dns":{"nameservers":["10.96.0.10"]}}`, v, s.socket)
			out, exit := plugin(t, request("ADD", "c1", ns), stdin)
			if exit != 0 {
				t.Fatalf("exit %d: %s", exit, out)
			}
			again, exit := plugin(t, request("ADD", "c1", ns), stdin)
			if exit != 0 || again != out {
				t.Errorf("the same ADD again: exit %d: %s", exit, again)
			}
			compare(t, a, "add-"+v+".json", strings.ReplaceAll(out, ns, "NETNS"))
			out, exit = plugin(t, request("DEL", "c1", ns), stdin)
			if exit != 0 || out != "" {
				t.Errorf("DEL: exit %d: %q", exit, out)
			}
		})
	}
}

// TestBadInputHasItsExactError runs each case of the archive: name/env has lines K=V that are set over
// those of a good ADD (K alone unsets), name/stdin the configuration, name/stdout what must come out.
func TestBadInputHasItsExactError(t *testing.T) {
	s := serve(t)
	ns := netns(t)
	a := archive(t, "testdata/bad-input.txtar")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	in := strings.NewReplacer("NETNS", ns, "OWN", "/proc/self/ns/net", "FILE", file, "LONG", strings.Repeat("x", wire.MaxField+1))
	out := strings.NewReplacer(ns, "NETNS", file, "FILE", s.socket, "SOCKET")
	sections := map[string]string{}
	for _, f := range a.Files {
		sections[f.Name] = string(f.Data)
	}
	ran := 0
	for _, f := range a.Files {
		name, isStdin := strings.CutSuffix(f.Name, "/stdin")
		if !isStdin {
			continue
		}
		ran++
		t.Run(name, func(t *testing.T) {
			env := map[string]string{
				"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": ns, "CNI_IFNAME": "eth0", "CNI_PATH": pluginDir,
				"HEDDLE_CNI_SOCKET": s.socket,
			}
			for line := range strings.Lines(sections[name+"/env"]) {
				k, v, set := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
				delete(env, k)
				if set {
					env[k] = in.Replace(v)
				}
			}
			var list []string
			for k, v := range env {
				list = append(list, k+"="+v)
			}
			got, exit := plugin(t, list, strings.TrimSuffix(in.Replace(string(f.Data)), "\n"))
			if exit != 1 {
				t.Errorf("exit %d: want 1", exit)
			}
			compare(t, a, name+"/stdout", out.Replace(got))
		})
	}
	if ran < 20 {
		t.Errorf("only %d cases", ran)
	}
	if n := len(s.ledger.List()); n != 0 {
		t.Errorf("%d workloads are on record after nothing but bad input", n)
	}
}

func TestConflistIsWrittenWholeAndOnlyWhenItDiffers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	content, err := cni.Conflist("heddle", "/run/heddle/cni.sock")
	if err != nil {
		t.Fatal(err)
	}
	a := archive(t, "testdata/results.txtar")
	compare(t, a, cni.ConflistFile, string(content))
	for i, want := range []bool{true, false} {
		changed, err := cni.WriteConflist(dir, content)
		if err != nil || changed != want {
			t.Fatalf("write %d: changed %v, error %v", i, changed, err)
		}
	}
	path := filepath.Join(dir, cni.ConflistFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := cni.WriteConflist(dir, content); !changed || err != nil {
		t.Fatalf("over a spoilt one: changed %v, error %v", changed, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Fatalf("left over: %v %v", entries, err)
	}
	for i, want := range []bool{true, false} {
		changed, err := cni.RemoveConflist(dir)
		if err != nil || changed != want {
			t.Fatalf("remove %d: changed %v, error %v", i, changed, err)
		}
	}
	for _, bad := range [][2]string{{"a b", "/s"}, {"a", "s"}} {
		if _, err := cni.Conflist(bad[0], bad[1]); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
