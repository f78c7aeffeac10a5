package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
)

// TestEveryModeCarriesPackets: pods on three nodes ping and carry TCP in every mode and family, and a
// capture on the sender's uplink shows what is on the wire.
func TestEveryModeCarriesPackets(t *testing.T) {
	routed := func(s *lab.Spec) { s.Attachment = "routed" }
	for _, tt := range []struct {
		name, topology, netConf string
		change                  []func(*lab.Spec)
		// wire tells, per peer of n1, what the capture must show: "vxlan" or "bare".
		wire map[string]string
	}{
		{"host-gw", "flat", hostGW, nil, map[string]string{"n2": "bare", "n3": "bare"}},
		{"vxlan", "two-segments", vxlan, nil, map[string]string{"n2": "vxlan", "n3": "vxlan"}},
		{"vxlan with direct routing", "two-segments", mixed, nil, map[string]string{"n2": "bare", "n3": "vxlan"}},
		{"vxlan, IPv4 only", "flat", only4, nil, map[string]string{"n2": "vxlan", "n3": "vxlan"}},
		{"vxlan, IPv6 only", "two-segments", only6, nil, map[string]string{"n2": "vxlan", "n3": "vxlan"}},
		{"routed pods, direct routing", "two-segments", mixed, []func(*lab.Spec){routed}, map[string]string{"n2": "bare", "n3": "vxlan"}},
		{"behind a NAT", "nat", only4, nil, map[string]string{"n2": "vxlan", "n3": "vxlan"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, l := up(t, tt.topology, tt.netConf, tt.change...)
			reach(ctx, t, l)
			all := pods(t, l)
			for _, to := range all[1:] {
				for _, f := range families(to) {
					onTheWire(ctx, t, l, all[0], to, f, tt.wire[to.Node])
				}
			}
		})
	}
}

// onTheWire pings once under a capture of the uplink that sees nothing but this ping's way out.
func onTheWire(ctx context.Context, t *testing.T, l *lab.Lab, from, to lab.Pod, f model.Family, want string) {
	t.Helper()
	filter := "icmp[0] == 8"
	if f == model.IPv6 {
		filter = "ip6[40] == 128"
	}
	if want == "vxlan" {
		filter = "udp port 8472"
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	capture, err := l.Command(ctx, from.Node, "tcpdump", "-nn", "-l", "-i", "eth0", "-c", "1", filter)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs syncBuffer
	capture.Stdout, capture.Stderr = &out, &errs
	if err := capture.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "tcpdump listens", func() error { return errs.has("listening on") })
	run(ctx, t, l, from.Name, "ping", "-c2", "-i0.2", "-W5", to.Address(f).String())
	if err := capture.Wait(); err != nil {
		t.Fatalf("%s → %s: capture of %q saw nothing: %v %s", from.Name, to.Address(f), filter, err, errs.String())
	}
	text := out.String()
	if want == "vxlan" && (!strings.Contains(text, "8472: OTV") || !strings.Contains(text, "instance 1")) {
		t.Errorf("%s → %s: on the wire:\n%swant UDP 8472 with VNI 1", from.Name, to.Address(f), text)
	}
	if want == "bare" && !strings.Contains(text, from.Address(f).String()+" > "+to.Address(f).String()+":") {
		t.Errorf("%s → %s: on the wire:\n%swant the pods' own addresses", from.Name, to.Address(f), text)
	}
}

// TestHostGWRefusesAPeerInAnotherSegment: the error says so, and the others work.
func TestHostGWRefusesAPeerInAnotherSegment(t *testing.T) {
	ctx, l := up(t, "flat", hostGW, func(s *lab.Spec) {
		s.Topology.Segments = append(s.Topology.Segments[:0:0], mustTopology(t, "two-segments").Segments...)
		s.Topology.Nodes = mustTopology(t, "two-segments").Nodes
		s.Pods = 0
		s.NetConf = mixed
	})
	setNetConf(ctx, t, l, hostGW)
	eventually(t, 20*time.Second, "n1 says that n3 is out of reach", func() error {
		return problem(ctx, l, "n1", "peer-not-on-link", "192.168.200.101 is not in a segment of this node")
	})
	if err := pathsAre(ctx, l, "n1", map[string]model.Path{"n2": model.PathDirect}); err != nil {
		t.Error(err)
	}
}

// TestPodsReachTheOutsideBehindTheirNode: masqueraded to the outside, never among themselves.
func TestPodsReachTheOutsideBehindTheirNode(t *testing.T) {
	ctx, l := up(t, "two-segments", mixed)
	outside := map[model.Family]string{model.IPv4: "203.0.113.10", model.IPv6: "fd00:ffff::10"}
	node := map[model.Family]string{model.IPv4: "192.168.100.100", model.IPv6: "fd00:100::100"}
	filter := map[model.Family]string{model.IPv4: "icmp[0] == 8", model.IPv6: "ip6[40] == 128"}
	for f, addr := range outside {
		capture, err := l.Command(ctx, "outside", "tcpdump", "-nn", "-l", "-i", "eth0", "-c", "1", "dst host "+addr+" and "+filter[f])
		if err != nil {
			t.Fatal(err)
		}
		var out, errs syncBuffer
		capture.Stdout, capture.Stderr = &out, &errs
		if err := capture.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "tcpdump listens", func() error { return errs.has("listening on") })
		run(ctx, t, l, "p1", "ping", "-c2", "-i0.2", "-W5", addr)
		if err := capture.Wait(); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), node[f]+" > "+addr) {
			t.Errorf("outside saw\n%swant the node's address %s as source", out.String(), node[f])
		}
	}
}
