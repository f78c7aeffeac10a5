// Package lab runs a real Kubernetes on one machine without a registry, kubeadm or a way out: etcd, API
// server, controller manager and scheduler in a network namespace of their own, and nodes that are each a
// machine of their own (network, mount, PID, UTS, IPC and cgroup namespaces) with containerd, kubelet and
// kube-proxy. One bridge joins them; every default route ends there.
//
// The programs come from build/kube. On the machine outside a lab keeps its namespaces' names, one cgroup
// per node and hierarchy, and the folder Root/NAME, in which lab.json lists every process that was
// started; Down needs nothing else. Two labs of different names stand side by side.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Root is the folder that the labs' state lies in.
func Root() string { return filepath.Join(os.TempDir(), "heddle-kube") }

// Networks of pods, by Spec.Network.
const (
	// Heddle applies Spec.Manifest.
	Heddle = "heddle"
	// Reference is bridge, host-local and portmap with static routes between the nodes: the baseline.
	Reference = "reference"
	// None leaves the nodes without a CNI configuration, hence NotReady.
	None = "none"
)

// Spec is what a lab is made from; Default fills what is empty.
type Spec struct {
	Name  string `json:"name"`  // at most 8 characters: letters and digits
	Bin   string `json:"bin"`   // the folder that build/kube printed
	Nodes int    `json:"nodes"` // n1, n2, …
	// DualStack gives nodes, pods and Services IPv6 beside IPv4.
	DualStack bool   `json:"dualStack,omitempty"`
	Proxy     string `json:"proxy"` // kube-proxy's mode: nftables or iptables
	Network   string `json:"network"`
	// Backend is Heddle's, in Flannel's words: vxlan (also when empty) or host-gw.
	Backend string `json:"backend,omitempty"`
	// Programs is the folder with heddle and heddle-cni that image heddle.local/heddle:dev is made of.
	Programs string `json:"programs,omitempty"`
	// Manifest is the file, or the folder for `kubectl apply -k`, that Heddle is installed with.
	Manifest string `json:"manifest,omitempty"`
	// Progress is told each step as it is done, with the time since the start; nil: silence.
	Progress func(elapsed time.Duration, step string) `json:"-"`
}

// Default is a lab of two nodes with Heddle.
func Default() Spec {
	return Spec{Name: "kube", Nodes: 2, Proxy: "nftables", Network: Heddle}
}

var nameForm = regexp.MustCompile(`^[a-z0-9]{1,8}$`)

func (s Spec) check() error {
	wrong := func(field, value, want string) error {
		return fmt.Errorf("lab %q: %s %q: want %s", s.Name, field, value, want)
	}
	switch {
	case !nameForm.MatchString(s.Name):
		return wrong("name", s.Name, "1 to 8 small letters and digits")
	case s.Nodes < 1 || s.Nodes > 100:
		return wrong("nodes", fmt.Sprint(s.Nodes), "1 to 100")
	case s.Proxy != "nftables" && s.Proxy != "iptables":
		return wrong("proxy", s.Proxy, "nftables or iptables")
	case s.Network != Heddle && s.Network != Reference && s.Network != None:
		return wrong("network", s.Network, "heddle, reference or none")
	case s.Network == Heddle && s.Manifest == "":
		return wrong("manifest", s.Manifest, "a file or folder that installs Heddle")
	case s.Network == Heddle && s.Programs == "":
		return wrong("programs", s.Programs, "the folder with heddle and heddle-cni")
	}
	if _, err := os.Stat(filepath.Join(s.Bin, "kube-apiserver")); err != nil {
		return fmt.Errorf("lab %q: bin: want the folder that build/kube prints: %w", s.Name, err)
	}
	return nil
}

// The addresses of every lab: nobody outside sees them.
var (
	serviceNet4 = netip.MustParsePrefix("10.96.0.0/16")
	serviceNet6 = netip.MustParsePrefix("fd00:10:96::/112")
	podNet4     = netip.MustParsePrefix("10.244.0.0/16")
	podNet6     = netip.MustParsePrefix("fd00:10:244::/56")
	dnsAddress  = netip.MustParseAddr("10.96.0.10")
	wire4       = netip.MustParsePrefix("10.250.0.0/24")
	wire6       = netip.MustParsePrefix("fd00:10:250::/64")
)

// Lab is a lab that stands, or what is left of one.
type Lab struct {
	Spec      Spec      `json:"spec"`
	Processes []process `json:"processes"`
	dir       string
	begin     time.Time
}

