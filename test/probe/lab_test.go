package probe

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/test/harness"
	"github.com/heddle-net/heddle/test/harness/labstore"
	"github.com/heddle-net/heddle/test/oracle"
)

// somePods run on the nodes as listed: on one node within a namespace and across, and on several.
var somePods = []struct {
	node, name string
	labels     []string
}{
	{"n1", "dev/web-0", []string{"app=web", "role=web"}},
	{"n1", "dev/db", []string{"app=db"}},
	{"n1", "prod/web-0", []string{"app=web", "env=db"}},
	{"n1", "test/api", nil},
	{"n2", "dev/web-1", []string{"app=web", "example.com/zone=web"}},
	{"n2", "prod/db", []string{"app=db", "role=db"}},
	{"n2", "test/pod1", []string{"role=webdb"}},
	{"n3", "prod/api", []string{"env=web"}},
	{"n3", "test/pod2", []string{"app=webdb", "role=web"}},
}

// openPorts are those on which somebody listens, everywhere.
var openPorts = []uint16{53, 80, 443, 8081, 32768}

// cluster is a lab with all that packets go between.
type cluster struct {
	t         *testing.T
	ctx       context.Context
	lab       *lab.Lab
	store     store.Store
	pods      []*place
	hosts     []*place // nodes, and a machine outside
	nodes     []oracle.Node
	endpoints []model.Endpoint
	applied   []byte // by the last world
}

func newCluster(t *testing.T, topology, netConf, attachment string) *cluster {
	t.Helper()
	harness.Root(t)
	bin := harness.Build(t)
	top, err := lab.LoadTopology(topology)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout(t))
	t.Cleanup(cancel)
	l, err := lab.Up(ctx, lab.Spec{Name: harness.Name("probe"), Topology: top, NetConf: netConf, Attachment: attachment, Heddle: bin.Heddle, CNI: bin.Plugin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{t: t, ctx: ctx, lab: l}
	for _, name := range append(l.Nodes(), "outside") {
		c.addHost(name)
	}
	for _, p := range somePods {
		c.addPod(p.node, p.name, p.labels)
	}
	for _, p := range slices.Concat(c.pods, c.hosts) {
		if err := p.answerEverything(); err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		if !p.pod { // not before the pods are there: then the nodes have all their addresses
			if p.addrs, err = p.own(); err != nil {
				t.Fatal(err)
			}
			c.nodes = append(c.nodes, oracle.Node{Name: p.name, Addresses: p.addrs})
		}
		p.serve(t, openPorts)
	}
	c.store = labstore.Open(c.ctx, c.t, c.lab, c.hosts[0].do)
	return c
}

func (c *cluster) initPID(machine string) int {
	pid, err := c.lab.Node(machine).InitPID()
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

func (c *cluster) addHost(name string) {
	c.hosts = append(c.hosts, enter(c.t, place{name: name, node: name}, fmt.Sprintf("/proc/%d/ns/net", c.initPID(name))))
}

func (c *cluster) addPod(node, name string, labels []string) {
	c.t.Helper()
	p, err := c.lab.AddPod(c.ctx, node, name, labels...)
	if err != nil {
		c.t.Fatal(err)
	}
	namespace, own, _ := strings.Cut(name, "/")
	e := model.Endpoint{Node: node, Link: p.Name, Namespace: namespace, Name: own, Addresses: p.Addresses, Labels: map[string]string{}}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		e.Labels[k] = v
	}
	c.endpoints = append(c.endpoints, e)
	file := filepath.Join("/proc", fmt.Sprint(c.initPID(node)), "root/run/netns", p.Name)
	c.pods = append(c.pods, enter(c.t, place{name: name, node: node, pod: true, addrs: p.Addresses}, file))
}

// become writes a world in place of the one before and waits until every kernel holds it.
func (c *cluster) become(w *oracle.World) {
	c.t.Helper()
	if len(c.applied) > 0 {
		c.heddle(c.applied, "delete", "-f", "-")
	}
	if c.applied = w.YAML(); len(c.applied) > 0 {
		c.heddle(c.applied, "apply", "-f", "-")
	}
	items, _, err := c.store.List(c.ctx, model.KindResource)
	if err != nil {
		c.t.Fatal(err)
	}
	if want := len(w.Resources()); len(items) != want {
		c.t.Fatalf("the store has %d resources, the world %d", len(items), want)
	}
	var last store.Revision
	for _, it := range items {
		last = max(last, it.Revision)
	}
	for _, node := range c.lab.Nodes() {
		harness.Wait(c.t, time.Minute, fmt.Sprintf("%s enforces revision %d", node, last), func() bool {
			s, err := c.lab.Status(c.ctx, node)
			return err == nil && s.Policy.Known && s.Policy.Workloads == len(c.pods) && s.Policy.Revision >= last
		})
		c.understood(node)
	}
}

// understood wants an agent to understand all resources. Some policies are in a tier that is not there.
func (c *cluster) understood(node string) {
	s, err := c.lab.Status(c.ctx, node)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range s.Problems {
		if p.Severity == model.Failure && p.Code != "policy-tier-missing" {
			c.t.Errorf("%s: %s", node, p)
		}
	}
}

func (c *cluster) heddle(stdin []byte, args ...string) {
	c.t.Helper()
	cmd, err := c.lab.Command(c.ctx, "n1", append([]string{"heddle"}, args...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	cmd.Stdin = strings.NewReader(string(stdin))
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("heddle %v: %v\n%s\n%s", args, err, out, stdin)
	}
}

// why is what the nodes of both ends say of a shot.
func (c *cluster) why(s *shot) string {
	var b strings.Builder
	nodes := []string{s.from.node, s.to.node}
	for _, n := range slices.Compact(nodes) {
		if n == "outside" {
			continue
		}
		out, err := c.lab.Exec(c.ctx, n, "heddle", "why", s.src.String(), s.target())
		fmt.Fprintf(&b, "heddle why on %s (%v):\n%s", n, err, out)
	}
	return b.String()
}

func timeout(t *testing.T) time.Duration {
	if end, ok := t.Deadline(); ok {
		return time.Until(end) - 10*time.Second
	}
	return time.Hour
}

// keep files a world for whoever looks for the fault.
func keep(t *testing.T, name string, text []byte) string {
	path := filepath.Join(os.TempDir(), name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Error(err)
	}
	return path
}
