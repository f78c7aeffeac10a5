package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/cni/wire"
	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// writeReadyFiles writes what others wait for: the conflist, and subnet.env for those who still run
// Flannel's CNI chain. They are written when, and only when, the node is ready.
func (a *Agent) writeReadyFiles(p *plan.Plan) {
	text, err := cni.Conflist(a.Config.CNINetwork, a.cniSocket())
	if err == nil {
		_, err = cni.WriteConflist(a.Config.CNIConfDir, text)
	}
	if a.Config.SubnetFile != "" {
		err = errors.Join(err, a.writeSubnetFile(p))
	}
	err = errors.Join(err, a.touchReady())
	if err != nil {
		a.Log.Error("cannot write what the runtime waits for", "error", err)
		a.update(func(s *state) {
			s.passIssues = append(s.passIssues[:len(s.passIssues):len(s.passIssues)], model.Problem{
				Code: "ready-files", Severity: model.Failure, Subject: "cniConfDir", Detail: err.Error(), Next: "ls -ld " + a.Config.CNIConfDir,
			})
		})
	}
}

func (a *Agent) readyFile() string { return filepath.Join(filepath.Dir(a.cniSocket()), wire.ReadyFile) }

// touchReady renews wire.ReadyFile; every pass does while pods can be added.
func (a *Agent) touchReady() error {
	f, err := os.OpenFile(a.readyFile(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	now := time.Now()
	return os.Chtimes(f.Name(), now, now)
}

func (a *Agent) writeSubnetFile(p *plan.Plan) error {
	s := a.snapshot()
	env := flannel.SubnetEnv{MTU: p.MTU, IPMasq: a.Config.Masquerade != nil && *a.Config.Masquerade}
	for _, b := range s.blocks {
		for _, pool := range a.clusterPools() {
			if pool.Name != b.Pool || b.Lender != "" {
				continue
			}
			// The format has one of each family: the first.
			switch {
			case b.Family() == model.IPv4 && !env.Subnet.IsValid():
				env.Network, env.Subnet = pool.CIDR, b.CIDR
			case b.Family() == model.IPv6 && !env.IPv6Subnet.IsValid():
				env.IPv6Network, env.IPv6Subnet = pool.CIDR, b.CIDR
			}
		}
	}
	text := env.Format()
	if old, err := os.ReadFile(a.Config.SubnetFile); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(a.Config.SubnetFile), 0o755); err != nil {
		return err
	}
	tmp := a.Config.SubnetFile + ".heddle"
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, a.Config.SubnetFile)
}
