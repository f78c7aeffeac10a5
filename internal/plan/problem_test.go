package plan_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

func TestChangeOfTheRangeIsOneProblemPerCause(t *testing.T) {
	in := cluster(14, model.PathDirect, model.EncapNever)
	in.Cluster.Pools[0].CIDR = netip.MustParsePrefix("10.99.0.0/16")
	var own netip.Prefix
	for _, b := range in.Cluster.Blocks {
		if b.Node == in.Self {
			own = b.CIDR
		}
	}
	lost := netip.MustParseAddr("172.31.0.9")
	a := own.Addr()
	for i := range 24 {
		a = a.Next()
		w := model.Workload{ContainerID: fmt.Sprint("c", i), IfName: "eth0", Namespace: "default", Name: fmt.Sprintf("p%02d", i), Addresses: []netip.Addr{a}}
		if i >= 20 {
			w.Addresses[0], lost = lost, lost.Next()
		}
		in.Workloads = append(in.Workloads, w)
	}
	p, err := plan.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []struct{ code, subject, detail, next string }{
		{"block-outside-pool", "block " + own.String(), "cut off: 20", "delete and add again: default/p00, default/p01, default/p02, default/p03, default/p04, default/p05, default/p06, default/p07, default/p08, default/p09 and 10 more"},
		{"block-outside-pool", fmt.Sprintf("pool %q", in.Cluster.Pools[0].Name), "(13 in all)", "on those nodes: heddle status, which names the workloads to restart"},
		{"workload-outside-blocks", "4 workloads", "in no block", "delete and add again: default/p20, default/p21, default/p22, default/p23"},
	}
	if len(p.Problems) != len(want) {
		t.Fatalf("%d problems, want %d:\n%+v", len(p.Problems), len(want), p.Problems)
	}
	for i, w := range want {
		if got := p.Problems[i]; got.Code != w.code || got.Subject != w.subject || !strings.Contains(got.Detail, w.detail) || got.Next != w.next {
			t.Errorf("problem %d:\n got %+v\nwant %+v", i, got, w)
		}
	}
}
