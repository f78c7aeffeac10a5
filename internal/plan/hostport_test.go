package plan_test

import (
	"net/netip"
	"testing"

	"github.com/heddle-net/heddle/internal/plan"
)

func TestPortForOneAddressGoesBeforeThatForAll(t *testing.T) {
	port := func(protocol, address string, n uint16, to string) plan.HostPort {
		return plan.HostPort{Protocol: protocol, Address: netip.MustParseAddr(address), Port: n, To: netip.MustParseAddrPort(to)}
	}
	ports := []plan.HostPort{
		port("udp", "0.0.0.0", 53, "10.0.0.2:53"),
		port("udp", "192.0.2.1", 53, "10.0.0.3:53"),
		port("tcp", "192.0.2.2", 53, "10.0.0.4:53"),
		port("udp", "::", 53, "[fd00::2]:53"),
	}
	for dst, want := range map[string]string{
		"192.0.2.1:53":     "10.0.0.3:53",
		"192.0.2.2:53":     "10.0.0.2:53",
		"127.0.0.1:53":     "10.0.0.2:53",
		"[2001:db8::1]:53": "[fd00::2]:53",
		"192.0.2.1:54":     "invalid AddrPort",
	} {
		if got := plan.LeadsTo(ports, "udp", netip.MustParseAddrPort(dst)).String(); got != want {
			t.Errorf("%s leads to %s, want %s", dst, got, want)
		}
	}
}
