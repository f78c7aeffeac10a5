package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/config"
)

// Ports of the embedded store: etcd's own.
const (
	clientPort = "2379"
	peerPort   = "2380"
)

// machineConfig makes a machine's directories, and what its init is told.
func (l *Lab) machineConfig(name string) (MachineConfig, error) {
	n := l.Spec.Topology.node(name)
	binds, err := l.makeMachineDirs(name, n != nil)
	if err != nil {
		return MachineConfig{}, err
	}
	c := MachineConfig{
		Name: name, Binds: binds,
		Env: append([]string{insidePath, "HOME=/root", "LANG=C.UTF-8"}, l.Spec.Env...),
	}
	switch {
	case name == routerName:
		c.Sysctls = routerSysctls()
	case n != nil:
		c.Sysctls = nodeSysctls()
		if l.Spec.Bare {
			break
		}
		if l.Spec.NetConf != "" {
			if err := writeFile(filepath.Join(l.machineDir(name), etcDir, netConfFile), []byte(l.Spec.NetConf), 0o644); err != nil {
				return c, err
			}
		}
		if err := l.writeConfig(n); err != nil {
			return c, err
		}
		if n.Store {
			c.Services = append(c.Services, Service{Name: "store", Args: l.storeArgs(n)})
		}
		c.Services = append(c.Services, Service{Name: "agent", Args: l.agentArgs(n)})
	}
	return c, nil
}

func (l *Lab) storeArgs(n *NodeAt) []string {
	args := []string{
		insideBin, "store", "--name", n.Name, "--data-dir", "/var/lib/heddle/store",
		"--cert", pkiFile("store.crt"), "--key", pkiFile("store.key"), "--ca", pkiFile("ca.crt"),
	}
	for _, a := range n.Addresses {
		args = append(args, "--listen", storeURL(a, clientPort))
	}
	var members []string
	for i := range l.Spec.Topology.Nodes {
		if m := &l.Spec.Topology.Nodes[i]; m.Store {
			members = append(members, m.Name+"="+storeURL(m.Addresses[0], peerPort))
		}
	}
	if len(members) > 1 {
		args = append(args, "--peer-listen", storeURL(n.Addresses[0], peerPort), "--initial-cluster", strings.Join(members, ","))
	}
	return args
}

// writeConfig writes the node's heddle.yaml: where the store is, for the agent and for the commands that
// people run on the node.
func (l *Lab) writeConfig(n *NodeAt) error {
	c := struct {
		Store  config.Store      `json:"store"`
		Labels map[string]string `json:"labels,omitempty"`
		BGP    config.BGP        `json:"bgp,omitzero"`
	}{
		config.Store{Type: config.StoreEtcd, CA: pkiFile("ca.crt"), Cert: pkiFile("agent.crt"), Key: pkiFile("agent.key")},
		n.Labels,
		config.BGP{ASN: n.ASN, ClusterID: n.ClusterID},
	}
	for i := range l.Spec.Topology.Nodes {
		if m := &l.Spec.Topology.Nodes[i]; m.Store {
			c.Store.Endpoints = append(c.Store.Endpoints, storeURL(m.Addresses[0], clientPort))
		}
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(l.machineDir(n.Name), etcDir, configFile), text, 0o644)
}

func (l *Lab) agentArgs(n *NodeAt) []string {
	args := []string{
		insideBin, "agent", "--node", n.Name,
		"--attachment", l.Spec.Attachment, "--bridge", "cni0", "--ip-masq",
		"--state-dir", "/var/lib/heddle", "--run-dir", "/run/heddle",
		"--cni-conf-dir", cniConfDir, "--subnet-file", "/run/flannel/subnet.env",
	}
	if l.Spec.NetConf != "" {
		args = append(args, "--net-conf", insideEtc+"/"+netConfFile)
	}
	if len(n.Public) > 0 {
		args = append(args, "--public-address", joinAddrs(n.Public))
	}
	return append(args, l.Spec.AgentArgs...)
}

func joinAddrs(as []netip.Addr) string {
	var texts []string
	for _, a := range as {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ",")
}

func pkiFile(name string) string { return insideEtc + "/pki/" + name }

func storeURL(a netip.Addr, port string) string {
	return "https://" + net.JoinHostPort(a.String(), port)
}

