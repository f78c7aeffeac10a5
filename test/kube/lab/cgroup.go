package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one of cgroups as a process sees it.
type hierarchy struct {
	// controllers as /proc/PID/cgroup writes them: "cpu,cpuacct", "name=systemd"; empty: version 2.
	controllers string
	own         string // the folder of the process's own cgroup
}

// hierarchies lists those of this process: all of version 1, or when there are none the one of version 2.
// (cgroups(7): /proc/PID/cgroup)
func hierarchies() ([]hierarchy, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var found []hierarchy
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[1] == "" {
			continue
		}
		dir := cgroupMount(string(mounts), f[1])
		if dir == "" {
			return nil, fmt.Errorf("cgroup hierarchy %s is not mounted: the kubelet needs each one", f[1])
		}
		found = append(found, hierarchy{f[1], filepath.Join(dir, f[2])})
	}
	if len(found) > 0 {
		return found, nil
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		return nil, fmt.Errorf("no cgroups: %w", err)
	}
	// The root alone may have both processes and children with controllers.
	const top = "/sys/fs/cgroup"
	return []hierarchy{{"", top}}, nil
}

// needed are the controllers of version 2 that a kubelet cannot do without.
var needed = []string{"cpu", "cpuset", "memory", "pids"}

// giveControllers lets the children of a cgroup of version 2 have what is needed. (cgroup-v2.rst of Linux, Enabling
// and Disabling)
func giveControllers(dir string) error {
	words := func(file string) []string {
		text, _ := os.ReadFile(filepath.Join(dir, file))
		return strings.Fields(string(text))
	}
	there, given := words("cgroup.controllers"), words("cgroup.subtree_control")
	for _, c := range needed {
		if slices.Contains(given, c) {
			continue
		}
		if !slices.Contains(there, c) {
			return fmt.Errorf("cgroup %s has controllers %q: a kubelet needs %q: %s is with version 1, or this is a container that was not given it",
				dir, there, needed, c)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("cgroup %s does not hand on the controller %s: want the root of the machine's cgroups, not that of a container: %w", dir, c, err)
		}
	}
	return nil
}

// cgroupMount finds where a hierarchy of version 1 is mounted.
func cgroupMount(mounts, controllers string) string {
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 4 || f[2] != "cgroup" {
			continue
		}
		options := strings.Split(f[3], ",")
		if !slices.ContainsFunc(strings.Split(controllers, ","), func(c string) bool { return !slices.Contains(options, c) }) {
			return f[1]
		}
	}
	return ""
}

// cgroup names the cgroup of a node.
func (l *Lab) cgroup(node string) string { return "heddle-kube-" + l.Spec.Name + "-" + node }

// SetCPUWeight lets all of a node count as much as so many others where they wait for the same CPUs (1 to 100; 1 is
// what each begins with). Nodes that are machines of their own do not take each other's time.
func (l *Lab) SetCPUWeight(node string, times int) error {
	if times < 1 || times > 100 {
		return fmt.Errorf("weight %d: want 1 to 100", times)
	}
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		// What both versions begin with, times so much. (sched-design-CFS.rst, cpu.shares; cgroup-v2.rst, cpu.weight)
		file, weight := "cpu.weight", 100*times
		if h.controllers != "" {
			file, weight = "cpu.shares", 1024*times
		}
		f := filepath.Join(h.own, l.cgroup(node), file)
		if _, err := os.Stat(f); err != nil {
			continue // not the controller of this hierarchy
		}
		return os.WriteFile(f, []byte(strconv.Itoa(weight)), 0o644)
	}
	return fmt.Errorf("node %q: no cgroup of its own with the controller cpu", node)
}

// makeCgroups makes a node's cgroup in each hierarchy. A process enters them by writing itself to enter,
// makes them the roots of its cgroup namespace, and then writes itself to leave: the node's daemons have a
// cgroup of their own beside that of the pods, as under systemd, so that the processes of a runtime that
// starts many containers do not each count as much as all pods together. (In version 2 a cgroup whose
// children have controllers may hold no process anyway.)
func makeCgroups(name string) (enter, leave []string, err error) {
	all, err := hierarchies()
	if err != nil {
		return nil, nil, err
	}
	for _, h := range all {
		if h.controllers == "" {
			if err := giveControllers(h.own); err != nil {
				return nil, nil, err
			}
		}
		dir := filepath.Join(h.own, name)
		leaf := filepath.Join(dir, "system")
		if err := os.MkdirAll(leaf, 0o755); err != nil {
			return nil, nil, err
		}
		enter, leave = append(enter, filepath.Join(dir, "cgroup.procs")), append(leave, filepath.Join(leaf, "cgroup.procs"))
		if !slices.Contains(strings.Split(h.controllers, ","), "cpuset") {
			continue
		}
		// A new cpuset has neither CPUs nor memory.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			b, err := os.ReadFile(filepath.Join(h.own, f))
			if err != nil {
				return nil, nil, err
			}
			for _, d := range []string{dir, leaf} {
				if err := os.WriteFile(filepath.Join(d, f), b, 0o644); err != nil {
					return nil, nil, err
				}
			}
		}
	}
	return enter, leave, nil
}

// mountCgroups mounts every hierarchy in a node, with the node's cgroup as its root.
func mountCgroups() error {
	all, err := hierarchiesOfNode()
	if err != nil {
		return err
	}
	const top = "/sys/fs/cgroup"
	if all[0] == "" {
		if err := unix.Mount("cgroup2", top, "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mount cgroup2: %w", err)
		}
		controllers, err := os.ReadFile(filepath.Join(top, "cgroup.controllers"))
		if err != nil {
			return err
		}
		on := ""
		for _, c := range strings.Fields(string(controllers)) {
			on += " +" + c
		}
		return os.WriteFile(filepath.Join(top, "cgroup.subtree_control"), []byte(strings.TrimSpace(on)), 0o644)
	}
	if err := unix.Mount("tmpfs", top, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", top, err)
	}
	for _, controllers := range all {
		name, named := strings.CutPrefix(controllers, "name=")
		dir, options := filepath.Join(top, name), controllers
		if named {
			options = "none," + controllers
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("cgroup", dir, "cgroup", 0, options); err != nil {
			return fmt.Errorf("mount cgroup %s: %w", controllers, err)
		}
	}
	return nil
}

// hierarchiesOfNode lists the controllers of each hierarchy: in a node that has mounted none yet.
func hierarchiesOfNode() (controllers []string, err error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[1] != "" {
			controllers = append(controllers, f[1])
		}
	}
	if len(controllers) == 0 {
		controllers = []string{""}
	}
	return controllers, nil
}

// removeCgroups removes a node's cgroups with all below them. The last processes may still be ending.
func removeCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		var errs []error
		for _, h := range all {
			errs = append(errs, removeFolders(filepath.Join(h.own, name)))
		}
		if err := errors.Join(errs...); err == nil || try == 50 {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// removeFolders removes a folder and those below it, deepest first; the files of a cgroup go with it.
func removeFolders(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	for _, d := range slices.Backward(dirs) {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cgroup %s: %w", d, err)
		}
	}
	return err
}
