package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// entry is one of a tar.
type entry struct {
	header *tar.Header
	text   []byte
}

func read(t *testing.T, r io.Reader) map[string]entry {
	t.Helper()
	all := map[string]entry{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = entry{h, text}
	}
}

// follow checks a descriptor against the blob it names, and decodes it.
func follow(t *testing.T, layout map[string]entry, d descriptor, into any) []byte {
	t.Helper()
	b, ok := layout["blobs/sha256/"+d.Digest[len("sha256:"):]]
	if !ok {
		t.Fatalf("no blob %s", d.Digest)
	}
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(b.text)); got != d.Digest || d.Size != int64(len(b.text)) {
		t.Fatalf("blob %s of %d bytes is %s of %d", d.Digest, d.Size, got, len(b.text))
	}
	if into != nil {
		if err := json.Unmarshal(b.text, into); err != nil {
			t.Fatal(err)
		}
	}
	return b.text
}

func TestImageHoldsWhatItWasMadeOf(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("text"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "image.tar")
	err := Write(file, Image{
		Names: []string{"a.test/one:1", "a.test/two:2"}, Entrypoint: []string{"/usr/bin/p"}, Cmd: []string{"x"}, User: "7",
		Files: []File{
			{Path: "/usr/bin/p", Source: filepath.Join(dir, "link")},
			{Path: "/bin", Link: "usr/bin"},
			{Path: "/tmp"},
			{Path: "/etc/passwd", Text: "root"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	layout := read(t, f)

	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(layout["index.json"].text, &index); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range index.Manifests {
		names = append(names, m.Annotations["io.containerd.image.name"])
		var manifest struct {
			Config descriptor
			Layers []descriptor
		}
		follow(t, layout, m, &manifest)
		var config struct {
			Config struct {
				Entrypoint, Cmd []string
				User            string
			}
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		follow(t, layout, manifest.Config, &config)
		if c := config.Config; !slices.Equal(c.Entrypoint, []string{"/usr/bin/p"}) || !slices.Equal(c.Cmd, []string{"x"}) || c.User != "7" {
			t.Errorf("it runs %+v", c)
		}
		if len(manifest.Layers) != 1 || !slices.Equal(config.RootFS.DiffIDs, []string{manifest.Layers[0].Digest}) {
			t.Fatalf("layers %+v, differences %q", manifest.Layers, config.RootFS.DiffIDs)
		}
		files := read(t, bytes.NewReader(follow(t, layout, manifest.Layers[0], nil)))
		for name, want := range map[string]struct {
			mode int64
			text string
			link string
		}{
			"usr/": {mode: 0o755}, "usr/bin/": {mode: 0o755}, "tmp/": {mode: 0o1777}, "etc/": {mode: 0o755},
			"usr/bin/p": {mode: 0o750, text: "text"}, "etc/passwd": {mode: 0o755, text: "root"}, "bin": {mode: 0o777, link: "usr/bin"},
		} {
			got, ok := files[name]
			if !ok || got.header.Mode != want.mode || string(got.text) != want.text || got.header.Linkname != want.link {
				t.Errorf("%s: got %+v %q, want %+v", name, got.header, got.text, want)
			}
			delete(files, name)
		}
		if len(files) > 0 {
			t.Errorf("it also has %v", files)
		}
	}
	if !slices.Equal(names, []string{"a.test/one:1", "a.test/two:2"}) {
		t.Errorf("names %q", names)
	}
}

func TestImageThatCannotBeMadeLeavesNothing(t *testing.T) {
	for name, files := range map[string][]File{
		"missing source": {{Path: "/p", Source: "/nowhere/at/all"}},
		"relative path":  {{Path: "p", Text: "x"}},
		"twice":          {{Path: "/p", Text: "x"}, {Path: "/p", Text: "y"}},
	} {
		dir := t.TempDir()
		if err := Write(filepath.Join(dir, "i.tar"), Image{Names: []string{"a.test/a:1"}, Files: files}); err == nil {
			t.Errorf("%s: no error", name)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v (%v)", name, left, err)
		}
	}
}

func TestProgramsBringTheirLoaderAndLibraries(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(sh)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(real)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	want := []string{sh}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(p.Open())
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, string(bytes.TrimRight(b, "\x00")))
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	files, err := Programs(sh, sh)
	if err != nil {
		t.Fatal(err)
	}
	var got, bases []string
	for _, f := range files {
		got = append(got, f.Path)
		bases = append(bases, filepath.Base(f.Path))
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%s is missing in %q", w, got)
		}
	}
	for _, l := range libraries {
		if !slices.Contains(bases, l) {
			t.Errorf("library %s is missing in %q", l, got)
		}
	}
	slices.Sort(got)
	if len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Errorf("named twice: %q", got)
	}
}
