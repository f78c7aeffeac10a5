package plan_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
	"github.com/heddle-net/heddle/internal/plan"
)

var update = flag.Bool("update", false, "write what comes out into the golden files")

// scenario is the input of a golden file: cluster.yaml, and net-conf.json where the pools are Flannel's.
type scenario struct {
	Self       string           `json:"self"`
	Pools      []model.Pool     `json:"pools"`
	Nodes      []model.Node     `json:"nodes"`
	Blocks     []model.Block    `json:"blocks"`
	Attachment model.Attachment `json:"attachment"`
	Workloads  []model.Workload `json:"workloads"`
	Masquerade bool             `json:"masquerade"`
	Policed    bool             `json:"policed"`
	BGP        peering.Config   `json:"bgp"`
	Learned    []peering.Route  `json:"learned"`
	// Before is the net-conf.json in force before: its devices are those that the last plan had.
	Before string `json:"before"`
	// Keep are devices that the last plan had, where no net-conf.json says so.
	Keep []plan.Link `json:"keep"`
}

// input is the plan input of one node of the scenario.
func (s *scenario) input(t *testing.T, netConf []byte, self string) plan.Input {
	t.Helper()
	in := plan.Input{Self: self, Attachment: s.Attachment, Workloads: s.Workloads, Policed: s.Policed, BGP: s.BGP, Learned: s.Learned, Keep: s.Keep}
	in.Cluster = model.Cluster{Pools: s.Pools, Nodes: s.Nodes, Blocks: s.Blocks}
	if netConf != nil {
		pools, err := flannel.ParseNetConf(netConf)
		if err != nil {
			t.Fatal(err)
		}
		for i := range pools {
			pools[i].Masquerade = s.Masquerade
		}
		in.Cluster.Pools = pools
	}
	in.Cluster.Sort()
	if n := in.Cluster.Node(self); n != nil {
		in.Host.Uplinks = n.Uplinks
	}
	return in
}

func readScenario(t *testing.T, file string) (*txtar.Archive, *scenario, plan.Input) {
	t.Helper()
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s scenario
	if err := yaml.UnmarshalStrict(section(ar, "cluster.yaml"), &s); err != nil {
		t.Fatal(err)
	}
	in := s.input(t, section(ar, "net-conf.json"), s.Self)
	if s.Before != "" {
		before := s.input(t, []byte(s.Before), s.Self)
		p, err := plan.Build(before)
		if err != nil {
			t.Fatal(err)
		}
		in.Keep = p.Links
	}
	return ar, &s, in
}

func section(ar *txtar.Archive, name string) []byte {
	for _, f := range ar.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

// TestGolden builds every scenario of testdata and compares what the golden file has of it: the commands
// (shell), the workloads' commands (pods), the whole plan as lines (plan), and what people are told (status).
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, _, in := readScenario(t, file)
			p, err := plan.Build(in)
			if err != nil {
				t.Fatal(err)
			}
			var pods strings.Builder
			for _, w := range in.Workloads {
				pods.WriteString(plan.ShellPod(plan.PodOf(in, w, p.MTU), w.Netns))
			}
			got := map[string]string{
				"shell": plan.Shell(p), "pods": pods.String(),
				"plan": plan.DiffText(plan.Diff(plan.Plan{}, p)), "status": status(&p), "routes": routes(&p),
			}
			compare(t, file, ar, got)
			again, err := plan.Build(in)
			if err != nil || len(plan.Diff(p, again)) > 0 || asJSON(t, p) != asJSON(t, again) {
				t.Error("the same input made another plan")
			}
		})
	}
}

func compare(t *testing.T, file string, ar *txtar.Archive, got map[string]string) {
	t.Helper()
	for i := range ar.Files {
		f := &ar.Files[i]
		g, ok := got[f.Name]
		if !ok {
			continue
		}
		if *update {
			f.Data = []byte(g)
		} else if string(f.Data) != g {
			t.Errorf("%s: %s is not as in the golden file (go test -update writes it); got:\n%s", file, f.Name, g)
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// routes is what `heddle routes` has of a plan, as lines.
func routes(p *plan.Plan) string {
	var b strings.Builder
	for _, o := range p.Origins {
		star := " "
		if o.Used {
			star = "*"
		}
		via := ""
		if o.Via.IsValid() {
			via = " via " + o.Via.String()
		}
		fmt.Fprintf(&b, "%s %s%s, %s: %s\n", star, o.Dst, via, o.From, o.Reason)
	}
	return b.String()
}

// status is what `heddle status` has of a plan, as lines.
func status(p *plan.Plan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "mtu %d, accepts %v, sends %v\n", p.MTU, plan.Accepts(p), plan.Sends(p))
	for _, q := range p.Peers {
		via := ""
		if q.Via.IsValid() {
			via = fmt.Sprintf(" via %s, mtu %d", q.Via, q.MTU)
		}
		how := string(q.Path)
		if how == "" {
			how = "unreachable"
		}
		fmt.Fprintf(&b, "%s %s: %s%s: %s\n", q.Node, q.Block, how, via, q.Reason)
	}
	for _, q := range p.Problems {
		fmt.Fprintf(&b, "%s %s: %s\n    next: %s\n", q.Severity, q.Code, q, q.Next)
	}
	return b.String()
}
