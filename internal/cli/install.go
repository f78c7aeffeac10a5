package cli

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/cni"
)

const (
	defaultPluginDir = "/opt/cni/bin"
	// pluginPath is what the Go linker writes into every build of the plugin (debug/buildinfo).
	pluginPath = "github.com/heddle-net/heddle/cmd/heddle-cni"
	// pluginMode: any user may run the plugin, and it runs as who runs it.
	pluginMode = 0o755
)

func installCNICmd() *cobra.Command {
	var from, to string
	cmd := &cobra.Command{
		Use:   "install-cni",
		Short: "Put the CNI plugin where container runtimes look for it",
		Long: "Put the CNI plugin where container runtimes look for it: in one step, so that a runtime finds the old\n" +
			"program or the new one. Nothing else in the directory is touched, nor a file of that name that is not Heddle's.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" {
				self, err := os.Executable()
				if err != nil {
					return err
				}
				from = filepath.Join(filepath.Dir(self), cni.PluginType)
			}
			changed, err := installPlugin(from, to)
			if err != nil {
				return fmt.Errorf("install-cni: %w", err)
			}
			word := "installed"
			if !changed {
				word = "already there:"
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), word, filepath.Join(to, cni.PluginType))
			return err
		},
	}
	cmd.Flags().StringVar(&to, "to", defaultPluginDir, "directory in which the runtime looks for plugins")
	cmd.Flags().StringVar(&from, "from", "", "the plugin (default: "+cni.PluginType+" beside this program)")
	return cmd
}

// installPlugin makes dir/heddle-cni equal to the file from, by a rename, and readable and executable by all. A file
// that is right already is left alone, and changed false.
func installPlugin(from, dir string) (changed bool, err error) {
	if ok, err := isPlugin(from); err != nil {
		return false, err
	} else if !ok {
		return false, fmt.Errorf("--from %s: want a build of Heddle's plugin", from)
	}
	program, err := os.ReadFile(from) //nolint:gosec // the file that the user names
	if err != nil {
		return false, err
	}
	path := filepath.Join(dir, cni.PluginType)
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%s: want Heddle's plugin or nothing there, found a %s", path, info.Mode().Type())
	default:
		if ok, err := isPlugin(path); err != nil {
			return false, err
		} else if !ok {
			return false, fmt.Errorf("%s: a program that is not Heddle's plugin is there: move it away first", path)
		}
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, program) && info.Mode() == pluginMode { //nolint:gosec // as above
			return false, nil
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // runtimes of other users read it
		return false, err
	}
	// One name for all tries: a crash leaves one such file at most, and the next try replaces it.
	tmp := filepath.Join(dir, "."+cni.PluginType+".tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	defer os.Remove(tmp)                                                      // gone already when all went well
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, pluginMode) //nolint:gosec // runtimes of other users run it
	if err != nil {
		return false, err
	}
	_, err = f.Write(program)
	if err := errors.Join(err, f.Chmod(pluginMode), f.Sync(), f.Close()); err != nil {
		return false, err
	}
	if err := os.Rename(tmp, path); err != nil {
		return false, err
	}
	d, err := os.Open(dir) //nolint:gosec // as above
	if err != nil {
		return false, err
	}
	return true, errors.Join(d.Sync(), d.Close())
}

// isPlugin tells whether a file is some build of Heddle's plugin. The error is one of opening it.
func isPlugin(path string) (bool, error) {
	f, err := os.Open(path) //nolint:gosec // the file that the user names
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := buildinfo.Read(f)
	return err == nil && info.Path == pluginPath, nil
}
