// Package chaos kills agents and stores at random points while pods come and go, and then looks for
// what must never be: an address held twice, an address that nobody holds and nobody can get, a pod
// that was up and does not answer.
package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

const (
	defaultKills = 12 // the everyday suite; `make chaos` does 200
	netConf      = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan","DirectRouting":true}}`
	podsPerNode  = 12
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.Cleanup()
	os.Exit(code)
}

func TestKillsDuringChurnLoseNoAddress(t *testing.T) {
	harness.Root(t)
	kills := defaultKills
	if s := os.Getenv("HEDDLE_CHAOS_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	bin := harness.Build(t)
	top, err := lab.LoadTopology("two-segments")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, lab.Spec{
		Name: harness.Name("chaos"), Topology: top, NetConf: netConf, Heddle: bin.Heddle, CNI: bin.Plugin, Pods: 3,
		AgentArgs: []string{"--cooldown", "2s"}, // so that addresses do come round again
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})

	churn, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var counts tally
	for _, n := range l.Nodes() {
		for range 2 {
			wg.Go(func() { churnPods(churn, t, l, n, &counts) })
		}
	}
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for done := 0; done < kills && ctx.Err() == nil; {
		time.Sleep(time.Duration(rnd.IntN(400)) * time.Millisecond)
		node, kill := l.Nodes()[rnd.IntN(len(l.Nodes()))], l.KillAgent
		if rnd.IntN(4) == 0 {
			node, kill = "n1", l.KillStore
		}
		if kill(node, syscall.SIGKILL) != nil {
			continue // it is dead at the moment, from an earlier kill
		}
		done++
		counts.kill()
	}
	stop()
	wg.Wait()
	t.Log(counts.String())

	for _, n := range l.Nodes() {
		waitReady(ctx, t, l, n)
		collect(ctx, t, l, n)
	}
	audit(ctx, t, l)
}

// tally counts what happened.
type tally struct {
	mu                             sync.Mutex
	kills, adds, dels, failed, bad int
}

func (c *tally) kill() { c.mu.Lock(); c.kills++; c.mu.Unlock() }

func (c *tally) add(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.adds++; err != nil {
		c.failed++
	}
}

func (c *tally) del(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dels++; err != nil {
		c.bad++
	}
}

func (c *tally) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%d kills, %d ADDs of which %d failed, %d DELs of which %d failed", c.kills, c.adds, c.failed, c.dels, c.bad)
}

// churnPods adds pods to a node and deletes them again, in no order. A DEL that fails is repeated, as a
// runtime does.
func churnPods(ctx context.Context, t *testing.T, l *lab.Lab, node string, c *tally) {
	var mine []lab.Pod
	for ctx.Err() == nil {
		if len(mine) < podsPerNode/2 && (len(mine) == 0 || rand.IntN(2) == 0) {
			p, err := l.AddPod(context.WithoutCancel(ctx), node, "")
			c.add(err)
			if err == nil {
				mine = append(mine, p)
				checkUnique(t, l)
			}
			continue
		}
		i := rand.IntN(len(mine))
		err := l.DelPod(context.WithoutCancel(ctx), mine[i].Name)
		c.del(err)
		if err == nil {
			mine = slices.Delete(mine, i, i+1)
		}
	}
}

// checkUnique wants no address to be held by two pods that are up at this moment.
func checkUnique(t *testing.T, l *lab.Lab) {
	pods, err := l.Pods()
	if err != nil {
		return // a record was removed while the list was read
	}
	held := map[netip.Addr]string{}
	for _, p := range pods {
		for _, a := range p.Addresses {
			if other, ok := held[a]; ok {
				// The other may just have been deleted between the reading of its record and of this one.
				if q, err := l.Pod(other); err == nil && slices.Contains(q.Addresses, a) {
					if r, err := l.Pod(p.Name); err == nil && slices.Contains(r.Addresses, a) {
						t.Errorf("address %s is held by %s and %s", a, other, p.Name)
					}
				}
			}
			held[a] = p.Name
		}
	}
}

func waitReady(ctx context.Context, t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	harness.Wait(t, time.Minute, node+" is ready", func() bool {
		s, err := l.Status(ctx, node)
		return err == nil && s.Ready && s.Store.Connected && len(s.Peers) >= 4 &&
			!slices.ContainsFunc(s.Peers, func(p agent.PeerStatus) bool { return p.Path == "" })
	})
}

// collect is the runtime's CNI GC with the pods that it knows.
func collect(ctx context.Context, t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	type attachment struct {
		ContainerID string `json:"containerID"`
		IfName      string `json:"ifname"`
	}
	valid := []attachment{}
	for _, p := range podsOf(t, l, node) {
		valid = append(valid, attachment{p.ContainerID, "eth0"})
	}
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "heddle", "type": "heddle-cni", "cni.dev/valid-attachments": valid,
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := l.Command(ctx, node, "env", "CNI_COMMAND=GC", "CNI_PATH=/opt/cni/bin", "/opt/cni/bin/heddle-cni")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = strings.NewReader(string(conf))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("GC on %s: %v\n%s", node, err, out)
	}
}

// audit compares pods, reservations and kernel, and pings every pod from every node.
func audit(ctx context.Context, t *testing.T, l *lab.Lab) {
	t.Helper()
	checkUnique(t, l)
	for _, n := range l.Nodes() {
		s, err := l.Status(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		up := podsOf(t, l, n)
		if len(s.Workloads) != len(up) {
			t.Errorf("%s: %d reservations after GC, want those of its %d pods", n, len(s.Workloads), len(up))
		}
		for _, p := range up {
			if !slices.ContainsFunc(s.Workloads, func(w model.Workload) bool {
				return w.ContainerID == p.ContainerID && slices.Equal(w.Addresses, p.Addresses)
			}) {
				t.Errorf("%s: pod %s %v has no reservation", n, p.Name, p.Addresses)
			}
		}
		out, err := l.Exec(ctx, n, "ip", "-o", "link", "show", "type", "veth", "master", "cni0")
		if err != nil {
			t.Fatal(err)
		}
		if ports := strings.Count(out, "\n"); ports != len(up) {
			t.Errorf("%s: %d ports on the bridge, want one for each of %d pods:\n%s", n, ports, len(up), out)
		}
	}
	pods, err := l.Pods()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes() {
		for _, p := range pods {
			for _, a := range p.Addresses {
				if out, err := l.Exec(ctx, n, "ping", "-c1", "-W5", a.String()); err != nil {
					t.Errorf("%s cannot reach pod %s on %s: %v\n%s", n, p.Name, p.Node, err, out)
				}
			}
		}
	}
}

func podsOf(t *testing.T, l *lab.Lab, node string) []lab.Pod {
	t.Helper()
	all, err := l.Pods()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(p lab.Pod) bool { return p.Node != node })
}
