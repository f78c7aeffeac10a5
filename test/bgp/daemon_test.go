package bgp_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// daemon is somebody else's speaker, in a network namespace of its own on the bridge.
type daemon struct {
	t     *testing.T
	n     int // its address is at(n), at6(n)
	dir   string
	shell *exec.Cmd // holds the namespace
	procs []*exec.Cmd
	kind
}

// kind is whose it is.
type kind struct {
	name    string
	program string
	first   string                                // a file of the first process, for which others wait
	user    string                                // as whom it runs; "": root
	run     func(d *daemon) [][]string            // command lines, in order
	show    func(d *daemon, prefix string) string // what it says of a prefix
	keeps   func(d *daemon, prefix string) bool   // whether it keeps a route for a neighbor that restarts
}

var bird = kind{
	name: "bird", program: "bird",
	run: func(d *daemon) [][]string {
		return [][]string{{"bird", "-f", "-c", d.file("bird.conf"), "-s", d.file("ctl"), "-P", d.file("bird.pid")}}
	},
	show: func(d *daemon, prefix string) string {
		return d.ask("birdc", "-r", "-s", d.file("ctl"), "show", "route", "for", prefix, "all")
	},
	keeps: func(d *daemon, prefix string) bool {
		protocol := regexp.MustCompile(`\[(\S+) `).FindStringSubmatch(d.show(d, prefix))
		return protocol != nil && strings.Contains(d.ask("birdc", "-r", "-s", d.file("ctl"), "show", "protocols", "all", protocol[1]), "graceful restart active")
	},
}

var frr = kind{
	name: "frr", program: "/usr/lib/frr/bgpd", user: "frr", first: "zserv",
	run: func(d *daemon) [][]string {
		common := []string{"-z", d.file("zserv"), "--vty_socket", d.dir, "-A", "127.0.0.1"}
		return [][]string{
			append([]string{"/usr/lib/frr/zebra", "-f", d.file("zebra.conf"), "-i", d.file("zebra.pid")}, common...),
			append([]string{"/usr/lib/frr/bgpd", "-f", d.file("bgpd.conf"), "-i", d.file("bgpd.pid")}, common...),
		}
	},
	show: func(d *daemon, prefix string) string {
		family := "ipv4"
		if strings.Contains(prefix, ":") {
			family = "ipv6"
		}
		return d.ask("vtysh", "--vty_socket", d.dir, "-c", fmt.Sprintf("show bgp %s unicast %s", family, prefix))
	},
	keeps: func(d *daemon, prefix string) bool {
		return strings.Contains(strings.ToLower(d.show(d, prefix)), "stale")
	},
}

// newDaemon makes the namespace; files are its configuration.
func newDaemon(t *testing.T, k kind, n int, files map[string]string) *daemon {
	t.Helper()
	if _, err := exec.LookPath(k.program); err != nil {
		t.Fatalf("%s is missing: run build/setup test", k.program)
	}
	dir, err := os.MkdirTemp("", "heddle-bgp-") // short: sockets go there
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, n: n, dir: dir, kind: k}
	d.shell = exec.Command("sleep", "infinity")
	d.shell.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := d.shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, f := range []string{"log", "out"} {
				b, _ := os.ReadFile(d.file(f))
				t.Logf("%s %s: %s", k.name, f, tail(b))
			}
		}
		d.kill()
		_ = d.shell.Process.Kill()
		_ = d.shell.Wait()
		_ = os.RemoveAll(dir)
	})
	pid := d.shell.Process.Pid
	sh := func(format string, a ...any) {
		t.Helper()
		line := fmt.Sprintf(format, a...)
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	sh("ip link add v%d type veth peer name eth0 netns %d && ip link set v%d master br0 up", pid, pid, pid)
	in := fmt.Sprintf("nsenter -t %d -n ", pid)
	sh("%s ip link set lo up && %s ip link set eth0 up && %s ip addr add %s/24 dev eth0 && %s ip addr add %s/64 dev eth0 nodad", in, in, in, at(n), in, at6(n))
	for name, text := range files {
		if err := os.WriteFile(d.file(name), []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if k.user != "" {
		sh("chown %s %s", k.user, dir)
	}
	d.start()
	return d
}

func (d *daemon) file(name string) string { return filepath.Join(d.dir, name) }

func (d *daemon) start() {
	d.t.Helper()
	out, err := os.OpenFile(d.file("out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	for _, line := range d.run(d) {
		cmd := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(d.shell.Process.Pid), "-n"}, line...)...)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			d.t.Fatal(err)
		}
		d.procs = append(d.procs, cmd)
		if d.first != "" { // what the others connect to when they start
			until(d.t, d.first, func() bool { _, err := os.Stat(d.file(d.first)); return err == nil })
		}
	}
}

// kill is SIGKILL to all of its processes.
func (d *daemon) kill() {
	for _, p := range d.procs {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
	d.procs = nil
}

func (d *daemon) ask(command ...string) string {
	out, _ := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(d.shell.Process.Pid), "-n"}, command...)...).CombinedOutput()
	return string(out)
}

// says waits until what the daemon says of a prefix has all these in it.
func (d *daemon) says(prefix string, parts ...string) {
	d.t.Helper()
	var said string
	defer func() {
		if d.t.Failed() {
			d.t.Logf("%s says of %s: %s", d.name, prefix, said)
		}
	}()
	until(d.t, fmt.Sprintf("%s says of %s: %q", d.name, prefix, parts), func() bool {
		said = d.show(d, prefix)
		return hasAll(said, parts...)
	})
}

func hasAll(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}
