package cni

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
)

// A workload can have an address without a gateway: its block is gone, the workload is not.
func TestResultPairsGatewaysByFamily(t *testing.T) {
	out, err := result(&conf{CNIVersion: "1.1.0"}, Attached{
		Workload:  model.Workload{IfName: "eth0", HostLink: "hd0"},
		Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::2/128"), netip.MustParsePrefix("10.244.1.2/24")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.244.1.1")},
	}, "/run/netns/x")
	if err != nil {
		t.Fatal(err)
	}
	v6, v4, _ := strings.Cut(string(out), "10.244.1.2/24")
	if strings.Contains(v6, `"gateway"`) || !strings.Contains(v4, `"gateway": "10.244.1.1"`) {
		t.Fatalf("want the gateway beside the IPv4 address alone:\n%s", out)
	}
}
