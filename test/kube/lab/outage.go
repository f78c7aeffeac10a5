package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Stop kills a component of the control plane (kube-apiserver, etcd, …), as a power cut would, and returns
// what starts it again as it was.
func (l *Lab) Stop(name string) (again func() error, err error) {
	p, err := l.process(name)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
	if err != nil {
		return nil, err
	}
	argv := strings.Split(string(bytes.TrimSuffix(text, []byte{0})), "\x00")
	if err := p.kill(); err != nil {
		return nil, err
	}
	l.Processes = slices.DeleteFunc(l.Processes, func(q process) bool { return q == p })
	if err := l.save(); err != nil {
		return nil, err
	}
	return func() error { return l.startControl(name, argv[1:]...) }, nil
}

// Reboot takes a node's power away and starts it again: its processes, its /run and all that its kernel held of networks
// are gone, its disk is as it was. It returns when the node has been started; what runs on it takes a while longer.
func (l *Lab) Reboot(node string) error {
	i := slices.Index(l.Nodes(), node)
	if i < 0 {
		return fmt.Errorf("lab %q has no node %q", l.Spec.Name, node)
	}
	p, err := l.process(node + "-init")
	if err != nil {
		return err
	}
	if err := p.kill(); err != nil {
		return err
	}
	l.Processes = slices.DeleteFunc(l.Processes, func(q process) bool { return q == p })
	if err := l.save(); err != nil {
		return err
	}
	ns := l.namespace(node)
	for _, step := range []func() error{
		func() error { return removeCgroups(l.cgroup(node)) },                           // waits for the last process
		func() error { return ip(l.namespace("cp"), fmt.Sprintf("link del v%d\n", i)) }, // the kernel takes its time over the rest
		func() error { return run("ip", "netns", "del", ns) },
		func() error { return makeNamespace(ns) },
		func() error { return l.wire(i) },
		func() error { return l.startNode(i) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("reboot of %s: %w", node, err)
		}
	}
	return nil
}

// WaitForAPI waits until the API server answers.
func (l *Lab) WaitForAPI(ctx context.Context) error {
	return l.until(ctx, 2*time.Minute, "the API server", func() error {
		_, err := l.Kubectl(ctx, "get", "--raw", "/readyz")
		return err
	})
}

// Netns opens the network namespace of the pod on a node that has an address. The caller closes it.
func (l *Lab) Netns(ctx context.Context, node, address string) (*os.File, error) {
	pid, err := l.initPID(node)
	if err != nil {
		return nil, err
	}
	names, err := l.Exec(ctx, node, "ls", "/run/netns")
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Fields(names) {
		out, err := l.Exec(ctx, node, "nsenter", "--net=/run/netns/"+name, "ip", "-o", "address")
		if err == nil && strings.Contains(out, " "+address+"/") {
			return os.Open(fmt.Sprintf("/proc/%d/root/run/netns/%s", pid, name))
		}
	}
	return nil, fmt.Errorf("node %s: no pod has the address %s", node, address)
}
