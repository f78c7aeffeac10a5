package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// MachineConfig is what a machine's init reads, as one line of JSON, from its standard input once its
// network is wired. End of file before that makes it exit, so that a lab whose maker died is gone.
type MachineConfig struct {
	Name string `json:"name"` // becomes the host name
	// Binds lays files and directories of the host over paths inside, which are made as needed.
	Binds []Bind `json:"binds,omitempty"`
	// Sysctls are keys below /proc/sys with slashes, and their values.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// Env is the whole environment of the services.
	Env      []string  `json:"env,omitempty"`
	Services []Service `json:"services,omitempty"`
}

// Bind is one bind mount.
type Bind struct {
	Source string `json:"source"` // on the host
	Target string `json:"target"` // inside; below /run, /etc, /opt or /var/lib
}

// Service is a process that init keeps running.
type Service struct {
	Name string   `json:"name"`
	Args []string `json:"args"` // the whole command line; Args[0] is an absolute path inside
}

// machineUp is what init answers when the machine stands.
const machineUp = "up"

// RunMachine is the life of a machine's init, the first process of new network, mount, PID, UTS and
// IPC namespaces: it reads its configuration from in, builds the machine's view of the file system,
// answers "up" or an error on out, and keeps the services running until it is killed. The kernel
// then kills everything else in the machine and frees its namespaces.
//
// dir is the machine's directory, as the host sees it.
func RunMachine(ctx context.Context, dir string, in io.Reader, out io.Writer) error {
	if os.Getpid() != 1 {
		return errors.New("lab machine: not the first process of a PID namespace: this command is for `heddle lab up` alone")
	}
	line, err := bufio.NewReader(in).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("lab machine: no configuration: %w", err)
	}
	var c MachineConfig
	if err := json.Unmarshal(line, &c); err != nil {
		return fmt.Errorf("lab machine: configuration: %w", err)
	}
	sup, err := prepareMachine(dir, c)
	if err != nil {
		// The host's side shows this line; an error in writing it changes nothing.
		_, _ = fmt.Fprintf(out, "machine %s: %v\n", c.Name, err)
		return err
	}
	if _, err := fmt.Fprintln(out, machineUp); err != nil {
		return err
	}
	return sup.run(ctx)
}

func prepareMachine(dir string, c MachineConfig) (*supervisor, error) {
	// Logs and the control socket are opened before the mounts hide the host's directories.
	sup, err := newSupervisor(dir, c)
	if err != nil {
		return nil, err
	}
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return nil, fmt.Errorf("host name: %w", err)
	}
	if err := privateView(c.Binds); err != nil {
		return nil, err
	}
	for key, value := range c.Sysctls {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
			return nil, fmt.Errorf("sysctl: %w", err)
		}
	}
	return sup, nil
}

// overlaid are the directories of the host that a machine may write in without a trace: its changes
// stay in memory and die with it.
var overlaid = []string{"/etc", "/opt", "/var/lib"}

// privateView gives the machine file systems of its own where Heddle reads and writes: /proc and /sys
// of its namespaces, an empty /run, and overlays over /etc, /opt and /var/lib. The rest of the
// host's tree stays visible, so that every tool of the host works inside.
func privateView(binds []Bind) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Sources may lie below directories that are hidden in the next steps: take hold of them first.
	trees := make([]int, len(binds))
	for i, b := range binds {
		fd, err := unix.OpenTree(unix.AT_FDCWD, b.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("bind %s: %w", b.Source, err)
		}
		trees[i] = fd
	}
	for _, m := range []struct{ fs, at, opts string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"tmpfs", "/run", "mode=0755"},
	} {
		if err := unix.Mount(m.fs, m.at, m.fs, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, m.opts); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.at, err)
		}
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	for _, dir := range overlaid {
		if err := overlay(dir); err != nil {
			return err
		}
	}
	for i, b := range binds {
		if err := moveTree(trees[i], b); err != nil {
			return fmt.Errorf("bind %s on %s: %w", b.Source, b.Target, err)
		}
	}
	return nil
}

func overlay(dir string) error {
	base := "/run/.overlay/" + strings.ReplaceAll(strings.Trim(dir, "/"), "/", "-")
	upper, work := base+"/upper", base+"/work"
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	opts := "lowerdir=" + dir + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", dir, "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount overlay on %s: %w (the lab needs a kernel with overlayfs)", dir, err)
	}
	return nil
}

// moveTree puts a detached tree in its place, and makes the place: a file for a file.
func moveTree(fd int, b Bind) error {
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.MkdirAll(b.Target, 0o755); err != nil {
			return err
		}
	} else if err := touch(b.Target); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, b.Target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func touch(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}
