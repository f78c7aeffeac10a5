package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

func ipamCheckCmd(books func(*cobra.Command) (ipam.Books, error), output *string) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Compare what the store, this node's record and its kernel have of addresses; exit code 1 when something does not fit",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := books(cmd)
			if err != nil {
				return err
			}
			found := ipam.Check(b)
			if *output == "json" {
				if found == nil {
					found = []ipam.Finding{}
				}
				err = printJSON(cmd.OutOrStdout(), found)
			} else {
				err = printFindings(cmd.OutOrStdout(), &b, found)
			}
			if err == nil && len(found) > 0 {
				err = exitError{1}
			}
			return err
		},
	}
}

func printFindings(out io.Writer, b *ipam.Books, found []ipam.Finding) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	lost := 0
	for _, f := range found {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", f.What, f.Subject, f.Detail)
		if f.Release.Key != "" {
			lost++
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	looked := fmt.Sprintf("%d pools, %d blocks, %d workloads of %d nodes", len(b.Pools), len(b.Blocks), len(b.Endpoints), len(b.Nodes))
	if b.Local == nil {
		looked += "; no agent runs here, so no node's own record and kernel was looked at"
	} else {
		looked += fmt.Sprintf("; record and kernel of node %s", b.Local.Node)
	}
	verdict := "all fits"
	if len(found) > 0 {
		verdict = fmt.Sprintf("%d do not fit; `heddle ipam release` can give back %d", len(found), lost)
	}
	_, err := fmt.Fprintf(out, "looked at %s: %s\n", looked, verdict)
	return err
}

func ipamReleaseCmd(books func(*cobra.Command) (ipam.Books, error), open openFunc, runDir, output *string) *cobra.Command {
	var apart time.Duration
	var dry bool
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Give back what two looks, a minute apart, both find lost: blocks and endpoints of nodes that are gone, and this node's reservations without an interface",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if apart < betweenLooks {
				return &model.FieldError{Noun: "ipam release", Field: "--apart", Value: apart.String(), Want: "at least " + betweenLooks.String() + ", so that nothing under way counts as lost"}
			}
			b, err := books(cmd)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			first := lost(ipam.Check(b))
			if *output == "text" {
				for _, f := range first {
					_, _ = fmt.Fprintf(out, "%s  %s: %s\n", f.What, f.Subject, f.Detail)
				}
			}
			if len(first) > 0 {
				if *output == "text" {
					_, _ = fmt.Fprintf(out, "%d seem lost; looking again in %s\n", len(first), apart)
				}
				if !store.Pause(cmd.Context(), apart) {
					return cmd.Context().Err()
				}
				if b, err = books(cmd); err != nil {
					return err
				}
			}
			both := ipam.Again(first, ipam.Check(b))
			if !dry {
				if both, err = releaseAll(cmd.Context(), open, *runDir, both); err != nil {
					return err
				}
			}
			if *output == "json" {
				return printJSON(out, both)
			}
			verb := "released"
			if dry {
				verb = "would release"
			}
			for _, f := range both {
				_, _ = fmt.Fprintf(out, "%s: %s, %s\n", verb, f.Subject, f.Detail)
			}
			if len(both) == 0 {
				_, err = fmt.Fprintln(out, "nothing is lost")
			}
			return err
		},
	}
	cmd.Flags().DurationVar(&apart, "apart", betweenLooks, "how long after the first look the second is")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be released")
	return cmd
}

func lost(all []ipam.Finding) (some []ipam.Finding) {
	for _, f := range all {
		if f.Release.Key != "" {
			some = append(some, f)
		}
	}
	return some
}

// releaseAll gives back what it can, and returns that. What somebody else changes meanwhile stays.
func releaseAll(ctx context.Context, open openFunc, runDir string, all []ipam.Finding) ([]ipam.Finding, error) {
	released := []ipam.Finding{}
	if len(all) == 0 {
		return released, nil
	}
	s, err := open(ctx)
	if err != nil {
		return released, err
	}
	defer func() { _ = s.Close() }()
	for _, f := range all {
		var err error
		if f.Release.Kind == "" {
			var was model.Workload
			err = tell(ctx, runDir, "/ipam/release", f.Release, &was)
		} else {
			err = releaseFiled(ctx, s, f.Release)
		}
		if err != nil {
			return released, fmt.Errorf("%s: %w", f.Subject, err)
		}
		released = append(released, f)
	}
	return released, nil
}

// errBack says that somebody lives after all.
var errBack = errors.New("its node is in the network again")

// releaseFiled deletes a block or an endpoint of a node that is gone, if it still is the one that was looked at.
func releaseFiled(ctx context.Context, s store.Store, r ipam.Release) error {
	item, err := s.Get(ctx, r.Kind, r.Key)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	node := ""
	switch o := item.Object.(type) {
	case *model.Block:
		node = o.Node
	case *model.Endpoint:
		node = o.Node
	}
	if _, err := s.Get(ctx, model.KindNode, node); !errors.Is(err, store.ErrNotFound) {
		if err == nil {
			err = fmt.Errorf("node %q: %w", node, errBack)
		}
		return err
	}
	err = s.Delete(ctx, r.Kind, r.Key, item.Revision)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
