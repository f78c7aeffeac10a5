package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store/memory"
)

func TestCertificateThatEndsSoonIsAProblemUntilItIsRenewed(t *testing.T) {
	dir := t.TempDir()
	issue := func(validity time.Duration) {
		t.Helper()
		if err := cert.Issue(dir, cert.Request{Name: "agent", Kind: cert.Client}, cert.Options{Validity: validity, Overwrite: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := cert.MakeCA(dir, cert.Options{}); err != nil {
		t.Fatal(err)
	}
	a := registrar(t, memory.New(), "n1", t.TempDir())
	a.Config.Store.Cert = filepath.Join(dir, "agent.crt")
	a.metrics = newMetrics(a)
	const day = 24 * time.Hour
	for _, c := range []struct {
		name, code, text string
		validity, later  time.Duration
		severity         model.Severity
	}{
		{"fresh", "", "", 365 * day, 0, ""},
		{"31 days left", "", "", 31 * day, 0, ""},
		{"soon", "certificate-expires", "in 9 days", 10 * day, time.Minute, model.Warning},
		{"over", "certificate-expires", "ended on ", day, 2 * day, model.Failure},
		{"renewed", "", "", 365 * day, 2 * day, ""},
	} {
		issue(c.validity)
		a.readCertificate(time.Now().Add(c.later))
		var got []model.Problem
		for _, p := range a.Status().Problems {
			if strings.HasPrefix(p.Code, "certificate") {
				got = append(got, p)
			}
		}
		switch {
		case c.code == "" && len(got) > 0:
			t.Errorf("%s: %v, want no problem", c.name, got)
		case c.code != "" && (len(got) != 1 || got[0].Code != c.code || got[0].Severity != c.severity || !strings.Contains(got[0].Detail, c.text)):
			t.Errorf("%s: %v, want one %s %s with %q", c.name, got, c.severity, c.code, c.text)
		}
		families, err := a.metrics.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		shown := 0.0
		for _, f := range families {
			if f.GetName() == "heddle_certificate_expiry_seconds" {
				shown = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		if want := float64(time.Now().Add(c.validity).Unix()); shown < want-60 || shown > want+60 {
			t.Errorf("%s: metric %.0f, want about %.0f", c.name, shown, want)
		}
	}
	if err := os.Remove(a.Config.Store.Cert); err != nil {
		t.Fatal(err)
	}
	a.readCertificate(time.Now())
	if got := a.snapshot().certificate; len(got) != 1 || got[0].Code != "certificate-unreadable" {
		t.Errorf("%v, want one certificate-unreadable", got)
	}
}
