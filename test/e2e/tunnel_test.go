package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// TestPodsCannotSpeakToTunnels: a node unwraps what comes to its VXLAN port. A pod that sends there could say
// anything in anybody's name.
func TestPodsCannotSpeakToTunnels(t *testing.T) {
	ctx, l := up(t, "flat", only4, func(s *lab.Spec) { s.Pods = 0 })
	w := &walkthrough{t: t, ctx: ctx, l: l, ip: map[string]lab.Pod{}}
	for pod, node := range map[string]string{"dev/victim": "n1", "default/near": "n1", "default/far": "n2", "default/friend": "n2"} {
		p, err := l.AddPod(ctx, node, pod)
		if err != nil {
			t.Fatal(err)
		}
		w.ip[pod] = p
	}
	victim, friend := w.ip["dev/victim"], w.ip["default/friend"]
	at := netip.AddrPortFrom(victim.Address(model.IPv4), 7300)
	heard, err := socket(netnsOf(t, l, victim), at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = heard.Close() }()
	forged := vxlanPacket(t, plan.VTEPMAC("n1", model.DefaultVNI, model.IPv4), netip.AddrPortFrom(friend.Address(model.IPv4), 7300), at)
	s, err := l.Status(ctx, "n1")
	if err != nil {
		t.Fatal(err)
	}
	underlay, gateway := s.Address4, s.Blocks[0].CIDR.Addr().Next()
	send := func(from string, to netip.Addr) bool {
		t.Helper()
		c, err := socket(from, "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		for range 3 {
			_, _ = c.WriteToUDPAddrPort(forged, netip.AddrPortFrom(to, model.DefaultPort))
		}
		_ = heard.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, _, err = heard.ReadFrom(make([]byte, 16))
		return err == nil
	}
	for _, from := range []string{"default/near", "default/far"} {
		for _, to := range []netip.Addr{underlay, gateway} {
			if send(netnsOf(t, l, w.ip[from]), to) {
				t.Errorf("%s spoke as default/friend to dev/victim by the tunnel port of %s", from, to)
			}
		}
	}
	pid, err := l.Node("n2").InitPID()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "a node's own tunnel packets arrive", func() error {
		if !send(fmt.Sprintf("/proc/%d/ns/net", pid), underlay) {
			return errors.New("none did: this test would see nothing")
		}
		return nil
	})
}

// vxlanPacket is the payload of a VXLAN datagram (RFC 7348 section 5) with a UDP datagram inside.
func vxlanPacket(t *testing.T, mac string, from, to netip.AddrPort) []byte {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("forged")
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(data)))
	udp = append(append(udp, 0, 0), data...) // no checksum
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return slices.Concat([]byte{8, 0, 0, 0, 0, 0, model.DefaultVNI, 0}, hw, []byte{2, 0, 0, 0, 0, 1, 8, 0}, ip, udp)
}