// makeCertificates makes the lab's own authority, and gives every node its leaves and nothing else:
// the authority's key never enters a machine.
func (l *Lab) makeCertificates() error {
	ca := filepath.Join(l.Dir, pkiDir)
	if err := cert.MakeCA(ca, cert.Options{}); err != nil {
		return err
	}
	for _, n := range l.Spec.Topology.Nodes {
		leaves := map[string]cert.Request{"agent": {Name: n.Name + "-agent", Kind: cert.Client}}
		if n.Store {
			r := cert.Request{Name: n.Name + "-store", Kind: cert.Peer, Hosts: []string{"127.0.0.1", "localhost"}}
			for _, a := range n.Addresses {
				r.Hosts = append(r.Hosts, a.String())
			}
			leaves["store"] = r
		}
		to := filepath.Join(l.machineDir(n.Name), etcDir, "pki")
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		if err := copyFile(filepath.Join(ca, "ca.crt"), filepath.Join(to, "ca.crt")); err != nil {
			return err
		}
		for as, r := range leaves {
			if err := cert.Issue(ca, r, cert.Options{}); err != nil {
				return err
			}
			for _, ext := range []string{".crt", ".key"} {
				if err := copyFile(filepath.Join(ca, r.Name+ext), filepath.Join(to, as+ext)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func copyFile(from, to string) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, raw, 0o600)
}

// Node is a handle on one node of a lab.
type Node struct {
	lab  *Lab
	Name string
}

// Node returns a handle; its methods fail when the lab has no such node.
func (l *Lab) Node(name string) *Node { return &Node{lab: l, Name: name} }

// AgentPID is the host's number of the agent's process.
func (n *Node) AgentPID() (int, error) { return n.servicePID("agent") }

// StorePID is the host's number of the store's process.
func (n *Node) StorePID() (int, error) { return n.servicePID("store") }

func (n *Node) servicePID(service string) (int, error) {
	pid, err := n.lab.initPID(n.Name)
	if err != nil {
		return 0, err
	}
	if pid = serviceOf(pid, service); pid == 0 {
		return 0, fmt.Errorf("node %q: no %s runs now", n.Name, service)
	}
	return pid, nil
}

// InitPID is the host's number of the machine's init, by whose /proc entry its namespaces are found.
func (n *Node) InitPID() (int, error) { return n.lab.initPID(n.Name) }

// LogFile is where a service's output goes, on the host.
func (n *Node) LogFile(service string) string {
	return filepath.Join(n.lab.machineDir(n.Name), logDir, service+".log")
}

// File is the host's path of a file that the node sees below /etc/heddle, /etc/cni/net.d, /run/heddle,
// /run/flannel or /var/lib/heddle; any other path is an error.
func (n *Node) File(inside string) (string, error) {
	for prefix, dir := range map[string]string{
		insideEtc: etcDir, cniConfDir: cniDir, "/run/heddle": runDir, "/run/flannel": flannelDir, "/var/lib/heddle": dataDir,
	} {
		if rest, ok := strings.CutPrefix(inside, prefix); ok && (rest == "" || rest[0] == '/') {
			return filepath.Join(n.lab.machineDir(n.Name), dir, rest), nil
		}
	}
	return "", fmt.Errorf("node %q: %s is not a directory that the host shares", n.Name, inside)
}

// KillAgent sends a signal to the agent; init starts it again when it dies.
func (l *Lab) KillAgent(node string, sig syscall.Signal) error { return l.kill(node, "agent", sig) }

// KillStore is KillAgent for the store.
func (l *Lab) KillStore(node string, sig syscall.Signal) error { return l.kill(node, "store", sig) }

func (l *Lab) kill(node, service string, sig syscall.Signal) error {
	pid, err := l.Node(node).servicePID(service)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, sig)
}

// StopService ends "agent" or "store" on a node by SIGTERM, waits for its end, and keeps it stopped.
func (l *Lab) StopService(ctx context.Context, node, service string) error {
	return l.ask(ctx, node, "stop "+service)
}

// StartService starts what StopService stopped.
func (l *Lab) StartService(ctx context.Context, node, service string) error {
	return l.ask(ctx, node, "start "+service)
}

// ask sends one line to a machine's init and wants "ok".
func (l *Lab) ask(ctx context.Context, machine, line string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(l.machineDir(machine), controlSocket))
	if err != nil {
		return fmt.Errorf("machine %q: %w", machine, err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return fmt.Errorf("machine %q: %w", machine, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("machine %q: %s: %w", machine, line, errors.Join(err, ctx.Err()))
	}
	if answer = strings.TrimSpace(answer); answer != "ok" {
		return fmt.Errorf("machine %q: %s: %s", machine, line, answer)
	}
	return nil
}
