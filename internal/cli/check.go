package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/enforce"
	"github.com/heddle-net/heddle/internal/why"
)

func policyCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Look at what policies do"}
	cmd.AddCommand(policyCheckCmd(), policyCountersCmd(), policyLogAllowedCmd())
	return cmd
}

func policyCheckCmd() *cobra.Command {
	var (
		runDir, namespace, output string
		remove                    bool
	)
	cmd := &cobra.Command{
		Use:   "check FILE…",
		Short: "Say what applying these files would let through or stop, for which pairs; changes nothing (- reads standard input)",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := textOrJSON(cmd, output); err != nil {
				return err
			}
			var change enforce.ResourceChange
			for _, name := range args {
				text, err := readFile(cmd, name)
				if err != nil {
					return err
				}
				resources, err := dialect.ReadYAML(text)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				for i := range resources {
					r := &resources[i]
					if err := dialect.SetNamespace(r, namespace); err != nil {
						return fmt.Errorf("%s: %w", name, err)
					}
					if err := dialect.Check(r); err != nil {
						return fmt.Errorf("%s: %w", name, err)
					}
					if remove {
						change.Delete = append(change.Delete, r.Key())
					} else {
						change.Apply = append(change.Apply, *r)
					}
				}
			}
			var checked why.Checked
			if err := tell(cmd.Context(), runDir, "/check", change, &checked); err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(checked)
			}
			return printChecked(cmd.OutOrStdout(), checked)
		},
	}
	s := cmd.Flags()
	s.StringVarP(&namespace, "namespace", "n", "default", "namespace of objects that name none")
	s.BoolVar(&remove, "delete", false, "what deleting these objects would do")
	s.StringVarP(&output, "output", "o", "text", "text or json")
	s.StringVar(&runDir, "run-dir", config.Default().RunDir, "where the agent's sockets are")
	return cmd
}

// maxPeers is how many peers a line of the check names.
const maxPeers = 6

func printChecked(w io.Writer, c why.Checked) error {
	for _, o := range c.Outcomes {
		verb, arrow := "would be denied ", "from"
		if o.Allowed {
			verb = "would be allowed"
		}
		if o.Direction == "egress" {
			arrow = "to"
		}
		peers := o.Peers
		more := ""
		if len(peers) > maxPeers {
			more = fmt.Sprintf(" and %d more", len(peers)-maxPeers)
			peers = peers[:maxPeers]
		}
		reason := "no policy selects it any more"
		if o.Reason != nil {
			reason = why.ReasonText(o.Reason)
		}
		if _, err := fmt.Fprintf(w, "%s  %s of %s %s %s%s, %s %s: %s\n", verb, o.Direction, o.Workload, arrow,
			strings.Join(peers, ", "), more, why.ProtocolName(o.Protocol), o.Ports, reason); err != nil {
			return err
		}
	}
	if len(c.Outcomes) == 0 {
		if _, err := fmt.Fprintln(w, "nothing would change"); err != nil {
			return err
		}
	}
	if c.Left > 0 {
		_, err := fmt.Fprintf(w, "%d more workloads that these policies select were not looked at\n", c.Left)
		return err
	}
	return nil
}
