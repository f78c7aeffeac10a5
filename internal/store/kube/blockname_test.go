package kube

import (
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

var dns1123 = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func anyBlock(t *rapid.T, label string) model.Block {
	n := rapid.SampledFrom([]int{4, 16}).Draw(t, label+" length")
	raw := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 0, 0, 1, 10, 0xfd, 0xff}), n, n).Draw(t, label+" address")
	a, _ := netip.AddrFromSlice(raw)
	p, _ := a.Prefix(rapid.IntRange(0, 8*n).Draw(t, label+" bits"))
	return model.Block{CIDR: p, Pool: "p", Node: "n"}
}

// TestNameOfABlockIsItsOwn, is one that Kubernetes takes, and is read back as the same block.
func TestNameOfABlockIsItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyBlock(t, "a"), anyBlock(t, "b")
		name := blockName(a.Key())
		if !dns1123.MatchString(name) || len(name) > 63 {
			t.Errorf("%s is %q", a.CIDR, name)
		}
		if (name == blockName(b.Key())) != (a.CIDR == b.CIDR) {
			t.Errorf("%s and %s are %q and %q", a.CIDR, b.CIDR, name, blockName(b.Key()))
		}
		if a.CIDR.IsSingleIP() {
			a.Lender = rapid.SampledFrom([]string{"", "m"}).Draw(t, "lender")
			a.For = rapid.SampledFrom([]string{"", "o"}).Draw(t, "for")
		}
		got, err := blockOf(objectOf(&a))
		if a.CIDR.Addr().Is4In6() {
			if err == nil {
				t.Errorf("%s is taken", a.CIDR)
			}
		} else if err != nil || *got != a {
			t.Errorf("%+v is read as %+v: %v", a, got, err)
		}
	})
}

// TestBlockThatIsNoneIsLeftOut, and one that becomes such is gone.
func TestBlockThatIsNoneIsLeftOut(t *testing.T) {
	c := newTestCatalog(t)
	c.log = slog.New(slog.DiscardHandler)
	good := objectOf(&model.Block{CIDR: netip.MustParsePrefix("10.64.0.0/26"), Pool: "p", Node: "n"})
	good.SetResourceVersion("5")
	locked(c, func() { c.takeBlock(reduceBlock(good), false) })
	for field, v := range map[string]any{"cidr": "10.64.0.1/26", "pool": "No", "node": int64(7), "lender": "m"} {
		u := good.DeepCopy()
		u.Object["spec"].(map[string]any)[field] = v
		locked(c, func() { c.takeBlock(reduceBlock(u), false) })
		if n := len(c.objects[model.KindBlock]); n != 0 {
			t.Errorf("%s %v: %d blocks", field, v, n)
		}
		locked(c, func() { c.takeBlock(reduceBlock(good), false) })
		if n := len(c.objects[model.KindBlock]); n != 1 {
			t.Errorf("%d blocks after it was mended", n)
		}
	}
	// Made anew while nobody looked, it is another one.
	was, again := c.objects[model.KindBlock]["10.64.0.0-26"].revision, good.DeepCopy()
	again.SetUID("new")
	for range 2 {
		locked(c, func() { c.replaceBlocks([]*thin{reduceBlock(again)}) })
		if now := c.objects[model.KindBlock]["10.64.0.0-26"].revision; now != was+2 {
			t.Errorf("revision %d after %d, want two changes", now, was)
		}
	}
	for _, o := range []string{"10.64.0.0-27", "10.64.0.64-26"} {
		u := good.DeepCopy()
		u.SetName(o)
		if got := reduceBlock(u); got.object != nil || got.wrong == nil {
			t.Errorf("%s for %v is taken", o, u.Object["spec"])
		}
	}
	locked(c, func() { c.replaceBlocks([]*thin{reduceBlock(&unstructured.Unstructured{Object: map[string]any{}})}) })
	if len(c.objects[model.KindBlock]) != 0 || len(c.claimed) != 0 {
		t.Error("what is not listed any more is still there")
	}
}

// TestOlderBlockCounts: a node that claims a part of another's block gets nothing, whoever of the two is heard of first.
func TestOlderBlockCounts(t *testing.T) {
	object := func(made int64, version string, b model.Block) *thin {
		b.Pool = "p"
		out := reduceBlock(objectOf(&b))
		out.made, out.version, out.uid = time.Unix(made, 0), version, types.UID(b.CIDR.String())
		return out
	}
	cidr := netip.MustParsePrefix
	old := object(10, "9", model.Block{CIDR: cidr("10.64.0.0/26"), Node: "a"})
	list := []*thin{
		old,
		object(10, "11", model.Block{CIDR: cidr("10.64.0.0/27"), Node: "b"}),
		object(12, "15", model.Block{CIDR: cidr("10.64.0.0/24"), Node: "b"}),
		object(12, "12", model.Block{CIDR: cidr("10.64.0.5/32"), Node: "b", Lender: "a"}),
		object(12, "13", model.Block{CIDR: cidr("10.64.0.6/32"), Node: "a", For: "b"}),
		object(12, "14", model.Block{CIDR: cidr("10.64.0.7/32"), Node: "b", Lender: "c"}),
		object(12, "16", model.Block{CIDR: cidr("10.64.0.64/26"), Node: "c"}),
	}
	rapid.Check(t, func(rt *rapid.T) {
		c := newCatalog("a", slog.New(slog.DiscardHandler))
		defer c.close()
		want := func(when string, keys ...string) {
			if got := slices.Sorted(maps.Keys(c.objects[model.KindBlock])); !slices.Equal(got, keys) {
				rt.Fatalf("%s: %v count, want %v", when, got, keys)
			}
		}
		locked(c, func() {
			all := rapid.Permutation(list).Draw(rt, "order")
			if rapid.Bool().Draw(rt, "one by one") { // then in the order of their making
				for _, i := range []int{0, 1, 3, 4, 5, 2, 6} {
					c.takeBlock(list[i], false)
				}
			} else {
				c.replaceBlocks(all)
			}
			want("at first", "10.64.0.0-26", "10.64.0.5-32", "10.64.0.6-32", "10.64.0.64-26")
			// What does not count is in nobody's way.
			if err := c.against(&model.Block{CIDR: cidr("10.64.0.128/26"), Pool: "p", Node: "d"}, ""); err != nil {
				rt.Fatal(err)
			}
			if err := c.against(&model.Block{CIDR: cidr("10.64.0.96/27"), Pool: "p", Node: "d"}, ""); !errors.Is(err, store.ErrConflict) {
				rt.Fatalf("a part of another's: %v", err)
			}
			// What people write on it makes it no younger.
			now := *old
			now.version = "20"
			now.made = old.made.Add(-time.Nanosecond) // but versions count within the second of its making
			c.takeBlock(&now, false)
			want("then", "10.64.0.0-26", "10.64.0.5-32", "10.64.0.6-32", "10.64.0.64-26")
			c.takeBlock(&now, true)
			want("without it", "10.64.0.0-27", "10.64.0.64-26")
		})
	})
}
