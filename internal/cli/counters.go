package cli

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/enforce"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/why"
)

func policyLogAllowedCmd() *cobra.Command {
	var (
		runDir  string
		on, off bool
	)
	cmd := &cobra.Command{
		Use:   "log-allowed",
		Short: "Have `heddle flows` show what policies on this node allow too, until switched off or the agent restarts",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if on == off {
				return &model.FieldError{Noun: cmd.CommandPath(), Field: "--on, --off", Value: fmt.Sprint(on), Want: "one of them"}
			}
			var done bool
			return tell(cmd.Context(), runDir, "/log-allowed", on, &done)
		},
	}
	s := cmd.Flags()
	s.BoolVar(&on, "on", false, "log the first packet of each allowed flow")
	s.BoolVar(&off, "off", false, "log only what is denied, or what a rule says to log")
	s.StringVar(&runDir, "run-dir", config.Default().RunDir, "where the agent's sockets are")
	return cmd
}

func policyCountersCmd() *cobra.Command {
	var (
		runDir, output string
		on, off        bool
	)
	cmd := &cobra.Command{
		Use:   "counters",
		Short: "Show how many new flows each rule on this node has decided; they are counted on demand",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := textOrJSON(cmd, output); err != nil {
				return err
			}
			if on && off {
				return &model.FieldError{Noun: cmd.CommandPath(), Field: "--off", Value: "true", Want: "one of --on and --off"}
			}
			if on || off {
				var done bool
				return tell(cmd.Context(), runDir, "/counters", on, &done)
			}
			var counts []enforce.RuleCount
			if err := ask(cmd.Context(), runDir, "/counters", &counts); err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(counts)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', tabwriter.AlignRight)
			_, _ = fmt.Fprintln(w, "PACKETS\tBYTES\t  DECIDED")
			for _, c := range counts {
				_, _ = fmt.Fprintf(w, "%d\t%d\t  %s\n", c.Packets, c.Bytes, why.ReasonText(&c.Reason))
			}
			return w.Flush()
		},
	}
	s := cmd.Flags()
	s.BoolVar(&on, "on", false, "begin to count, from nothing")
	s.BoolVar(&off, "off", false, "stop counting")
	s.StringVarP(&output, "output", "o", "text", "text or json")
	s.StringVar(&runDir, "run-dir", config.Default().RunDir, "where the agent's sockets are")
	return cmd
}
