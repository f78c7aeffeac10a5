// Package cli is what people type: flags in, text out, no decisions.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/store"
)

// Version is set by the linker.
var Version = "dev"

// exitError carries an exit code for a command that has already said what is wrong.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// Main runs one command line and returns the exit code: 0 done, 1 failed.
func Main(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := rootCmd()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var e exitError
	if errors.As(err, &e) {
		return e.code
	}
	_, _ = fmt.Fprintln(stderr, "heddle:", err)
	if errors.Is(err, store.ErrUnavailable) {
		_, _ = fmt.Fprintln(stderr, "try: systemctl status heddle-store; check the endpoints and the certificates")
	}
	return 1
}

func rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:           "heddle",
		Short:         "One container network for Linux hosts",
		Long:          "Heddle gives pods addresses, routes them between nodes, and can say how and why.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	agent := agentCmd()
	agent.PreRunE = func(*cobra.Command, []string) error { return openNetSysctls() }
	root.AddCommand(agent, storeCmd(), certCmd(), statusCmd(), planCmd(), routesCmd(), networkCmd(), nodeCmd(), ipamCmd(), whyCmd(), flowsCmd(), policyCmd(), labCmd(), versionCmd())
	root.AddCommand(applyCmd(), getCmd(), deleteCmd(), labelCmd())
	root.AddCommand(healthCmd(), installCNICmd(), uninstallCmd())
	return root
}

func versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "heddle %s %s %s/%s\n", Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
