package cni

import (
	"strings"
	"testing"
	"time"
)

func TestReportComparesWithinATurn(t *testing.T) {
	turn := func(chain string, atATime int, cpu, wall time.Duration) batch {
		ph := phase{Calls: []time.Duration{time.Millisecond, 3 * time.Millisecond}, CPU: cpu, Wall: wall}
		return batch{Chain: chain, AtATime: atATime, N: 2, Add: ph, Del: ph}
	}
	r := Report{Batches: []batch{
		turn("reference", 1, 20*time.Millisecond, 1), turn("heddle", 1, 4*time.Millisecond, 1),
		turn("reference", 10, 1, time.Second), turn("heddle", 10, 1, time.Second/3),
		turn("reference", 10, 1, 2*time.Second), turn("heddle", 10, 1, time.Second),
	}}
	var out strings.Builder
	r.print(&out, []*chain{{name: "reference"}, {name: "heddle"}}, Options{AtATime: 10})
	if want := "heddle by reference: CPU per ADD 0.20; ADDs per second, 10 at a time, 3 (2..3)"; !strings.Contains(out.String(), want) {
		t.Errorf("%q is not in\n%s", want, out.String())
	}
}
