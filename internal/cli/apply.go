package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

func applyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "apply -f FILE...",
		Short: "Write policies, labels and other objects of Kubernetes and Calico into the store",
		Long: `Write the objects of files, in YAML or JSON, into the store: namespaces, policies, network sets, IPPools,
BGPPeers and all others that heddle get knows. What is there already is replaced by what the file says. All objects
are checked before the first is written, pools also against those that are there and their blocks: a wrong one changes
nothing.`,
	}
	open, files, namespace := storeFlags(cmd), filesFlag(cmd), namespaceFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		names, err := needFiles(cmd, *files, args)
		if err == nil {
			err = checkNamespace(cmd, *namespace)
		}
		if err != nil {
			return err
		}
		objects, err := readObjects(cmd, names, *namespace)
		if err != nil {
			return err
		}
		s, err := open(cmd.Context())
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		if err := checkPools(cmd.Context(), s, objects); err != nil {
			return err
		}
		// In the order of the files: who opens before closing, or closes before opening, means it.
		for i := range objects {
			done, err := apply(cmd.Context(), s, &objects[i])
			if err != nil {
				return fmt.Errorf("%s: %w; %d of %d objects are applied", &objects[i], err, i, len(objects))
			}
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), nameOf(&objects[i]), done); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// apply makes the store hold the object, and says what that took.
func apply(ctx context.Context, s store.Store, r *model.Resource) (done string, err error) {
	for attempt := 0; ; attempt++ {
		_, err := s.Put(ctx, filed(r), 0) // most are new
		if err == nil {
			return "created", nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return "", err
		}
		it, err := s.Get(ctx, filed(r).Kind(), r.Key())
		if err == nil {
			if old := resourceOf(it.Object); old != nil && old.APIVersion == r.APIVersion && sameBody(old.Body, r.Body) {
				return "unchanged", nil
			}
			if _, err = s.Put(ctx, filed(r), it.Revision); err == nil {
				return "configured", nil
			}
		}
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) || !overtaken(ctx, attempt) {
			return "", err
		}
	}
}
