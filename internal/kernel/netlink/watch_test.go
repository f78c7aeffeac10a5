package netlink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/internal/plan"
)

// loop is the agent's in small: apply once, and again whenever the watch says so.
func loop(t *testing.T, d *Driver, p func() *plan.Plan) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	wake, done := make(chan struct{}, 1), make(chan error, 2)
	go func() {
		done <- d.Watch(ctx, func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		})
	}()
	go func() {
		for {
			select {
			case <-ctx.Done():
				done <- nil
				return
			case <-wake:
				d.Apply(ctx, p())
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
	})
}

func TestDriftIsRepairedWithinASecond(t *testing.T) {
	node, d := newNode(t)
	pods, pod := newPods(t, node), newSpace(t)
	port := bridged(3).Host.Name
	full := func() *plan.Plan { return planWith(tunnelPlan(2), bridged(3)) }
	apply(t, d, bridgePlan())
	attach(t, pods, pod, bridged(3))
	apply(t, d, full())
	loop(t, d, full)
	for _, c := range []struct{ spoil, cmd, want string }{
		{"ip route del 10.245.1.0/24", "ip route show proto 104", "10.245.1.0/24 via"},
		{"ip -6 route flush proto 104", "ip -6 route show proto 104", "fd00:244:0:2::/64 via"},
		{"ip route replace 10.245.1.0/24 via 192.168.0.16 proto 104", "ip route show proto 104", "10.245.1.0/24 via 10.245.1.0 dev flannel.1 onlink"},
		{"ip link del flannel.1", "ip route show proto 104", "10.245.2.0/24 via 10.245.2.0 dev flannel.1"},
		{"ip link del cni0", "ip -d link show " + port, "hairpin on"},
		{"ip addr flush dev cni0", "ip addr show cni0", "10.244.0.1/24"},
		{"ip -6 addr del fd00:244::1/64 dev cni0", "ip addr show cni0", "fd00:244::1/64"},
		{"ip link set flannel.1 down", "ip route show proto 104", "10.245.2.0/24 via 10.245.2.0 dev flannel.1"},
		{"ip neigh flush dev flannel.1 nud permanent", "ip neigh show dev flannel.1", "10.245.2.0 lladdr"},
		{"bridge fdb del 02:00:00:00:00:01 dev flannel.1", "bridge fdb show dev flannel.1", "02:00:00:00:00:01 dst"},
		{"ip link set " + port + " nomaster", "ip -d link show " + port, "hairpin on"},
		{"ip link set " + port + " down", "ip link show " + port, ",UP"},
		{"ip link set flannel.1 mtu 1300", "ip link show flannel.1", "mtu 1450"},
		{"bridge link set dev " + port + " hairpin off", "ip -d link show " + port, "hairpin on"},
		{"ip link set " + port + " type bridge_slave hairpin off", "ip -d link show " + port, "hairpin on"},
		{"sysctl -qw net.ipv4.ip_forward=0", "sysctl net.ipv4.ip_forward", "= 1"},
		{"sysctl -qw net.ipv6.conf.all.forwarding=0", "sysctl net.ipv6.conf.all.forwarding", "= 1"},
		{"sysctl -qw net.ipv4.conf.flannel/1.rp_filter=1", "sysctl net.ipv4.conf.flannel/1.rp_filter", "= 2"},
		{"ip rule add from 10.0.0.0/8 lookup 9 proto 104", "", ""},
	} {
		node.run(strings.Fields(c.spoil)...)
		begin := time.Now()
		if c.cmd == "" {
			eventually(t, "the rule is gone", func() bool { return !strings.Contains(node.ip("rule show"), "104") })
		} else {
			eventually(t, "after "+c.spoil+": "+c.want, func() bool {
				out, _ := node.try(strings.Fields(c.cmd)...)
				return strings.Contains(out, c.want)
			})
		}
		t.Logf("%s: repaired after %v", c.spoil, time.Since(begin).Round(time.Millisecond))
	}
	eventually(t, "the pod reaches its gateway", func() bool {
		_, err := pod.try("ping", "-c1", "-W1", "10.244.0.1")
		return err == nil
	})
}

