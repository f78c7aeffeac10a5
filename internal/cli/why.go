package cli

import (
	"encoding/json"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/why"
)

func whyCmd() *cobra.Command {
	var runDir, output string
	cmd := &cobra.Command{
		Use:   "why FROM TO[:PORT[/PROTO]]",
		Short: "Say whether one end may talk to the other, and which rule decides",
		Long: "Say whether a new connection would be let through, and which rule decides, from the table that the kernel holds.\n" +
			"An end is NAMESPACE/NAME of a workload, or an address. Without a port the question is about a ping; the protocol is tcp unless named.\n" +
			"The exit code is 2 when the answer is denied.",
		Example: "  heddle why dev/pod1 prod/pod1:80\n  heddle why 10.0.0.7 prod/dns:53/udp\n  heddle why dev/pod1 '[2001:db8::1]:443'",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := why.ParseQuestion(args[0], args[1]); err != nil {
				return err
			}
			if err := textOrJSON(cmd, output); err != nil {
				return err
			}
			var answers []why.Answer
			if err := ask(cmd.Context(), runDir, "/why?"+url.Values{"from": {args[0]}, "to": {args[1]}}.Encode(), &answers); err != nil {
				return err
			}
			denied := false
			for _, a := range answers {
				denied = denied || !a.Allowed
				if output == "text" {
					if _, err := fmt.Fprint(cmd.OutOrStdout(), a.Text()); err != nil {
						return err
					}
				}
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				if err := e.Encode(answers); err != nil {
					return err
				}
			}
			if denied {
				return exitError{2}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", config.Default().RunDir, "where the agent's sockets are")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// textOrJSON refuses another form of output.
func textOrJSON(cmd *cobra.Command, output string) error {
	if output != "text" && output != "json" {
		return &model.FieldError{Noun: cmd.CommandPath(), Field: "--output", Value: output, Want: "text or json"}
	}
	return nil
}
