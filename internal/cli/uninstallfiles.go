package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/cni/wire"
)

// files are those of the agent that are there; folders come behind what is in them. Nothing is removed for being in
// one of its folders alone: people put these where they like.
func (u *uninstall) files() (found []string, err error) {
	c := &u.config
	add := func(dir string, patterns ...string) {
		for _, p := range patterns {
			more, gerr := filepath.Glob(filepath.Join(dir, p))
			found, err = append(found, more...), errors.Join(err, gerr)
		}
	}
	add(c.CNIConfDir, cni.ConflistFile, "."+cni.ConflistFile+".tmp")
	add(u.pluginDir, "."+cni.PluginType+".tmp")
	plugin := filepath.Join(u.pluginDir, cni.PluginType)
	switch ours, err := isPlugin(plugin); {
	case err == nil && ours:
		found = append(found, plugin)
	case err == nil:
		u.say("kept %s: it is not Heddle's plugin", plugin)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if c.SubnetFile != "" {
		add(filepath.Dir(c.SubnetFile), filepath.Base(c.SubnetFile), filepath.Base(c.SubnetFile)+".heddle")
	}
	add(c.RunDir, "agent.sock", "cni.sock", wire.ReadyFile, "workloads.db", "workloads.db.new", "workloads.db.damaged")
	add(filepath.Dir(c.RunDir), filepath.Base(c.RunDir))
	add(c.StateDir, "ledger.db", "ledger.db.new-*", "policy.json.gz", ".policy.json.gz.*")
	add(filepath.Dir(c.StateDir), filepath.Base(c.StateDir))
	return found, err
}

// removeFiles removes files and empty folders. A folder in which something else is, or that is mounted here, stays.
func (u *uninstall) removeFiles(files []string) error {
	var errs []error
	for _, f := range files {
		switch err := os.Remove(f); {
		case err == nil:
			u.say("removed %s", f)
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, syscall.ENOTEMPTY):
			u.say("kept %s: something else is in it", f)
		case errors.Is(err, syscall.EBUSY):
			u.say("kept %s: it is a mount point", f)
		default:
			errs = append(errs, fmt.Errorf("remove %w", err))
		}
	}
	return errors.Join(errs...)
}
