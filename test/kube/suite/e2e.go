package suite

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// registries sends every registry that upstream's tests name to the images of the lab.
const registries = `promoterE2eRegistry: lab.local
buildImageRegistry: lab.local
gcEtcdRegistry: lab.local
gcRegistry: lab.local
sigStorageRegistry: lab.local
dockerLibraryRegistry: lab.local
`

// runEndToEnd runs the suite's choice of e2e.test.
func (s Suite) runEndToEnd(ctx context.Context, l *lab.Lab, o Options, out io.Writer) (Result, error) {
	report, repos := filepath.Join(o.Out, "report"), filepath.Join(o.Out, "registries.yaml")
	if err := errors.Join(os.RemoveAll(report), os.MkdirAll(report, 0o755), os.WriteFile(repos, []byte(registries), 0o644)); err != nil {
		return Result{}, err
	}
	focus := s.focus
	if o.Focus != "" {
		focus = o.Focus
	}
	cmd, err := l.Command(ctx, "cp", "env", "KUBE_TEST_REPO_LIST="+repos,
		"ginkgo", fmt.Sprintf("--procs=%d", o.Procs), "--no-color", "--silence-skips", "--focus="+focus, "--skip="+s.skip,
		filepath.Join(l.Spec.Bin, "e2e.test"), "--",
		"--provider=skeleton", fmt.Sprintf("--num-nodes=%d", l.Spec.Nodes), "--report-dir="+report)
	if err != nil {
		return Result{}, err
	}
	cmd.Stdout, cmd.Stderr = out, out
	// Tests that fail make it fail as well: the report says which of the two it was.
	ran := cmd.Run()
	var exit *exec.ExitError
	if ran != nil && !errors.As(ran, &exit) {
		return Result{}, ran
	}
	reports, err := filepath.Glob(filepath.Join(report, "junit*.xml"))
	if err != nil || len(reports) == 0 {
		return Result{}, errors.Join(ran, err, errors.New("it left no report"))
	}
	var r Result
	for _, file := range reports {
		text, err := os.ReadFile(file)
		if err != nil {
			return Result{}, err
		}
		if err := r.readJUnit(text); err != nil {
			return Result{}, fmt.Errorf("report %s: %w", file, err)
		}
	}
	if ran != nil && len(r.Failed) == 0 {
		return r, fmt.Errorf("no test failed, but the run did: %w", ran)
	}
	return r, nil
}

// readJUnit adds the outcomes of a report as Ginkgo writes it: every test that was not skipped, and of the
// set-up before and after the tests only what failed.
func (r *Result) readJUnit(text []byte) error {
	var report struct {
		Suites []struct {
			Cases []struct {
				Name    string    `xml:"name,attr"`
				Skipped *struct{} `xml:"skipped"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &report); err != nil {
		return err
	}
	for _, s := range report.Suites {
		for _, c := range s.Cases {
			switch {
			case c.Skipped != nil:
			case c.Failure != nil || c.Error != nil:
				r.Failed = append(r.Failed, c.Name)
			case len(c.Name) > 4 && c.Name[:4] == "[It]":
				r.Passed = append(r.Passed, c.Name)
			}
		}
	}
	return nil
}
