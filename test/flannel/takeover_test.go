package flannel

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

// everyPing is the time between pings while a host changes hands, and mostLost how many of them may be
// lost: some seconds, as a test machine may be busy. On a quiet one it is a fraction of a second.
const (
	everyPing = 20 * time.Millisecond
	mostLost  = 150
)

// pinging is a ping under way.
type pinging struct {
	cmd  *exec.Cmd
	out  *strings.Builder
	what string
}

func startPinging(t *testing.T, from string, to netip.Addr) *pinging {
	t.Helper()
	p := &pinging{out: &strings.Builder{}, what: fmt.Sprintf("%s to %s", from, to)}
	p.cmd = exec.Command("ip", "netns", "exec", from, "ping", "-n", "-q", "-i", fmt.Sprint(everyPing.Seconds()), to.String())
	p.cmd.Stdout = p.out
	must(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

var pingCounts = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

// lost ends it and counts the pings without an answer.
func (p *pinging) lost(t *testing.T) int {
	t.Helper()
	must(t, p.cmd.Process.Signal(syscall.SIGINT))
	_ = p.cmd.Wait()
	m := pingCounts.FindStringSubmatch(p.out.String())
	if m == nil {
		t.Fatalf("ping %s printed %s", p.what, p.out)
	}
	sent, _ := strconv.Atoi(m[1])
	received, _ := strconv.Atoi(m[2])
	if received == 0 {
		t.Fatalf("ping %s: no answer at all", p.what)
	}
	return sent - received
}

// hostLocal writes what the IPAM plugin of Flannel's CNI chain keeps of its pods.
func (h *node) hostLocal(addrs ...netip.Addr) {
	h.n.t.Helper()
	dir := h.file("host-local/cbr0")
	must(h.n.t, os.MkdirAll(dir, 0o755))
	must(h.n.t, os.WriteFile(filepath.Join(dir, "last_reserved_ip.0"), []byte(addrs[len(addrs)-1].String()), 0o600))
	for _, a := range addrs {
		must(h.n.t, os.WriteFile(filepath.Join(dir, a.String()), []byte("container\r\neth0"), 0o600))
	}
}

func TestAgentTakesAFlanneldsHostOver(t *testing.T) {
	for _, backend := range []string{"vxlan", "host-gw"} {
		t.Run(backend, func(t *testing.T) { takeOver(t, backend) })
	}
}

func takeOver(t *testing.T, backend string) {
	n := newNetwork(t)
	admin := newNode(n, 9, false)
	if out, err := admin.network(netConf(backend, true), "set", "-"); err != nil {
		t.Fatal(out, err)
	}
	host, peer := newFlanneld(n, backend, 4, true), newFlanneld(n, backend, 16, true)
	stop := host.follow()
	peer.follow()
	pod1, at1 := host.pod(2)
	pod2, at2 := host.pod(3)
	far, atFar := peer.pod(2)
	for i := range at1 {
		answers(t, pod1, atFar[i])
		answers(t, far, at2[i])
	}
	before := n.subnets()

	// flanneld ends, and leaves everything where it is.
	stop()
	var pings []*pinging
	for i := range at1 {
		pings = append(pings, startPinging(t, far, at1[i]), startPinging(t, pod1, atFar[i]), startPinging(t, pod1, at2[i]), startPinging(t, pod2, nth(host.subnet[i], 1)))
	}
	time.Sleep(10 * everyPing)
	a := nodeOn(n, host.ns)
	a.hostLocal(slices.Concat(at1, at2)...)
	a.start()
	if got := []netip.Prefix{a.block(t, model.IPv4), a.block(t, model.IPv6)}; !slices.Equal(got, host.subnet[:]) {
		t.Fatalf("the agent has %v, want flanneld's %v", got, host.subnet)
	}
	for i := range at1 {
		answers(t, far, at1[i])
		answers(t, pod1, atFar[i])
	}
	time.Sleep(10 * everyPing)
	for _, p := range pings {
		lost := p.lost(t)
		t.Logf("%s: lost %d pings, %s", p.what, lost, time.Duration(lost)*everyPing)
		if lost > mostLost {
			t.Errorf("ping %s: %d lost", p.what, lost)
		}
	}

	harness.Wait(t, patience, "status without problems", func() bool {
		s, err := a.status()
		return err == nil && len(s.Problems) == 0 && len(s.Peers) == 2
	})
	after := n.subnets()
	if len(after) != len(before) {
		t.Fatalf("etcd has %v\nwant the keys of %v", after, before)
	}
	for key := range before {
		if after[key] == "" {
			t.Fatalf("etcd has %v\nwant the keys of %v", after, before)
		}
	}
	if backend == "vxlan" {
		host.readMACs()
		own := after[strings.TrimPrefix(host.key(), prefix+"/subnets/")]
		if !strings.Contains(own, host.mac[0]) || !strings.Contains(own, host.mac[1]) {
			t.Errorf("the lease is %s, want the MACs %v that the devices have", own, host.mac)
		}
	}

	// New pods beside the old ones.
	fresh, atFresh := a.pod(t)
	for i := range atFresh {
		if want := nth(host.subnet[i], 4); atFresh[i] != want {
			t.Errorf("the new pod has %s, want %s, the first that host-local has not given out", atFresh[i], want)
		}
		answers(t, fresh, at1[i])
		answers(t, pod2, atFresh[i])
		answers(t, far, atFresh[i])
		if from := carries(t, fresh, far, atFar[i]); from != atFresh[i] {
			t.Errorf("the far pod sees %s, want %s", from, atFresh[i])
		}
	}
}
