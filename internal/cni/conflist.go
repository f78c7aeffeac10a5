package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/heddle-net/heddle/internal/cni/wire"
	"github.com/heddle-net/heddle/internal/model"
)

// ConflistFile is the name of the network configuration among a runtime's others, of which it takes the
// first by name: on a node that is moved, the predecessor's (10-flannel, 10-calico, 10-weave) stays where it is.
const ConflistFile = "05-heddle.conflist"

// PluginType is the plugin's file name in the runtime's CNI_PATH.
const PluginType = "heddle-cni"

// conflistVersion is for runtimes that know one version only: the oldest that has CHECK. Newer ones
// take the highest that they know of cniVersions (spec 1.1.0, "Network configuration format").
const conflistVersion = "0.4.0"

// Conflist is the network configuration list that points a runtime at the agent: name is the
// network's, socket where the agent listens.
func Conflist(name, socket string) ([]byte, error) {
	if !model.ValidContainerID(name) {
		return nil, &model.FieldError{Noun: "conflist", Field: "name", Value: name, Want: "1..255 characters of [A-Za-z0-9_.-] that begin with a letter or digit"}
	}
	if !filepath.IsAbs(socket) {
		return nil, &model.FieldError{Noun: "conflist", Field: "socket", Value: socket, Want: "an absolute path"}
	}
	type plugin struct {
		Type         string          `json:"type"`
		Socket       string          `json:"socket"`
		Capabilities map[string]bool `json:"capabilities"`
	}
	out, err := json.MarshalIndent(struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []plugin `json:"plugins"`
	}{conflistVersion, wire.Versions(), name, []plugin{{
		PluginType, socket, map[string]bool{capabilityPorts: true, capabilityBandwidth: true, capabilityIPs: true, capabilityMAC: true},
	}}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("conflist: %w", err)
	}
	return append(out, '\n'), nil
}

// WriteConflist puts content into dir (made if need be) as ConflistFile, in one step: a runtime sees
// the old file, or the new one, or none. A file that is right already is left alone, and changed false.
func WriteConflist(dir string, content []byte) (changed bool, err error) {
	path := filepath.Join(dir, ConflistFile)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return false, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // runtimes of other users read it
		return false, fmt.Errorf("conflist: %w", err)
	}
	// Runtimes read *.conf, *.conflist and *.json: this name is none of them. A crash leaves one at most.
	tmp, err := os.OpenFile(filepath.Join(dir, "."+ConflistFile+".tmp"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // as above
	if err != nil {
		return false, fmt.Errorf("conflist: %w", err)
	}
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return false, fmt.Errorf("conflist: %w", err)
	}
	return true, syncDir(dir)
}

// RemoveConflist takes the file away, so that the runtime sees a node that is not ready. No file is
// success, with changed false.
func RemoveConflist(dir string) (changed bool, err error) {
	err = os.Remove(filepath.Join(dir, ConflistFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("conflist: %w", err)
	}
	return true, syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("conflist: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("conflist: %w", err)
	}
	return nil
}
