package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// initVariable tells a process that it is a node's first: "LAB INDEX".
	initVariable = "HEDDLE_KUBE_INIT"
	systemPath   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Init turns this process into a node's first one if it was started as that, and then does not return.
// Every program that calls Up calls it before anything else.
func Init() {
	var name string
	var index int
	if n, _ := fmt.Sscan(os.Getenv(initVariable), &name, &index); n != 2 {
		return
	}
	err := os.Unsetenv(initVariable)
	if err == nil {
		err = runNode(name, index)
	}
	fmt.Fprintln(os.Stderr, "node ends:", err)
	os.Exit(1)
}

// runNode makes the machine, starts its daemons, and reaps what is left to it until one of them ends by itself. One
// that somebody killed is started again, as by systemd.
func runNode(name string, index int) error {
	l, err := Load(name)
	if err != nil {
		return err
	}
	node := l.Nodes()[index]
	if err := l.makeMachine(node, index); err != nil {
		return err
	}
	if err := os.Setenv("PATH", l.Spec.Bin+":"+systemPath); err != nil {
		return err
	}
	daemons := map[int][]string{}
	start := func(argv ...string) error {
		program := argv[0]
		log, err := os.OpenFile(l.Log(node+"-"+program), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer log.Close()
		p, err := os.StartProcess(l.bin(program), argv, &os.ProcAttr{Files: []*os.File{nil, log, log}, Sys: &unix.SysProcAttr{Setsid: true}})
		if err != nil {
			return err
		}
		daemons[p.Pid] = argv
		return nil
	}
	if err := start("containerd", "--config", l.path(node, "containerd.toml")); err != nil {
		return err
	}
	if err := loadImages(l); err != nil {
		return err
	}
	var ips []string
	for _, a := range l.NodeAddresses(index) {
		ips = append(ips, a.String())
	}
	if err := errors.Join(
		start("kubelet", "--config", l.path(node, "kubelet.yaml"), "--kubeconfig", l.path("pki", node+".kubeconfig"),
			"--hostname-override", node, "--node-ip", strings.Join(ips, ","), "--v=2"),
		start("kube-proxy", "--config", l.path(node, "kube-proxy.yaml"), "--v=2"),
	); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		argv, daemon := daemons[pid]
		if !daemon || err != nil {
			continue
		}
		if !status.Signaled() {
			return fmt.Errorf("%s ended with status %d", argv[0], status.ExitStatus())
		}
		delete(daemons, pid)
		if err := start(argv...); err != nil {
			return err
		}
	}
}

// loadImages waits for containerd and gives it every image of the lab.
func loadImages(l *Lab) error {
	var err error
	for range 300 {
		if err = exec.Command("ctr", "version").Run(); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("containerd does not answer: %w", err)
	}
	images, err := filepath.Glob(l.path("images", "*.tar"))
	if err != nil {
		return err
	}
	for _, i := range images {
		if err := run("ctr", "-n", "k8s.io", "images", "import", "--snapshotter", "overlayfs", i); err != nil {
			return err
		}
	}
	return nil
}

// makeMachine makes everything that a node would write to its own: what is mounted here is seen by
// nobody else.
func (l *Lab) makeMachine(node string, index int) error {
	if err := unix.Sethostname([]byte(node)); err != nil {
		return err
	}
	var m mounts
	m.mount("sysfs", "/sys", "sysfs", 0, "")
	m.do("cgroups", mountCgroups)
	m.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
	m.tmp(l.dir, l.Spec.Bin)
	for _, dir := range []string{"/etc", "/opt", "/var/lib"} {
		m.private(dir, l.path(node, "private"))
	}
	m.bind(l.path(node, "kubelet"), "/var/lib/kubelet")
	m.bind(l.path(node, "containerd"), "/var/lib/containerd")
	m.bind(l.path(node, "log"), "/var/log")
	m.sysctls()
	m.mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "")
	if m.err != nil {
		return m.err
	}
	for _, d := range []string{"/run/lock", "/run/netns", "/etc/cni/net.d", "/opt/cni/bin"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	hosts := "127.0.0.1 localhost\n"
	for _, a := range l.NodeAddresses(index) {
		hosts += fmt.Sprintf("%s %s\n", a, node)
	}
	runc, err := exec.LookPath("runc")
	return errors.Join(err,
		os.WriteFile("/etc/hosts", []byte(hosts), 0o644),
		os.WriteFile("/run/resolv.conf", nil, 0o644),
		l.placePlugins(),
		l.render("containerd.toml", l.path(node, "containerd.toml"), map[string]any{"Runc": runc}),
		l.render("kubelet.yaml", l.path(node, "kubelet.yaml"), map[string]any{"PKI": l.path("pki"), "Name": node, "DNS": dnsAddress}),
		l.render("kube-proxy.yaml", l.path(node, "kube-proxy.yaml"), map[string]any{
			"PKI": l.path("pki"), "Name": node, "Proxy": l.Spec.Proxy, "PodNets": l.join(podNet4, podNet6),
		}))
}

// placePlugins puts CNI plugins where runtimes look: loopback, which containerd asks for, and with the
// reference network the plugins of that.
func (l *Lab) placePlugins() error {
	want := []string{"loopback"}
	if l.Spec.Network == Reference {
		want = append(want, "bridge", "host-local", "portmap")
	}
	for _, p := range want {
		b, err := os.ReadFile(l.bin("cni/" + p))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join("/opt/cni/bin", p), b, 0o755); err != nil {
			return err
		}
	}
	return nil
}
