package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// writeAttempts bounds how often a write is tried against others'.
const writeAttempts = 50

// namespaceFlag is -n; the namespace is "default" where it is not given.
func namespaceFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("namespace", "n", "default", "namespace of what names none")
}

// filesFlag is -f. Files may also follow it as arguments, as a shell's pattern becomes.
func filesFlag(cmd *cobra.Command) *[]string {
	return cmd.Flags().StringSliceP("filename", "f", nil, "file with objects in YAML or JSON, or - for standard input")
}

// ref is what an argument means: a kind, and an object of it unless the name is empty.
type ref struct {
	kinds []dialect.Kind // the same kind by several groups, when none was said
	name  string
}

// refs reads KIND [NAME…] or KIND/NAME….
func refs(cmd *cobra.Command, args []string) ([]ref, error) {
	if len(args) == 0 {
		return nil, kindError(cmd, "")
	}
	words := args
	if !strings.Contains(args[0], "/") {
		if len(args) == 1 {
			words = []string{args[0] + "/"}
		} else {
			words = nil
			for _, name := range args[1:] {
				words = append(words, args[0]+"/"+name)
			}
		}
	}
	out := make([]ref, 0, len(words))
	for _, word := range words {
		kind, name, named := strings.Cut(word, "/")
		if !named {
			return nil, &model.FieldError{Noun: cmd.CommandPath(), Field: "argument", Value: word, Want: "KIND/NAME, as the one before"}
		}
		kinds := lookup(kind)
		if kinds == nil {
			return nil, kindError(cmd, kind)
		}
		if name != "" && !model.ValidName(name) || name == "" && named && strings.Contains(args[0], "/") {
			return nil, &model.FieldError{Noun: cmd.CommandPath(), Field: "name", Value: name, Want: "a lower-case RFC 1123 name of at most 253 characters"}
		}
		out = append(out, ref{kinds, name})
	}
	return out, nil
}

// lookup finds a kind by what people call it. Where no group is said, that is the kind by all groups that
// call it alike.
func lookup(word string) []dialect.Kind {
	k, ok := dialect.Lookup(word)
	if !ok {
		return nil
	}
	kinds := []dialect.Kind{k}
	if strings.Contains(word, ".") {
		return kinds
	}
	for _, other := range dialect.Kinds() {
		if other.APIVersion != k.APIVersion && other.Kind == k.Kind && slices.Equal(other.Short, k.Short) {
			kinds = append(kinds, other)
		}
	}
	return kinds
}

func kindError(cmd *cobra.Command, word string) error {
	var names []string
	for _, k := range dialect.Kinds() {
		if !slices.Contains(names, k.Plural) {
			names = append(names, k.Plural)
		}
	}
	return &model.FieldError{Noun: cmd.CommandPath(), Field: "kind", Value: word, Want: "one of " + strings.Join(names, ", ")}
}

// kindName is what to type for a kind: with its group where the name alone means another one.
func kindName(k dialect.Kind) string {
	name := strings.ToLower(k.Kind)
	if first, ok := dialect.Lookup(name); ok && first.Group() != k.Group() {
		name += "." + k.Group()
	}
	return name
}

// kindOf is the kind of a resource, also of one that this version does not know.
func kindOf(r *model.Resource) dialect.Kind {
	for _, k := range dialect.Kinds() {
		if k.Kind == r.Type && k.Group() == r.Group() {
			return k
		}
	}
	return dialect.Kind{APIVersion: r.APIVersion, Kind: r.Type, Namespaced: r.Namespace != ""}
}

// nameOf is a resource as kubectl prints it: networkpolicy/deny-all.
func nameOf(r *model.Resource) string { return kindName(kindOf(r)) + "/" + r.Name }

// key of an object of the kind; the namespace counts for kinds that have one.
func key(k dialect.Kind, namespace, name string) string {
	r := model.Resource{APIVersion: k.APIVersion, Type: k.Kind, Name: name}
	if k.Namespaced {
		r.Namespace = namespace
	}
	return r.Key()
}

// kindIn is where objects of the kind are in the store.
func kindIn(k dialect.Kind) model.Kind {
	if k.Setting {
		return model.KindSetting
	}
	return model.KindResource
}

// filed is a resource as the store has it.
func filed(r *model.Resource) model.Object {
	if kindOf(r).Setting {
		return &model.Setting{Resource: *r}
	}
	return r
}

// resourceOf is the resource that the store has; nil when it is none.
func resourceOf(o model.Object) *model.Resource {
	switch o := o.(type) {
	case *model.Resource:
		return o
	case *model.Setting:
		return &o.Resource
	}
	return nil
}

