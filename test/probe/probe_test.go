// Package probe enforces random policies in labs, and asks by packets who may talk to whom: what gets
// through must be what the oracle says of the same objects.
package probe

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/test/harness"
	"github.com/heddle-net/heddle/test/oracle"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.Cleanup()
	os.Exit(code)
}

// Networks in Flannel's words.
const (
	hostGW = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"host-gw"}}`
	vxlan  = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}`
)

// perWorld is how many packets ask about one world.
const perWorld = 120

// number is the value of an environment variable, or the one for every day.
func number(t *testing.T, name string, everyday uint64) uint64 {
	text := os.Getenv(name)
	if text == "" {
		return everyday
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s %s: want a number", name, text)
	}
	return n
}

// tally counts shots that were answered as expected.
type tally struct {
	mu      sync.Mutex
	verdict map[string]int // by kind of packet and outcome
	reason  map[string]int // by direction and why
	retried int
}

// TestPacketsPassAsTheObjectsSay: HEDDLE_PROBES is how many packets ask, HEDDLE_PROBE_SEED the first world's number.
func TestPacketsPassAsTheObjectsSay(t *testing.T) {
	many, first := number(t, "HEDDLE_PROBES", 3600), number(t, "HEDDLE_PROBE_SEED", 1)
	sum := &tally{verdict: map[string]int{}, reason: map[string]int{}}
	labs := []struct{ name, topology, netConf, attachment string }{
		{"bridge, direct", "flat", hostGW, "bridge"},
		{"routed, vxlan", "two-segments", vxlan, "routed"},
	}
	t.Run("labs", func(t *testing.T) {
		for i, tt := range labs {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				d := &drawer{cluster: newCluster(t, tt.topology, tt.netConf, tt.attachment), used: map[flow]bool{}}
				// With no policy at all: what does not pass here is not for policies to answer.
				d.ask(&oracle.World{Node: "n1", Nodes: d.nodes, Endpoints: d.endpoints}, 0, sum)
				for k := range (many/2 + perWorld - 1) / perWorld {
					seed := first + 2*k + uint64(i)
					if d.ask(oracle.RandomOver(seed, d.nodes, d.endpoints), seed, sum); t.Failed() {
						return
					}
				}
			})
		}
	})
	sum.report(t)
}

// ask makes the lab a world and asks about it.
func (d *drawer) ask(w *oracle.World, seed uint64, sum *tally) {
	d.become(w)
	shots := d.draw(w, seed, perWorld)
	left := shots
	for try := range 3 {
		if err := fire(left, patience{400 * time.Millisecond, time.Duration(2+4*try) * time.Second, &atomic.Int64{}}); err != nil {
			d.t.Fatalf("seed %d: %v", seed, err)
		}
		// What is owed an answer may have been lost on a busy machine; what is owed silence may not answer.
		var again []*shot
		for _, s := range left {
			if s.got != s.want && s.got == silent {
				again = append(again, s)
			}
		}
		if left = again; len(left) == 0 {
			break
		}
		sum.mu.Lock()
		sum.retried += len(left)
		sum.mu.Unlock()
	}
	wrong := 0
	for _, s := range shots {
		if s.got == s.want {
			sum.count(s)
		} else if wrong++; wrong <= 5 {
			d.t.Errorf("seed %d: %s: got %s, want %s\n  egress:  %+v\n  ingress: %+v\n%s", seed, s, s.got, s.want, s.egress, s.ingress, d.why(s))
		}
	}
	if wrong > 0 {
		state, err := yaml.Marshal(map[string]any{"about": fmt.Sprintf("probe, seed %d", seed), "states": []*oracle.World{w}})
		if err != nil {
			d.t.Fatal(err)
		}
		name := fmt.Sprintf("heddle-probe-%s-%d", d.lab.Name, seed)
		d.t.Errorf("seed %d: %d of %d packets differ; %s is for heddle apply, %s for test/oracle/testdata/regress", seed, wrong, len(shots),
			keep(d.t, name+"-apply.yaml", w.YAML()), keep(d.t, name+"-world.yaml", state))
	}
}

func (s *tally) count(shot *shot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verdict[shot.kind()+" "+string(shot.want)]++
	for direction, v := range map[string]oracle.Verdict{"egress": shot.egress, "ingress": shot.ingress} {
		if direction == "ingress" && !shot.egress.Allow {
			continue // it did not come so far
		}
		s.reason[fmt.Sprintf("%s, %s %s, %t", direction, v.Why, v.Policy.Kind, v.Allow)]++
	}
}

// report prints what was asked, and wants some of everything.
func (s *tally) report(t *testing.T) {
	total := 0
	for _, n := range s.verdict {
		total += n
	}
	var text strings.Builder
	for _, counts := range []map[string]int{s.verdict, s.reason} {
		for _, k := range slices.Sorted(maps.Keys(counts)) {
			fmt.Fprintf(&text, "\n%6d %s", counts[k], k)
		}
	}
	t.Logf("%d packets passed or not as the objects say, %d asked again:%s", total, s.retried, text.String())
	for _, kind := range []string{"TCP4", "TCP6", "UDP4", "UDP6", "ICMP4", "ICMP6"} {
		for _, o := range []outcome{open, refused, silent} {
			if n := s.verdict[kind+" "+string(o)]; n < total/50 && !(o == refused && strings.HasPrefix(kind, "ICMP")) {
				t.Errorf("only %d of %d packets are %s %s", n, total, kind, o)
			}
		}
	}
}
