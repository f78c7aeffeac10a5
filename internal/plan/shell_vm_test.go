//go:build vm

package plan_test

import (
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// TestPastedPlanOfIPIPCarriesPackets is TestPastedPlanCarriesPackets for walkthrough G, in both families.
func TestPastedPlanOfIPIPCarriesPackets(t *testing.T) {
	b := newBare(t)
	cl, pods := b.cluster(model.PathIPIP, model.EncapAlways, true)
	for i := range b.hosts {
		in, p := b.build(i, cl, model.AttachRouted, pods[i])
		b.paste(b.hosts[i], plan.Shell(p)+plan.ShellPod(plan.PodOf(in, in.Workloads[0], p.MTU), b.netns[i]))
		b.checkTable(b.hosts[i], p.Filter)
	}
	for _, to := range pods[1] {
		b.ping(b.netns[0], to)
	}
	for _, link := range []string{"tunl0", "tunl6"} {
		if b.sent(b.hosts[0], link) == 0 {
			t.Errorf("nothing went by %s", link)
		}
	}
}
