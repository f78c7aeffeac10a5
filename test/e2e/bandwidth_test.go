package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/test/harness"
)

// TestBandwidthHoldsBothDirectionsToTheirRates: the rates are far apart, so that neither is taken for the other, and a
// pod without them beside it is much faster.
func TestBandwidthHoldsBothDirectionsToTheirRates(t *testing.T) {
	n := newPorted(t, "bridge")
	const gets, sends = 40e6, 10e6 // bits per second
	limited := n.add("limited", map[string]any{"bandwidth": map[string]any{
		"ingressRate": uint64(gets), "ingressBurst": 800_000, "egressRate": uint64(sends), "egressBurst": 800_000,
	}})
	free := n.add("free", nil)
	for _, c := range []struct {
		what     string
		from, to *portedPod
		rate     float64
	}{
		{"what the pod gets", free, limited, gets},
		{"what the pod sends", limited, free, sends},
	} {
		var got float64
		for range 5 { // a machine that is busy elsewhere may be slower, never faster
			if got = throughput(t, c.from.ns, c.to.ns, c.to.addr4, time.Second); got > c.rate/5 {
				break
			}
		}
		t.Logf("%s: %.1f Mbit/s of %.0f", c.what, got/1e6, c.rate/1e6)
		if got > 2*c.rate || got < c.rate/5 {
			t.Errorf("%s: %.1f Mbit/s, want about %.0f", c.what, got/1e6, c.rate/1e6)
		}
	}
	other := n.add("other", nil)
	eventually(t, 20*time.Second, "pods without a rate are faster", func() error {
		if got := throughput(t, free.ns, other.ns, other.addr4, 200*time.Millisecond); got < 2*gets {
			return fmt.Errorf("%.1f Mbit/s", got/1e6)
		}
		return nil
	})

	// CHECK tells when the rate is another or gone, or the runtime believes in another; ADD again makes it right.
	check := func() error { return n.runtime().CheckNetworkList(t.Context(), n.list, limited.conf) }
	harness.Run(t, "tc", "-n", limited.ns, "qdisc", "del", "dev", "eth0", "root")
	if err := check(); err == nil || !strings.Contains(err.Error(), "interface eth0: bandwidth: ") {
		t.Errorf("CHECK without the rate: %v", err)
	}
	if _, err := n.runtime().AddNetworkList(t.Context(), n.list, limited.conf); err != nil {
		t.Error(err)
	}
	if err := check(); err != nil {
		t.Errorf("CHECK after ADD again: %v", err)
	}
	limited.conf.CapabilityArgs = nil
	var differs *types.Error
	if err := check(); !errors.As(err, &differs) || differs.Code != cni.CodeDiffers {
		t.Errorf("CHECK of no bandwidth: %v", err)
	}
}

// throughput carries TCP from a namespace to another for a while, and returns the bits per second that arrived after the
// first burst.
func throughput(t *testing.T, from, to, address string, long time.Duration) float64 {
	t.Helper()
	at := net.JoinHostPort(address, "5201")
	l := listenTCP(t, file(to), at)
	defer func() { _ = l.Close() }()
	client, server := connect(t.Context(), t, file(from), l, at)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		b := make([]byte, 64<<10)
		for {
			if _, err := client.Write(b); err != nil {
				return
			}
		}
	}()
	b := make([]byte, 64<<10)
	const burst = 512 << 10
	if _, err := io.CopyBuffer(io.Discard, io.LimitReader(server, burst), b); err != nil {
		t.Fatal(err)
	}
	begin, bytes := time.Now(), 0
	for time.Since(begin) < long {
		_ = server.SetReadDeadline(begin.Add(long + 10*time.Second))
		k, err := server.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		bytes += k
	}
	took := time.Since(begin)
	_ = client.Close()
	_ = server.Close()
	<-sent
	return float64(bytes) * 8 / took.Seconds()
}
