package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var dawn = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestReservedAddressesAreNeverGivenOut(t *testing.T) {
	for block, want := range map[string]string{
		"10.244.1.0/24":     "10.244.1.2-10.244.1.254",
		"10.244.1.0/30":     "10.244.1.2-10.244.1.2",
		"10.244.1.64/26":    "10.244.1.66-10.244.1.126",
		"255.255.255.0/24":  "255.255.255.2-255.255.255.254",
		"fd00::/126":        "fd00::2-fd00::3",
		"10.244.1.7/32":     "10.244.1.7-10.244.1.7", // lent
		"fd00:244:0:1::/64": "fd00:244:0:1::2-fd00:244:0:1:ffff:ffff:ffff:ffff",
		"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff2-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		first, end, ok := Range(netip.MustParsePrefix(block))
		if got := fmt.Sprintf("%s-%s", first, end); !ok || got != want {
			t.Errorf("%s: %s, %v: want %s", block, got, ok, want)
		}
	}
	for _, block := range []string{"10.0.0.0/31", "255.255.255.254/31", "fd00::/127", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"} {
		p := netip.MustParsePrefix(block)
		if _, _, ok := Range(p); ok {
			t.Errorf("%s has addresses to give", block)
		}
		if _, err := NewState(p).Pick(dawn, time.Second); !errors.Is(err, ErrBlockFull) {
			t.Errorf("%s: error %v", block, err)
		}
	}
	if got := Gateway(netip.MustParsePrefix("10.244.1.0/24")).String(); got != "10.244.1.1" {
		t.Errorf("gateway %s", got)
	}
}

func TestAddressComesRoundAsLateAsCanBe(t *testing.T) {
	s := NewState(netip.MustParsePrefix("10.0.0.0/29")) // .2 to .6
	var order []string
	now := dawn
	for range 12 {
		now = now.Add(time.Hour)
		a, err := s.Pick(now, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		s.Take(a, "x")
		order = append(order, a.String()[len("10.0.0."):])
		s.Release(a, "x", now)
	}
	if got := fmt.Sprint(order); got != "[2 3 4 5 6 2 3 4 5 6 2 3]" {
		t.Errorf("order %s", got)
	}
}

func TestOnlyTheOwnerReleases(t *testing.T) {
	s := NewState(netip.MustParsePrefix("10.0.0.0/29"))
	a := netip.MustParseAddr("10.0.0.2")
	s.Take(a, "x")
	if s.Release(a, "y", dawn) || s.Used[a] != "x" {
		t.Error("another one released it")
	}
}

// Random histories: an address is free, in use by one, or cooling; none is given out before its
// cool-down is over, however the clock jumps; a full block says so, and one that is not gives.
func TestHistoriesGiveNoAddressTwiceAndLoseNone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		block := netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.0/29", "10.0.0.0/28", "fd00::/125"}).Draw(t, "block"))
		first, end, _ := Range(block)
		size := int(numberOf(end).sub(numberOf(first)).lo) + 1
		const coolDown = 10 * time.Second
		s := NewState(block)
		owners := map[string]netip.Addr{}
		rested := map[netip.Addr]time.Duration{} // since its release, by a clock that does not jump
		now := dawn
		for i := range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"take", "take", "release", "wait", "jump", "settle"}).Draw(t, "step") {
			case "take":
				before := s.Clone()
				a, err := s.Pick(now, coolDown)
				if fmt.Sprint(before) != fmt.Sprint(s) {
					t.Fatal("Pick changed the state")
				}
				var full *BlockFullError
				if errors.As(err, &full) {
					if full.Used+full.Cooling != size {
						t.Fatalf("%v: of %d", err, size)
					}
					continue
				}
				if err != nil || !block.Contains(a) || a.Less(first) || end.Less(a) {
					t.Fatalf("picked %s, error %v", a, err)
				}
				owner := fmt.Sprint("w", i)
				for other, b := range owners {
					if a == b {
						t.Fatalf("%s belongs to %s", a, other)
					}
				}
				s.Take(a, owner)
				owners[owner] = a
				delete(rested, a)
			case "release":
				for owner, a := range owners {
					if !s.Release(a, owner, now) {
						t.Fatalf("%s could not release %s", owner, a)
					}
					delete(owners, owner)
					rested[a] = 0
					break
				}
			case "wait":
				d := time.Duration(rapid.IntRange(1, 12).Draw(t, "seconds")) * time.Second
				now = now.Add(d)
				for a := range rested {
					rested[a] += d
				}
			case "jump":
				now = now.Add(-time.Duration(rapid.IntRange(1, 100000).Draw(t, "back")) * time.Second)
			case "settle":
				freed, _ := s.Settle(now, coolDown)
				for _, a := range freed {
					if rested[a] < coolDown {
						t.Fatalf("%s is free after %s", a, rested[a])
					}
				}
			}
			for a := range s.Cooling {
				if _, used := s.Used[a]; used {
					t.Fatalf("%s is in use and cooling", a)
				}
			}
			if len(s.Used) != len(owners) {
				t.Fatalf("%d in use: want %d", len(s.Used), len(owners))
			}
		}
		// Nothing is lost: after a rest, with the clock where it is, all can be had.
		s.Settle(now, coolDown)
		now = now.Add(coolDown)
		for range size - len(owners) {
			a, err := s.Pick(now, coolDown)
			if err != nil {
				t.Fatal(err)
			}
			s.Take(a, "end")
		}
		if _, err := s.Pick(now, coolDown); !errors.Is(err, ErrBlockFull) {
			t.Fatalf("error %v of a full block", err)
		}
	})
}
