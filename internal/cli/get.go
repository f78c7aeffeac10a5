package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

func getCmd() *cobra.Command {
	var all bool
	var output string
	cmd := &cobra.Command{
		Use:   "get KIND [NAME...]",
		Short: "Print objects that are in the store",
		Long: `Print objects that are in the store, by kind: ` + kindWords() + `.
A kind can be called by its name, its plural, or a short name, with its group behind it where two share a name:
networkpolicies.projectcalico.org. For pods the workloads that run are shown too, with node, addresses and labels.`,
	}
	open, namespace := storeFlags(cmd), namespaceFlag(cmd)
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	cmd.Flags().StringVarP(&output, "output", "o", "", "yaml, json or wide; else a table")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		wanted, err := refs(cmd, args)
		if err == nil {
			err = checkNamespace(cmd, *namespace)
		}
		if err != nil {
			return err
		}
		switch output {
		case "", "wide", "yaml", "json":
		default:
			return &model.FieldError{Noun: cmd.CommandPath(), Field: "--output", Value: output, Want: "yaml, json or wide"}
		}
		s, err := open(cmd.Context())
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		ns := *namespace
		if all {
			ns = ""
		}
		return get(cmd, s, wanted, ns, output)
	}
	return cmd
}

// kindWords are the plurals of all kinds, in one line.
func kindWords() string {
	_, words, _ := strings.Cut(kindError(&cobra.Command{Use: "x"}, "").Error(), "want one of ")
	return words
}

// get prints what is wanted; an empty namespace stands for all.
func get(cmd *cobra.Command, s store.Store, wanted []ref, namespace, output string) error {
	var found []*model.Resource
	var missing []error
	single := false
	for _, f := range wanted {
		list, err := gather(cmd.Context(), s, f, namespace)
		if err != nil {
			return err
		}
		if len(list) == 0 && f.name != "" {
			missing = append(missing, notFound(f, namespace))
		}
		single = f.name != "" && len(wanted) == 1 && len(list) == 1
		found = append(found, list...)
	}
	out := cmd.OutOrStdout()
	var err error
	switch {
	case output == "yaml" || output == "json":
		if len(missing) == 0 {
			err = printObjects(out, found, single, output)
		}
	case len(found) == 0 && len(missing) == 0:
		where := ""
		if wanted[0].kinds[0].Namespaced && namespace != "" {
			where = " in namespace " + namespace
		}
		_, err = fmt.Fprintf(cmd.ErrOrStderr(), "nothing found%s\n", where)
	default:
		err = printTables(out, found, namespace == "", output == "wide")
	}
	return errors.Join(append(missing, err)...)
}

// gather finds the objects that an argument means, sorted.
func gather(ctx context.Context, s store.Store, f ref, namespace string) ([]*model.Resource, error) {
	var list []*model.Resource
	if f.name != "" && namespace != "" {
		it, err := find(ctx, s, f, namespace)
		if err == nil {
			list = append(list, resourceOf(it.Object))
		} else if !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
	} else {
		items, _, err := s.List(ctx, kindIn(f.kinds[0]))
		if err != nil {
			return nil, err
		}
		for _, it := range items {
			r := resourceOf(it.Object)
			for _, k := range f.kinds {
				if k.Kind == r.Type && k.Group() == r.Group() && (f.name == "" || f.name == r.Name) && (!k.Namespaced || namespace == "" || r.Namespace == namespace) {
					list = append(list, r)
				}
			}
		}
	}
	if f.kinds[0].Kind == podKind {
		var err error
		if list, err = withWorkloads(ctx, s, list, f.name, namespace); err != nil {
			return nil, err
		}
	}
	sortResources(list)
	return list, nil
}

// printObjects prints the objects as they can be applied again, several as a list.
func printObjects(out io.Writer, list []*model.Resource, single bool, output string) error {
	var text []byte
	var err error
	if single {
		text = list[0].Body
	} else {
		bodies := make([]json.RawMessage, len(list))
		for i, r := range list {
			bodies[i] = r.Body
		}
		text, err = json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": bodies})
	}
	if err != nil {
		return err
	}
	if output == "yaml" {
		if text, err = yaml.JSONToYAML(text); err != nil {
			return err
		}
	} else {
		var b bytes.Buffer
		if err := json.Indent(&b, text, "", "  "); err != nil {
			return err
		}
		b.WriteByte('\n')
		text = b.Bytes()
	}
	_, err = out.Write(text)
	return err
}