// find returns the object that an argument names.
func find(ctx context.Context, s store.Store, f ref, namespace string) (store.Item, error) {
	var it store.Item
	err := fmt.Errorf("no kind: %w", store.ErrNotFound)
	for _, k := range f.kinds {
		if it, err = s.Get(ctx, kindIn(k), key(k, namespace, f.name)); !errors.Is(err, store.ErrNotFound) {
			return it, err
		}
	}
	return it, err
}

// notFound says that there is no such object.
func notFound(f ref, namespace string) error {
	where, flag := "", ""
	switch {
	case f.kinds[0].Namespaced && namespace == "":
		flag = " -A"
	case f.kinds[0].Namespaced:
		where, flag = fmt.Sprintf(" in namespace %q", namespace), " -n "+namespace
	}
	return fmt.Errorf("%s %q is not there%s: see `heddle get %s%s`", kindName(f.kinds[0]), f.name, where, kindName(f.kinds[0]), flag)
}

// readObjects reads all files and checks all objects in them, so that a wrong one changes nothing. What names
// no namespace gets that of -n.
func readObjects(cmd *cobra.Command, files []string, namespace string) ([]model.Resource, error) {
	var all []model.Resource
	from := map[string]string{}
	for _, file := range files {
		name, text, err := readObjectFile(cmd, file)
		if err != nil {
			return nil, err
		}
		objects, err := dialect.ReadYAML(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for i := range objects {
			r := &objects[i]
			if r.Namespace != "" && r.Namespace != namespace && cmd.Flags().Changed("namespace") {
				return nil, fmt.Errorf("%s: %w", name, &model.FieldError{Noun: r.String(), Field: "metadata.namespace", Value: r.Namespace, Want: "the namespace of --namespace, " + namespace})
			}
			if err := dialect.SetNamespace(r, namespace); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if _, err := store.Encode(filed(r)); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if before, twice := from[r.Key()]; twice {
				return nil, fmt.Errorf("%s: %w", name, &model.FieldError{Noun: r.String(), Field: "it is", Value: "given twice", Want: "each object once; it is in " + before + " too"})
			}
			from[r.Key()] = name
		}
		all = append(all, objects...)
	}
	if len(all) == 0 {
		return nil, &model.FieldError{Noun: strings.Join(files, ", "), Field: "objects", Want: "at least one, in YAML or JSON"}
	}
	return all, nil
}

// readObjectFile reads a file, or standard input, as far as it may have objects.
func readObjectFile(cmd *cobra.Command, file string) (name string, text []byte, err error) {
	in := cmd.InOrStdin()
	if name = "standard input"; file != "-" {
		f, err := os.Open(file) //nolint:gosec // the file that the user names
		if err != nil {
			return "", nil, err
		}
		defer func() { _ = f.Close() }()
		name, in = file, f
	}
	text, err = io.ReadAll(io.LimitReader(in, dialect.MaxText+1))
	return name, text, err
}

// needFiles is for commands that take -f FILE….
func needFiles(cmd *cobra.Command, files, args []string) ([]string, error) {
	if len(files) == 0 {
		return nil, &model.FieldError{Noun: cmd.CommandPath(), Field: "--filename", Want: "a file with objects in YAML or JSON, or - for standard input"}
	}
	return append(files, args...), nil
}

// checkNamespace refuses what cannot be a namespace.
func checkNamespace(cmd *cobra.Command, namespace string) error {
	if !model.ValidName(namespace) {
		return &model.FieldError{Noun: cmd.CommandPath(), Field: "--namespace", Value: namespace, Want: "a lower-case RFC 1123 name"}
	}
	return nil
}

// sameBody reports whether two bodies say the same: the store may spell characters in another way.
func sameBody(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	va, vb := tree(a), tree(b)
	return va != nil && reflect.DeepEqual(va, vb)
}

// tree is JSON with its numbers as they are spelled; nil when it is none.
func tree(text []byte) map[string]any {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v map[string]any
	if d.Decode(&v) != nil {
		return nil
	}
	return v
}

// overtaken waits a little after a conflict; false when it was tried often enough.
func overtaken(ctx context.Context, attempt int) bool {
	return attempt < writeAttempts && store.Pause(ctx, rand.N(time.Duration(min(attempt+1, 10))*2*time.Millisecond))
}

// sortResources sorts by namespace, then name, then group.
func sortResources(list []*model.Resource) {
	slices.SortFunc(list, func(a, b *model.Resource) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.APIVersion, b.APIVersion))
	})
}