// watching counts signals, from when the watch has settled.
func watching(t *testing.T, d *Driver) *atomic.Int64 {
	t.Helper()
	n := &atomic.Int64{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Watch(ctx, func() { n.Add(1) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the first signal", func() bool { return n.Load() > 0 })
	quiet(n)
	return n
}

// quiet waits until nothing was signalled for a while, and returns the count.
func quiet(n *atomic.Int64) int64 {
	for last := n.Load(); ; last = n.Load() {
		time.Sleep(300 * time.Millisecond)
		if n.Load() == last {
			return last
		}
	}
}

func TestWatchIgnoresChurnThatIsNotDrift(t *testing.T) {
	node, d := newNode(t)
	apply(t, d, tunnelPlan(3))
	pods, a, b := newPods(t, node), newSpace(t), newSpace(t)
	attach(t, pods, a, bridged(9)) // the bridge's carrier is on from here
	n := watching(t, d)
	before := n.Load()
	attach(t, pods, a, func() plan.Pod { p := bridged(3); p.IfName = "eth1"; p.Routes = nil; return p }())
	attach(t, pods, b, routed(4))
	for _, foreign := range []string{
		"link add foreign0 type veth peer name foreign1", "link set foreign0 up", "link set foreign1 up",
		"link add docker9 type bridge", "link set foreign0 master docker9", "route add 10.99.0.0/24 dev eth0",
		"route del 10.99.0.0/24", "neigh add 192.168.0.77 lladdr 02:00:00:00:00:77 dev eth0", "link del foreign0",
		"link del " + bridged(3).Host.Name,
	} {
		node.ip(foreign)
	}
	if after := quiet(n); after != before {
		t.Errorf("%d signals for what concerns nobody", after-before)
	}
	for _, c := range []string{
		"addr add 192.168.0.77/24 dev eth0", "link set eth0 mtu 1400", "link set eth0 down", "route add 10.99.0.0/24 dev lo proto 104", "route add 10.98.0.0/24 dev lo proto 105",
		"route del 10.244.0.4/32", "link set " + routed(4).Host.Name + " down",
		"link set " + bridged(9).Host.Name + " nomaster", "link del flannel.1", "link del cni0",
	} {
		before := n.Load()
		node.ip(c)
		eventually(t, "signal after "+c, func() bool { return n.Load() > before })
		quiet(n)
	}
}

// A busy node adds and removes workloads all day, and a pass for each would hold up the next ADD.
func TestWatchSleepsThroughAttachAndDetach(t *testing.T) {
	const times = 50
	for _, style := range []struct {
		name string
		pod  func(int) plan.Pod
	}{{"bridge", bridged}, {"routed", routed}} {
		t.Run(style.name, func(t *testing.T) {
			node, d := newNode(t)
			apply(t, d, tunnelPlan(3))
			pods := newPods(t, node)
			n := watching(t, d)
			before := n.Load()
			for i := range times {
				pod, s := style.pod(10+i), newSpace(t)
				attach(t, pods, s, pod)
				if i%2 == 1 {
					s.ip("link del eth0") // from within, as a namespace that ends takes it
				}
				if err := pods.Detach(t.Context(), pod.Host.Name); err != nil {
					t.Fatal(err)
				}
			}
			if after := quiet(n); after != before {
				t.Errorf("%d signals for %d attachments and removals, of which no pass has anything to do", after-before, times)
			}
		})
	}
}

// lostHandler sees the warning that notifications were lost.
type lostHandler struct {
	slog.Handler
	lost chan<- struct{}
}

func (h lostHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h lostHandler) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "lost") {
		h.lost <- struct{}{}
	}
	return nil
}

func TestWatchSurvivesAStorm(t *testing.T) {
	node, d := newNode(t)
	apply(t, d, tunnelPlan(1))
	lost := make(chan struct{}, 100)
	d.log = slog.New(lostHandler{slog.DiscardHandler, lost})
	var signals atomic.Int64
	hold := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- d.Watch(ctx, func() {
			if signals.Add(1) == 1 {
				<-hold // the watch does not read while the storm blows
			}
		})
	}()
	eventually(t, "the first signal", func() bool { return signals.Load() == 1 })
	var cmds strings.Builder
	for i := range 60000 {
		fmt.Fprintf(&cmds, "route replace 10.99.%d.%d/32 dev eth0\n", i>>8&0xff, i&0xff)
	}
	file := t.TempDir() + "/batch"
	if err := os.WriteFile(file, []byte(cmds.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	node.run("ip", "-batch", file)
	close(hold)
	eventually(t, "a signal after the storm", func() bool { return signals.Load() > 1 })
	if len(lost) == 0 {
		t.Error("the storm was too small: no notification was lost")
	}
	before := signals.Load()
	node.ip("link del flannel.1")
	eventually(t, "a signal for what comes later", func() bool { return signals.Load() > before })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	_, d := newNode(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Watch(ctx, func() {}) }()
	time.Sleep(10 * time.Millisecond)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
