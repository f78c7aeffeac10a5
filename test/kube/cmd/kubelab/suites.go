package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/test/kube/lab"
	"github.com/heddle-net/heddle/test/kube/suite"
)

func suites(name *string) *cobra.Command {
	var o suite.Options
	c := &cobra.Command{
		Use:   "suite NAME",
		Short: "Run one of upstream's suites against the lab: " + strings.Join(suite.Names(), ", "),
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.Load(*name)
			if err != nil {
				return err
			}
			o.Output = os.Stdout
			result, err := suite.Run(c.Context(), l, args[0], o)
			if err != nil {
				return err
			}
			fmt.Printf("\n%s: %s\noutput: %s\n", suite.Suites[args[0]].About, result, o.Out)
			if len(result.Failed) > 0 {
				return fmt.Errorf("suite %s: %d tests failed", args[0], len(result.Failed))
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.Focus, "focus", "", "run what this `regexp` chooses instead of all")
	f.IntVar(&o.Procs, "procs", 4, "how many tests at once")
	f.StringVar(&o.Out, "out", filepath.Join(os.TempDir(), "heddle-kube-suites"), "the `folder` that the output is kept in")
	return c
}
