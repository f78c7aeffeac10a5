// Package lab brings up whole networks on one machine, cut off from its own: nodes, the segments and
// the router between them, and pods, all in namespaces that no link, mount or route of the host
// leads to.
//
// A machine of a lab is one process, the init of its own network, mount, PID, UTS and IPC namespaces.
// On a node it runs the same `heddle agent` and `heddle store` as in production, and pods are added by
// real CNI calls on the conflist that the agent wrote. Killing the inits frees everything; the only
// trace on the host is a directory below Root. The package never talks to the host's network.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Spec is what a lab is made from.
type Spec struct {
	Name     string   `json:"name"`
	Topology Topology `json:"topology"`
	// NetConf is the nodes' net-conf.json, Flannel's format; empty: NetConf("vxlan+direct"), or none when
	// Objects are given.
	NetConf string `json:"netConf"`
	// Objects are written into the store before agents are waited for: YAML as `heddle apply` takes it, such as
	// IPPools and BGPPeers.
	Objects string `json:"objects,omitempty"`
	// Attachment is the pods' style, "bridge" (also when empty) or "routed".
	Attachment string `json:"attachment"`
	// Pods are added in turn to the nodes, named p1, p2, …
	Pods int `json:"-"`
	// Heddle and CNI are the binaries to run; empty: this one, and heddle-cni beside it.
	Heddle string `json:"heddle"`
	CNI    string `json:"cni"`
	// Bare leaves out agents and stores: machines and wires only.
	Bare bool `json:"bare,omitempty"`
	// AgentArgs are added to every agent's command line, Env to the environment of all services.
	AgentArgs []string `json:"agentArgs,omitempty"`
	Env       []string `json:"env,omitempty"`
	// Progress is told each step as it is done, with the time since the start; nil: silence.
	Progress func(elapsed time.Duration, step string) `json:"-"`
}

// Lab is a lab that stands, or what is left of one.
type Lab struct {
	Name string
	Dir  string // on the host; Root/Name
	Spec Spec
	// waits reap the inits while the process that started them lives.
	waits *sync.WaitGroup
	// podMu guards the choice of pod names.
	podMu *sync.Mutex
}

// Deadlines. They are for what is broken: a lab that works is through in a few seconds.
const (
	readyTimeout = 60 * time.Second
	downTimeout  = 30 * time.Second
)

// Errors that callers tell apart.
var (
	ErrExists   = errors.New("exists already")
	ErrNotFound = errors.New("no such lab")
)

