package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mounts makes mounts one after the other until one fails.
type mounts struct{ err error }

func (m *mounts) do(what string, f func() error) {
	if m.err != nil {
		return
	}
	if err := f(); err != nil {
		m.err = fmt.Errorf("%s: %w", what, err)
	}
}

func (m *mounts) mount(source, target, kind string, flags uintptr, data string) {
	m.do("mount "+target, func() error { return unix.Mount(source, target, kind, flags, data) })
}

// bind shows a folder or file at another place, a folder that is made if need be.
func (m *mounts) bind(source, target string) {
	m.do("bind "+target, func() error {
		if info, err := os.Stat(source); err != nil || info.IsDir() {
			if err := os.MkdirAll(target, 0o755); err != nil {
				return err
			}
		}
		return unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, "")
	})
}

// tmp gives the node a /tmp of its own, in which only the folders to keep are those of the machine outside.
func (m *mounts) tmp(keep ...string) {
	aside := func(n int) string { return fmt.Sprintf("/run/aside%d", n) }
	for n, dir := range keep {
		m.bind(dir, aside(n))
	}
	m.mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777")
	for n, dir := range keep {
		m.bind(aside(n), dir)
		m.do("unmount", func() error { return unix.Unmount(aside(n), unix.MNT_DETACH) })
	}
}

// private lets the node write to a folder of the machine outside: what it writes is kept below layers.
func (m *mounts) private(dir, layers string) {
	m.do("private "+dir, func() error {
		top := filepath.Join(layers, strings.ReplaceAll(dir[1:], "/", "-"))
		upper, work := filepath.Join(top, "upper"), filepath.Join(top, "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		return unix.Mount("overlay", dir, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work))
	})
}

// sysctls shows the kubelet that the settings it would make for the whole machine are made already.
func (m *mounts) sysctls() {
	for key, value := range map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	} {
		file := filepath.Join("/run/sysctl", strings.ReplaceAll(key, "/", "."))
		m.do("sysctl "+key, func() error {
			if err := os.MkdirAll("/run/sysctl", 0o755); err != nil {
				return err
			}
			return os.WriteFile(file, []byte(value+"\n"), 0o644)
		})
		m.bind(file, filepath.Join("/proc/sys", key))
	}
}
