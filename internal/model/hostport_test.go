package model

import (
	"net/netip"
	"testing"
)

func TestHostPortsCollideWhereOnePacketCouldMeanBoth(t *testing.T) {
	port := func(protocol, ip string, n uint16) HostPort {
		p := HostPort{Protocol: protocol, HostPort: n, ContainerPort: 80}
		if ip != "" {
			p.HostIP = netip.MustParseAddr(ip)
		}
		return p
	}
	every := port("tcp", "", 80)
	for _, c := range []struct {
		a, b HostPort
		want bool
	}{
		{every, every, true},
		{every, port("udp", "", 80), false},
		{every, port("tcp", "", 81), false},
		{every, port("tcp", "0.0.0.0", 80), true},
		{every, port("tcp", "::", 80), true},
		{port("tcp", "0.0.0.0", 80), port("tcp", "::", 80), false},
		{port("tcp", "::", 80), port("tcp", "::", 80), true},
		{every, port("tcp", "192.0.2.1", 80), false}, // the single one goes first
		{port("tcp", "192.0.2.1", 80), port("tcp", "192.0.2.1", 80), true},
		{port("tcp", "192.0.2.1", 80), port("tcp", "192.0.2.2", 80), false},
	} {
		if c.a.Collides(c.b) != c.want || c.b.Collides(c.a) != c.want {
			t.Errorf("%s and %s: want %t", c.a, c.b, c.want)
		}
	}
}
