package flow

import (
	"net/netip"
	"os"
	"testing"

	"github.com/heddle-net/heddle/internal/kernel"
)

// BenchmarkCut is of a table of 100,000 entries of which none is denied.
func BenchmarkCut(b *testing.B) {
	s := newSpace(b)
	s.fill(100_000, netip.MustParseAddr("10.1.0.0"), netip.MustParseAddr("10.2.0.1"))
	d := s.driver()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Cut(b.Context(), func(kernel.Flow) bool { return false }, func(netip.Addr) *os.File { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
