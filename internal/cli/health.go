package cli

import (
	"context"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/config"
)

func healthCmd() *cobra.Command {
	var runDir string
	var ready bool
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Say by the exit code whether this node's agent works",
		Long: "Say by the exit code whether this node's agent works: 0 when its loops turn, with --ready when pods can be\n" +
			"added. It is for probes: the agent listens on its socket alone, and on no port.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			path := "/healthz"
			if ready {
				path = "/readyz"
			}
			answer, err := answerOf(ctx, runDir, http.MethodGet, path, nil)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(answer)
			return err
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", config.Default().RunDir, "directory of the agent's socket")
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether pods can be added")
	return cmd
}
