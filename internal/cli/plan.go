package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

func planCmd() *cobra.Command {
	var runDir, node, netConf, output string
	var diff bool
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Print what this node's kernel should hold, as the commands that would make it",
		Long: `Print what this node's kernel should hold, as the ip, bridge, sysctl and nft commands that would make it.
With --net-conf, the plan is what that file would make of this network; with --diff, only what would
change from what is in force is printed. Nothing is changed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var now plan.Plan
			var in plan.Input
			if err := ask(cmd.Context(), runDir, "/plan", &now); err != nil {
				return err
			}
			if err := ask(cmd.Context(), runDir, "/input", &in); err != nil {
				return err
			}
			if node != "" && node != in.Self {
				var err error
				if in, err = seenFrom(in, node); err != nil {
					return err
				}
				if now, err = plan.Build(in); err != nil {
					return err
				}
			}
			want := now
			if netConf != "" {
				text, err := os.ReadFile(netConf)
				if err != nil {
					return err
				}
				pools, err := flannel.ParseNetConf(text)
				if err != nil {
					return err
				}
				in.Cluster.Pools = replacePools(in.Cluster.Pools, pools)
				in.Keep = nil // what is there only while the nodes change is not what the file asks for
				if want, err = plan.Build(in); err != nil {
					return err
				}
			}
			return printPlan(cmd, in, now, want, diff, output)
		},
	}
	s := cmd.Flags()
	s.StringVar(&runDir, "run-dir", "/run/heddle", "directory of the agent's socket")
	s.StringVar(&node, "node", "", "the plan of another node, without its workloads")
	s.StringVar(&netConf, "net-conf", "", "the plan with this net-conf.json in place of the network's")
	s.BoolVar(&diff, "diff", false, "print only what would change")
	s.StringVarP(&output, "output", "o", "sh", "sh or json")
	return cmd
}

func printPlan(cmd *cobra.Command, in plan.Input, now, want plan.Plan, diff bool, output string) error {
	out := cmd.OutOrStdout()
	switch {
	case diff:
		changes := plan.Diff(now, want)
		for _, c := range changes {
			if _, err := fmt.Fprintln(out, c); err != nil {
				return err
			}
		}
		if len(changes) == 0 {
			_, err := fmt.Fprintln(out, "nothing would change")
			return err
		}
		for _, p := range want.Problems {
			if slices.Contains(now.Problems, p) {
				continue
			}
			if _, err := fmt.Fprintf(out, "! %s  %s\n    try: %s\n", p.Severity, p, p.Next); err != nil {
				return err
			}
		}
		return nil
	case output == "json":
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(want)
	case output == "sh":
		if _, err := fmt.Fprint(out, plan.Shell(want)); err != nil {
			return err
		}
		for _, w := range in.Workloads {
			if w.Netns == "" {
				continue // its namespace is known only to its runtime
			}
			if _, err := fmt.Fprint(out, "\n"+plan.ShellPod(plan.PodOf(in, w, want.MTU), w.Netns)); err != nil {
				return err
			}
		}
		return nil
	}
	return &model.FieldError{Noun: "heddle plan", Field: "--output", Value: output, Want: "sh or json"}
}

// seenFrom is the input of another node's plan, as far as this node knows it: what that node has
// published, and no workloads.
func seenFrom(in plan.Input, node string) (plan.Input, error) {
	n := in.Cluster.Node(node)
	if n == nil {
		return in, fmt.Errorf("node %q is not in the network: see `heddle node list`", node)
	}
	in.Self, in.Host, in.Workloads, in.Keep = node, model.Host{Uplinks: n.Uplinks}, nil, nil
	return in, nil
}

// replacePools puts the pools of Flannel's words in place of the present ones; others stay.
func replacePools(have, pools []model.Pool) []model.Pool {
	out := slices.Clone(pools)
	masq := map[string]bool{}
	for _, p := range have {
		masq[p.Name] = p.Masquerade
		if p.Name != flannel.PoolName && p.Name != flannel.PoolName6 {
			out = append(out, p)
		}
	}
	for i := range out {
		out[i].Masquerade = masq[out[i].Name]
	}
	return out
}
