package cni_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/cni/wire"
	"github.com/heddle-net/heddle/internal/model"
)

// runtimeOf is what containerd and CRI-O use: libcni, with a cache of its own.
func runtimeOf(t testing.TB) *libcni.CNIConfig {
	t.Helper()
	return libcni.NewCNIConfigWithCacheDir([]string{pluginDir}, t.TempDir(), nil)
}

func listOf(t testing.TB, s *server, version string) *libcni.NetworkConfigList {
	t.Helper()
	content, err := cni.Conflist("heddle", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := libcni.NetworkConfFromBytes(content); err != nil || list.CNIVersion != "1.1.0" {
		t.Fatalf("a runtime of today takes %v, %v from the conflist: want 1.1.0", list, err)
	}
	// A runtime that knows nothing newer than this version.
	content = regexp.MustCompile(`(?s)"cniVersion": .*?\],`).ReplaceAll(content, []byte(`"cniVersion": "`+version+`",`))
	list, err := libcni.NetworkConfFromBytes(content)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func container(id, ns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: ns, IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "dev"}, {"K8S_POD_NAME", "web-" + id}, {"K8S_POD_UID", "8e4f5b"}, {"SOMETHING", "else"},
	}}
}

func codeOf(t testing.TB, err error) uint {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v: want one of CNI", err)
	}
	return e.Code
}

func TestRuntimeAddsChecksAndDeletesInEveryVersion(t *testing.T) {
	for _, v := range wire.Versions() {
		t.Run(v, func(t *testing.T) {
			s, runtime, ctx := serve(t), runtimeOf(t), t.Context()
			list, c := listOf(t, s, v), container("c1", netns(t))
			got, err := runtime.AddNetworkList(ctx, list, c)
			if err != nil {
				t.Fatal(err)
			}
			if got.Version() != v {
				t.Errorf("result of version %s", got.Version())
			}
			r, err := types100.GetResult(got)
			if err != nil || len(r.IPs) != 2 || r.IPs[0].Address.String() != "10.244.1.2/24" {
				t.Fatalf("result %v, error %v", r, err)
			}
			if w := s.seen[0]; w.Namespace != "dev" || w.Name != "web-c1" || w.Network != "heddle" || w.Netns != c.NetNS {
				t.Errorf("workload %+v", w)
			}
			if v != "0.3.1" { // CHECK came with 0.4.0
				if err := runtime.CheckNetworkList(ctx, list, c); err != nil {
					t.Errorf("check: %v", err)
				}
				if _, _, err := s.ledger.Release(ctx, "c1/eth0", dawn); err != nil {
					t.Fatal(err)
				}
				if err := runtime.CheckNetworkList(ctx, list, c); err == nil || codeOf(t, err) != cni.CodeUnknownContainer {
					t.Errorf("check of what is not on record: %v", err)
				}
				if _, _, err := s.ledger.Reserve(ctx, s.seen[0], blocks, dawn); err != nil {
					t.Fatal(err)
				}
				err := runtime.CheckNetworkList(ctx, list, c)
				if err == nil || codeOf(t, err) != cni.CodeDiffers || !strings.Contains(err.Error(), "workload dev/web-c1: addresses") {
					t.Errorf("check of other addresses: %v", err)
				}
			}
			for range 2 {
				if err := runtime.DelNetworkList(ctx, list, c); err != nil {
					t.Errorf("delete: %v", err)
				}
			}
			if n := len(s.ledger.List()); n != 0 {
				t.Errorf("%d workloads are left", n)
			}
		})
	}
}

func TestDeleteSucceedsWhateverIsMissing(t *testing.T) {
	s := serve(t)
	for name, stdin := range map[string]string{
		"never added":        `{"cniVersion":"1.1.0","name":"heddle"}`,
		"garbage prevResult": `{"cniVersion":"1.0.0","name":"heddle","prevResult":{"ips":7}}`,
		"unknown field":      `{"cniVersion":"0.4.0","name":"heddle","nonsense":1}`,
	} {
		for _, ns := range []string{"", "/nonexistent/ns"} {
			out, exit := plugin(t, request("DEL", "nobody", ns, "HEDDLE_CNI_SOCKET="+s.socket, "CNI_ARGS=garbage"), stdin)
			if exit != 0 || out != "" {
				t.Errorf("%s, namespace %q: exit %d: %s", name, ns, exit, out)
			}
		}
	}
}

