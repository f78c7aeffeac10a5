package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
)

// calicoPools are two pools in Calico's words, and an address that nobody gets unless by name.
const calicoPools = `
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: default}
spec: {cidr: 10.244.0.0/24, blockSize: 29, vxlanMode: Always}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: fast}
spec: {cidr: 10.245.0.0/24, blockSize: 29, vxlanMode: Always, assignmentMode: Manual}
---
apiVersion: projectcalico.org/v3
kind: IPReservation
metadata: {name: routers}
spec: {reservedCIDRs: [10.244.0.2/32, 10.244.0.10/32, 10.244.0.18/32]}
`

// plugin calls the CNI plugin on a node as a runtime does, for a network namespace that has the container's name.
func plugin(ctx context.Context, t *testing.T, l *lab.Lab, node, verb, name, args, more string) (string, error) {
	t.Helper()
	if _, err := l.Exec(ctx, node, "test", "-e", "/run/netns/"+name); err != nil {
		run(ctx, t, l, node, "ip", "netns", "add", name)
	}
	conf := `{"cniVersion":"1.0.0","name":"heddle","type":"heddle-cni"` + more + `}`
	return l.Exec(ctx, node, "sh", "-c", fmt.Sprintf(`echo '%s' | CNI_COMMAND=%s CNI_CONTAINERID=%s CNI_NETNS=/run/netns/%s CNI_IFNAME=eth0 CNI_PATH=/ CNI_ARGS='%s' /opt/cni/bin/heddle-cni`, conf, verb, name, name, args))
}

func TestWorkloadGetsTheAddressTheMACAndThePoolItAsksFor(t *testing.T) {
	ctx, l := up(t, "flat", "", func(s *lab.Spec) { s.Objects, s.Attachment, s.Pods = calicoPools, "routed", 3 })
	for _, p := range pods(t, l) {
		a := p.Address(model.IPv4)
		if !netip.MustParsePrefix("10.244.0.0/24").Contains(a) || strings.HasSuffix(a.String(), ".2") || a.String() == "10.244.0.10" || a.String() == "10.244.0.18" {
			t.Errorf("%s has %s, want one of pool default that is not reserved", p.Name, a)
		}
	}
	for _, c := range []struct{ name, args, conf, want string }{
		{"fixed", "IP=10.244.0.100;MAC=0a:00:00:00:00:07", "", `"10.244.0.100/32"`},
		{"again", "", `,"runtimeConfig":{"ips":["10.244.0.100"]}`, "10.244.0.100 belongs to workload fixed"},
		{"pool", "", `,"ipam":{"type":"calico-ipam","ipv4_pools":["fast"]}`, `"10.245.0.`},
		{"reserved", "IP=10.244.0.2", "", `10.244.0.2`}, // whose block it is depends: a block of n1, or not
		{"nowhere", "IP=10.250.0.1", "", "want an address in one of the network's pools"},
		{"gateway", "IP=10.244.0.97", "", "10.244.0.96/29 is the block"},
	} {
		out, err := plugin(ctx, t, l, "n1", "ADD", c.name, c.args, c.conf)
		if !strings.Contains(out, c.want) {
			t.Errorf("%s: %v\n%s\nwant %s", c.name, err, out, c.want)
		}
	}
	if out := run(ctx, t, l, "n1", "ip", "netns", "exec", "fixed", "ip", "link", "show", "eth0"); !strings.Contains(out, "0a:00:00:00:00:07") {
		t.Errorf("the interface has another MAC:\n%s", out)
	}
	for _, to := range []string{"10.244.0.100"} {
		for _, p := range pods(t, l) {
			run(ctx, t, l, p.Name, "ping", "-c1", "-W5", to)
		}
	}
	// In the block of another node, which lends it.
	if out, err := plugin(ctx, t, l, "n2", "ADD", "abroad", "IP=10.244.0.101", ""); err != nil || !strings.Contains(out, `"10.244.0.101/32"`) {
		t.Errorf("%v\n%s\nwant the address of n1's block", err, out)
	}
	for _, p := range pods(t, l) {
		eventually(t, 20*time.Second, p.Name+" reaches the borrowed address", func() error {
			_, err := l.Exec(ctx, p.Name, "ping", "-c1", "-W1", "10.244.0.101")
			return err
		})
	}

	// People look at it.
	for args, want := range map[string]string{
		"show":                        "fast",
		"show --ip 10.244.0.100":      "block 10.244.0.96/29 of node n1\nfixed on node n1 has it",
		"show --block 10.244.0.96/29": "2 in use, 0 cooling down, 3 free\n10.244.0.100",
	} {
		eventually(t, 30*time.Second, "heddle ipam "+args, func() error {
			out, err := l.Exec(ctx, "n1", append([]string{"heddle", "ipam"}, strings.Fields(args)...)...)
			if err != nil || !strings.Contains(out, want) {
				return fmt.Errorf("%w\n%s\nwant %s", err, out, want)
			}
			return nil
		})
	}
	if out, err := plugin(ctx, t, l, "n2", "DEL", "abroad", "", ""); err != nil {
		t.Errorf("DEL abroad: %v\n%s", err, out)
	}
	for name := range map[string]bool{"fixed": true, "pool": true, "reserved": true} {
		if out, err := plugin(ctx, t, l, "n1", "DEL", name, "", ""); err != nil {
			t.Errorf("DEL %s: %v\n%s", name, err, out)
		}
	}
	eventually(t, 30*time.Second, "all fits", func() error {
		out, err := l.Exec(ctx, "n1", "heddle", "ipam", "check")
		if err != nil || !strings.Contains(out, "all fits") {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}

func TestLostAddressesAndBlocksAreGivenBackAfterTwoLooks(t *testing.T) {
	t.Parallel()
	ctx, l := up(t, "flat", small, func(s *lab.Spec) { s.Pods = 2 })
	s := storeOf(ctx, t, l)
	if _, err := s.Put(ctx, &model.Block{CIDR: netip.MustParsePrefix("10.244.0.240/29"), Pool: "flannel", Node: "ghost"}, 0); err != nil {
		t.Fatal(err)
	}
	lives := pods(t, l)[0]
	lost, err := l.AddPod(ctx, "n1", "lost")
	if err != nil {
		t.Fatal(err)
	}
	link := model.HostLinkName(lost.ContainerID, "eth0")
	run(ctx, t, l, "n1", "ip", "link", "del", link)
	if out, err := l.Exec(ctx, "n1", "heddle", "ipam", "check"); err == nil || !strings.Contains(out, "leak") || !strings.Contains(out, lost.Address(model.IPv4).String()) || !strings.Contains(out, `node "ghost" is not in the network`) {
		t.Errorf("%v\n%s\nwant the leak and the orphan, and exit code 1", err, out)
	}
	if out, err := l.Exec(ctx, "n1", "heddle", "ipam", "release", "--apart", "1s"); err == nil || !strings.Contains(out, "want at least 1m0s") {
		t.Errorf("two looks a second apart: %v\n%s", err, out)
	}
	out := run(ctx, t, l, "n1", "heddle", "ipam", "release")
	for _, want := range []string{"released: workload default/lost", "released: block 10.244.0.240/29"} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nwant %s", out, want)
		}
	}
	if strings.Count(out, "released: ") != 2 {
		t.Errorf("more was released than was lost:\n%s", out)
	}
	for _, w := range status(ctx, t, l, "n1").Workloads {
		if w.Name == "lost" {
			t.Errorf("%+v is on record", w)
		}
	}
	for _, f := range families(lives) {
		run(ctx, t, l, "p2", "ping", "-c1", "-W5", lives.Address(f).String())
	}
}
