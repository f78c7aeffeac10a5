package bgp

import (
	"log/slog"
	"net/netip"
	"testing"
)

// TestReasonOfAHeldNeighbourIsNotThatItWasTakenOut: gobgp tells late, and of this package's own doing.
func TestReasonOfAHeldNeighbourIsNotThatItWasTakenOut(t *testing.T) {
	l := newListener(slog.New(slog.DiscardHandler))
	gobgp := slog.New(&handler{listener: l})
	n := netip.MustParseAddr("10.99.0.2")
	l.note(n, "liveness detection (BFD): no packet for 300ms")
	gobgp.Info("sent notification", "Key", n.String(), "Code", 6, "Subcode", 3)
	if got := l.noted(n).text; got != "liveness detection (BFD): no packet for 300ms" {
		t.Errorf("the cause became %q", got)
	}
	gobgp.Info("sent notification", "Key", n.String(), "Code", 6, "Subcode", 2)
	if got := l.noted(n).text; got == "liveness detection (BFD): no packet for 300ms" {
		t.Errorf("another notification is not noted: %q", got)
	}
}
