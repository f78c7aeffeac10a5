package filter

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/policy"
)

// large is a table with n elements: remote addresses, rows of a hundred local workloads, and ports.
func large(n int) *policy.Table {
	t := &policy.Table{
		Identities: map[netip.Addr]policy.ID{}, Locals: map[policy.Local]policy.Row{}, Nets: map[policy.AddrRange]policy.ID{},
		Rows: map[policy.RowKey]policy.Row{}, L4: map[policy.L4Key]policy.Decision{}, Base: map[policy.Row]policy.Decision{1: deny},
		Sources: sources(),
	}
	ip := func(first byte, i int) netip.Addr {
		return netip.AddrFrom4([4]byte{first, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	for i := range n / 2 {
		t.Identities[ip(11, i)] = policy.ID(i%1000 + 1)
	}
	for i := range 100 {
		l := policy.Local{Hook: policy.WorkloadIngress, Addr: ip(10, i+2)}
		t.Locals[l] = 1
		for id := range n / 4 / 100 {
			t.Rows[policy.RowKey{Local: l, ID: policy.ID(id + 1)}] = policy.Row(id + 2)
		}
	}
	for i := range n / 4 {
		r := policy.Row(i/10 + 2)
		t.L4[policy.L4Key{Row: r, Protocol: 6, Src: policy.AllPorts, Dst: port(uint16(i%10 + 1))}] = allow
		t.Base[r] = deny
	}
	return t
}

// cpu is the time that the process has worked: other work on the machine does not count.
func cpu(t testing.TB) time.Duration {
	var r unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

const many = 100_000

func TestHundredThousandEntries(t *testing.T) {
	s := newSpace(t)
	d := s.driver(true)
	table := large(many)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start, worked := time.Now(), cpu(t)
	n := apply(t, d, table)
	took, work := time.Since(start), cpu(t)-worked
	runtime.ReadMemStats(&after)
	start, worked = time.Now(), cpu(t)
	if again := apply(t, d, table); n < many || again != 0 {
		t.Errorf("loaded %d objects, then changed %d more", n, again)
	}
	verify, verifyWork := time.Since(start), cpu(t)-worked
	var each []time.Duration
	for i := range 200 {
		delta := &policy.Delta{Identities: policy.Change[netip.Addr, policy.ID]{Put: map[netip.Addr]policy.ID{netip.AddrFrom4([4]byte{12, 0, 0, byte(i)}): 7}}}
		start := time.Now()
		must(t, d.Update(context.Background(), delta))
		each = append(each, time.Since(start))
	}
	slices.Sort(each)
	t.Logf("%d objects loaded in %v (CPU %v), %d MB allocated; verified in %v (CPU %v); one element: median %v, 99th %v",
		n, took, work, (after.TotalAlloc-before.TotalAlloc)>>20, verify, verifyWork, each[100], each[198])
	if took > 10*time.Second || each[100] > 50*time.Millisecond {
		t.Error("far slower than it should be")
	}
}

// BenchmarkLoad makes the tables for a hundred thousand entries.
func BenchmarkLoad(b *testing.B) {
	table := large(many)
	d := newSpace(b).driver(true)
	for b.Loop() {
		apply(b, d, table)
		b.StopTimer()
		must(b, d.Sweep(context.Background()))
		b.StartTimer()
	}
}

// BenchmarkVerify reads a hundred thousand entries and finds nothing to do.
func BenchmarkVerify(b *testing.B) {
	table := large(many)
	d := newSpace(b).driver(true)
	apply(b, d, table)
	for b.Loop() {
		apply(b, d, table)
	}
}

// BenchmarkUpdate changes one entry among a hundred thousand.
func BenchmarkUpdate(b *testing.B) {
	d := newSpace(b).driver(true)
	apply(b, d, large(many))
	i := 0
	for b.Loop() {
		i++
		put := map[netip.Addr]policy.ID{netip.AddrFrom4([4]byte{12, 0, 0, 1}): policy.ID(i%1000 + 1)}
		must(b, d.Update(context.Background(), &policy.Delta{Identities: policy.Change[netip.Addr, policy.ID]{Put: put}}))
	}
}
