package bfd

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/peering"
	"github.com/heddle-net/heddle/test/harness"
)

// daemon is another implementation in the far machine: what it says of its sessions, by peer address, "up" or
// not.
type daemon struct {
	name   string
	start  func(l lab, timers peering.BFD)
	states func() map[string]string
}

func bird(t *testing.T) *daemon {
	d := &daemon{name: "BIRD"}
	var ctl string
	d.start = func(l lab, timers peering.BFD) {
		dir := l.folder("")
		ctl = filepath.Join(dir, "bird.ctl")
		each := " { interval " + timers.Transmit.String() + "; multiplier 3; };"
		each = strings.ReplaceAll(each, "ms", " ms")
		conf := filepath.Join(dir, "bird.conf")
		write(l, conf, "router id 10.66.0.2;", "protocol device {}", "protocol bfd {",
			"interface \"*\""+each, "multihop"+each,
			"neighbor 10.66.0.1 dev \"cable\";", "neighbor fd66:0::1 dev \"cable\";",
			"neighbor 10.66.1.1 local 10.66.2.2 multihop yes;", "neighbor fd66:1::1 local fd66:2::2 multihop yes;", "}")
		harness.Start(l, "ip", "netns", "exec", l.far, "bird", "-f", "-c", conf, "-s", ctl, "-P", filepath.Join(dir, "pid"))
	}
	d.states = func() map[string]string {
		out, _ := exec.Command("birdc", "-s", ctl, "show", "bfd", "sessions").Output()
		states := map[string]string{}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) > 3 {
				states[f[0]] = strings.ToLower(f[2])
			}
		}
		return states
	}
	return d
}

func frr(t *testing.T) *daemon {
	d := &daemon{name: "FRR"}
	var dir string
	d.start = func(l lab, timers peering.BFD) {
		dir = l.folder("frr:frr")
		interval := timers.Transmit.String()
		interval = strings.TrimSuffix(interval, "ms")
		var lines []string
		for _, peer := range []string{
			"10.66.0.1 interface cable", "fd66::1 local-address fd66::2 interface cable",
			"10.66.1.1 multihop local-address 10.66.2.2", "fd66:1::1 multihop local-address fd66:2::2",
		} {
			lines = append(lines, " peer "+peer, "  receive-interval "+interval, "  transmit-interval "+interval, " exit")
		}
		conf := filepath.Join(dir, "frr.conf")
		write(l, conf, append([]string{"bfd"}, lines...)...)
		common := []string{"--vty_socket", dir, "-z", filepath.Join(dir, "zserv.api"), "--log", "stdout"}
		run := func(name string, args ...string) {
			args = append([]string{"netns", "exec", l.far, "/usr/lib/frr/" + name, "-i", filepath.Join(dir, name+".pid")}, args...)
			harness.Start(l, "ip", append(args, common...)...)
			harness.Wait(l, limit, name+" answers", func() bool {
				return exec.Command("vtysh", "--vty_socket", dir, "-d", name, "-c", "show version").Run() == nil
			})
		}
		run("zebra", "-f", "/dev/null")
		run("bfdd", "-f", conf, "--bfdctl", filepath.Join(dir, "bfdd.sock"))
	}
	d.states = func() map[string]string {
		out, _ := exec.Command("vtysh", "--vty_socket", dir, "-d", "bfdd", "-c", "show bfd peers json").Output()
		var peers []struct{ Peer, Status string }
		_ = json.Unmarshal(out, &peers)
		states := map[string]string{}
		for _, p := range peers {
			states[p.Peer] = p.Status
		}
		return states
	}
	return d
}

func TestSpeaksWithBIRD(t *testing.T) { speaksWith(t, bird(t)) }
func TestSpeaksWithFRR(t *testing.T)  { speaksWith(t, frr(t)) }

// speaksWith brings up the four sessions of a lab with another implementation, cuts them, and mends them.
func speaksWith(t *testing.T, d *daemon) {
	l := newLab(t)
	r := l.watch(l.near)
	all := sessions(fast)
	if err := r.Set(all); err != nil {
		t.Fatal(err)
	}
	d.start(l, fast)
	both := func(want State, theirs string, which ...Session) {
		t.Helper()
		l.wait(r, want, which...)
		harness.Wait(t, limit, d.name+" says "+theirs, func() bool {
			states := d.states()
			for _, m := range mirrored(fast) {
				at := slices.IndexFunc(which, func(s Session) bool { return s.Multihop == m.Multihop && s.Peer.Is6() == m.Peer.Is6() })
				if at >= 0 && (states[m.Peer.String()] == "up") != (theirs == "up") {
					return false
				}
			}
			return true
		})
	}
	both(Up, "up", all...)

	// The poll is over, and both sides go at the pace that they agreed on.
	for _, s := range all {
		harness.Wait(t, limit, d.name+" agrees on 100ms with "+s.Peer.String(), func() bool {
			tx, rx, polling := r.pace(s.Peer)
			return tx == 100*ms && rx == 300*ms && !polling
		})
	}

	// Three cuts: a line without carrier, a silent line, a silent router.
	var took []time.Duration
	for range 3 {
		begin := time.Now()
		l.cut(l.router)
		l.wait(r, Down, all[2:]...)
		took = append(took, time.Since(begin))
		both(Down, "down", all[2:]...)
		both(Up, "up", all[:2]...)
		l.mend(l.router)
		both(Up, "up", all...)
	}
	begin := time.Now()
	l.cut(l.far)
	l.wait(r, Down, all...)
	took = append(took, time.Since(begin))
	l.mend(l.far)
	both(Up, "up", all...)

	begin = time.Now()
	harness.Run(t, "ip", "-n", l.far, "link", "set", "cable", "down")
	l.wait(r, Down, all[:2]...)
	took = append(took, time.Since(begin))
	harness.Run(t, "ip", "-n", l.far, "link", "set", "cable", "up")
	harness.Run(t, "ip", "-n", l.far, "addr", "replace", "fd66::2/64", "dev", "cable", "nodad")
	both(Up, "up", all...)

	slices.Sort(took)
	t.Logf("%s: cuts noticed after %v", d.name, took)
	if took[len(took)/2] > 5*time.Second {
		t.Errorf("half of the cuts took longer than %s to notice", took[len(took)/2])
	}
	for _, e := range r.told() {
		if e.State == Down && e.Cause == "" {
			t.Errorf("no cause: %+v", e)
		}
	}

	// Taken out of service: the other side hears of it, and is not left to its timer.
	if err := r.Set(all[1:]); err != nil {
		t.Fatal(err)
	}
	harness.Wait(t, limit, d.name+" hears that a session ended", func() bool { return d.states()["10.66.0.1"] != "up" })
	both(Up, "up", all[1:]...)
}
