package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// join writes the shell's own process ID to the files up to "--" and becomes the command behind it.
const join = `while [ "$1" != -- ]; do echo $$ >"$1" || exit; shift; done; shift; exec "$@"`

// startNode starts the i-th node: this program again, as the first process of namespaces of its own
// (see Init). Whoever kills the recorded process kills all that runs in the node.
func (l *Lab) startNode(i int) error {
	node := l.Nodes()[i]
	enter, leave, err := makeCgroups(l.cgroup(node))
	if err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	for _, d := range []string{"kubelet", "containerd", "log/pods", "log/containers"} {
		if err := os.MkdirAll(l.path(node, d), 0o755); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	argv := append([]string{"sh", "-c", join, "sh"}, enter...)
	argv = append(argv, "--", "unshare", "--cgroup", "sh", "-c", join, "sh")
	argv = append(argv, leave...)
	argv = append(argv, "--", "nsenter", "--net=/run/netns/"+l.namespace(node),
		"unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"env", fmt.Sprintf("%s=%s %d", initVariable, l.Spec.Name, i), self)
	return l.start(node+"-init", argv...)
}

// waitForNodes waits until every node has registered, been given its networks of pods, and can be
// reached by the control plane at those: routes that every real one has by some way.
func (l *Lab) waitForNodes(ctx context.Context) error {
	for i, node := range l.Nodes() {
		var nets []string
		err := l.until(ctx, 2*time.Minute, "node "+node, func() error {
			out, err := l.Kubectl(ctx, "get", "node", node, "-o", "jsonpath={.spec.podCIDRs[*]}")
			if nets = strings.Fields(out); err == nil && len(nets) != len(l.NodeAddresses(i)) {
				err = fmt.Errorf("it has networks %q", nets)
			}
			return err
		})
		if err != nil {
			return err
		}
		for f, net := range nets {
			if err := l.route("cp", net, l.NodeAddresses(i)[f].String()); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitReady waits until the API server calls every node Ready.
func (l *Lab) waitReady(ctx context.Context) error {
	if err := l.wait(ctx, 3*time.Minute, "condition=Ready", "node", "--all"); err != nil {
		return err
	}
	l.step("nodes are Ready")
	return nil
}

// wait is `kubectl wait`.
func (l *Lab) wait(ctx context.Context, limit time.Duration, what string, args ...string) error {
	_, err := l.Kubectl(ctx, append([]string{"wait", "--for=" + what, "--timeout=" + limit.String()}, args...)...)
	return err
}

// initPID finds the first process of a node.
func (l *Lab) initPID(node string) (int, error) {
	outer, err := l.process(node + "-init")
	if err != nil {
		return 0, err
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if err != nil {
			continue // it ended meanwhile
		}
		var pid, parent int
		var state string
		_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil || parent != outer.PID {
			continue
		}
		if _, err := fmt.Sscan(string(b), &pid); err == nil {
			return pid, nil
		}
	}
	return 0, l.dead(node + "-init")
}

// Command is a command in a node ("n1"), or in the control plane's network ("cp"), with the lab's
// programs on its path and, in the control plane, its administrator's KUBECONFIG.
func (l *Lab) Command(ctx context.Context, machine string, argv ...string) (*exec.Cmd, error) {
	enter := []string{"ip", "netns", "exec", l.namespace("cp")}
	if machine != "cp" {
		pid, err := l.initPID(machine)
		if err != nil {
			return nil, err
		}
		enter = []string{"nsenter", "-t", fmt.Sprint(pid), "-n", "-m", "-p", "-u", "-i", "-C"}
	}
	argv = append(enter, argv...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+l.Spec.Bin+":"+systemPath, "KUBECONFIG="+l.path("pki", "admin.kubeconfig"))
	return cmd, nil
}

// Exec runs such a command and returns what it printed.
func (l *Lab) Exec(ctx context.Context, machine string, argv ...string) (string, error) {
	cmd, err := l.Command(ctx, machine, argv...)
	if err != nil {
		return "", err
	}
	return output(cmd)
}

// Kubectl is kubectl as the administrator.
func (l *Lab) Kubectl(ctx context.Context, args ...string) (string, error) {
	return l.Exec(ctx, "cp", append([]string{"kubectl"}, args...)...)
}

// Apply gives manifests to the API server.
func (l *Lab) Apply(ctx context.Context, manifests string) error {
	cmd, err := l.Command(ctx, "cp", "kubectl", "apply", "-f", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = strings.NewReader(manifests)
	_, err = output(cmd)
	return err
}

// output is what a command wrote to its standard output; its error tells what it wrote to the other.
func output(cmd *exec.Cmd) (string, error) {
	var errors strings.Builder
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errors.String()))
	}
	return string(out), err
}

func (l *Lab) bin(name string) string { return filepath.Join(l.Spec.Bin, name) }
