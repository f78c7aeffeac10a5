package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store/memory"
)

// routes answers SourceFor from a table, so that every routing situation can be shown.
type routes map[string]string

func (routes) Host(context.Context) (model.Host, error) { return model.Host{}, nil }

func (r routes) SourceFor(_ context.Context, dst netip.Addr) (netip.Addr, error) {
	return netip.ParseAddr(r[dst.String()])
}

func TestNodeAddress(t *testing.T) {
	two := model.Host{Uplinks: []model.Uplink{
		{Link: "eth0", Prefix: netip.MustParsePrefix("192.168.0.4/24"), MTU: 1500},
		{Link: "eth1", Prefix: netip.MustParsePrefix("10.0.0.4/24"), MTU: 1500},
	}}
	one := model.Host{Uplinks: two.Uplinks[:1]}
	peer := func(addrs ...string) []model.Node {
		var out []model.Node
		for i, a := range addrs {
			out = append(out, model.Node{Name: string(rune('a' + i)), Address4: netip.MustParseAddr(a)})
		}
		return out
	}
	for _, tt := range []struct {
		name    string
		host    model.Host
		address string
		peers   []model.Node
		routes  routes
		old     string // published before
		want    string
		err     string
	}{
		{name: "the only one", host: one, want: "192.168.0.4"},
		{name: "configured", host: two, address: "10.0.0.4", want: "10.0.0.4"},
		{name: "by the route to the peers", host: two, peers: peer("10.0.0.9"), routes: routes{"10.0.0.9": "10.0.0.4"}, want: "10.0.0.4"},
		{
			name: "ambiguous without peers", host: two,
			err: `address (empty): want one to be chosen, as this host has several IPv4 addresses: 192.168.0.4 (eth0), 10.0.0.4 (eth1)`,
		},
		{
			name: "ambiguous as the peers disagree", host: two, peers: peer("10.0.0.9", "192.168.0.9"),
			routes: routes{"10.0.0.9": "10.0.0.4", "192.168.0.9": "192.168.0.4"},
			err:    `address (empty): want one to be chosen, as this host has several IPv4 addresses: 192.168.0.4 (eth0), 10.0.0.4 (eth1)`,
		},
		{
			name: "the peers disagree, and one is published", host: two, peers: peer("10.0.0.9", "192.168.0.9"), old: "10.0.0.4",
			routes: routes{"10.0.0.9": "10.0.0.4", "192.168.0.9": "192.168.0.4"}, want: "10.0.0.4",
		},
		{name: "no peers, and one is published", host: two, old: "192.168.0.4", want: "192.168.0.4"},
		{name: "published, and the peers agree on another", host: two, peers: peer("10.0.0.9"), old: "192.168.0.4", routes: routes{"10.0.0.9": "10.0.0.4"}, want: "10.0.0.4"},
		{
			name: "published, and gone from this host", host: two, old: "10.7.7.7",
			err: `address (empty): want one to be chosen, as this host has several IPv4 addresses: 192.168.0.4 (eth0), 10.0.0.4 (eth1)`,
		},
		{
			name: "configured but not on this host", host: one, address: "10.9.9.9",
			err: `address 10.9.9.9: want an address of this host: 192.168.0.4 (eth0)`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := config.Default()
			c.Node, c.StateDir, c.RunDir = "self", t.TempDir(), t.TempDir()
			if tt.address != "" {
				c.Address = []netip.Addr{netip.MustParseAddr(tt.address)}
			}
			a, err := New(Options{Config: c, Log: slog.New(slog.DiscardHandler), Store: memory.New(), Facts: tt.routes})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = a.ledger.Close() }()
			var old *model.Node
			if tt.old != "" {
				old = &model.Node{Address4: netip.MustParseAddr(tt.old)}
			}
			got, err := a.address(context.Background(), model.IPv4, tt.host, &model.Cluster{Nodes: tt.peers}, old)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Fatalf("error %v\nwant  %s", err, tt.err)
				}
				return
			}
			if err != nil || got.String() != tt.want {
				t.Fatalf("address %s, %v: want %s", got, err, tt.want)
			}
		})
	}
}

// TestPathWithoutItsDeviceIsNotAccepted: peers must not send where nothing is unwrapped.
func TestPathWithoutItsDeviceIsNotAccepted(t *testing.T) {
	p := &plan.Plan{Links: []plan.Link{
		{Name: "flannel.1", Kind: plan.LinkVXLAN, VXLAN: &plan.VXLANDevice{}}, {Name: "tunl0", Kind: plan.LinkIPIP, IPIP: &plan.IPIPDevice{}},
	}}
	all := []model.Path{model.PathDirect, model.PathIPIP, model.PathVXLAN}
	for _, c := range []struct {
		issue   model.Problem
		accepts []model.Path
		lacks   []model.Path
	}{
		{model.Problem{}, all, nil},
		{model.Problem{Code: "link-failed", Severity: model.Failure, Subject: "link tunl0: mtu 1480"}, all, nil},
		{model.Problem{Code: "foreign-device", Severity: model.Failure, Subject: "link tunl0"}, bothPaths, nil},
		{model.Problem{Code: "kernel-lacks-ipip", Severity: model.Failure, Subject: "link tunl0"}, bothPaths, []model.Path{model.PathIPIP}},
	} {
		issues := []model.Problem{{Code: "sysctl-failed", Severity: model.Failure, Subject: "sysctl x"}, c.issue}
		if got := accepts(p, issues); !slices.Equal(got, c.accepts) {
			t.Errorf("with %q: accepts %v, want %v", c.issue.Code, got, c.accepts)
		}
		if got := lacks(issues); !slices.Equal(got, c.lacks) {
			t.Errorf("with %q: lacks %v, want %v", c.issue.Code, got, c.lacks)
		}
	}
}