func TestGCDetachesWhatTheRuntimeDoesNotKnow(t *testing.T) {
	s, runtime, ctx := serve(t), runtimeOf(t), t.Context()
	list := listOf(t, s, "1.1.0")
	for _, id := range []string{"kept", "lost"} {
		if _, err := runtime.AddNetworkList(ctx, list, container(id, netns(t))); err != nil {
			t.Fatal(err)
		}
	}
	other := s.seen[0]
	other.ContainerID, other.Network = "others", "another"
	if _, _, err := s.ledger.Reserve(ctx, other, blocks, dawn); err != nil {
		t.Fatal(err)
	}
	// A runtime that lost its cache: libcni has nobody to DEL, so the plugin must find it.
	err := runtimeOf(t).GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "kept", IfName: "eth0"}}})
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, w := range s.ledger.List() {
		left = append(left, w.ContainerID)
	}
	if fmt.Sprint(left) != "[kept others]" {
		t.Errorf("left: %v", left)
	}
	// The older name of the key.
	out, exit := plugin(t, request("GC", "", ""), fmt.Sprintf(`{"cniVersion":"1.1.0","name":"heddle","socket":%q,"cni.dev/attachments":[]}`, s.socket))
	if exit != 0 || out != "" {
		t.Errorf("exit %d: %s", exit, out)
	}
	if left := s.ledger.List(); len(left) != 1 || left[0].ContainerID != "others" {
		t.Errorf("left: %v", left)
	}
}

func TestStatusTellsWhetherPodsCanBeAdded(t *testing.T) {
	s, runtime, ctx := serve(t), runtimeOf(t), t.Context()
	list := listOf(t, s, "1.1.0")
	if err := runtime.GetStatusNetworkList(ctx, list); err != nil {
		t.Errorf("ready: %v", err)
	}
	s.setReady(errors.New("no block yet"))
	if err := runtime.GetStatusNetworkList(ctx, list); err == nil || codeOf(t, err) != cni.CodeNotAvailable || !strings.Contains(err.Error(), "no block yet") {
		t.Errorf("not ready: %v", err)
	}
	if _, err := runtime.AddNetworkList(ctx, list, container("c1", netns(t))); err == nil || codeOf(t, err) != cni.CodeTryAgainLater {
		t.Errorf("add while not ready: %v", err)
	}
	s.setReady(cni.Errorf(cni.CodeLimitedConnectivity, "no path to node b"))
	if err := runtime.GetStatusNetworkList(ctx, list); err == nil || codeOf(t, err) != cni.CodeLimitedConnectivity {
		t.Errorf("limited: %v", err)
	}
}

func TestVersionNeedsNoAgent(t *testing.T) {
	info, err := runtimeOf(t).GetVersionInfo(context.Background(), cni.PluginType)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(info.SupportedVersions()), fmt.Sprint(wire.Versions()); got != want {
		t.Errorf("versions %s: want %s", got, want)
	}
	for stdin, want := range map[string]string{
		`{"cniVersion":"0.4.0"}`: `{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n",
		`{"cniVersion":"7.0.0"}`: `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n",
		``:                       `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n",
	} {
		if out, exit := plugin(t, []string{"CNI_COMMAND=VERSION"}, stdin); exit != 0 || out != want {
			t.Errorf("stdin %q: exit %d: %s", stdin, exit, out)
		}
	}
}

// TestRuntimeFillsCapabilities: what a runtime knows of ports and bandwidth arrives with ADD, and CHECK compares it.
func TestRuntimeFillsCapabilities(t *testing.T) {
	s, runtime, ctx := serve(t), runtimeOf(t), t.Context()
	list, c := listOf(t, s, "1.1.0"), container("c1", netns(t))
	// As containerd fills them (go-cni's PortMapping and BandWidth).
	ports := []map[string]any{
		{"hostPort": int32(8080), "containerPort": int32(80), "protocol": "tcp", "hostIP": ""},
		{"hostPort": int32(53), "containerPort": int32(5353), "protocol": "udp", "hostIP": "::ffff:192.0.2.1"},
	}
	c.CapabilityArgs = map[string]any{
		"portMappings": ports,
		"bandwidth":    map[string]any{"ingressRate": uint64(10_000_000), "ingressBurst": uint64(math.MaxUint32), "egressRate": 0, "egressBurst": 0},
		"dns":          map[string]any{"servers": []string{"192.0.2.53"}}, // not declared: libcni leaves it out
	}
	if _, err := runtime.AddNetworkList(ctx, list, c); err != nil {
		t.Fatal(err)
	}
	w, _ := s.ledger.Get("c1/eth0")
	want := []model.HostPort{
		{Protocol: "tcp", HostPort: 8080, ContainerPort: 80},
		{Protocol: "udp", HostPort: 53, ContainerPort: 5353, HostIP: netip.MustParseAddr("192.0.2.1")},
	}
	if !slices.Equal(w.HostPorts, want) {
		t.Errorf("ports %v, want %v", w.HostPorts, want)
	}
	if w.Bandwidth == nil || *w.Bandwidth != (model.Bandwidth{IngressRate: 10_000_000, IngressBurst: math.MaxUint32}) {
		t.Errorf("bandwidth %+v", w.Bandwidth)
	}
	slices.Reverse(ports) // their order means nothing
	if err := runtime.CheckNetworkList(ctx, list, c); err != nil {
		t.Errorf("check: %v", err)
	}
	c.CapabilityArgs["portMappings"] = ports[:1]
	if err := runtime.CheckNetworkList(ctx, list, c); err == nil || codeOf(t, err) != cni.CodeDiffers {
		t.Errorf("check of fewer ports: %v", err)
	}
}
