package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Attachments are the styles that a lab's pods can have.
var attachments = []string{string(model.AttachBridge), string(model.AttachRouted)}

// modes are the short words for whole net-conf.json files: the backend's part of each.
var modes = map[string]string{
	"host-gw":      `{"Type":"host-gw"}`,
	"vxlan":        `{"Type":"vxlan"}`,
	"vxlan+direct": `{"Type":"vxlan","DirectRouting":true}`,
}

// families are the address parts of net-conf.json, by the word after the colon.
var families = map[string]string{
	"":  `"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48"`,
	"4": `"Network":"10.244.0.0/16"`,
	"6": `"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48"`,
}

const (
	defaultMode = "vxlan+direct"
	modeWant    = "host-gw, vxlan or vxlan+direct, with :4 or :6 for one address family, or a file"
)

// NetConf makes net-conf.json from a word: host-gw, vxlan or vxlan+direct for both address families,
// and with ":4" or ":6" behind it for one.
func NetConf(mode string) (string, error) {
	name, family, _ := strings.Cut(mode, ":")
	backend, ok := modes[name]
	addresses, ok2 := families[family]
	if !ok || !ok2 {
		return "", &model.FieldError{Noun: "lab", Field: "net-conf", Value: mode, Want: modeWant}
	}
	return "{" + addresses + `,"Backend":` + backend + "}\n", nil
}

// complete fills in defaults and validates.
func (s *Spec) complete() error {
	if err := checkLabName(s.Name); err != nil {
		return err
	}
	if err := s.Topology.Validate(); err != nil {
		return err
	}
	if s.NetConf == "" && s.Objects == "" {
		s.NetConf, _ = NetConf(defaultMode) // known to be one
	}
	if s.NetConf != "" {
		if err := checkNetConf(s.NetConf); err != nil {
			return err
		}
	}
	if s.Attachment == "" {
		s.Attachment = string(model.AttachBridge)
	}
	if !slices.Contains(attachments, s.Attachment) {
		return &model.FieldError{Noun: "lab", Field: "attachment", Value: s.Attachment, Want: strings.Join(attachments, " or ")}
	}
	if s.Pods < 0 || s.Pods > 1000 {
		return &model.FieldError{Noun: "lab", Field: "pods", Value: fmt.Sprint(s.Pods), Want: "0..1000"}
	}
	return s.findBinaries()
}

func checkNetConf(text string) error {
	if !json.Valid([]byte(text)) {
		return &model.FieldError{Noun: "lab", Field: "net-conf", Value: text, Want: "a JSON object in Flannel's format"}
	}
	return nil
}

func (s *Spec) findBinaries() error {
	if s.Heddle == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		s.Heddle = self
	}
	var err error
	if s.Heddle, err = filepath.Abs(s.Heddle); err != nil {
		return err
	}
	if s.CNI == "" && !s.Bare {
		s.CNI = filepath.Join(filepath.Dir(s.Heddle), "heddle-cni")
	}
	if s.CNI == "" {
		return nil
	}
	if s.CNI, err = filepath.Abs(s.CNI); err != nil {
		return err
	}
	if _, err := os.Stat(s.CNI); err != nil {
		return &model.FieldError{Noun: "lab", Field: "cni-bin", Value: s.CNI, Want: "the heddle-cni binary (make build puts it beside heddle)"}
	}
	return nil
}

// SetNetConf replaces net-conf.json on all nodes; their agents see it and change over by themselves.
func (l *Lab) SetNetConf(_ context.Context, text string) error {
	if err := checkNetConf(text); err != nil {
		return err
	}
	if l.Spec.NetConf == "" {
		return &model.FieldError{Noun: fmt.Sprintf("lab %q", l.Name), Field: "net-conf", Want: "a lab that was made with one: the agents of this one follow what is applied"}
	}
	var errs []error
	for _, n := range l.Nodes() {
		errs = append(errs, writeFile(filepath.Join(l.machineDir(n), etcDir, netConfFile), []byte(text), 0o644))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	l.Spec.NetConf = text
	return writeJSON(filepath.Join(l.Dir, stateFile), l.Spec)
}
