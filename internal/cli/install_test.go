package cli

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// plugin builds Heddle's plugin of a version.
func plugin(t *testing.T, version string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "heddle-cni")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", file, "../../cmd/heddle-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return file
}

func TestInstallReplacesTheProgramInOneStepAndTouchesNothingElse(t *testing.T) {
	from, dir := plugin(t, "a"), filepath.Join(t.TempDir(), "cni/bin")
	target := filepath.Join(dir, "heddle-cni")
	install := func(wantWord string) {
		t.Helper()
		var out, errs bytes.Buffer
		if code := Main([]string{"install-cni", "--from", from, "--to", dir}, &out, &errs); code != 0 || !strings.HasPrefix(out.String(), wantWord) {
			t.Fatalf("exit code %d, %q, %q: want %q", code, out.String(), errs.String(), wantWord)
		}
		want, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(target)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, want) || info.Mode() != 0o755 {
			t.Fatalf("installed with mode %v, equal: %v, %v", info.Mode(), bytes.Equal(got, want), err)
		}
	}
	install("installed")
	install("already there")

	// Somebody runs the old program, and somebody else has files there; a crashed try left its own.
	old, err := os.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	was, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bridge", ".heddle-cni.tmp", "heddle-cni.bak"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(target, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	install("installed") // never with SUID
	from = plugin(t, "b")
	install("installed")
	held := make([]byte, len(was)+1)
	if n, _ := old.Read(held); !bytes.Equal(held[:n], was) {
		t.Error("the old program was changed where it stood: whoever runs it crashes")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 3 {
		t.Errorf("files: %q", files)
	}
	if _, err := os.Stat(filepath.Join(dir, ".heddle-cni.tmp")); err == nil {
		t.Error("the unfinished file is still there")
	}
}

func TestInstallLeavesForeignProgramsAlone(t *testing.T) {
	from := plugin(t, "a")
	for name, make := range map[string]func(path string) error{
		"script":  func(p string) error { return os.WriteFile(p, []byte("#!/bin/sh\n"), 0o700) },
		"folder":  func(p string) error { return os.Mkdir(p, 0o700) },
		"symlink": func(p string) error { return os.Symlink(from, p) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			target := filepath.Join(dir, "heddle-cni")
			if err := make(target); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(target)
			if err != nil {
				t.Fatal(err)
			}
			var out, errs bytes.Buffer
			if code := Main([]string{"install-cni", "--from", from, "--to", dir}, &out, &errs); code == 0 || !strings.Contains(errs.String(), target) {
				t.Errorf("exit code %d: %s: want an error that names the file", code, errs.String())
			}
			if after, err := os.Lstat(target); err != nil || !os.SameFile(before, after) {
				t.Errorf("it was replaced: %v", err)
			}
		})
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if code := Main([]string{"install-cni", "--from", self, "--to", t.TempDir()}, &out, &errs); code == 0 {
		t.Error("a program that is not the plugin is installed as it")
	}
}

func TestHealthSaysByItsExitCodeWhatTheAgentAnswers(t *testing.T) {
	dir, err := os.MkdirTemp("", "hd") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	health := func(args ...string) (int, string) {
		var out, errs bytes.Buffer
		code := Main(append([]string{"health", "--run-dir", dir}, args...), &out, &errs)
		return code, out.String() + errs.String()
	}
	if code, said := health(); code != 1 || !strings.Contains(said, "no agent runs") {
		t.Errorf("without an agent: %d, %s", code, said)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no block yet", http.StatusServiceUnavailable)
	})
	s := &http.Server{Handler: mux}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	if code, said := health(); code != 0 || said != "ok\n" {
		t.Errorf("an agent that works: %d, %s", code, said)
	}
	if code, said := health("--ready"); code != 1 || !strings.Contains(said, "no block yet") {
		t.Errorf("an agent that is not ready: %d, %s", code, said)
	}
}
