package filter

import (
	"testing"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/policy"
)

func TestEntriesCountWhatTheyDecideOnDemand(t *testing.T) {
	w := newWorld(t, false)
	d := w.node.driver(true)
	apply(t, d, small())
	if _, err := d.Counters(t.Context()); err == nil {
		t.Error("counts without being asked to count")
	}
	before := w.node.everything()
	must(t, d.SetCounting(t.Context(), true))
	counts := func() kernel.Counters {
		c, err := d.Counters(t.Context())
		must(t, err)
		return c
	}
	if c, want := counts(), small(); len(c.L4) != len(want.L4) || len(c.Base) != len(want.Base) {
		t.Errorf("%d and %d entries count, want %d and %d", len(c.L4), len(c.Base), len(want.L4), len(want.Base))
	}
	for _, what := range []string{"tcp 80", "tcp 80", "tcp 8500", "tcp 81", "udp 53", "udp 60", "icmp"} {
		reached(t, w.a, w.b, b4, what)
		w.forget()
	}
	reached(t, w.a, w.b, b6, "icmp")
	c := counts()
	for k := range small().L4 {
		want := uint64(0)
		switch {
		case k.Protocol == 6 && k.Dst == port(80):
			want = 2
		case k.Protocol == 6 && k.Dst == ports(8000, 8999), k.Protocol == 17 && k.Dst == port(53), k.Protocol == 17 && k.Dst == policy.AllPorts,
			k.Protocol == 1, k.Protocol == 58:
			want = 1
		}
		if got := c.L4[k]; got.Packets != want || want > 0 && got.Bytes < 28 {
			t.Errorf("%+v counts %+v, want %d packets", k, got, want)
		}
	}
	if got := c.Base[3].Packets; got == 0 { // tcp 81, once or again
		t.Error("what no port decided does not count")
	}
	// A pass and a difference leave the counts alone, and what is new counts too.
	if n := apply(t, d, small()); n != 0 {
		t.Errorf("a pass changed %d objects", n)
	}
	k := policy.L4Key{Row: 9, Protocol: 6, Src: policy.AllPorts, Dst: port(99)}
	must(t, d.Update(t.Context(), &policy.Delta{
		L4:   policy.Change[policy.L4Key, policy.Decision]{Put: map[policy.L4Key]policy.Decision{k: allow}},
		Base: policy.Change[policy.Row, policy.Decision]{Put: map[policy.Row]policy.Decision{9: deny}},
	}))
	again := counts()
	if _, ok := again.L4[k]; !ok || again.Base[3] != c.Base[3] {
		t.Errorf("after a difference: %+v", again)
	}
	apply(t, d, small())
	must(t, d.SetCounting(t.Context(), false))
	if w.node.everything() != before {
		t.Error("the table is not what it was before counting")
	}
}
