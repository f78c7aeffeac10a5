package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	prommodel "github.com/prometheus/common/model"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

const probeAddress = "127.0.0.1:9100"

// get asks the agent's Unix socket, or its address inside of the host.
func (h *host) get(onSocket bool, path string) (status int, body string, err error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
			var d net.Dialer
			if onSocket {
				return d.DialContext(ctx, "unix", h.path("run/agent.sock"))
			}
			ierr := h.inside(func() error {
				c, err = d.DialContext(ctx, "tcp", probeAddress)
				return err
			})
			return c, ierr
		},
	}}
	res, err := client.Get("http://" + probeAddress + path)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, strings.TrimSpace(string(b)), err
}

// probe wants an answer in both places.
func (h *host) probe(path string, status int, body string) error {
	for _, onSocket := range []bool{true, false} {
		s, b, err := h.get(onSocket, path)
		if err != nil {
			return err
		}
		if s != status || b != body {
			return fmt.Errorf("%s: %d %q, want %d %q", path, s, b, status, body)
		}
	}
	return nil
}

// series reads /metrics by the format's own parser and returns the value of one series: of a gauge or
// counter, or the count of a histogram. Labels are name=value.
func (h *host) series(onSocket bool, name string, labels ...string) (float64, error) {
	h.t.Helper()
	status, body, err := h.get(onSocket, "/metrics")
	if err != nil || status != http.StatusOK {
		return 0, fmt.Errorf("/metrics: %d %w", status, err)
	}
	parser := expfmt.NewTextParser(prommodel.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body + "\n"))
	if err != nil {
		h.t.Fatalf("/metrics: %v\n%s", err, body)
	}
	f := families[name]
	if f == nil || f.GetHelp() == "" {
		return 0, fmt.Errorf("no series %s with a help text", name)
	}
	for _, m := range f.GetMetric() {
		have := map[string]bool{}
		for _, l := range m.GetLabel() {
			have[l.GetName()+"="+l.GetValue()] = true
		}
		all := len(have) == len(labels)
		for _, l := range labels {
			all = all && have[l]
		}
		if !all {
			continue
		}
		switch f.GetType() {
		case dto.MetricType_GAUGE:
			return m.GetGauge().GetValue(), nil
		case dto.MetricType_COUNTER:
			return m.GetCounter().GetValue(), nil
		case dto.MetricType_HISTOGRAM:
			return float64(m.GetHistogram().GetSampleCount()), nil
		}
	}
	return 0, fmt.Errorf("no series %s%v", name, labels)
}

