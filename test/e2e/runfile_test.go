package e2e

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/harness"
)

// TestAgentKnowsItsPodsWithTheirRecordOrNotAtAll: pods outlive their agent, so that the next one must know what
// they hold. Without that record it gives no address out while one of them lives.
func TestAgentKnowsItsPodsWithTheirRecordOrNotAtAll(t *testing.T) {
	h := newHost(t)
	store := h.start("heddle store --data-dir $DIR/data")
	eventually(t, 30*time.Second, "the store serves", func() error { return store.out.has("store serves") })
	h.must(`echo '{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}' | heddle network set -`)
	const command = "heddle agent --node n1 --state-dir $DIR/state --run-dir $DIR/run --cni-conf-dir $DIR/cni"
	start := func() *program {
		t.Helper()
		p := h.start(command)
		h.running(p, h.path("run"))
		eventually(t, 30*time.Second, "ready", func() error {
			if s := h.status(); !s.Ready {
				return errors.New(s.Reason)
			}
			return nil
		})
		return p
	}
	run := h.path("run/workloads.db")
	pod := harness.Netns(t)
	p := start()
	one := h.addPod(pod, "one")[0]
	if info, err := os.Stat(run); err != nil || info.Mode() != 0o600 {
		t.Errorf("the record of pods: %v, %v", info, err)
	}
	kill := func() { // at once, as the kernel does to whom it takes for too large
		t.Helper()
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.done
	}
	kill()
	p = start()
	if s := h.status(); len(s.Workloads) != 1 || s.Workloads[0].Addresses[0] != one {
		t.Fatalf("workloads after a kill: %v", s.Workloads)
	}
	kill()

	if err := os.Remove(run); err != nil {
		t.Fatal(err)
	}
	out, code := h.sh(command)
	if want := "heddle: ledger " + run + ": missing: it was removed since this machine was started: reboot the machine, or remove this node's pods"; code != 1 || !strings.HasPrefix(out, want) {
		t.Errorf("exit %d\n%swant\n%s …", code, out, want)
	}
	harness.Run(t, "ip", "netns", "del", pod)
	eventually(t, 30*time.Second, "the pod's interface goes", func() error {
		if out := h.must("ip -o link show"); strings.Contains(out, ": hd") {
			return errors.New(out)
		}
		return nil
	})
	start()
	if s := h.status(); len(s.Workloads) != 0 {
		t.Errorf("workloads: %v, want none", s.Workloads)
	}
	if got := h.addPod(harness.Netns(t), "two")[0]; got != one {
		t.Errorf("address %s, want %s, which nobody has any more", got, one)
	}
}
