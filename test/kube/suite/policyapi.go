package suite

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// policyFeatures are what Heddle promises beyond the core: named ports, but not peers by labels of nodes.
const policyFeatures = "ClusterNetworkPolicyNamedPorts"

// runPolicyAPI runs the conformance tests of network-policy-api, once its kinds are known to the API
// server: those of the experimental channel, as they have the fields of all features.
func (Suite) runPolicyAPI(ctx context.Context, l *lab.Lab, o Options, out io.Writer) (Result, error) {
	home := filepath.Join(l.Spec.Bin, "network-policy-api")
	kinds, err := filepath.Glob(filepath.Join(home, "crd/experimental/policy*.yaml"))
	if err != nil || len(kinds) == 0 {
		return Result{}, errors.Join(err, errors.New("no CRDs of network-policy-api: build them with build/kube suites"))
	}
	for _, k := range kinds {
		if _, err := l.Kubectl(ctx, "apply", "--server-side", "--force-conflicts", "-f", k); err != nil {
			return Result{}, err
		}
	}
	if err := removeOldRun(ctx, l); err != nil {
		return Result{}, err
	}
	focus := "^TestConformance$"
	if o.Focus != "" {
		focus += "/" + o.Focus
	}
	cmd, err := l.Command(ctx, "cp", filepath.Join(l.Spec.Bin, "network-policy-api.test"),
		"-test.v", "-test.run="+focus, "-test.timeout=60m", "-supported-features="+policyFeatures)
	if err != nil {
		return Result{}, err
	}
	cmd.Dir = filepath.Join(home, "conformance")
	var text bytes.Buffer
	cmd.Stdout = io.MultiWriter(out, &text)
	cmd.Stderr = cmd.Stdout
	ran := cmd.Run()
	var exit *exec.ExitError
	if ran != nil && !errors.As(ran, &exit) {
		return Result{}, ran
	}
	var r Result
	r.readGoTest(&text)
	if ran != nil && len(r.Failed) == 0 {
		return r, ran
	}
	return r, nil
}

// removeOldRun removes the namespaces of a run before this one and waits until they are gone: the suite
// itself does not wait for their end.
func removeOldRun(ctx context.Context, l *lab.Lab) error {
	all, err := l.Kubectl(ctx, "get", "namespaces", "-o", "name")
	if err != nil {
		return err
	}
	for _, n := range strings.Fields(all) {
		if strings.HasPrefix(n, "namespace/network-policy-conformance-") {
			if _, err := l.Kubectl(ctx, "delete", n, "--ignore-not-found", "--timeout=3m"); err != nil {
				return err
			}
		}
	}
	return nil
}

var verdict = regexp.MustCompile(`^\s*--- (PASS|FAIL): (\S+)`)

// readGoTest adds the outcomes of `go test -v`, of tests that have no parts themselves.
func (r *Result) readGoTest(text io.Reader) {
	passed := map[string]bool{}
	whole := map[string]bool{}
	var names []string
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := verdict.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		names = append(names, m[2])
		passed[m[2]] = m[1] == "PASS"
		for above := m[2]; strings.Contains(above, "/"); {
			above = above[:strings.LastIndexByte(above, '/')]
			whole[above] = true
		}
	}
	for _, n := range names {
		switch {
		case whole[n]:
		case passed[n]:
			r.Passed = append(r.Passed, n)
		default:
			r.Failed = append(r.Failed, n)
		}
	}
}
