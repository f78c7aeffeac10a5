package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/heddle-net/heddle/internal/model"
)

// Root holds one directory per lab, readable by root alone: DIR/lab.json, DIR/pki, DIR/pods and one
// directory per machine.
const Root = "/run/heddle-lab"

// What stands in a lab's directory.
const (
	stateFile = "lab.json"
	pkiDir    = "pki"
	podsDir   = "pods"
)

// What stands in a machine's directory. All but the first two appear inside the machine.
const (
	logDir        = "log"      // NAME.log of every service, init.log
	controlSocket = "ctl.sock" // of init
	etcDir        = "etc"      // /etc/heddle: heddle.yaml, net-conf.json and pki
	cniDir        = "cni"      // /etc/cni/net.d: the agent writes its conflist there
	runDir        = "run"      // /run/heddle: agent.sock and cni.sock, pods' addresses
	flannelDir    = "flannel"  // /run/flannel: subnet.env
	dataDir       = "lib"      // /var/lib/heddle: the node's id and blocks, and the store's data
)

// Paths inside a machine.
const (
	insideBin   = "/opt/heddle/bin/heddle"
	insideCNI   = "/opt/cni/bin/heddle-cni"
	netnsDir    = "/run/netns"
	cniConfDir  = "/etc/cni/net.d"
	insideEtc   = "/etc/heddle"
	netConfFile = "net-conf.json"
	configFile  = "heddle.yaml"
	insidePath  = "PATH=/opt/heddle/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

var labNameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func checkLabName(name string) error {
	if !labNameRE.MatchString(name) {
		return &model.FieldError{Noun: "lab", Field: "name", Value: name, Want: "1..32 of [a-z0-9-] that neither begin nor end with a dash"}
	}
	return nil
}

func labDir(name string) string { return filepath.Join(Root, name) }

func (l *Lab) machineDir(machine string) string { return filepath.Join(l.Dir, machine) }

// makeMachineDirs makes a node's directories and tells what is laid where.
func (l *Lab) makeMachineDirs(machine string, node bool) ([]Bind, error) {
	dir := l.machineDir(machine)
	if err := os.MkdirAll(filepath.Join(dir, logDir), 0o700); err != nil {
		return nil, err
	}
	if !node {
		return nil, nil
	}
	binds := []Bind{
		{filepath.Join(dir, etcDir), insideEtc},
		{filepath.Join(dir, cniDir), cniConfDir},
		{filepath.Join(dir, runDir), "/run/heddle"},
		{filepath.Join(dir, flannelDir), "/run/flannel"},
		{filepath.Join(dir, dataDir), "/var/lib/heddle"},
	}
	for _, b := range binds {
		if err := os.MkdirAll(b.Source, 0o755); err != nil {
			return nil, err
		}
	}
	binds = append(binds, Bind{l.Spec.Heddle, insideBin})
	if l.Spec.CNI != "" {
		binds = append(binds, Bind{l.Spec.CNI, insideCNI})
	}
	return binds, nil
}

// writeFile replaces a file in one step.
func writeFile(file string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

func writeJSON(file string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(file, append(raw, '\n'), 0o600)
}

func readJSON(file string, v any) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}
