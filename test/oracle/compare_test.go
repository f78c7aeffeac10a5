package oracle_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/test/oracle"
)

// HEDDLE_ORACLE_DECISIONS says how many decisions are to be compared, HEDDLE_ORACLE_SEED with which number the
// worlds begin, and HEDDLE_ORACLE_FAILURES where a failure is kept instead of testdata/regress. A single seed
// runs again with HEDDLE_ORACLE_SEED=that HEDDLE_ORACLE_DECISIONS=1.

// kase is a history of a cluster, as one compiler is told of it, and a packet that is asked about in the end.
// It is what testdata/regress holds.
type kase struct {
	About  string        `json:"about,omitempty"`
	States []state       `json:"states"`
	Probe  *oracle.Probe `json:"probe,omitempty"`
}

// state is a world that a compiler was told of. Of a quiet one it was not asked for a table.
type state struct {
	*oracle.World
	Quiet bool `json:"quiet,omitempty"`
}

// disagreement is a packet of which table and oracle think differently.
type disagreement struct {
	probe oracle.Probe
	what  string
	text  string
}

func (d *disagreement) Error() string { return d.text }

// check goes through the history and asks in the end; without a probe it asks everything.
func (c *kase) check(perPair int) error {
	m := newMachine(c.States[0].Node)
	for i, s := range c.States {
		if err := m.become(s.World, s.Quiet && i < len(c.States)-1); err != nil {
			return fmt.Errorf("state %d: %w", i, err)
		}
	}
	last := c.States[len(c.States)-1].World
	if c.Probe != nil && c.Probe.Hook == "" && !slices.Contains(last.Questions().Locals, c.Probe.Local) {
		return nil // shrunk too far: nobody's question
	}
	probes := []oracle.Probe{}
	if c.Probe != nil {
		probes = append(probes, *c.Probe)
	} else {
		probes = last.Questions().Probes(1, perPair)
	}
	_, err := compare(m, oracle.New(last), probes)
	return err
}

// compare lets both judge, and returns how many decisions were alike before one was not.
func compare(m *machine, o *oracle.Oracle, probes []oracle.Probe) (int, error) {
	for i, p := range probes {
		now, staged, found := o.Ask(p)
		if !found {
			continue // it has gone since: nobody's question
		}
		got, agree := m.ask(p)
		if !agree {
			return i, fmt.Errorf("Decide and the kernel's walk disagree: %v: %s", p, show(got))
		}
		if what := differs(p, got, now, staged); what != "" {
			return i, &disagreement{p, what, fmt.Sprintf("%s\n  differs in: %s\n  table:  %s\n  oracle: %+v\n  staged: %+v", p, what, show(got), now, staged)}
		}
	}
	return len(probes), nil
}

// decisions is how many are compared: at least a million, more with HEDDLE_ORACLE_DECISIONS, fewer with -short.
func decisions(t *testing.T) int64 {
	n := int64(3_000_000)
	if testing.Short() {
		n = 100_000
	}
	if text := os.Getenv("HEDDLE_ORACLE_DECISIONS"); text != "" {
		var err error
		if n, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatalf("HEDDLE_ORACLE_DECISIONS: %v", err)
		}
	}
	return n
}

// firstSeed is where the seeds begin: HEDDLE_ORACLE_SEED, or always the same.
func firstSeed(t *testing.T) uint64 {
	text := os.Getenv("HEDDLE_ORACLE_SEED")
	if text == "" {
		return 1
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("HEDDLE_ORACLE_SEED: %v", err)
	}
	return n
}

