package nft

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/plan"
)

// TestHostPortsAreSetBetweenPasses: to the last element what a pass would make of them, with nothing else touched.
func TestHostPortsAreSetBetweenPasses(t *testing.T) {
	s := newSpace(t)
	d := s.driver()
	if err := d.SetHostPorts(t.Context(), dual.HostPorts); !errors.Is(err, errNoTable) {
		t.Errorf("without a table: %v", err)
	}
	bare := dual
	bare.HostPorts = nil
	apply(t, d, bare)
	for _, ports := range [][]plan.HostPort{dual.HostPorts, dual.HostPorts[1:], dual.HostPorts[:2], nil, dual.HostPorts} {
		for _, p := range ports {
			if err := d.CheckHostPorts(t.Context(), []plan.HostPort{p}); err != nil && !strings.Contains(err.Error(), "lacks "+p.Protocol+" port ") {
				t.Errorf("%v: %v", p, err)
			}
		}
		if err := d.SetHostPorts(t.Context(), ports); err != nil {
			t.Fatal(err)
		}
		if err := d.CheckHostPorts(t.Context(), ports); err != nil {
			t.Errorf("%v: %v", ports, err)
		}
		for _, p := range dual.HostPorts {
			there := slices.ContainsFunc(ports, func(q plan.HostPort) bool { return q.To == p.To && q.Protocol == p.Protocol && q.Port == p.Port })
			if err := d.CheckHostPorts(t.Context(), []plan.HostPort{p}); (err == nil) != there {
				t.Errorf("of %v, check of %v: %v", ports, p, err)
			}
		}
		f := dual
		f.HostPorts = ports
		before := s.run("nft", "-a", "list", "ruleset")
		if n := apply(t, d, f); n != 0 {
			t.Errorf("%v: a pass changed %d objects", ports, n)
		}
		if err := d.SetHostPorts(t.Context(), ports); err != nil {
			t.Fatal(err)
		}
		if after := s.run("nft", "-a", "list", "ruleset"); after != before {
			t.Errorf("setting the same again changed\n%s\nto\n%s", before, after)
		}
	}
	s.run("nft", "add", "rule", "inet", "heddle", "input", "accept")
	if err := d.SetHostPorts(t.Context(), nil); err != nil {
		t.Errorf("with a rule of somebody: %v", err)
	}
	s.run("nft", "flush", "ruleset")
	if err := d.CheckHostPorts(t.Context(), dual.HostPorts); !errors.Is(err, errNoTable) {
		t.Errorf("after a flush: %v", err)
	}
}