// Up makes a lab and returns when its agents are ready, know each other, and the pods are added. On
// any error, also when ctx ends, nothing is left behind.
func Up(ctx context.Context, spec Spec) (*Lab, error) {
	if err := spec.complete(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: namespaces need root: try again with sudo")
	}
	l := newLab(spec)
	if err := os.MkdirAll(Root, 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(l.Dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("lab %q: %w: take it down with `heddle lab down --name %s`, or choose another --name", l.Name, ErrExists, l.Name)
		}
		return nil, err
	}
	if err := l.up(ctx); err != nil {
		err = fmt.Errorf("lab %q: %w", l.Name, err)
		return nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func newLab(spec Spec) *Lab {
	return &Lab{Name: spec.Name, Dir: labDir(spec.Name), Spec: spec, waits: &sync.WaitGroup{}, podMu: &sync.Mutex{}}
}

func (l *Lab) up(ctx context.Context) error {
	began := time.Now()
	step := func(format string, args ...any) {
		if l.Spec.Progress != nil {
			l.Spec.Progress(time.Since(began), fmt.Sprintf(format, args...))
		}
	}
	t := &l.Spec.Topology
	if err := writeJSON(filepath.Join(l.Dir, stateFile), l.Spec); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(l.Dir, podsDir), 0o700); err != nil {
		return err
	}
	if err := l.bootMachines(ctx); err != nil {
		return err
	}
	step("machines wired: %s", describeTopology(t))
	if l.Spec.Bare {
		return nil
	}
	step("store runs on %s; agents run on %s", strings.Join(l.storeNodes(), ", "), strings.Join(l.Nodes(), ", "))
	if l.Spec.Objects != "" {
		said, err := l.apply(ctx)
		if err != nil {
			return err
		}
		step("applied: %s", said)
	}
	if err := l.WaitReady(ctx); err != nil {
		return err
	}
	step("agents ready: address blocks claimed, CNI configuration written")
	missing, err := l.WaitPeers(ctx)
	if err != nil {
		return err
	}
	for _, p := range missing {
		step("no path: %s", p)
	}
	if len(missing) == 0 {
		step("every node has a path to every other")
	}
	if l.Spec.Pods > 0 {
		pods, err := l.addPods(ctx, l.Spec.Pods)
		if err != nil {
			return err
		}
		step("%d pods added by CNI ADD: %s", len(pods), describePods(pods))
	}
	return nil
}

func describeTopology(t *Topology) string {
	var parts []string
	for _, s := range t.Segments {
		var in []string
		for _, m := range t.machines() {
			if m.Segment == s.Name {
				in = append(in, m.Name)
			}
		}
		parts = append(parts, fmt.Sprintf("segment %s (%s)", s.Name, strings.Join(in, ", ")))
	}
	return strings.Join(parts, ", ") + ", router between"
}

// bootMachines starts all inits at once, wires them while they wait, and lets them go.
func (l *Lab) bootMachines(ctx context.Context) error {
	t := &l.Spec.Topology
	names := []string{routerName}
	for _, m := range t.machines() {
		names = append(names, m.Name)
	}
	configs := make([]MachineConfig, len(names))
	for i, name := range names {
		c, err := l.machineConfig(name)
		if err != nil {
			return err
		}
		configs[i] = c
	}
	if !l.Spec.Bare {
		if err := l.makeCertificates(); err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
	}
	boots := make([]*boot, len(names))
	pids := map[string]int{}
	for i, name := range names {
		b, err := l.startMachine(name)
		if err != nil {
			closeBoots(boots)
			return err
		}
		boots[i], pids[name] = b, b.cmd.Process.Pid
	}
	f := &fabric{pids: func(m string) int { return pids[m] }}
	if err := f.wire(ctx, t); err != nil {
		closeBoots(boots)
		return err
	}
	var g errgroup.Group
	for i := range boots {
		g.Go(func() error { return boots[i].configure(ctx, configs[i]) })
	}
	return g.Wait()
}

func closeBoots(boots []*boot) {
	for _, b := range boots {
		if b != nil {
			b.close()
		}
	}
}

// Open finds a lab that was made before; ErrNotFound when there is none. What is left of a lab that
// never stood opens too, with an empty topology, so that it can be taken down.
func Open(name string) (*Lab, error) {
	if err := checkLabName(name); err != nil {
		return nil, err
	}
	l := newLab(Spec{Name: name})
	if _, err := os.Stat(l.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab %q: %w: `heddle lab list` shows those that are up", name, ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	if err := readJSON(filepath.Join(l.Dir, stateFile), &l.Spec); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l.Spec.Name = name
	return l, nil
}

// List names all labs of this machine, sorted, also broken ones.
func List() ([]string, error) {
	entries, err := os.ReadDir(Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && labNameRE.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Down removes the lab whatever state it is in. It may be called again.
func (l *Lab) Down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	if err := killMachines(ctx, l.Dir); err != nil {
		return fmt.Errorf("lab %q: %w", l.Name, err)
	}
	l.waits.Wait()
	if err := os.RemoveAll(l.Dir); err != nil {
		return fmt.Errorf("lab %q: %w", l.Name, err)
	}
	_ = os.Remove(Root) // succeeds only when this was the last one
	return nil
}

// Down removes the lab of that name, also when its state file does not read.
func Down(ctx context.Context, name string) error {
	if err := checkLabName(name); err != nil {
		return err
	}
	l := newLab(Spec{Name: name})
	left, err := inits(l.Dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(l.Dir); errors.Is(err, fs.ErrNotExist) && len(left) == 0 {
		return fmt.Errorf("lab %q: %w", name, ErrNotFound)
	}
	return l.Down(ctx)
}

// Nodes names the nodes in the topology's order.
func (l *Lab) Nodes() []string {
	var names []string
	for _, n := range l.Spec.Topology.Nodes {
		names = append(names, n.Name)
	}
	return names
}

func (l *Lab) storeNodes() []string {
	var names []string
	for _, n := range l.Spec.Topology.Nodes {
		if n.Store {
			names = append(names, n.Name)
		}
	}
	return names
}

func (l *Lab) initPID(machine string) (int, error) {
	if machine != routerName && !slices.ContainsFunc(l.Spec.Topology.machines(), func(m HostAt) bool { return m.Name == machine }) {
		return 0, fmt.Errorf("lab %q: no machine %q: it has %s", l.Name, machine, strings.Join(l.machineNames(), ", "))
	}
	found, err := inits(l.Dir)
	if err != nil {
		return 0, err
	}
	pid, ok := found[machine]
	if !ok {
		return 0, fmt.Errorf("lab %q: machine %q does not run: take the lab down with `heddle lab down --name %s`", l.Name, machine, l.Name)
	}
	return pid, nil
}

func (l *Lab) machineNames() []string {
	var names []string
	for _, m := range l.Spec.Topology.machines() {
		names = append(names, m.Name)
	}
	return append(names, routerName)
}
