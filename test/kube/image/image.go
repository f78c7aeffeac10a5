// Package image writes container images without a registry or a builder: one layer from files of this
// machine, as a tar of an OCI image layout (github.com/opencontainers/image-spec) that
// `ctr images import` takes.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Image is what an image is made of.
type Image struct {
	// Names are the references that the image gets, such as "lab.local/pause:lab"; at least one.
	Names      []string
	Entrypoint []string
	Cmd        []string
	User       string // "65535:65535"; empty: root
	Files      []File
}

// File is one entry of the layer. Folders above it are made with mode 0755, /tmp with 1777.
type File struct {
	Path string // absolute, in the image
	// Of these at most one is set; none makes an empty folder.
	Source string // a file of this machine; symbolic links are followed, its mode is kept
	Text   string // the contents of a file, with mode 0755
	Link   string // the target of a symbolic link
}

// Two images of the same files are the same bytes: nothing in them tells when they were made.
var epoch = time.Unix(0, 0)

const (
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
)

// descriptor is OCI's: what a blob is, and which.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// Write makes the image's tar in file. On an error there is no such file.
func Write(file string, i Image) error {
	if len(i.Names) == 0 {
		return fmt.Errorf("image %s: no name", file)
	}
	layer, err := i.layer()
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Names[0], err)
	}
	out, err := os.Create(file + ".new")
	if err != nil {
		return err
	}
	w := writer{tar.NewWriter(out)}
	if err = errors.Join(w.layout(i, layer), w.Close(), out.Close()); err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		os.Remove(file + ".new")
		return fmt.Errorf("image %s: %w", i.Names[0], err)
	}
	return nil
}

// layer is the image's files as a tar.
func (i Image) layer() ([]byte, error) {
	files := slices.Clone(i.Files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	folders := map[string]bool{"/": true}
	for n, f := range files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path {
			return nil, fmt.Errorf("file %q: want an absolute, clean path", f.Path)
		}
		if n > 0 && files[n-1].Path == f.Path {
			return nil, fmt.Errorf("file %s: twice", f.Path)
		}
		if err := f.write(w, folders); err != nil {
			return nil, fmt.Errorf("file %s: %w", f.Path, err)
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func (f File) write(w *tar.Writer, folders map[string]bool) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: f.Path[1:], Mode: 0o755, ModTime: epoch}
	text := []byte(f.Text)
	switch {
	case f.Link != "":
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, f.Link, 0o777
	case f.Source != "":
		real, err := filepath.EvalSymlinks(f.Source)
		if err != nil {
			return err
		}
		info, err := os.Stat(real)
		if err != nil {
			return err
		}
		header.Mode = int64(info.Mode().Perm())
		if text, err = os.ReadFile(real); err != nil {
			return err
		}
	case f.Text == "":
		return folder(w, f.Path, folders)
	}
	if err := folder(w, path.Dir(f.Path), folders); err != nil {
		return err
	}
	header.Size = int64(len(text))
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(text)
	return err
}

// folder adds a folder, and those above it, once each.
func folder(w *tar.Writer, dir string, done map[string]bool) error {
	if done[dir] {
		return nil
	}
	if err := folder(w, path.Dir(dir), done); err != nil {
		return err
	}
	done[dir] = true
	mode := int64(0o755)
	if dir == "/tmp" {
		mode = 0o1777
	}
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: mode, ModTime: epoch})
}

// writer writes an OCI image layout.
type writer struct{ *tar.Writer }

func (w writer) layout(i Image, layer []byte) error {
	here := &platform{Architecture: runtime.GOARCH, OS: "linux"}
	l, err := w.blob(typeLayer, layer)
	if err != nil {
		return err
	}
	run := map[string]any{"Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"}}
	for key, v := range map[string][]string{"Entrypoint": i.Entrypoint, "Cmd": i.Cmd} {
		if len(v) > 0 {
			run[key] = v
		}
	}
	if i.User != "" {
		run["User"] = i.User
	}
	config, err := w.json(typeConfig, map[string]any{
		"architecture": here.Architecture, "os": here.OS, "created": epoch.UTC(), "config": run,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{l.Digest}},
	})
	if err != nil {
		return err
	}
	manifest, err := w.json(typeManifest, map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest, "config": config, "layers": []descriptor{l},
	})
	if err != nil {
		return err
	}
	manifest.Platform = here
	var names []descriptor
	for _, n := range i.Names {
		named := manifest
		named.Annotations = map[string]string{"io.containerd.image.name": n}
		names = append(names, named)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": names})
	if err != nil {
		return err
	}
	if err := w.file("index.json", index); err != nil {
		return err
	}
	return w.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
}

func (w writer) json(mediaType string, v any) (descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	return w.blob(mediaType, b)
}

func (w writer) blob(mediaType string, b []byte) (descriptor, error) {
	sum := sha256.Sum256(b)
	hash := hex.EncodeToString(sum[:])
	return descriptor{MediaType: mediaType, Digest: "sha256:" + hash, Size: int64(len(b))}, w.file("blobs/sha256/"+hash, b)
}

func (w writer) file(name string, b []byte) error {
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(b)), Mode: 0o644, ModTime: epoch})
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}