// Load finds a lab by its name.
func Load(name string) (*Lab, error) {
	l := &Lab{dir: filepath.Join(Root(), name)}
	b, err := os.ReadFile(l.path("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no lab %q is up: %w", name, err)
	}
	if err == nil {
		err = json.Unmarshal(b, l)
	}
	if err != nil {
		return nil, fmt.Errorf("lab %q: %w", name, err)
	}
	return l, nil
}

// save writes lab.json; it is called before anything is left on the machine that Down has to know of.
func (l *Lab) save() error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err == nil {
		err = os.WriteFile(l.path("lab.json.new"), b, 0o600)
	}
	if err == nil {
		err = os.Rename(l.path("lab.json.new"), l.path("lab.json"))
	}
	return err
}

func (l *Lab) path(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

// Log is the file with the output of a component (etcd, kube-apiserver, …) or of a node's component
// (n1-kubelet, n1-containerd, n1-kube-proxy, n1-init).
func (l *Lab) Log(component string) string { return l.path("log", component+".log") }

// Nodes names the nodes: n1, n2, …
func (l *Lab) Nodes() (names []string) {
	for i := range l.Spec.Nodes {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	return names
}

// NodeAddresses are those of the i-th node, from 0: 10.250.0.11, and fd00:10:250::11 in a dual-stack lab.
func (l *Lab) NodeAddresses(i int) []netip.Addr {
	a := []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.250.0.%d", 11+i))}
	if l.Spec.DualStack {
		a = append(a, netip.MustParseAddr(fmt.Sprintf("fd00:10:250::%d", 11+i)))
	}
	return a
}

// controlPlane are the addresses of the bridge, which the API server listens on.
func (l *Lab) controlPlane() []netip.Addr {
	a := []netip.Addr{wire4.Addr().Next()}
	if l.Spec.DualStack {
		a = append(a, wire6.Addr().Next())
	}
	return a
}

func (l *Lab) step(format string, args ...any) {
	if l.Spec.Progress != nil {
		l.Spec.Progress(time.Since(l.begin), fmt.Sprintf(format, args...))
	}
}

// Up brings a lab up: every node Ready and CoreDNS running, or with network none, every node registered.
// When it fails it takes down what it had made, and the error ends with what the component at fault wrote.
func Up(ctx context.Context, spec Spec) (*Lab, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	l := &Lab{Spec: spec, dir: filepath.Join(Root(), spec.Name), begin: time.Now()}
	if err := os.MkdirAll(Root(), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		return nil, fmt.Errorf("lab %q is up already, or what is left of it (kubelab down): %w", spec.Name, err)
	}
	if err := l.up(ctx); err != nil {
		err = fmt.Errorf("lab %q: %w", spec.Name, err)
		return nil, errors.Join(err, l.Down())
	}
	return l, nil
}

func (l *Lab) up(ctx context.Context) error {
	if err := l.save(); err != nil {
		return err
	}
	if err := os.Mkdir(l.path("log"), 0o755); err != nil {
		return err
	}
	if err := l.makeCertificates(); err != nil {
		return err
	}
	if err := l.makeImages(); err != nil {
		return err
	}
	l.step("certificates and images")
	if err := l.makeNetwork(); err != nil {
		return err
	}
	for i := range l.Nodes() {
		// A node loads its images while the control plane starts; its kubelet tries until it answers.
		if err := l.startNode(i); err != nil {
			return err
		}
	}
	if err := l.startControlPlane(ctx); err != nil {
		return err
	}
	l.step("API server answers")
	if err := l.waitForNodes(ctx); err != nil {
		return err
	}
	l.step("nodes are registered")
	if err := l.install(ctx); err != nil || l.Spec.Network == None {
		return err
	}
	if err := l.waitReady(ctx); err != nil {
		return err
	}
	return l.startDNS(ctx)
}

// Down stops every process that the lab started and removes its namespaces, cgroups and files. It can
// be called again, and on what is left of a lab that did not come up.
func (l *Lab) Down() error {
	var errs []error
	for i := len(l.Processes) - 1; i >= 0; i-- {
		errs = append(errs, l.Processes[i].kill())
	}
	for _, n := range l.Nodes() {
		errs = append(errs, removeCgroups(l.cgroup(n)))
	}
	errs = append(errs, l.removeNetwork())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab %q is not all gone: %w", l.Spec.Name, err) // lab.json stays for another try
	}
	return os.RemoveAll(l.dir)
}