// TestTableAgreesWithTheObjects is the property: whatever people wrote and however the cluster came to be what
// it is, the decision table says of every packet what the objects say, with the policy and rule that decide.
func TestTableAgreesWithTheObjects(t *testing.T) {
	want, first := decisions(t), firstSeed(t)
	var next, count, worlds, states atomic.Int64
	var failed atomic.Bool
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for count.Load() < want && !failed.Load() {
				seed := first + uint64(next.Add(1)) - 1
				n, k, err := runSeed(seed)
				count.Add(int64(n))
				states.Add(int64(len(k.States)))
				worlds.Add(1)
				if err != nil && !failed.Swap(true) {
					report(t, seed, k, err)
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d decisions compared, in %d worlds with %d states, seeds %d to %d", count.Load(), worlds.Load(), states.Load(), first, first+uint64(next.Load())-1)
	if !failed.Load() && count.Load() < want {
		t.Errorf("only %d decisions", count.Load())
	}
}

// runSeed makes a world and changes it a few times, now and then many times, with comparisons between; some
// states the compiler only passes through.
func runSeed(seed uint64) (n int, k *kase, err error) {
	k = &kase{}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	r := rand.New(rand.NewPCG(seed, 108))
	w := withStrangePeers(oracle.Random(seed), seed)
	m := newMachine(w.Node)
	steps := 8
	if r.IntN(10) == 0 {
		steps = 40
	}
	for step := range steps {
		s := state{w, step < steps-1 && r.IntN(5) == 0}
		k.States = append(k.States, s)
		if err := m.become(w, s.Quiet); err != nil {
			return n, k, err
		}
		if !s.Quiet {
			probes := w.Questions().Probes(seed<<8|uint64(step), 1)
			if steps > 8 {
				r.Shuffle(len(probes), func(i, j int) { probes[i], probes[j] = probes[j], probes[i] })
				probes = probes[:len(probes)/4]
			}
			more, err := compare(m, oracle.New(w), probes)
			n += more
			if err != nil {
				return n, k, err
			}
		}
		w = withStrangePeers(w.Mutate(seed<<8|uint64(step)), seed)
	}
	return n, k, nil
}

// withStrangePeers puts peers of which no field is known into some rules of cluster policies: people cannot
// write them, but an API server of a later version may hold them.
func withStrangePeers(w *oracle.World, seed uint64) *oracle.World {
	r := rand.New(rand.NewPCG(seed, 106))
	for i := range w.ClusterPolicies {
		s := &w.ClusterPolicies[i].Spec
		for j := range s.Ingress {
			if r.IntN(20) == 0 {
				s.Ingress[j].From = append(s.Ingress[j].From, v1alpha2.ClusterNetworkPolicyIngressPeer{})
			}
		}
		for j := range s.Egress {
			if r.IntN(20) == 0 {
				s.Egress[j].To = append(s.Egress[j].To, v1alpha2.ClusterNetworkPolicyEgressPeer{})
			}
		}
	}
	return w
}

// report shrinks what failed and files it.
func report(t *testing.T, seed uint64, k *kase, err error) {
	t.Helper()
	var d *disagreement
	if errors.As(err, &d) {
		k.Probe = &d.probe
	}
	small := shrink(k, err)
	small.About = fmt.Sprintf("seed %d", seed)
	text, yerr := yaml.Marshal(small)
	if yerr != nil {
		t.Fatal(yerr)
	}
	dir := os.Getenv("HEDDLE_ORACLE_FAILURES")
	if dir == "" {
		dir = filepath.Join("testdata", "regress")
	}
	path := filepath.Join(dir, fmt.Sprintf("seed-%d.yaml", seed))
	if werr := os.MkdirAll(dir, 0o755); werr != nil {
		t.Fatal(werr)
	}
	if werr := os.WriteFile(path, text, 0o644); werr != nil {
		t.Fatal(werr)
	}
	t.Errorf("seed %d: %v\nafter shrinking: %v\nkept in %s", seed, err, small.safeCheck(), path)
}

// TestRegressions runs again what once failed.
func TestRegressions(t *testing.T) {
	files, err := filepath.Glob("testdata/regress/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			var k kase
			if err := yaml.UnmarshalStrict(text, &k); err != nil {
				t.Fatal(err)
			}
			if err := k.safeCheck(); err != nil {
				t.Errorf("%s: %v", k.About, err)
			}
			k.Probe = nil
			if err := k.safeCheck(); err != nil {
				t.Errorf("%s, asked everything: %v", k.About, err)
			}
		})
	}
}

// safeCheck turns a panic into an error.
func (c *kase) safeCheck() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return c.check(3)
}
