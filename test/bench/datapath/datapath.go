// Package datapath measures what a packet between pods costs: Heddle's paths beside pods joined by
// static routes, in turns, in one run. Every network is two nodes with a pod each, in namespaces; what
// the kernel holds for Heddle's is its own plan, applied by its own drivers.
package datapath

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// Floor is the network to which all ratios are.
const Floor = "static"

type recipe struct {
	name, about string
	build       func(context.Context, *network) error
	needs       string // a program
}

var recipes = []recipe{
	{"hosts", "host namespaces on one wire, no pods", hosts, ""},
	{Floor, "pods on bare veths, static routes", static, ""},
	{"host-gw", "Heddle, path direct", planned(setting{path: model.PathDirect, attachment: model.AttachBridge, filter: true}), ""},
	{"vxlan", "Heddle, path vxlan", planned(setting{path: model.PathVXLAN, attachment: model.AttachBridge, filter: true}), ""},
	{"host-gw-norules", "the same as host-gw without the nftables table", planned(setting{path: model.PathDirect, attachment: model.AttachBridge}), ""},
	{"vxlan-norules", "the same as vxlan without the nftables table", planned(setting{path: model.PathVXLAN, attachment: model.AttachBridge}), ""},
	{"host-gw-routed", "Heddle, path direct, pods routed instead of bridged", planned(setting{path: model.PathDirect, attachment: model.AttachRouted, filter: true}), ""},
	{"flannel-host-gw", "the same devices and routes with Flannel's iptables rules", planned(setting{path: model.PathDirect, attachment: model.AttachBridge, flannel: true}), "iptables-restore"},
	{"flannel-vxlan", "the same devices and routes with Flannel's iptables rules", planned(setting{path: model.PathVXLAN, attachment: model.AttachBridge, flannel: true}), "iptables-restore"},
}

// suite is a set of networks that are measured in turns.
type suite struct {
	name    string
	title   string   // what the figures are
	floor   string   // the network to which all ratios are
	recipes []recipe // the floor among them
	more    []recipe // only on request
	tests   []string // all when empty
}

var paths = suite{
	name: "datapath", floor: Floor, recipes: recipes, more: trials,
	title: "Data path, kernel %s, %d rounds in turns. Figures are ratios to pods with static routes in the\n" +
		"same round: median (least..most). tcp, connect and udp64: more is better; rr: less is better.\n",
}

// Report is all that a run found.
type Report struct {
	floor   string
	Kernel  string            `json:"kernel"`
	Rounds  int               `json:"rounds"`
	About   map[string]string `json:"about"` // networks
	Units   map[string]string `json:"units"` // tests
	Samples []sample          `json:"samples"`
	Noisy   int               `json:"noisy"` // samples that stayed noisy
}

// Main measures the paths, prints a table to out and writes all samples as JSON.
func Main(ctx context.Context, args []string, out io.Writer) error { return paths.run(ctx, args, out) }

func (u *suite) run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet(u.name, flag.ContinueOnError)
	rounds := fs.Int("rounds", 5, "how often each test runs in each network")
	tcp := fs.Duration("tcp", 3*time.Second, "length of a TCP stream test")
	other := fs.Duration("other", time.Second, "length of any other test")
	tries := fs.Int("tries", 2, "how often a test is repeated when others use the CPU")
	only := fs.String("only", "", "networks to measure, parted by commas (always with the floor)")
	kinds := fs.String("tests", strings.Join(u.tests, ","), "tests to run, parted by commas; empty for all")
	short := fs.Bool("short", false, "two rounds of half a second, for a look")
	file := fs.String("json", "bin/bench-"+u.name+".json", "where all samples go; empty for nowhere")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *short {
		*rounds, *tcp, *other, *tries = 2, 500*time.Millisecond, 500*time.Millisecond, 0
	}
	chosen := func(list, name string) bool { return list == "" || slices.Contains(strings.Split(list, ","), name) }

	r := Report{floor: u.floor, Rounds: *rounds, About: map[string]string{}, Units: map[string]string{}}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		r.Kernel = strings.TrimSpace(string(b))
	}
	var nets []*network
	candidates := u.recipes
	if *only != "" {
		candidates = slices.Concat(u.recipes, u.more)
	}
	for _, c := range candidates {
		if c.name != u.floor && !chosen(*only, c.name) {
			continue
		}
		if _, err := exec.LookPath(c.needs); c.needs != "" && err != nil {
			_, _ = fmt.Fprintf(out, "%s left out: %v\n", c.name, err)
			continue
		}
		n := &network{name: c.name, about: c.about}
		defer n.close()
		if err := c.build(ctx, n); err != nil {
			return fmt.Errorf("network %s: %w", c.name, err)
		}
		nets, r.About[n.name] = append(nets, n), n.about
	}
	var run []test
	for _, t := range tests {
		if chosen(*kinds, t.name) {
			run, r.Units[t.name] = append(run, t), t.unit
		}
	}
	for _, n := range nets { // neighbours, caches: what the first packet of all pays
		for i := range run {
			if _, _, _, err := run[i].run(ctx, n, 50*time.Millisecond); err != nil {
				return fmt.Errorf("%s over %s: %w", run[i].name, n.name, err)
			}
		}
	}
	for round := range *rounds {
		for i := range run {
			for k := range nets {
				n := nets[(k+round)%len(nets)]
				length := *other
				if run[i].kind == "stream" {
					length = *tcp
				}
				s, err := run[i].quietly(ctx, n, round, length, *tries)
				if err != nil {
					return err
				}
				if s.Others > noisy {
					r.Noisy++
				}
				r.Samples = append(r.Samples, s)
			}
		}
		_, _ = fmt.Fprintf(os.Stderr, "round %d of %d done\n", round+1, *rounds)
	}
	r.print(out, u.title, nets, run)
	if *file == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(*file, append(b, '\n'), 0o644)
}
