package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/heddle-net/heddle/test/harness"
)

const (
	windowOpen  = 10 // of how many one is added where nothing is denied: they show that the test would see a packet
	windowAt    = 8  // at a time
	windowPort  = 9999
	windowStays = 20 * time.Millisecond // from ADD's end to DEL
)

// TestNoPacketPassesBeforeThePolicyHolds adds pods to a namespace in which everything is denied, each of
// which sends from the moment at which it has an interface, and to each of which somebody sends all the time.
func TestNoPacketPassesBeforeThePolicyHolds(t *testing.T) {
	for _, attachment := range []string{"bridge", "routed"} {
		t.Run(attachment, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			p := h.start("heddle store --data-dir $DIR/data")
			eventually(t, 30*time.Second, "the store serves", func() error { return p.out.has("store serves") })
			h.must(`echo '{"Network":"10.244.0.0/16","SubnetLen":20,"Backend":{"Type":"host-gw"}}' | heddle network set -`)
			h.running(h.start("heddle agent --attachment "+attachment+" --cooldown 1s --state-dir $DIR/state --run-dir $DIR/run --cni-conf-dir $DIR/cni"), h.path("run"))
			eventually(t, 30*time.Second, "ready", func() error {
				if s := h.status(); !s.Ready {
					return errors.New(s.Reason)
				}
				return nil
			})
			yaml := ""
			for _, direction := range []string{"Ingress", "Egress"} {
				yaml += networkPolicy("locked", "deny-"+strings.ToLower(direction), "podSelector: {}, policyTypes: ["+direction+"]") + "---\n"
			}
			h.write("deny.yaml", yaml)
			h.must("heddle apply -f deny.yaml")
			w := &window{host: h}
			w.list, w.err = libcni.ConfListFromFile(h.path("cni/05-heddle.conflist"))
			if w.err != nil {
				t.Fatal(w.err)
			}
			eventually(t, 10*time.Second, "both policies are known", func() error {
				if n := h.status().Policy.Policies; n != 2 {
					return fmt.Errorf("%d policies", n)
				}
				return nil
			})
			w.run(t)
		})
	}
}