// TestProbesAndFilesTellWhenTheNodeIsReady starts an agent before its store, and looks at all that others
// wait for: probes, metrics, the conflist, subnet.env.
func TestProbesAndFilesTellWhenTheNodeIsReady(t *testing.T) {
	h := newHost(t)
	h.running(h.start("heddle agent --node n1 --state-dir $DIR/state --run-dir $DIR/run --cni-conf-dir $DIR/cni --subnet-file $DIR/flannel/subnet.env --metrics "+probeAddress), h.path("run"))
	is := func(want float64, name string, labels ...string) {
		t.Helper()
		for _, onSocket := range []bool{true, false} {
			eventually(t, 30*time.Second, name, func() error {
				got, err := h.series(onSocket, name, labels...)
				if err == nil && got != want {
					err = fmt.Errorf("%s%v is %g, want %g", name, labels, got, want)
				}
				return err
			})
		}
	}

	for path, want := range map[string]os.FileMode{"run": 0o700 | os.ModeDir, "run/agent.sock": 0o600 | os.ModeSocket, "run/cni.sock": 0o600 | os.ModeSocket, "state": 0o700 | os.ModeDir, "state/ledger.db": 0o600} {
		fi, err := os.Stat(h.path(path))
		if err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v; want mode %s", path, fi.Mode(), err, want)
		}
	}
	eventually(t, 30*time.Second, "not ready, and says why", func() error {
		return h.probe("/readyz", http.StatusServiceUnavailable, "waiting for the store")
	})
	if err := h.probe("/healthz", http.StatusOK, "ok"); err != nil {
		t.Errorf("an agent whose store is away is healthy: %v", err)
	}
	is(0, "heddle_ready")
	is(0, "heddle_store_connected")
	for _, f := range []string{"cni/05-heddle.conflist", "flannel/subnet.env"} {
		if _, err := os.Stat(h.path(f)); !os.IsNotExist(err) {
			t.Errorf("%s is there before the node is ready: %v", f, err)
		}
	}
	// Who may reach the address for probes must not read the plan or the status.
	for _, path := range []string{"/status", "/plan", "/input"} {
		if status, body, err := h.get(false, path); err != nil || status != http.StatusNotFound {
			t.Errorf("%s on %s: %d %q %v, want 404", path, probeAddress, status, body, err)
		}
	}

	p := h.start("heddle store --data-dir $DIR/data")
	eventually(t, 30*time.Second, "the store serves", func() error { return p.out.has("store serves") })
	h.must(`echo '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}' | heddle network set -`)
	eventually(t, 60*time.Second, "ready", func() error { return h.probe("/readyz", http.StatusOK, "ok") })
	is(1, "heddle_ready")
	is(1, "heddle_store_connected")
	is(0, "heddle_workloads")
	h.checkReadyFiles()

	pod := harness.Netns(t)
	h.addPod(pod, "one")
	is(1, "heddle_workloads")
	is(1, "heddle_cni_request_seconds", "command=ADD", "code=0")
	if n, err := h.series(false, "heddle_kernel_changes_total"); err != nil || n < 3 {
		t.Errorf("heddle_kernel_changes_total is %g, %v: want bridge, VXLAN device and more", n, err)
	}
	if n, err := h.series(true, "heddle_pass_seconds"); err != nil || n < 1 {
		t.Errorf("heddle_pass_seconds counted %g passes, %v", n, err)
	}
}

// checkReadyFiles wants a conflist that libcni takes, and subnet.env as flanneld spells it.
func (h *host) checkReadyFiles() {
	h.t.Helper()
	eventually(h.t, 10*time.Second, "conflist", func() error {
		list, err := libcni.ConfListFromFile(h.path("cni/05-heddle.conflist"))
		if err == nil && (list.Name != "heddle" || len(list.Plugins) != 1 || list.Plugins[0].Network.Type != "heddle-cni") {
			err = fmt.Errorf("conflist %s with %d plugins", list.Name, len(list.Plugins))
		}
		return err
	})
	s := h.status()
	subnets := map[model.Family]netip.Prefix{}
	for _, b := range s.Blocks {
		subnets[b.Family()] = netip.PrefixFrom(b.CIDR.Addr().Next(), b.CIDR.Bits())
	}
	// The MTU is what VXLAN leaves of 1500: 50 bytes less, or 70 where IPv6 is outside.
	want := fmt.Sprintf("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=%s\nFLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=%s\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", subnets[model.IPv4], subnets[model.IPv6])
	eventually(h.t, 10*time.Second, "subnet.env", func() error {
		got, err := os.ReadFile(h.path("flannel/subnet.env"))
		if err == nil && string(got) != want {
			err = fmt.Errorf("got\n%swant\n%s", got, want)
		}
		return err
	})
}

// addPod calls the plugin by libcni and the agent's own conflist, as containerd and CRI-O do, and returns
// the pod's addresses.
func (h *host) addPod(ns, id string) []netip.Addr {
	h.t.Helper()
	list, err := libcni.ConfListFromFile(h.path("cni/05-heddle.conflist"))
	if err != nil {
		h.t.Fatal(err)
	}
	runtime := libcni.NewCNIConfigWithCacheDir([]string{h.dir}, h.path("cache"), nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := &libcni.RuntimeConf{ContainerID: id, NetNS: "/run/netns/" + ns, IfName: "eth0"}
	if _, err = runtime.AddNetworkList(ctx, list, c); err != nil {
		h.t.Fatal(err)
	}
	if err := runtime.CheckNetworkList(ctx, list, c); err != nil {
		h.t.Error(err)
	}
	for _, w := range h.status().Workloads {
		if w.ContainerID == id {
			return w.Addresses
		}
	}
	h.t.Fatalf("workload %s is not in heddle status", id)
	return nil
}
