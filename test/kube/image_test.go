//go:build kube

package kube

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/test/kube/image"
	"github.com/heddle-net/heddle/test/kube/lab"
)

// The image of the Dockerfile is, for each kind of machine, what the labs' image is: the two programs, static, which any
// user may run, and no shell. deploy/heddle.yaml names its programs by their paths.
func TestDockerfilesImageIsTheTwoProgramsForBothKindsOfMachines(t *testing.T) {
	images := imagesOf(t, buildImage(t, "linux/amd64,linux/arm64"))
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	if len(images) != len(machines) {
		t.Errorf("%d images, want one for each of %v", len(images), machines)
	}
	for arch, machine := range machines {
		got := images[arch]
		programs, err := filepath.Abs("../../bin/linux-" + arch)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), arch+".tar")
		if err := image.Write(file, lab.Ours(programs)); err != nil {
			t.Fatal(err)
		}
		want := imagesOf(t, file)[runtime.GOARCH] // the labs' maker says so of any program
		if !reflect.DeepEqual(got.run, want.run) || !reflect.DeepEqual(got.names(), want.names()) {
			t.Errorf("%s: the Dockerfile's has %v and files %v, the labs' %v and %v", arch, got.run, got.names(), want.run, want.names())
		}
		for path, f := range got.files {
			if f.mode&0o7777 != 0o755 || f.owner != 0 || !bytes.Equal(f.text, want.files[path].text) {
				t.Errorf("%s: /%s has mode %#o, owner %d, %d bytes; want 0755, root's, and the %d bytes that were compiled",
					arch, path, f.mode, f.owner, len(f.text), len(want.files[path].text))
			}
			if err := staticFor(machine, f.text); err != nil {
				t.Errorf("%s: /%s: %v", arch, path, err)
			}
		}
	}
}

// staticFor wants a program that needs nothing else in its image.
func staticFor(machine elf.Machine, text []byte) error {
	program, err := elf.NewFile(bytes.NewReader(text))
	if err != nil {
		return err
	}
	if program.Machine != machine {
		return fmt.Errorf("it is for %v", program.Machine)
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("it wants a loader")
		}
	}
	return nil
}

// buildImage runs build/image with buildah, in a store of its own, and returns the archive that it wrote. No platforms: this
// machine's.
func buildImage(t *testing.T, platforms string) string {
	t.Helper()
	dir := t.TempDir()
	storage := filepath.Join(dir, "storage.conf")
	conf := fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", filepath.Join(dir, "graph"), filepath.Join(dir, "run"))
	if err := os.WriteFile(storage, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "heddle.tar")
	cmd := exec.Command("../../build/image", lab.HeddleImage)
	// No daemon of docker's is there.
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+filepath.Join(dir, "none"), "CONTAINERS_STORAGE_CONF="+storage,
		"PLATFORMS="+platforms, "ARCHIVE="+archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build/image: %v\n%s", err, out)
	}
	return archive
}

// built is an image for one kind of machine.
type built struct {
	run   runConfig
	files map[string]builtFile // by path, without the first slash
}

// runConfig is what an image says of how it is run. (OCI image-spec, config.md)
type runConfig struct {
	Entrypoint, Cmd []string
	User            string
	WorkingDir      string
	Volumes         map[string]struct{}
	ExposedPorts    map[string]struct{}
}

type builtFile struct {
	mode  int64
	owner int
	text  []byte
}

func (b built) names() map[string]bool {
	names := map[string]bool{}
	for n := range b.files {
		names[n] = true
	}
	return names
}

// imagesOf reads an OCI archive, by architecture.
func imagesOf(t *testing.T, archive string) map[string]built {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	all := map[string]builtFile{}
	if err := untar(f, all); err != nil {
		t.Fatalf("%s: %v", archive, err)
	}
	read := func(name string, v any) {
		t.Helper()
		if err := json.Unmarshal(all[name].text, v); err != nil {
			t.Fatalf("%s: %s: %v", archive, name, err)
		}
	}
	blob := func(digest string) string { return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:") }
	images := map[string]built{}
	var open func(name string)
	open = func(name string) {
		type descriptor struct{ Digest string }
		var m struct {
			Manifests, Layers []descriptor
			Config            descriptor
		}
		read(name, &m)
		for _, d := range m.Manifests {
			open(blob(d.Digest))
		}
		if m.Config.Digest == "" {
			return
		}
		var config struct {
			Architecture string
			Config       runConfig
		}
		read(blob(m.Config.Digest), &config)
		b := built{config.Config, map[string]builtFile{}}
		for _, l := range m.Layers {
			if err := untar(bytes.NewReader(all[blob(l.Digest)].text), b.files); err != nil {
				t.Fatalf("%s: layer %s: %v", archive, l.Digest, err)
			}
		}
		images[config.Architecture] = b
	}
	open("index.json")
	return images
}

// untar adds what a tar has that is no folder, also when it is compressed.
func untar(r io.Reader, files map[string]builtFile) error {
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if z, err := gzip.NewReader(bytes.NewReader(text)); err == nil {
		if text, err = io.ReadAll(z); err != nil {
			return err
		}
	}
	for in := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		text, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		files[strings.TrimPrefix(h.Name, "/")] = builtFile{h.Mode, h.Uid, text}
	}
}
