// Package suite runs upstream's own conformance suites against a lab and tells how they went: the end to
// end tests of Kubernetes (e2e.test, chosen by name), and the conformance tests of network-policy-api.
package suite

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// Suite is one choice of upstream's tests.
type Suite struct {
	About string
	// DualStack says that the lab has to have both families.
	DualStack bool
	// focus and skip choose among the tests of e2e.test, by their full names; no focus is the suite of
	// network-policy-api.
	focus, skip string
}

// Suites by name. What is left out is what no network could pass here: SCTPConnectivity asks for SCTP
// sockets, which the kernel may not have, in pods without the right to do without (see command sctp), and
// what is called Serial wants a cluster to itself for things that are not the network's.
var Suites = map[string]Suite{
	"netpol":      {About: "NetworkPolicy (sig-network)", focus: `\[sig-network\] Netpol`, skip: `SCTPConnectivity`},
	"conformance": {About: "Conformance (sig-network)", focus: `\[sig-network\].*\[Conformance\]`, skip: `\[Serial\]`},
	"dualstack":   {About: "IPv4 and IPv6 (sig-network)", focus: `\[Feature:IPv6DualStack\]`, skip: `SCTPConnectivity|\[Serial\]`, DualStack: true},
	"cnp":         {About: "ClusterNetworkPolicy (network-policy-api)"},
}

// Names lists the suites.
func Names() []string { return slices.Sorted(maps.Keys(Suites)) }

// Result is how a suite went.
type Result struct {
	Passed, Failed []string // names of tests
	Took           time.Duration
}

// String is a summary for people: counts, then the names of what failed.
func (r Result) String() string {
	s := fmt.Sprintf("%d passed, %d failed, in %s", len(r.Passed), len(r.Failed), r.Took.Round(time.Second))
	for _, f := range r.Failed {
		s += "\n  FAIL " + f
	}
	return s
}

// Options narrow a run.
type Options struct {
	Focus string // instead of the suite's own choice: a regular expression of Ginkgo, or of `go test -run`
	Procs int    // tests at once, of e2e.test; 0: 4
	Out   string // the folder in which the output is kept; made when it is not there
	// Output is told what the suite prints as it runs; nil: nobody.
	Output io.Writer
}

// Run runs a suite. The error says that it could not run or that its outcome is not known, never that a
// test failed.
func Run(ctx context.Context, l *lab.Lab, name string, o Options) (Result, error) {
	s, ok := Suites[name]
	if !ok {
		return Result{}, fmt.Errorf("suite %q: want %s", name, strings.Join(Names(), ", "))
	}
	if s.DualStack && !l.Spec.DualStack {
		return Result{}, fmt.Errorf("suite %s: the lab has one family, want one that was brought up with --dual-stack", name)
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return Result{}, err
	}
	var err error
	if o.Out, err = filepath.Abs(o.Out); err != nil {
		return Result{}, err
	}
	if o.Procs == 0 {
		o.Procs = 4
	}
	log, err := os.Create(filepath.Join(o.Out, name+".log"))
	if err != nil {
		return Result{}, err
	}
	defer log.Close()
	out := io.Writer(log)
	if o.Output != nil {
		out = io.MultiWriter(log, o.Output)
	}
	begin := time.Now()
	run := s.runEndToEnd
	if s.focus == "" {
		run = s.runPolicyAPI
	}
	result, err := run(ctx, l, o, out)
	result.Took = time.Since(begin)
	if err == nil && len(result.Passed)+len(result.Failed) == 0 {
		err = fmt.Errorf("no test was chosen")
	}
	if err != nil {
		err = fmt.Errorf("suite %s: %w (see %s)", name, err, log.Name())
	}
	return result, err
}
