package deploy_test

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/test/harness"
)

// timers are what changes by itself of what `ip -d link` says of bridges.
var timers = regexp.MustCompile(`\w+_timer +[0-9.]+`)

// dump is all that an uninstall has to leave as it was, with what others have there.
func (n *node) dump() string {
	n.t.Helper()
	var b strings.Builder
	for _, command := range []string{
		"ip -d link show", "ip address show", "ip -4 route show table all", "ip -6 route show table all", "ip -4 rule show", "ip -6 rule show",
		"ip neighbor show nud permanent", "bridge fdb show", "nft list ruleset",
	} {
		fmt.Fprintf(&b, "# %s\n", command)
		for l := range strings.Lines(n.run(strings.Fields(command)...)) {
			if !strings.HasPrefix(command, "bridge") || strings.Contains(l, "permanent") { // else it was learned from a packet
				b.WriteString(timers.ReplaceAllString(l, ""))
			}
		}
	}
	n.check(filepath.WalkDir(n.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %s", info.Mode(), path)
		if info.Mode().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(text))
		}
		b.WriteString("\n")
		return nil
	}))
	return b.String()
}

// lines are those of a that b does not have.
func lines(a, b string) (out []string) {
	has := map[string]bool{}
	for l := range strings.Lines(b) {
		has[l] = true
	}
	for l := range strings.Lines(a) {
		if !has[l] {
			out = append(out, strings.TrimSpace(l))
		}
	}
	return out
}

func TestUninstallLeavesTheNodeAsItWas(t *testing.T) {
	harness.Root(t)
	a, b := pair(t)
	// What others have: a firewall that drops what it does not know, and things that look a little like ours.
	for _, command := range []string{
		"sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
		"iptables -P FORWARD DROP",
		"iptables -A FORWARD -s 10.9.0.0/16 -j ACCEPT -m comment --comment heddle-not",
		"nft add table inet other", "nft add chain inet other forward { type filter hook forward priority 10; }",
		"ip link add br9 type bridge", "ip link set br9 alias not-heddle:x", "ip link set br9 up",
		"ip route add 10.9.0.0/16 via 192.168.9.9 proto 106", "ip rule add pref 500 to 10.9.0.0/16 lookup 99",
		"ip neighbor add 192.168.9.9 lladdr 02:00:00:00:00:09 dev up0 nud permanent",
	} {
		a.run(strings.Fields(command)...)
	}
	a.check(os.WriteFile(a.file("bin/other"), []byte("x"), 0o700))
	a.check(os.WriteFile(a.file("net.d/90-other.conflist"), []byte("x"), 0o600))
	settled := func() bool { return !strings.Contains(a.run("ip", "address", "show"), "tentative") }
	harness.Wait(t, patience, "the wire is up", func() bool { return settled() && strings.Contains(a.run("ip", "link", "show", "up0"), "LOWER_UP") })
	before := a.dump()

	a.installPlugin()
	a.start()
	b.start()
	a.ready(1)
	b.ready(1)
	a.add()
	harness.Wait(t, patience, "addresses are settled", settled)
	installed := a.dump()
	for _, want := range []string{
		": cni0:", ": flannel.1:", "alias heddle:", "via 10.244.", "proto 104", "PERMANENT", "dst 192.168.9.2", "table inet heddle {", "table inet heddle-policy {",
		"table bridge heddle-policy {", `comment "heddle"`, cni.ConflistFile, "heddle-cni", "ledger.db", "workloads.db", "policy.json.gz", "agent.sock",
	} {
		if !strings.Contains(strings.Join(lines(installed, before), "\n"), want) {
			t.Errorf("an installed node has no %q, so this test proves nothing of it", want)
		}
	}
	uninstall := func(flags ...string) (string, error) {
		return a.try(append(append([]string{harness.Build(t).Heddle, "uninstall", "--plugin-dir", a.file("bin")}, a.dirs()...), flags...)...)
	}
	refuses := func(want string, flags ...string) {
		t.Helper()
		held := a.dump()
		if out, err := uninstall(flags...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("uninstall %v: %v %s: want a refusal that says %q", flags, err, out, want)
		}
		if now := a.dump(); now != held {
			t.Errorf("a refused uninstall changed the node: gone %q, new %q", lines(held, now), lines(now, held))
		}
	}
	if _, err := uninstall("--force"); err == nil || !strings.Contains(err.Error(), "an agent runs") {
		t.Errorf("uninstall while an agent runs: %v", err)
	}
	if s := a.status(); !s.Ready || len(s.Problems) > 0 {
		t.Errorf("the agent after a refused uninstall: %+v", s)
	}
	a.stop()
	b.stop()
	refuses("workloads are attached")
	// A pod that another plugin hung on the bridge, as on a node that was Flannel's.
	a.run("ip", "link", "add", "fv0", "type", "veth", "peer", "name", "fv1")
	a.run("ip", "link", "set", "fv0", "master", "cni0")
	refuses(", fv0)")
	a.run("ip", "link", "del", "fv0")

	// No plan has rules now; they and routes in other tables are Heddle's by their mark.
	a.run("ip", "rule", "add", "pref", "1040", "lookup", "77", "protocol", "104")
	a.run("ip", "route", "add", "10.77.0.0/16", "dev", "up0", "table", "77", "proto", "104")
	held := a.dump()
	said, err := uninstall("--dry-run")
	a.check(err)
	if now := a.dump(); now != held {
		t.Errorf("a dry run changed the node: gone %q, new %q", lines(held, now), lines(now, held))
	}
	for _, want := range []string{"link cni0", "link flannel.1", "route 10.77.0.0/16 table 77", "rule 1040", "table inet heddle\n", "table bridge heddle-policy", "in chain FORWARD of table ip filter", cni.ConflistFile, "bin/heddle-cni", "ledger.db", "workloads.db", "without --force"} {
		if !strings.Contains(said, want) {
			t.Errorf("a dry run does not name %s:\n%s", want, said)
		}
	}
	_, err = uninstall("--force")
	a.check(err)
	if after := a.dump(); after != before {
		t.Errorf("uninstalled: gone %q, left %q", lines(before, after), lines(after, before))
	}
	if out, err := uninstall(); err != nil || out != "" {
		t.Errorf("uninstall of a clean node: %v %s", err, out)
	}
}

func TestUninstallKeepsWhatOthersPutIntoItsFolders(t *testing.T) {
	harness.Root(t)
	a, _ := pair(t)
	kept := []string{"run/heddle/other.sock", "lib/heddle/store/data", "bin/heddle-cni"}
	for _, f := range kept {
		a.check(os.MkdirAll(filepath.Dir(a.file(f)), 0o755))
		a.check(os.WriteFile(a.file(f), []byte("#!/bin/sh\n"), 0o600))
	}
	gone := []string{"lib/heddle/ledger.db", "run/heddle/workloads.db", "run/heddle/workloads.db.new", "run/heddle/workloads.db.damaged"}
	for _, f := range gone {
		a.check(os.WriteFile(a.file(f), nil, 0o600))
	}
	a.run(append([]string{harness.Build(t).Heddle, "uninstall", "--plugin-dir", a.file("bin")}, a.dirs()...)...)
	for _, f := range kept {
		if _, err := os.Stat(a.file(f)); err != nil {
			t.Error(err)
		}
	}
	for _, f := range gone {
		if _, err := os.Stat(a.file(f)); err == nil {
			t.Errorf("%s is still there", f)
		}
	}
}
