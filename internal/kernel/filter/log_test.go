package filter

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/kernel/flow"
	"github.com/heddle-net/heddle/internal/policy"
)

// listening hears what the node's chains log, until the test ends. What was heard is forgotten.
func (w world) listening(t *testing.T) (heard func(what string, ok func(kernel.Packet) bool)) {
	t.Helper()
	h, err := netns.GetFromName(w.node.name)
	must(t, err)
	d, err := flow.New(flow.Options{NS: int(h), Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	var mu sync.Mutex
	var packets []kernel.Packet
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- d.Listen(ctx, func(p kernel.Packet) { mu.Lock(); packets = append(packets, p); mu.Unlock() }, func(int) {})
	}()
	t.Cleanup(func() { cancel(); must(t, <-done); _ = h.Close() })
	time.Sleep(50 * time.Millisecond) // it binds to the group
	return func(what string, ok func(kernel.Packet) bool) {
		t.Helper()
		eventually(t, what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			for _, p := range packets {
				if ok(p) {
					packets = nil
					return true
				}
			}
			return false
		})
	}
}

func TestAllowedPacketsAreLoggedOnRequest(t *testing.T) {
	w := newWorld(t, false)
	d := w.node.driver(true)
	heard := w.listening(t)
	table := closed()
	for _, a := range []string{a4, a6} {
		table.Locals[out(a)] = 2
	}
	table.L4[policy.L4Key{Row: 1, Protocol: 17, Src: policy.AllPorts, Dst: ports(80, 89)}] = allow
	apply(t, d, table)
	through := func(what string) {
		t.Helper()
		w.forget()
		if !probed(t, true, w.a, w.b, b4, what) || !probed(t, true, w.a, w.b, b6, what) {
			t.Fatal("what is allowed does not get through")
		}
	}
	said := func(dst string) func(kernel.Packet) bool {
		return func(p kernel.Packet) bool { return !p.Denied && p.Dst == netip.MustParseAddrPort(dst) }
	}
	must(t, d.SetLogging(t.Context(), true))
	through("udp 80")
	heard("IPv4, allowed", said(b4+":80"))
	through("udp 81")
	heard("IPv6, allowed", said("["+b6+"]:81"))
	if n := apply(t, d, table); n != 0 {
		t.Errorf("a pass changed %d objects while logging is on", n)
	}
	must(t, d.SetLogging(t.Context(), false))
	through("udp 82")
	reached(t, w.a, w.b, b4, "udp 60") // denied, and logged in any case, after the others
	heard("the denied one", func(p kernel.Packet) bool {
		if !p.Denied && p.Dst.Port() == 82 {
			t.Errorf("logged though it was switched off: %+v", p)
		}
		return p.Denied
	})
}

func TestDeniedPacketsAreLoggedWithTheirHook(t *testing.T) {
	w := newWorld(t, false)
	d := w.node.driver(true)
	heard := w.listening(t)
	logged := func(hook string, denied bool, dst string) func(kernel.Packet) bool {
		return func(p kernel.Packet) bool {
			return p.Hook == hook && p.Denied == denied && p.Dst == netip.MustParseAddrPort(dst) && p.Protocol == 17
		}
	}
	table := closed()
	table.Locals[out(a4)] = 2
	table.L4[policy.L4Key{Row: 1, Protocol: 17, Src: policy.AllPorts, Dst: port(61)}] = policy.Decision{Verdict: policy.VerdictAllowLog}
	table.L4[policy.L4Key{Row: 1, Protocol: 17, Src: policy.AllPorts, Dst: port(62)}] = policy.Decision{Verdict: policy.VerdictDenyLog}
	apply(t, d, table)
	reached(t, w.a, w.b, b4, "udp 60")
	heard("forward, denied", logged("forward", true, b4+":60"))
	if !probed(t, true, w.a, w.b, b4, "udp 61") {
		t.Error("what is allowed and logged does not get through")
	}
	heard("forward, allowed", logged("forward", false, b4+":61"))
	reached(t, w.a, w.b, b4, "udp 62")
	heard("forward, denied by name", logged("forward", true, b4+":62"))
	reached(t, w.b, w.node, node4, "udp 60")
	heard("input, denied", logged("input", true, node4+":60"))

	for hook, name := range map[policy.Hook]string{policy.HostOutput: "output", policy.HostPreDNATIn: "prerouting", policy.HostUntrackedIn: "prerouting", policy.HostUntrackedOut: "output"} {
		apply(t, d, hostTable(hook, "wan", policy.VerdictDeny))
		from, to, at, mark := w.outside, w.node, "172.16.0.1", "60"
		if name == "output" {
			from, to, at = w.node, w.outside, out4
		}
		for verdict, denied := range map[string]bool{mark: true, "7000": false} {
			w.forget()
			reached(t, from, to, at, "udp "+verdict)
			heard(name, logged(name, denied, at+":"+verdict))
		}
	}
}
