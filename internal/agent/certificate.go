package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/model"
)

// certificateWarning is how long before its end a certificate becomes a problem.
const certificateWarning = 30 * 24 * time.Hour

// certificateLoop looks at the end of the certificate that the store is shown, at the start and as often
// as the heartbeat. The store's client takes a renewed file by itself.
func (a *Agent) certificateLoop(ctx context.Context) error {
	if a.Config.Store.Cert == "" {
		return nil
	}
	again := time.NewTicker(time.Duration(a.Config.LeaseTTL) / 3)
	defer again.Stop()
	for {
		a.readCertificate(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
	}
}

func (a *Agent) readCertificate(now time.Time) {
	file := a.Config.Store.Cert
	end, err := cert.Expiry(file)
	var problems []model.Problem
	if err != nil {
		problems = append(problems, model.Problem{
			Code: "certificate-unreadable", Severity: model.Failure, Subject: "certificate " + file,
			Detail: err.Error() + "; the store cannot be reached anew without it", Next: "ls -l " + file,
		})
	} else if left := end.Sub(now); left < certificateWarning {
		name := strings.TrimSuffix(filepath.Base(file), ".crt")
		p := model.Problem{
			Code: "certificate-expires", Severity: model.Warning, Subject: "certificate " + file,
			Detail: fmt.Sprintf("ends on %s, in %d days; the store then refuses this node", end.UTC().Format(time.RFC3339), int(left/(24*time.Hour))),
			Next:   "heddle cert client " + name + " --overwrite where ca.key is, and copy " + name + ".crt and " + name + ".key here; no restart is needed",
		}
		if left <= 0 {
			p.Severity = model.Failure
			p.Detail = fmt.Sprintf("ended on %s: the store refuses new connections of this node", end.UTC().Format(time.RFC3339))
		}
		problems = append(problems, p)
	}
	a.update(func(s *state) { s.certificate, s.certificateEnd = problems, end })
}
