package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

func labelCmd() *cobra.Command {
	var overwrite bool
	cmd := &cobra.Command{
		Use:   "label KIND NAME KEY=VALUE... [KEY-...]",
		Short: "Change the labels of a pod, a namespace or another object",
		Long: `Change the labels of a pod, a namespace or another object: KEY=VALUE sets one, KEY- takes it away. A pod or
namespace of which nothing is in the store yet comes to be there. Labels that a pod's runtime gave it stay
under what is said here.`,
	}
	open, namespace := storeFlags(cmd), namespaceFlag(cmd)
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "change labels that have another value already")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		at := slices.IndexFunc(args, func(a string) bool { return strings.Contains(a, "=") || strings.HasSuffix(a, "-") })
		if at < 0 {
			at = len(args)
		}
		c, err := parseChange(cmd, args[at:])
		if err != nil {
			return err
		}
		c.overwrite = overwrite
		named, err := refs(cmd, args[:at])
		if err == nil {
			err = checkNamespace(cmd, *namespace)
		}
		if err != nil {
			return err
		}
		if slices.ContainsFunc(named, func(f ref) bool { return f.name == "" }) {
			return &model.FieldError{Noun: cmd.CommandPath(), Field: "name", Want: "the " + kindName(named[0].kinds[0]) + " to label"}
		}
		s, err := open(cmd.Context())
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		for _, f := range named {
			done, err := c.carryOut(cmd, s, f, *namespace)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s/%s %s\n", kindName(f.kinds[0]), f.name, done); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// labelChange is what is to be done to labels.
type labelChange struct {
	set       map[string]string
	remove    []string
	overwrite bool
}

func parseChange(cmd *cobra.Command, args []string) (labelChange, error) {
	c := labelChange{set: map[string]string{}}
	bad := func(field, value, want string) error {
		return &model.FieldError{Noun: cmd.CommandPath(), Field: field, Value: value, Want: want}
	}
	const characters = "63 characters of [A-Za-z0-9_.-] that begin and end with a letter or digit"
	if len(args) == 0 {
		return c, bad("label", "", "KEY=VALUE, or KEY- to take one away")
	}
	for _, a := range args {
		k, v, set := strings.Cut(a, "=")
		if !set {
			var removed bool
			if k, removed = strings.CutSuffix(a, "-"); !removed {
				return c, bad("label", a, "KEY=VALUE, or KEY- to take one away")
			}
		}
		if len(validation.IsQualifiedName(k)) > 0 {
			return c, bad("label's key", k, "1.."+characters+", perhaps with a domain and a slash before")
		}
		if len(validation.IsValidLabelValue(v)) > 0 {
			return c, bad("label's value", v, "nothing, or at most "+characters)
		}
		if _, twice := c.set[k]; twice || slices.Contains(c.remove, k) {
			return c, bad("label", k, "every key once")
		}
		if set {
			c.set[k] = v
		} else {
			c.remove = append(c.remove, k)
		}
	}
	return c, nil
}

// carryOut changes the labels of one object, and says in kubectl's words what that came to.
func (c labelChange) carryOut(cmd *cobra.Command, s store.Store, f ref, namespace string) (done string, err error) {
	ctx := cmd.Context()
	given := map[string]string{} // by the pod's runtime; nil for a pod that does not run
	if f.kinds[0].Kind == podKind {
		running, err := workloads(ctx, s, f.name, namespace)
		if err != nil {
			return "", err
		}
		if given = nil; running[[2]string{namespace, f.name}] != nil {
			given = running[[2]string{namespace, f.name}].labels
		}
	}
	for attempt := 0; ; attempt++ {
		r, at, err := labelled(ctx, s, f, namespace)
		if err != nil {
			return "", err
		}
		if done, err = c.edit(r, given); err != nil || done == "not labeled" {
			return done, err
		}
		if err := dialect.Check(r); err != nil {
			return "", err
		}
		_, err = s.Put(ctx, r, at)
		if err == nil && given == nil {
			_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "no workload %s/%s runs now: the labels are for one that comes\n", namespace, f.name)
		}
		if err == nil || !errors.Is(err, store.ErrConflict) || !overtaken(ctx, attempt) {
			return done, err
		}
	}
}

// labelled is the object and its revision; a pod or namespace that is not there yet has revision 0.
func labelled(ctx context.Context, s store.Store, f ref, namespace string) (*model.Resource, store.Revision, error) {
	it, err := find(ctx, s, f, namespace)
	switch {
	case err == nil:
		return it.Object.(*model.Resource), it.Revision, nil
	case !errors.Is(err, store.ErrNotFound):
		return nil, 0, err
	case f.kinds[0].Kind == podKind:
		return newPod(namespace, f.name), 0, nil
	case f.kinds[0].Kind == "Namespace":
		body, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": f.name}})
		return &model.Resource{APIVersion: "v1", Type: "Namespace", Name: f.name, Body: body}, 0, err
	}
	return nil, 0, notFound(f, namespace)
}

// edit changes the labels in the object's body. given are labels that it has besides, under its own.
func (c labelChange) edit(r *model.Resource, given map[string]string) (done string, err error) {
	body := tree(r.Body)
	if body == nil {
		return "", fmt.Errorf("%s: its body is no JSON object", r)
	}
	metadata := part(body, "metadata")
	labels := part(metadata, "labels")
	before := maps.Clone(labels)
	for _, k := range slices.Sorted(maps.Keys(c.set)) {
		has, own := labels[k]
		if old, given := given[k]; !own && given {
			has = old
		}
		if has != nil && has != c.set[k] && !c.overwrite {
			return "", fmt.Errorf("%s: label %s is %v already: --overwrite changes it", r, k, has)
		}
		if has != c.set[k] {
			labels[k] = c.set[k]
		}
	}
	for _, k := range c.remove {
		if _, own := labels[k]; !own {
			if v, given := given[k]; given {
				return "", fmt.Errorf("%s: label %s=%s is its runtime's: --overwrite can give it another value, nothing can take it away", r, k, v)
			}
		}
		delete(labels, k)
	}
	if maps.Equal(before, labels) {
		return "not labeled", nil
	}
	if done = "labeled"; len(c.set) == 0 {
		done = "unlabeled"
	}
	if len(labels) == 0 {
		delete(metadata, "labels")
	}
	r.Body, err = json.Marshal(body)
	return done, err
}
