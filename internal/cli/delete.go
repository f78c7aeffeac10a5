package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

func deleteCmd() *cobra.Command {
	var ignore bool
	cmd := &cobra.Command{
		Use:   "delete (-f FILE... | KIND NAME...)",
		Short: "Delete objects from the store",
		Long: `Delete objects from the store: those of files, or those that are named. Only the objects go: what is in a
namespace stays, and a pod that runs goes on, without what had been said of it by its name. An IPPool goes only when no
node has a block of it any more.`,
	}
	open, files, namespace := storeFlags(cmd), filesFlag(cmd), namespaceFlag(cmd)
	cmd.Flags().BoolVar(&ignore, "ignore-not-found", false, "it is no error when there is nothing to delete")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNamespace(cmd, *namespace); err != nil {
			return err
		}
		objects, err := condemned(cmd, *files, args, *namespace)
		if err != nil {
			return err
		}
		s, err := open(cmd.Context())
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		var missing []error
		for _, o := range objects {
			k, err := remove(cmd.Context(), s, o)
			switch {
			case errors.Is(err, store.ErrNotFound):
				if !ignore {
					missing = append(missing, notFound(o.ref, o.namespace))
				}
				continue
			case err != nil:
				return err
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %q deleted\n", kindName(k), o.name); err != nil {
				return err
			}
		}
		return errors.Join(missing...)
	}
	return cmd
}

// remove deletes the object, also one that cannot be read, and returns its kind.
func remove(ctx context.Context, s store.Store, o placed) (dialect.Kind, error) {
	for _, k := range o.kinds {
		key := key(k, o.namespace, o.name)
		found, err := s.Keys(ctx, kindIn(k), key)
		if err != nil {
			return k, err
		}
		if slices.ContainsFunc(found, func(f store.KeyRevision) bool { return f.Key == key }) {
			if err := checkUnused(ctx, s, k, o.name); err != nil {
				return k, err
			}
			return k, s.Delete(ctx, kindIn(k), key, store.AnyRevision)
		}
	}
	return o.kinds[0], store.ErrNotFound
}

// placed is an object that is named, with its namespace.
type placed struct {
	ref
	namespace string
}

// condemned are the objects that the command is about.
func condemned(cmd *cobra.Command, files, args []string, namespace string) ([]placed, error) {
	var out []placed
	if len(files) > 0 {
		objects, err := readObjects(cmd, append(files, args...), namespace)
		for i := range objects {
			r := &objects[i]
			out = append(out, placed{ref{[]dialect.Kind{kindOf(r)}, r.Name}, r.Namespace})
		}
		return out, err
	}
	named, err := refs(cmd, args)
	if err != nil {
		return nil, err
	}
	for _, f := range named {
		if f.name == "" {
			return nil, &model.FieldError{Noun: cmd.CommandPath(), Field: "name", Want: "the " + kindName(f.kinds[0]) + " to delete"}
		}
		out = append(out, placed{f, namespace})
	}
	return out, nil
}
