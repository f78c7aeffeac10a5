package suite

import (
	"slices"
	"strings"
	"testing"
)

func TestOutcomesOfGinkgo(t *testing.T) {
	var r Result
	err := r.readJUnit([]byte(`<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="5" disabled="2" errors="0" failures="2" time="1.5">
  <testsuite name="Kubernetes e2e suite" tests="5">
    <testcase name="[SynchronizedBeforeSuite]" classname="s" status="passed" time="0.1"></testcase>
    <testcase name="[It] one" status="passed" time="1"><system-err>noise</system-err></testcase>
    <testcase name="[It] two" status="failed" time="1"><failure message="no" type="failed">no</failure></testcase>
    <testcase name="[It] three" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
    <testcase name="[It] four" status="panicked" time="0"><error message="oh" type="panicked"></error></testcase>
    <testcase name="[SynchronizedAfterSuite]" status="failed" time="0"><failure message="no"></failure></testcase>
  </testsuite>
</testsuites>`))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"[It] one"}; !slices.Equal(r.Passed, want) {
		t.Errorf("passed %q, want %q", r.Passed, want)
	}
	if want := []string{"[It] two", "[It] four", "[SynchronizedAfterSuite]"}; !slices.Equal(r.Failed, want) {
		t.Errorf("failed %q, want %q", r.Failed, want)
	}
	if err := r.readJUnit([]byte("<testsuites>")); err == nil {
		t.Error("half a report is taken for a whole one")
	}
}

func TestOutcomesOfGoTest(t *testing.T) {
	var r Result
	r.readGoTest(strings.NewReader(`=== RUN   TestConformance
=== RUN   TestConformance/A
=== RUN   TestConformance/A/one
=== RUN   TestConformance/A/two
--- FAIL: TestConformance (3.00s)
    --- FAIL: TestConformance/A (2.00s)
        --- PASS: TestConformance/A/one (1.00s)
        --- FAIL: TestConformance/A/two (1.00s)
        --- SKIP: TestConformance/A/three (0.00s)
    --- PASS: TestConformance/B (1.00s)
FAIL
`))
	if want := []string{"TestConformance/A/one", "TestConformance/B"}; !slices.Equal(r.Passed, want) {
		t.Errorf("passed %q, want %q", r.Passed, want)
	}
	if want := []string{"TestConformance/A/two"}; !slices.Equal(r.Failed, want) {
		t.Errorf("failed %q, want %q", r.Failed, want)
	}
}
