package filter

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/policy"
)

// TestNothingGoesRoundPolicyOnABridge: what a bridge hands to the port of a policed workload without being
// addressed to it has met no policy, and link-local packets belong to no workload.
func TestNothingGoesRoundPolicyOnABridge(t *testing.T) {
	const near = "fe80::b"
	w := newWorld(t, true)
	d := w.node.driver(true)
	send, look := w.a.raw("eth0"), eye{t, w.b.raw("eth0")}
	mark := []byte("past policy")
	data := udp(1000, 2000, mark)
	known := &policy.Table{Sources: sources()}
	ingress, egress := closed(), closed() // of b, and of a
	for _, a := range []string{a4, a6, b4, b6} {
		delete(egress.Locals, in(a))
		delete(ingress.Locals, out(a))
	}
	for _, c := range []struct {
		what            string
		frame           []byte
		ingress, egress bool // passes
	}{
		{"to b", packet(macB, macA, a4, b4, 17, 64, data), false, false},
		{"to all", packet(macAll, macA, a4, "10.244.1.255", 17, 64, data), false, false},
		{"to all, everywhere", packet(macAll, macA, a4, "255.255.255.255", 17, 64, data), false, false},
		{"to all, for b's MAC", packet(macB, macA, a4, "255.255.255.255", 17, 64, data), false, false},
		{"to a group", packet("01:00:5e:00:00:fb", macA, a4, "224.0.0.251", 17, 1, data), false, false},
		{"to a group, 6", packet("33:33:00:00:00:fb", macA, a6, "ff02::fb", 17, 1, data), false, false},
		{"to another behind b's MAC", packet(macB, macA, a4, "10.244.1.77", 17, 64, data), false, false},
		{"near", packet(macB, macA, "fe80::a", near, 17, 64, data), false, false},
		{"near, from its address", packet(macB, macA, a6, near, 17, 64, data), false, false},
		{"near to b", packet(macB, macA, "fe80::a", b6, 17, 64, data), false, false},
		{"ARP", eth(macAll, macA, 0x0806, append(arp(1, macA, a4, macAll, b4), mark...)), true, true},
		{"near search for a neighbour", packet("33:33:ff:00:00:03", macA, "fe80::a", "ff02::1:ff00:3", 58, 255, icmpMessage(135, 0, append(append(make([]byte, 4), addr(b6).AsSlice()...), mark...))), true, true},
		{"search for a neighbour", packet("33:33:ff:00:00:03", macA, a6, "ff02::1:ff00:3", 58, 255, icmpMessage(135, 0, append(append(make([]byte, 4), addr(b6).AsSlice()...), mark...))), true, true},
		{"such a message from afar", packet(macB, macA, a6, b6, 58, 64, icmpMessage(135, 0, append(append(make([]byte, 4), addr(b6).AsSlice()...), mark...))), false, false},
	} {
		for name, s := range map[string]struct {
			table *policy.Table
			want  bool
		}{"no policy": {known, true}, "ingress": {ingress, c.ingress}, "egress": {egress, c.egress}} {
			apply(t, d, s.table)
			w.forget()
			must(t, sendFrame(send, c.frame))
			if got := look.sees(mark, 100*time.Millisecond); got != s.want {
				t.Errorf("%s, %s: arrives %v, want %v", c.what, name, got, s.want)
			}
		}
	}
}

func TestNeighborsAreFoundUnderPolicy(t *testing.T) {
	for _, bridged := range []bool{false, true} {
		w := newWorld(t, bridged)
		apply(t, w.node.driver(true), small())
		for _, to := range []string{b4, b6} {
			for _, s := range []space{w.a, w.b, w.node} {
				s.run("ip", "neigh", "flush", "all")
			}
			if !bridged {
				w.a.run("ip", "neigh", "replace", node6, "dev", "eth0", "lladdr", macRouter)
				w.b.run("ip", "neigh", "replace", node6, "dev", "eth0", "lladdr", macRouter)
			}
			if !probed(t, true, w.a, w.b, to, "icmp") {
				t.Errorf("bridged %v: %s is not reached", bridged, to)
			}
		}
	}
}

func TestALinkLocalAddressIsNoWayRoundEgressPolicyToTheNode(t *testing.T) {
	w := newWorld(t, false)
	d := w.node.driver(true)
	near := ""
	eventually(t, "the node's end has a link-local address", func() bool {
		for _, word := range strings.Fields(w.node.run("ip", "-6", "address", "show", "dev", "hdla", "scope", "link")) {
			if a, ok := strings.CutSuffix(word, "/64"); ok {
				near = a
			}
		}
		return near != ""
	})
	var server net.PacketConn
	must(t, w.node.inside(func() (err error) { server, err = net.ListenPacket("udp6", "[::]:2000"); return err }))
	defer func() { _ = server.Close() }()
	arrives := func() bool {
		must(t, w.a.inside(func() error {
			c, err := net.Dial("udp6", "["+near+"%eth0]:2000")
			if err != nil {
				return err
			}
			_, werr := c.Write([]byte("x"))
			return errors.Join(werr, c.Close())
		}))
		_ = server.SetReadDeadline(time.Now().Add(patience))
		_, _, err := server.ReadFrom(make([]byte, 10))
		return answered(t, err)
	}
	if apply(t, d, &policy.Table{Sources: sources()}); !arrives() {
		t.Error("without policy it does not arrive")
	}
	if apply(t, d, closed()); arrives() {
		t.Error("it arrives although a may send nothing")
	}
}

func TestATransactionForAnotherRulesetIsRefused(t *testing.T) {
	s := newSpace(t)
	d := s.driver(true)
	apply(t, d, small())
	generation, err := d.c.generation()
	must(t, err)
	s.feed("table inet other { }", "nft", "-f", "-")
	m := newBatch(generation)
	m.delTable(inetTable)
	if err := d.c.commit(m); !errors.Is(err, errStale) {
		t.Errorf("got %v", err)
	}
	if n := apply(t, d, small()); n != 0 {
		t.Errorf("a pass changed %d objects", n)
	}
}
