package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/enforce"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/why"
)

// followInterval is how often `heddle flows --follow` asks.
const followInterval = 250 * time.Millisecond

func flowsCmd() *cobra.Command {
	var (
		runDir, namespace, output string
		denied, staged, follow    bool
	)
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "List the packets that policies on this node denied or were told to log, with the deciding rule",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := textOrJSON(cmd, output); err != nil {
				return err
			}
			q := url.Values{}
			for name, set := range map[string]bool{"denied": denied, "staged": staged} {
				if set {
					q.Set(name, "")
				}
			}
			if namespace != "" {
				q.Set("namespace", namespace)
			}
			for {
				var log enforce.FlowLog
				if err := ask(cmd.Context(), runDir, "/flows?"+q.Encode(), &log); err != nil {
					return err
				}
				if err := printFlows(cmd.OutOrStdout(), log.Flows, output); err != nil {
					return err
				}
				if !follow {
					if log.Missed > 0 && output == "text" {
						_, err := fmt.Fprintf(cmd.OutOrStdout(), "%d more came too fast to be recorded\n", log.Missed)
						return err
					}
					return nil
				}
				q.Set("after", fmt.Sprint(log.Last))
				if !store.Pause(cmd.Context(), followInterval) {
					return nil
				}
			}
		},
	}
	s := cmd.Flags()
	s.BoolVar(&denied, "denied", false, "only what was denied")
	s.BoolVar(&staged, "staged", false, "only what a staged policy would decide otherwise")
	s.BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	s.StringVarP(&namespace, "namespace", "n", "", "only from or to this namespace")
	s.StringVarP(&output, "output", "o", "text", "text or json (one object a line)")
	s.StringVar(&runDir, "run-dir", config.Default().RunDir, "where the agent's sockets are")
	return cmd
}

func printFlows(w io.Writer, flows []enforce.FlowRecord, output string) error {
	for _, f := range flows {
		if output == "json" {
			if err := json.NewEncoder(w).Encode(f); err != nil {
				return err
			}
			continue
		}
		if _, err := fmt.Fprintln(w, flowText(f)); err != nil {
			return err
		}
	}
	return nil
}

// flowText is one line: when, verdict, ends, protocol and port, direction, and why.
func flowText(f enforce.FlowRecord) string {
	verdict := "allowed"
	if f.Denied {
		verdict = "denied"
	}
	what := why.ProtocolName(f.Protocol)
	if strings.HasPrefix(what, "icmp") {
		what += fmt.Sprintf(" type %d", f.DstAddr.Port()>>8)
	} else {
		what += fmt.Sprintf(" %d", f.DstAddr.Port())
	}
	reason := "the policies have changed since"
	if f.Reason != nil {
		reason = why.ReasonText(f.Reason)
	}
	line := fmt.Sprintf("%s %-7s %s -> %s %s, %s: %s", f.At.Format("15:04:05.000"), verdict, f.Src, f.Dst, what, f.Direction, reason)
	if f.Staged != nil {
		line += "; staged: would be " + why.ReasonText(f.Staged)
	}
	return line
}
