package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/test/harness"
)

// The README's configuration of a plain host, with all paths in the host's own directory.
const plainYAML = `node: %[1]s
store:
  endpoints: ["https://192.168.0.4:2379"]
  ca: %[2]s/certs/ca.crt
  cert: %[2]s/certs/agent.crt
  key: %[2]s/certs/agent.key
stateDir: %[2]s/state
runDir: %[2]s/run
cniConfDir: %[2]s/cni
`

// TestOperatorOfPlainHostsGetsANetwork walks the README's way on two hosts that share a wire: certificates,
// store, configuration, network, agents, pods by libcni, and the questions that people ask.
func TestOperatorOfPlainHostsGetsANetwork(t *testing.T) {
	a, b := newBareHost(t), newBareHost(t)
	harness.Run(t, "ip", "-n", a.ns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.ns)
	a.must("ip addr add 192.168.0.4/24 dev eth0; ip link set eth0 up")
	b.must("ip addr add 192.168.0.16/24 dev eth0; ip link set eth0 up")

	a.must("heddle cert ca --dir certs; heddle cert server store --host 192.168.0.4 --dir certs; heddle cert client agent --dir certs")
	p := a.start("heddle store --data-dir $DIR/data --listen https://192.168.0.4:2379 --ca certs/ca.crt --cert certs/store.crt --key certs/store.key")
	eventually(t, 30*time.Second, "the store serves", func() error { return p.out.has("store serves") })
	harness.Run(t, "mkdir", b.path("certs"))
	harness.Run(t, "cp", a.path("certs/ca.crt"), a.path("certs/agent.crt"), a.path("certs/agent.key"), b.path("certs"))
	for h, name := range map[*host]string{a: "a", b: "b"} {
		h.write("heddle.yaml", fmt.Sprintf(plainYAML, name, h.dir))
	}
	a.write("net-conf.json", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}`)
	a.must("heddle network set net-conf.json --config heddle.yaml")
	if out := b.must("heddle network show --config heddle.yaml"); !strings.Contains(out, `"10.244.0.0/16"`) {
		t.Errorf("network show: %s", out)
	}
	for _, h := range []*host{a, b} {
		h.running(h.start("heddle agent --config heddle.yaml"), h.path("run"))
	}
	for _, h := range []*host{a, b} {
		eventually(t, time.Minute, "ready, with a plain route to the other", func() error {
			s := h.status()
			if !s.Ready || len(s.Problems) > 0 || len(s.Peers) != 1 || s.Peers[0].Path != model.PathDirect || s.Peers[0].State != agent.PeerUp {
				return fmt.Errorf("ready %t %s, problems %v, peers %v", s.Ready, s.Reason, s.Problems, s.Peers)
			}
			return nil
		})
	}
	answersBeforePods(t, a, b)
	podA, podB := harness.Netns(t), harness.Netns(t)
	addrA, addrB := a.addPod(podA, "one")[0], b.addPod(podB, "two")[0]
	harness.Run(t, "ip", "netns", "exec", podA, "ping", "-c3", "-i0.1", "-W5", addrB.String())
	harness.Run(t, "ip", "netns", "exec", podB, "ping", "-c3", "-i0.1", "-W5", addrA.String())

	eventually(t, 30*time.Second, "heddle status has the pod, and no problems", func() error {
		if out := a.must("heddle status --run-dir run"); !strings.Contains(out, "no problems") || !strings.Contains(out, addrA.String()) {
			return errors.New(out)
		}
		return nil
	})
	list := strings.Fields(a.must("heddle node list --config heddle.yaml"))
	for _, h := range []*host{a, b} {
		s := h.status()
		at := slices.Index(list, s.Node)
		if at < 0 || !slices.Equal(list[at:at+3], []string{s.Node, s.Address4.String(), s.Blocks[0].CIDR.String()}) {
			t.Errorf("heddle node list lacks %s: %v", s.Node, list)
		}
	}
	if out := a.must("heddle plan --run-dir run"); !strings.Contains(out, fmt.Sprintf("ip route add %s via 192.168.0.16 dev eth0", b.status().Blocks[0].CIDR)) {
		t.Errorf("heddle plan has no route to b:\n%s", out)
	}
	planOfAnotherNetworkChangesNothing(t, a)

	// A client of another authority gets nothing.
	a.must("heddle cert ca --dir other; heddle cert client agent --dir other")
	if out, code := a.sh("heddle node list --endpoints https://192.168.0.4:2379 --ca certs/ca.crt --cert other/agent.crt --key other/agent.key"); code == 0 || strings.Contains(out, "192.168.0.16") {
		t.Errorf("a stranger's certificate: exit %d:\n%s", code, out)
	}
}

// answersBeforePods: while there are no workloads, which only their own node knows, a node prints the
// other's plan as that does itself.
func answersBeforePods(t *testing.T, a, b *host) {
	t.Helper()
	eventually(t, 30*time.Second, "a prints b's plan", func() error {
		own, seen := b.must("heddle plan --run-dir run"), a.must("heddle plan --run-dir run --node b")
		if own != seen {
			return fmt.Errorf("b itself:\n%s\nseen from a:\n%s", own, seen)
		}
		return nil
	})
	if a.must("heddle plan --run-dir run --node a") != a.must("heddle plan --run-dir run") {
		t.Error("heddle plan --node with the node's own name is not its plan")
	}
}

// planOfAnotherNetworkChangesNothing asks what another mode would change.
func planOfAnotherNetworkChangesNothing(t *testing.T, h *host) {
	t.Helper()
	network := func() string {
		return h.must("heddle network show --config heddle.yaml; heddle node list --config heddle.yaml | awk '{print $1, $2, $3}'")
	}
	dump, pools, plan := settled(t, h.ns), network(), h.must("heddle plan --run-dir run")
	h.write("new.json", `{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`)
	diff := h.must("heddle plan --run-dir run --net-conf new.json --diff")
	if !strings.Contains(diff, "- link     flannel.1") || strings.Contains(diff, "- link     cni0") {
		t.Errorf("the difference from vxlan to host-gw does not end the VXLAN device, or ends the bridge:\n%s", diff)
	}
	if out := h.must("heddle plan --run-dir run --net-conf net-conf.json --diff"); out != "nothing would change\n" {
		t.Errorf("the network's own net-conf.json makes a difference:\n%s", out)
	}
	if got := settled(t, h.ns); got != dump {
		t.Errorf("a question changed the kernel: gone %q, added %q", lines(dump, got), lines(got, dump))
	}
	if got := network(); got != pools {
		t.Errorf("a question changed the store from\n%sto\n%s", pools, got)
	}
	if got := h.must("heddle plan --run-dir run"); got != plan {
		t.Errorf("the plan is another now:\n%s", got)
	}
}
