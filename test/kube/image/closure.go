package image

import (
	"debug/elf"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
)

// Programs are files of this machine at the same paths in the image, with the shared libraries and the
// loader that they need. Each path is named once, whatever else in the image needs it.
func Programs(paths ...string) ([]File, error) {
	var files []File
	have := map[string]bool{}
	add := func(at string) {
		if !have[at] {
			have[at] = true
			files = append(files, File{Path: at, Source: at})
		}
	}
	for _, p := range paths {
		add(p)
		libraries, err := needs(p)
		if err != nil {
			return nil, fmt.Errorf("program %s: %w", p, err)
		}
		for _, l := range libraries {
			add(l)
		}
	}
	return files, nil
}

var lddPath = regexp.MustCompile(`(/\S+) \(0x`)

// needs lists what a program's loader would load, the loader included; nothing for a static program.
func needs(program string) ([]string, error) {
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		return nil, err
	}
	f, err := elf.Open(real)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if libraries, err := f.ImportedLibraries(); err != nil || len(libraries) == 0 {
		return nil, err
	}
	out, err := exec.Command("ldd", real).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd: %w", err)
	}
	var found []string
	for _, m := range lddPath.FindAllStringSubmatch(string(out), -1) {
		found = append(found, m[1])
	}
	return found, nil
}
