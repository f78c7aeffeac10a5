package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// machineArgs is the command line of a machine's init after the program's name. It names the
// machine's directory, so that a lab's processes are found from nothing but its name.
func machineArgs(dir string) []string { return []string{"lab", "machine", "--dir", dir} }

// boot is a machine that was started and still waits for its configuration.
type boot struct {
	machine string
	cmd     *exec.Cmd
	in      *os.File
	out     *os.File
	log     string // the file of its standard error
}

// lastWords is what init wrote before it died: the directory may be gone when somebody would look.
func (b *boot) lastWords() string {
	raw, err := os.ReadFile(b.log)
	if err != nil || len(raw) == 0 {
		return "it wrote nothing"
	}
	return strings.TrimSpace(string(raw))
}

func (l *Lab) startMachine(machine string) (*boot, error) {
	dir := l.machineDir(machine)
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inR.Close(), inW.Close())
	}
	logFile := filepath.Join(dir, logDir, "init.log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, errors.Join(err, inR.Close(), inW.Close(), outR.Close(), outW.Close())
	}
	cmd := exec.Command(l.Spec.Heddle, machineArgs(dir)...) // outlives any context of ours
	cmd.Dir = "/"
	cmd.Env = []string{insidePath, "HOME=/root"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inR, outW, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	err = cmd.Start()
	_ = errors.Join(inR.Close(), outW.Close(), log.Close()) // the child has its own
	if err != nil {
		_ = errors.Join(inW.Close(), outR.Close())
		return nil, fmt.Errorf("start machine %q: %w", machine, err)
	}
	// While this process lives it is the parent and reaps; afterwards the system's init does.
	l.waits.Go(func() { _ = cmd.Wait() })
	return &boot{machine: machine, cmd: cmd, in: inW, out: outR, log: logFile}, nil
}

// configure hands over the configuration and waits until the machine stands.
func (b *boot) configure(ctx context.Context, c MachineConfig) error {
	defer b.close()
	stop := context.AfterFunc(ctx, func() { _ = b.out.SetReadDeadline(time.Now()) })
	defer stop()
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if _, err := b.in.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("machine %q: %w", b.machine, err)
	}
	answer, err := bufio.NewReader(b.out).ReadString('\n')
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if answer = strings.TrimSpace(answer); answer == machineUp {
		return nil
	}
	if answer == "" {
		return fmt.Errorf("machine %q ended while it started: %w: %s", b.machine, err, b.lastWords())
	}
	return errors.New(answer)
}

func (b *boot) close() { _ = errors.Join(b.in.Close(), b.out.Close()) }

// inits finds the running machines of a lab by their command lines: name → process id on the host.
// A dead process that nobody has reaped yet has no command line, and does not count.
func inits(dir string) (map[string]int, error) {
	found := map[string]int{}
	return found, eachProcess(func(pid int) {
		if machine, ok := machineOf(pid, dir); ok {
			found[machine] = pid
		}
	})
}

// machineOf tells which machine of the lab a process is the init of. Only root's processes count:
// anybody may choose a command line.
func machineOf(pid int, dir string) (string, bool) {
	proc := "/proc/" + strconv.Itoa(pid)
	var st unix.Stat_t
	if unix.Stat(proc, &st) != nil || st.Uid != 0 {
		return "", false
	}
	args := cmdline(pid)
	want := machineArgs("")
	if len(args) != len(want)+1 || !slices.Equal(args[1:len(want)], want[:len(want)-1]) {
		return "", false
	}
	machineDir := args[len(want)]
	if filepath.Dir(machineDir) != dir {
		return "", false
	}
	return filepath.Base(machineDir), true
}

func cmdline(pid int) []string {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil || len(raw) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
}

func eachProcess(visit func(pid int)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			visit(pid)
		}
	}
	return nil
}

// serviceOf finds the service of a machine by its first argument ("agent", "store"): a direct child
// of the machine's init. 0 when it does not run now.
func serviceOf(initPID int, name string) int {
	pid := 0
	_ = eachProcess(func(p int) { // /proc was readable a moment ago
		if args := cmdline(p); len(args) > 1 && args[1] == name && parent(p) == initPID {
			pid = p
		}
	})
	return pid
}

// parent reads the parent's id from /proc/PID/stat: the second field after the command in brackets.
func parent(pid int) int {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(string(fields[1]))
	return ppid
}

// killMachines kills every init of a lab and waits until they, and with them everything inside, are
// gone. Each is held by a pidfd and looked at again before the signal, so that a number that was used
// anew is never hit.
func killMachines(ctx context.Context, dir string) error {
	for {
		found, err := inits(dir)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return nil
		}
		var g errgroup.Group
		for machine, pid := range found {
			g.Go(func() error {
				if err := killExact(ctx, pid, machine, dir); err != nil {
					return fmt.Errorf("kill machine %q: %w", machine, err)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
}

// killExact returns when the process, and so everything in its PID namespace, is dead.
func killExact(ctx context.Context, pid int, machine, dir string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if m, ok := machineOf(pid, dir); !ok || m != machine {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for ctx.Err() == nil {
		// A pidfd becomes readable when the process is dead, reaped or not.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}

// enter is a command inside a machine, or inside one of its pods: nsenter(1) of util-linux, which
// every Linux system has. Cancelling ctx kills the command and what it started; killing nsenter itself
// takes the command along (setpriv(1), of the same package).
func enter(ctx context.Context, initPID int, pod string, argv ...string) *exec.Cmd {
	args := enterArgs(initPID, pod, append([]string{"setpriv", "--pdeathsig", "KILL", "--"}, argv...))
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = insideEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

func enterArgs(initPID int, pod string, argv []string) []string {
	pid := strconv.Itoa(initPID)
	args := []string{"nsenter", "-t", pid, "-m", "-p", "-u", "-i"}
	if pod == "" {
		args = append(args, "-n")
	} else {
		args = append(args, "--net=/proc/"+pid+"/root"+netnsDir+"/"+pod)
	}
	return append(append(args, "--"), argv...)
}

// insideEnv is the caller's environment with the machine's search path.
func insideEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "PATH=") })
	return append(env, insidePath)
}
