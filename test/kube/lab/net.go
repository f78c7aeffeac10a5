package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// namespace names the network namespace of a machine: "cp" is the control plane, else a node.
func (l *Lab) namespace(machine string) string { return "hk-" + l.Spec.Name + "-" + machine }

func (l *Lab) namespaces() []string {
	names := []string{l.namespace("cp")}
	for _, n := range l.Nodes() {
		names = append(names, l.namespace(n))
	}
	return names
}

// makeNetwork makes the namespaces, the bridge in the control plane's, and a wire to each node. The nodes'
// default route leads to the control plane, which forwards nothing: what has nowhere to go ends there, and
// the addresses of Services are routable until kube-proxy rewrites them.
func (l *Lab) makeNetwork() error {
	for _, ns := range l.namespaces() {
		if err := makeNamespace(ns); err != nil {
			return err
		}
	}
	cp := l.namespace("cp")
	batch := "link add br0 type bridge\nlink set br0 up\n"
	for _, a := range l.controlPlane() {
		batch += fmt.Sprintf("addr add %s/%d dev br0%s\n", a, wireBits(a.Is6()), nodad(a.Is6()))
	}
	if err := ip(cp, batch); err != nil {
		return err
	}
	for i := range l.Nodes() {
		if err := l.wire(i); err != nil {
			return err
		}
	}
	return nil
}

func makeNamespace(name string) error {
	if err := run("ip", "netns", "add", name); err != nil {
		return err
	}
	return run("ip", "-n", name, "link", "set", "lo", "up")
}

// wire joins the i-th node's namespace, which is empty, to the bridge.
func (l *Lab) wire(i int) error {
	ns := l.namespace(l.Nodes()[i])
	if err := ip(l.namespace("cp"), fmt.Sprintf("link add v%d type veth peer name eth0 netns %s\nlink set v%d master br0 up\n", i, ns, i)); err != nil {
		return err
	}
	batch := "link set eth0 up\n"
	for _, a := range l.NodeAddresses(i) {
		batch += fmt.Sprintf("addr add %s/%d dev eth0%s\n", a, wireBits(a.Is6()), nodad(a.Is6()))
	}
	for _, a := range l.controlPlane() {
		batch += fmt.Sprintf("route add default via %s\n", a)
	}
	if err := ip(ns, batch); err != nil {
		return err
	}
	// What every guide to a Kubernetes node asks for.
	want := []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"}
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil {
		want = append(want, "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1")
	}
	return run("ip", append([]string{"netns", "exec", ns, "sysctl", "-qw"}, want...)...)
}

func wireBits(v6 bool) int {
	if v6 {
		return wire6.Bits()
	}
	return wire4.Bits()
}

// nodad: an IPv6 address is used at once, nobody else is on the wire.
func nodad(v6 bool) string {
	if v6 {
		return " nodad"
	}
	return ""
}

// route sends a network by way of an address, in the control plane or a node.
func (l *Lab) route(machine, network, via string) error {
	return ip(l.namespace(machine), fmt.Sprintf("route replace %s via %s\n", network, via))
}

func (l *Lab) removeNetwork() error {
	var errs []error
	for _, ns := range l.namespaces() {
		if _, err := os.Stat(filepath.Join("/run/netns", ns)); err == nil {
			errs = append(errs, run("ip", "netns", "del", ns))
		}
	}
	return errors.Join(errs...)
}

// ip gives ip(8) commands, one per line.
func ip(namespace, batch string) error {
	cmd := exec.Command("ip", "-n", namespace, "-batch", "-")
	cmd.Stdin = strings.NewReader(batch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip in %s: %w: %s", namespace, err, out)
	}
	return nil
}

func run(argv0 string, argv ...string) error {
	if out, err := exec.Command(argv0, argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", argv0, strings.Join(argv, " "), err, out)
	}
	return nil
}
