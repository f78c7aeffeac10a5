package filter

import (
	"bytes"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/policy"
)

// TestWorkloadsSendOnlyWhatIsTheirs sends frames from a and looks whether they get to b, with the sources
// known and without any filter: what the filter drops would have arrived.
func TestWorkloadsSendOnlyWhatIsTheirs(t *testing.T) {
	const other4, other6 = "10.244.1.77", "fd00:244:1::77"
	for _, bridged := range []bool{false, true} {
		t.Run(map[bool]string{false: "routed", true: "bridged"}[bridged], func(t *testing.T) {
			w := newWorld(t, bridged)
			d := w.node.driver(true)
			gate := macRouter
			if bridged {
				gate = macB
			}
			send, look := w.a.raw("eth0"), eye{t, w.b.raw("eth0")}
			mark := []byte("a frame from a")
			data := udp(1000, 2000, mark)
			pad := bytes.Repeat([]byte{0}, 16)
			cases := []struct {
				what  string
				frame []byte
				want  bool
				only  bool // on a bridge
			}{
				{"own address", packet(gate, macA, a4, b4, 17, 64, data), true, false},
				{"own address, 6", packet(gate, macA, a6, b6, 17, 64, data), true, false},
				{"another's address", packet(gate, macA, other4, b4, 17, 64, data), false, false},
				{"another's address, 6", packet(gate, macA, other6, b6, 17, 64, data), false, false},
				{"the node's address, 6", packet(gate, macA, "fd00:172::1", b6, 17, 64, data), false, false},
				{"another's MAC", packet(gate, "02:00:00:00:00:77", a4, b4, 17, 64, data), false, false},
				{"another's MAC, 6", packet(gate, "02:00:00:00:00:77", a6, b6, 17, 64, data), false, false},
				{"DHCP request", packet(gate, macA, a4, b4, 17, 64, udp(68, 67, mark)), true, false},
				{"DHCP answer", packet(gate, macA, a4, b4, 17, 64, udp(67, 68, mark)), false, false},
				{"DHCPv6 answer", packet(gate, macA, a6, b6, 17, 64, udp(547, 546, mark)), false, false},
				{"echo request", packet(gate, macA, a4, b4, 1, 64, icmpMessage(8, 0, append(pad[:4:4], mark...))), true, false},
				{"redirect", packet(gate, macA, a4, b4, 1, 64, icmpMessage(5, 0, append(pad[:4:4], mark...))), false, false},
				{"router advertisement of old", packet(gate, macA, a4, b4, 1, 64, icmpMessage(9, 0, append(pad[:4:4], mark...))), false, false},
				{"echo request, 6", packet(gate, macA, a6, b6, 58, 64, icmpMessage(128, 0, append(pad[:4:4], mark...))), true, false},

				{"router advertisement", packet(gate, macA, a6, b6, 58, 255, icmpMessage(134, 0, append(pad[:12:12], mark...))), false, true},
				{"router advertisement, near", packet(gate, macA, "fe80::a", "ff02::1", 58, 255, icmpMessage(134, 0, append(pad[:12:12], mark...))), false, true},
				{"redirect, 6", packet(gate, macA, "fe80::a", b6, 58, 255, icmpMessage(137, 0, append(pad[:12:12], mark...))), false, true},
				{"own advertisement", packet(gate, macA, a6, b6, 58, 255, append(advertisement(a6, macA), mark...)), true, true},
				{"advertisement of another's", packet(gate, macA, a6, b6, 58, 255, append(advertisement(node6, macA), mark...)), false, true},
				{"advertisement of another's, near", packet(gate, macA, "fe80::a", b6, 58, 255, append(advertisement(node6, macA), mark...)), false, true},
				{"near advertisement", packet(gate, macA, "fe80::a", b6, 58, 255, append(advertisement("fe80::a", macA), mark...)), true, true},
				{"near", packet(gate, macA, "fe80::a", "fe80::b", 17, 64, data), true, true},
				{"near, another's MAC", packet(gate, "02:00:00:00:00:77", "fe80::a", "fe80::b", 17, 64, data), false, true},
				{"search for a double", packet(gate, macA, "::", "ff02::1:ff00:2", 58, 255, icmpMessage(135, 0, append(append(pad[:4:4], addr(a6).AsSlice()...), mark...))), true, true},
				{"from nowhere", packet(gate, macA, "::", b6, 17, 64, data), false, true},
				{"from nowhere, 4", packet(gate, macA, "0.0.0.0", b4, 17, 64, data), false, true},
				{"own ARP", eth(macAll, macA, 0x0806, append(arp(1, macA, a4, macB, b4), mark...)), true, true},
				{"ARP probe", eth(macAll, macA, 0x0806, append(arp(1, macA, "0.0.0.0", macB, b4), mark...)), true, true},
				{"ARP for another's address", eth(macAll, macA, 0x0806, append(arp(2, macA, node4, macB, b4), mark...)), false, true},
				{"ARP for another's MAC", eth(macAll, macA, 0x0806, append(arp(2, macB, a4, macB, b4), mark...)), false, true},
				{"ARP from another's MAC", eth(macAll, "02:00:00:00:00:77", 0x0806, append(arp(2, macA, a4, macB, b4), mark...)), false, true},
				{"tagged", eth(gate, macA, 0x8100, append([]byte{0, 7, 8, 0}, ip(a4, b4, 17, 64, data)...)), false, true},
				{"no IP", eth(gate, macA, 0x88b5, append(pad, mark...)), false, true},
			}
			for _, c := range cases {
				if c.only && !bridged {
					continue
				}
				try := func() bool {
					must(t, sendFrame(send, c.frame))
					return look.sees(mark, 60*time.Millisecond)
				}
				if must(t, d.Sweep(t.Context())); !try() {
					t.Errorf("%s: does not arrive without a filter", c.what)
				}
				apply(t, d, &policy.Table{Sources: sources()})
				if got := try(); got != c.want {
					t.Errorf("%s: arrived %v, want %v", c.what, got, c.want)
				}
				if apply(t, d, &policy.Table{}); try() {
					t.Errorf("%s: arrived from an interface that nobody knows", c.what)
				}
			}
		})
	}
}
