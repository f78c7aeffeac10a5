package datapath

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/bench/load"
)

// TestMain also is one end of a load, as cmd bench is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "load" {
		if err := load.Main(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestNetworksCarryEveryLoad(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	file := filepath.Join(t.TempDir(), "all.json")
	var out strings.Builder
	err := Main(t.Context(), []string{
		"-rounds", "1", "-tcp", "20ms", "-other", "20ms", "-tries", "0",
		"-only", "hosts,host-gw,vxlan,host-gw-routed,flannel-vxlan", "-json", file,
	}, &out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"host-gw", "vxlan", Floor + " itself", "samples stayed noisy"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the report:\n%s", want, out.String())
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

// TestPolicedPodsCarryEveryLoad: with few and with many table entries, and under iptables' chain.
func TestPolicedPodsCarryEveryLoad(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	var out strings.Builder
	err := Policy(t.Context(), []string{
		"-rounds", "1", "-other", "20ms", "-tries", "0", "-only", "none,policy-1000,iptables-10", "-json", "",
	}, &out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"policy-1000", "iptables-10", "policy-10 itself"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
}

func TestLoadCountsWhatArrives(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	n := &network{name: "hosts"}
	t.Cleanup(n.close)
	if err := hosts(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	// A wire of 10 Mbit/s: what a stream reports must be below it, and near.
	if err := n.client.Run("", "tc", "qdisc", "add", "dev", "uplink", "root", "tbf", "rate", "10mbit", "burst", "16kb", "latency", "20ms"); err != nil {
		t.Skipf("no token bucket in this kernel: %v", err)
	}
	value, cost, _, err := tests[0].run(context.WithoutCancel(t.Context()), n, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if value < 0.004 || value > 0.0105 || cost <= 0 {
		t.Errorf("%.4f Gbit/s over a wire of 0.01, CPU %.3f s/GB", value, cost)
	}
}

func TestRatiosAreTakenWithinARound(t *testing.T) {
	r := Report{floor: Floor, Samples: []sample{
		{Network: Floor, Test: "x", Round: 0, Value: 10},
		{Network: Floor, Test: "x", Round: 1, Value: 20},
		{Network: "n", Test: "x", Round: 0, Value: 5},
		{Network: "n", Test: "x", Round: 1, Value: 40},
		{Network: "n", Test: "y", Round: 0, Value: 99},
	}}
	m, lo, hi := spread(r.ratios("n", "x", value))
	if m != 1.25 || lo != 0.5 || hi != 2 {
		t.Errorf("median %v, least %v, most %v; want 1.25, 0.5, 2", m, lo, hi)
	}
	if m, _, _ := spread(r.ratios("n", "y", value)); m != 0 {
		t.Errorf("a test without a floor has ratio %v", m)
	}
}
