package nft

import (
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
)

// legacy reports filter tables of the old iptables, whose chains netlink does not show.
func (d *Driver) legacy(pods []netip.Prefix) []model.Problem {
	var out []model.Problem
	for _, f := range []struct {
		v6            bool
		file, command string
	}{
		{false, "ip_tables_names", "iptables-legacy"},
		{true, "ip6_tables_names", "ip6tables-legacy"},
	} {
		if !slices.ContainsFunc(pods, func(p netip.Prefix) bool { return p.Addr().Is6() == f.v6 }) {
			continue
		}
		if !slices.Contains(strings.Fields(d.procNet(f.file)), "filter") {
			continue
		}
		out = append(out, model.Problem{
			Code: codeLegacy, Severity: model.Warning, Subject: "table filter of " + f.command,
			Detail: "rules of the old iptables are in force beside nftables; if its FORWARD chain drops, pods' packets are lost and Heddle cannot see why",
			Next:   f.command + " -S FORWARD",
		})
	}
	return out
}

// procNet reads a file of /proc/net in the driver's namespace; empty when there is none.
func (d *Driver) procNet(name string) string {
	read := func() string {
		b, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil {
			return ""
		}
		return string(b)
	}
	if d.ns < 0 {
		return read()
	}
	out := make(chan string)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine, and nothing else of this
		// process can land in the other namespace.
		runtime.LockOSThread()
		if err := unix.Setns(d.ns, unix.CLONE_NEWNET); err != nil {
			out <- ""
			return
		}
		out <- read()
	}()
	return <-out
}
