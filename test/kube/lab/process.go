package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one that the lab started. The start time tells it from a later one of the same number.
type process struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since boot, field 22 of /proc/PID/stat (proc(5))
}

// start runs a program until the lab goes down, its output in Log(name).
func (l *Lab) start(name string, argv ...string) error {
	log, err := os.Create(l.Log(name))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// A lab outlives the command that made it, and its terminal.
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	go func() { _ = cmd.Wait() }() // leaves no zombie; whoever needs the process asks alive
	p := process{Name: name, PID: cmd.Process.Pid}
	if p.Start, err = startTime(p.PID); err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("%s: %w", name, errors.Join(err, l.dead(name)))
	}
	l.Processes = append(l.Processes, p)
	return l.save()
}

// startTime also says whether a process is there: a zombie is not.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command's name, in parentheses, may hold anything: fields count from behind it, with the 3rd.
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func (p process) alive() bool {
	start, err := startTime(p.PID)
	return err == nil && start == p.Start
}

// kill ends the process and waits until it is gone.
func (p process) kill() error {
	for try := range 300 {
		if !p.alive() {
			return nil
		}
		// A component of the control plane has nothing that is worth an orderly end.
		if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %s (%d): %w", p.Name, p.PID, err)
		}
		time.Sleep(min(time.Duration(try+1)*10*time.Millisecond, 100*time.Millisecond))
	}
	return fmt.Errorf("%s (%d) does not die", p.Name, p.PID)
}

// process finds one by its name.
func (l *Lab) process(name string) (process, error) {
	for _, p := range l.Processes {
		if p.Name == name && p.alive() {
			return p, nil
		}
	}
	return process{}, l.dead(name)
}

// dead is the error about a component that is not running: the end of what it wrote.
func (l *Lab) dead(name string) error {
	return fmt.Errorf("%s does not run; it wrote:\n%s", name, l.tail(name))
}

// tail is the end of a component's log.
func (l *Lab) tail(name string) string {
	b, _ := os.ReadFile(l.Log(name))
	const limit = 3000
	if len(b) > limit {
		b = b[len(b)-limit:]
	}
	return string(b)
}

// checkAlive reports the first process of the lab that has ended.
func (l *Lab) checkAlive() error {
	for _, p := range l.Processes {
		if !p.alive() {
			return l.dead(p.Name)
		}
	}
	return nil
}
