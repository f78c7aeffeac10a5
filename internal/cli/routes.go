package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

func routesCmd() *cobra.Command {
	var runDir, output string
	cmd := &cobra.Command{
		Use:   "routes [ADDRESS|PREFIX]",
		Short: "Show every way to every destination: where it came from, which is used, and why",
		Long: `Show every way to every destination that this node knows: from the store, from BGP, its own blocks. The one in
use has a star. With an address or a prefix, only those that hold it or lie inside it are shown.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := textOrJSON(cmd, output); err != nil {
				return err
			}
			about, err := destination(args)
			if err != nil {
				return err
			}
			var p plan.Plan
			if err := ask(cmd.Context(), runDir, "/plan", &p); err != nil {
				return err
			}
			shown := []plan.Origin{}
			for _, o := range p.Origins {
				if !about.IsValid() || o.Dst.Overlaps(about) {
					shown = append(shown, o)
				}
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(shown)
			}
			return printRoutes(cmd.OutOrStdout(), shown)
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", "/run/heddle", "directory of the agent's socket")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// destination is what was asked about; invalid: everything.
func destination(args []string) (netip.Prefix, error) {
	if len(args) == 0 {
		return netip.Prefix{}, nil
	}
	if a, err := netip.ParseAddr(args[0]); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(args[0])
	if err != nil {
		return netip.Prefix{}, &model.FieldError{Noun: "heddle routes", Field: "destination", Value: args[0], Want: "an address or a prefix, such as 10.244.1.7 or 10.244.1.0/24"}
	}
	return p.Masked(), nil
}

func printRoutes(out io.Writer, origins []plan.Origin) error {
	if len(origins) == 0 {
		_, err := fmt.Fprintln(out, "no routes")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "  DESTINATION\tVIA\tFROM\tWHY")
	for _, o := range origins {
		star := " "
		if o.Used {
			star = "*"
		}
		_, _ = fmt.Fprintf(w, "%s %s\t%s\t%s\t%s\n", star, o.Dst, join(o.Via), o.From, o.Reason)
	}
	return w.Flush()
}
