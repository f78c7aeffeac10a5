package cli

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

func TestStatusSaysThatAPeerIsNotCarriedOnPurpose(t *testing.T) {
	peers := []agent.PeerStatus{
		{Peer: plan.Peer{Node: "b", Block: netip.MustParsePrefix("10.244.1.0/24"), Path: model.PathNone, Reason: `pool "flannel" carries no packets`}, State: agent.PeerNotCarried},
		{Peer: plan.Peer{Node: "c", Block: netip.MustParsePrefix("10.244.2.0/24"), Reason: "not ready"}, State: agent.PeerNoPath},
		{Peer: plan.Peer{Node: "d", Block: netip.MustParsePrefix("10.244.3.0/24"), Path: model.PathDirect, Via: netip.MustParseAddr("192.0.2.4"), MTU: 1500}, State: agent.PeerUp},
	}
	var out strings.Builder
	if err := printPeers(&out, peers); err != nil {
		t.Fatal(err)
	}
	got := regexp.MustCompile(` +`).ReplaceAllString(out.String(), " ")
	want := `
peers 3 block(s), 1 no path, 1 not carried, 1 up direct
 c 10.244.2.0/24 - no path not ready
 b 10.244.1.0/24 - not carried pool "flannel" carries no packets
 d 10.244.3.0/24 direct via 192.0.2.4 MTU 1500 up` + " \n"
	if got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}
