package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
)

// TestOthersCannotOpenWhatPoliciesClose: whatever somebody does to the packet filter by hand, or another tool
// by loading a ruleset of its own, no denied packet passes meanwhile, and within a second all is as it was.
func TestOthersCannotOpenWhatPoliciesClose(t *testing.T) {
	ctx, l := up(t, "flat", hostGW, func(s *lab.Spec) { s.Pods = 0 })
	w := &walkthrough{t: t, ctx: ctx, l: l, ip: map[string]lab.Pod{}}
	for pod, node := range map[string]string{"dev/server": "n1", "default/near": "n1", "default/far": "n2"} {
		p, err := l.AddPod(ctx, node, pod)
		if err != nil {
			t.Fatal(err)
		}
		w.ip[pod] = p
	}
	w.apply(networkPolicy("dev", "deny", "podSelector: {}, policyTypes: [Ingress]"))
	w.settled()
	server := w.ip["dev/server"]
	before := w.policyTables()

	var passed atomic.Int64
	flood, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer stop()
	for _, f := range families(server) {
		at := net.JoinHostPort(server.Address(f).String(), "7200")
		c, err := socket(netnsOf(t, l, server), at)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		background.Go(func() {
			b := make([]byte, 8)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				passed.Add(1)
			}
		})
		for _, from := range []string{"default/near", "default/far"} {
			s, err := socket(netnsOf(t, l, w.ip[from]), "")
			if err != nil {
				t.Fatal(err)
			}
			background.Go(func() {
				defer func() { _ = s.Close() }()
				for to := netip.MustParseAddrPort(at); flood.Err() == nil; time.Sleep(500 * time.Microsecond) {
					_, _ = s.WriteToUDPAddrPort([]byte("x"), to)
				}
			})
		}
		defer context.AfterFunc(flood, func() { _ = c.Close() })()
	}

	sets, chains := names(before, "set", "map"), names(before, "chain")
	if len(sets) < 20 || len(chains) < 5 {
		t.Fatalf("sets %v and chains %v in\n%s", sets, chains, before)
	}
	damage := []string{
		"nft flush ruleset", "nft delete table inet heddle-policy", "nft flush table inet heddle-policy",
		"nft delete table bridge heddle-policy", "echo 'flush ruleset; table inet mine { chain c { type filter hook forward priority 0; } }' | nft -f -",
		"nft insert rule inet heddle-policy forward accept", "iptables -F; iptables-restore </dev/null",
	}
	for _, s := range sets {
		damage = append(damage, "nft flush "+s)
	}
	for _, c := range chains {
		damage = append(damage, "nft flush "+c)
	}
	refused := 0
	for _, d := range damage {
		out, err := w.l.Exec(ctx, "n1", "sh", "-c", d)
		if err != nil {
			refused++ // the table is the agent's own: nobody else may change it
			continue
		}
		took := eventually(t, 10*time.Second, "repaired after "+d, func() error {
			if now := w.policyTables(); now != before {
				return fmt.Errorf("%s: gone %v, added %v", out, lines(before, now), lines(now, before))
			}
			return nil
		})
		if took > time.Second {
			t.Errorf("%s: repaired after %s, want within a second", d, took)
		}
	}
	for range 3 { // a dead agent's table stays, and the next agent takes it over
		if err := l.KillAgent("n1", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, "the next agent enforces the same", func() error {
			s, err := l.Status(ctx, "n1")
			if err == nil && (!s.Ready || s.Policy.Policies != 1 || s.Policy.Revision == 0) {
				err = fmt.Errorf("ready %t, %+v", s.Ready, s.Policy)
			}
			return err
		})
	}
	t.Logf("%d kinds of damage, %d refused by the kernel; %d denied datagrams passed", len(damage), refused, passed.Load())
	if n := passed.Load(); n > 0 {
		t.Errorf("%d denied datagrams passed", n)
	}
	// The flood is one that would be seen.
	w.command("n1", "", "heddle", "delete", "networkpolicy", "deny", "-n", "dev")
	eventually(t, 10*time.Second, "datagrams pass without the policy", func() error {
		if passed.Load() == 0 {
			return fmt.Errorf("none of IPv%d", model.IPv4)
		}
		return nil
	})
}

// policyTables is what n1's kernel holds of policies, without counters.
func (w *walkthrough) policyTables() string {
	var b strings.Builder
	for _, family := range []string{"inet", "bridge"} {
		out, _ := w.l.Exec(w.ctx, "n1", "nft", "-s", "list", "table", family, "heddle-policy") // none: empty
		b.WriteString(out)
	}
	return b.String()
}

// names are the sets or chains of a dump, as nft wants to hear of them.
func names(dump string, kinds ...string) (out []string) {
	table := ""
	for line := range strings.Lines(dump) {
		words := strings.Fields(line)
		if len(words) < 3 {
			continue
		}
		if words[0] == "table" {
			table = words[1] + " " + words[2]
		}
		for _, k := range kinds {
			if words[0] == k {
				out = append(out, k+" "+table+" "+words[1])
			}
		}
	}
	return out
}
