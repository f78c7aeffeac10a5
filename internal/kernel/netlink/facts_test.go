package netlink

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
)

func newFacts(t *testing.T, s *space) *Facts {
	t.Helper()
	f, err := NewFacts(Options{NS: s.fd()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func TestHostListsUplinksOnly(t *testing.T) {
	node, d := newNode(t)
	apply(t, d, tunnelPlan(1))
	attach(t, newPods(t, node), newSpace(t), routed(4))
	for _, c := range []string{
		"addr add 192.168.7.4/28 dev eth0", "addr add 192.168.0.44/24 dev eth0", // another segment, a secondary
		"-6 addr add fd00:192::77/64 dev eth0 preferred_lft 0", "addr add 10.1.1.1/32 dev lo",
		"-6 addr add fd00:192::99/64 dev eth0 tentative",
		"link add docker0 type bridge", "link set docker0 up", "addr add 172.17.0.1/16 dev docker0",
		"link add v0 type veth peer name v1", "link set v0 master docker0", "link set v0 up", "addr add 10.2.2.2/24 dev v0",
		"link add down0 type veth peer name down1", "addr add 10.3.3.3/24 dev down0",
		"tuntap add dev tun0 mode tun", "link set tun0 up", "addr add 10.4.4.4/24 dev tun0",
		"link add vx type vxlan id 77 dstport 4789 dev eth0", "link set vx up", "addr add 10.5.5.5/24 dev vx",
		"link add br1 type bridge", "link add mv0 link eth0 type macvlan", "link set mv0 master br1", "link set br1 up", "addr add 10.6.6.6/24 dev br1",
	} {
		if out, err := node.try(append([]string{"ip"}, strings.Fields(c)...)...); err != nil {
			if strings.Contains(c, "tentative") {
				continue // not every ip can ask for it
			}
			t.Fatalf("%s: %v %s", c, err, out)
		}
	}
	h, err := newFacts(t, node).Host(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := []model.Uplink{
		{Link: "eth0", Prefix: netip.MustParsePrefix("192.168.0.4/24"), MTU: 1500},
		{Link: "eth0", Prefix: netip.MustParsePrefix("192.168.7.4/28"), MTU: 1500},
		{Link: "eth0", Prefix: netip.MustParsePrefix("192.168.0.44/24"), MTU: 1500},
		{Link: "eth0", Prefix: netip.MustParsePrefix("fd00:192::4/64"), MTU: 1500},
		{Link: "br1", Prefix: netip.MustParsePrefix("10.6.6.6/24"), MTU: 1500},
	}
	got := map[model.Uplink]bool{}
	for _, u := range h.Uplinks {
		got[u] = true
	}
	for _, w := range want {
		if !got[w] {
			t.Errorf("want %+v", w)
		}
	}
	if len(h.Uplinks) != len(want) {
		t.Errorf("got %+v\nwant %+v", h.Uplinks, want)
	}
	if h.Uplink(netip.MustParseAddr("192.168.0.4")) == nil {
		t.Error("the node's own address is not found")
	}
}

func TestSourceForAsksTheKernel(t *testing.T) {
	node, _ := newNode(t)
	node.ip("addr add 10.7.7.7/32 dev lo")
	node.ip("route add 10.8.0.0/16 via 192.168.0.16 src 10.7.7.7")
	f := newFacts(t, node)
	for dst, want := range map[string]string{
		"192.168.0.16": "192.168.0.4", "10.8.1.1": "10.7.7.7", "fd00:192::16": "fd00:192::4", "192.168.0.4": "192.168.0.4",
	} {
		got, err := f.SourceFor(context.Background(), netip.MustParseAddr(dst))
		if err != nil || got.String() != want {
			t.Errorf("to %s: got %s, %v; want %s", dst, got, err, want)
		}
	}
	for _, dst := range []string{"8.8.8.8", "2001:db8::1"} {
		if _, err := f.SourceFor(context.Background(), netip.MustParseAddr(dst)); err == nil || !strings.Contains(err.Error(), "route to "+dst+": network is unreachable") {
			t.Errorf("to %s: got %v, want the kernel's reason", dst, err)
		}
	}
	if _, err := f.SourceFor(context.Background(), netip.Addr{}); err == nil {
		t.Error("no destination, no error")
	}
}