// windowPods is how many pods are added under a policy that denies all: HEDDLE_WINDOW_PODS, or few.
func windowPods(t *testing.T) int {
	text := os.Getenv("HEDDLE_WINDOW_PODS")
	if text == "" {
		return 100
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < windowOpen {
		t.Fatalf("HEDDLE_WINDOW_PODS %s: want a number of %d or more", text, windowOpen)
	}
	return n
}

type window struct {
	*host
	list   *libcni.NetworkConfigList
	err    error
	target netip.Addr
	last   atomic.Pointer[netip.Addr] // that a pod got
	// arrived are datagrams at the target, by namespace of the sender; taken those that new pods got.
	arrived, taken map[string]*atomic.Int64
}

func (w *window) run(t *testing.T) {
	w.arrived = map[string]*atomic.Int64{"locked": {}, "open": {}}
	w.taken = map[string]*atomic.Int64{"locked": {}, "open": {}}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()

	target := harness.Netns(t)
	addrs, err := w.add(ctx, target, "target", "open")
	if err != nil {
		t.Fatal(err)
	}
	w.target = addrs
	w.last.Store(&addrs)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	background.Go(func() { w.listen(ctx, target, func(namespace string) { w.arrived[namespace].Add(1) }) })
	background.Go(func() { w.flood(ctx, target) })

	jobs := make(chan int)
	var workers sync.WaitGroup
	failed := make(chan error, windowAt)
	for range windowAt {
		workers.Go(func() {
			for i := range jobs {
				namespace := "locked"
				if i%(windowOpen+1) == 0 {
					namespace = "open"
				}
				if err := w.one(ctx, i, namespace); err != nil {
					select {
					case failed <- fmt.Errorf("pod %d: %w", i, err):
					default:
					}
					return
				}
			}
		})
	}
	locked := windowPods(t)
	open := locked / windowOpen
	for i := range locked + open {
		select {
		case jobs <- i:
		case err := <-failed:
			t.Error(err)
			cancel()
		}
		if ctx.Err() != nil {
			break
		}
	}
	close(jobs)
	workers.Wait()
	t.Logf("%d locked pods: %d datagrams arrived from them, %d reached them; %d open pods: %d arrived, %d reached them", locked,
		w.arrived["locked"].Load(), w.taken["locked"].Load(), open, w.arrived["open"].Load(), w.taken["open"].Load())
	if n, m := w.arrived["locked"].Load(), w.taken["locked"].Load(); n+m > 0 {
		t.Errorf("%d datagrams passed from and %d to pods that policies lock up", n, m)
	}
	if n, m := w.arrived["open"].Load(), w.taken["open"].Load(); n < int64(open) || m == 0 {
		t.Errorf("from pods that nothing locks up %d datagrams arrived, and %d reached them: this test would see nothing", n, m)
	}
}

// add attaches a namespace and returns its address.
func (w *window) add(ctx context.Context, ns, id, namespace string) (netip.Addr, error) {
	cni := libcni.NewCNIConfigWithCacheDir([]string{w.dir}, w.path("cache"), nil)
	res, err := cni.AddNetworkList(ctx, w.list, w.conf(ns, id, namespace))
	if err != nil {
		return netip.Addr{}, err
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil || len(r.IPs) == 0 {
		return netip.Addr{}, fmt.Errorf("result of ADD: %v: %w", res, err)
	}
	a, _ := netip.AddrFromSlice(r.IPs[0].Address.IP)
	return a.Unmap(), nil
}

func (w *window) conf(ns, id, namespace string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: "/run/netns/" + ns, IfName: "eth0", Args: [][2]string{{"K8S_POD_NAMESPACE", namespace}, {"K8S_POD_NAME", id}}}
}

// one is the life of a pod: a process in its namespace sends and listens before the interface is there.
func (w *window) one(ctx context.Context, i int, namespace string) error {
	id := fmt.Sprintf("w%d", i)
	ns := w.ns + "-" + id
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		return fmt.Errorf("ip netns add: %w: %s", err, out)
	}
	defer func() { _ = exec.Command("ip", "netns", "del", ns).Run() }()
	inner, stop := context.WithCancel(ctx)
	var sides sync.WaitGroup
	defer sides.Wait()
	defer stop()
	up := make(chan struct{}, 2)
	sides.Go(func() { w.send(inner, ns, namespace, up) })
	sides.Go(func() {
		up <- struct{}{}
		w.listen(inner, ns, func(string) { w.taken[namespace].Add(1) })
	})
	<-up
	<-up
	a, err := w.add(ctx, ns, id, namespace)
	if err != nil {
		return err
	}
	w.last.Store(&a)
	time.Sleep(windowStays)
	stop()
	cni := libcni.NewCNIConfigWithCacheDir([]string{w.dir}, w.path("cache"), nil)
	return cni.DelNetworkList(ctx, w.list, w.conf(ns, id, namespace))
}

// send sends the namespace's name to the target without pause: the first datagrams find no route, the next
// an interface that has just come.
func (w *window) send(ctx context.Context, ns, namespace string, up chan<- struct{}) {
	c, err := socket("/run/netns/"+ns, ":0")
	up <- struct{}{}
	if err != nil {
		w.t.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	for ctx.Err() == nil {
		if _, err := c.WriteToUDPAddrPort([]byte(namespace), netip.AddrPortFrom(w.target, windowPort)); err != nil {
			time.Sleep(50 * time.Microsecond)
			continue
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// listen calls got for every datagram to the port.
func (w *window) listen(ctx context.Context, ns string, got func(string)) {
	c, err := socket("/run/netns/"+ns, fmt.Sprintf(":%d", windowPort))
	if err != nil {
		w.t.Error(err)
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	b := make([]byte, 64)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		got(string(b[:n]))
	}
}

// flood sends from the target's namespace to every address that one of the next pods may get, in turn.
func (w *window) flood(ctx context.Context, ns string) {
	c, err := socket("/run/netns/"+ns, ":0")
	if err != nil {
		w.t.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	for ctx.Err() == nil {
		a := *w.last.Load()
		for range 48 {
			a = a.Next()
			_, _ = c.WriteToUDPAddrPort([]byte("flood"), netip.AddrPortFrom(a, windowPort))
		}
		time.Sleep(time.Millisecond)
	}
}
