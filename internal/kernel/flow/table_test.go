package flow

import (
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

// fill puts n UDP entries into the namespace's table, from src's addresses on to dst.
func (s space) fill(n int, src, dst netip.Addr) {
	s.t.Helper()
	const (
		ctNew      = unix.NFNL_SUBSYS_CTNETLINK << 8 // IPCTNL_MSG_CT_NEW
		ctaTimeout = 7
		nested     = unix.NLA_F_NESTED
	)
	c, err := dial(s.t.Context(), s.fd, unix.NETLINK_NETFILTER)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.close()
	direction := func(src, dst netip.Addr, sport, dport uint16) []byte {
		var ip, proto []byte
		ip = attribute(ip, ctaIPv4Src, src.AsSlice())
		ip = attribute(ip, ctaIPv4Dst, dst.AsSlice())
		proto = attribute(proto, ctaProtoNum, []byte{unix.IPPROTO_UDP})
		proto = attribute(proto, ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, sport))
		proto = attribute(proto, ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, dport))
		return attribute(attribute(nil, ctaTupleIP|nested, ip), ctaTupleProto|nested, proto)
	}
	err = c.ask(ctNew, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, n, func(i int, b []byte) []byte {
		if i%60000 == 0 {
			src = src.Next()
		}
		port := uint16(1024 + i%60000)
		b = append(b, unix.AF_INET, unix.NFNETLINK_V0, 0, 0)
		b = attribute(b, ctaTupleOrig|nested, direction(src, dst, port, 53))
		b = attribute(b, ctaTupleReply|nested, direction(dst, src, 53, port))
		return attribute(b, ctaTimeout, binary.BigEndian.AppendUint32(nil, 600))
	}, func(i int, _ []byte, err error) {
		if err != nil {
			s.t.Fatalf("entry %d: %v", i, err)
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestCutReadsALargeTableCheaply bounds the memory and, generously, the time at 100,000 entries.
func TestCutReadsALargeTableCheaply(t *testing.T) {
	const entries = 100_000
	s := newSpace(t)
	src, dst := netip.MustParseAddr("10.1.0.0"), netip.MustParseAddr("10.2.0.1")
	s.fill(entries, src, dst)
	d := s.driver()
	allocated := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	cut := func(what string, want int, denied func(kernel.Flow) bool, bytes uint64) {
		t.Helper()
		seen := 0
		start := time.Now()
		got := allocated(func() {
			n, err := d.Cut(t.Context(), func(f kernel.Flow) bool {
				seen++
				return denied(f)
			}, func(netip.Addr) *os.File { return nil })
			if n != want || err != nil {
				t.Errorf("%s: %d ended, %v, want %d", what, n, err, want)
			}
		})
		took := time.Since(start)
		t.Logf("%s: %d flows judged, %d ended, %v, %d KiB", what, seen, want, took.Round(time.Millisecond), got>>10)
		if got > bytes || took > 10*time.Second {
			t.Errorf("%s took %d KiB and %v", what, got>>10, took)
		}
	}
	cut("none", 0, func(kernel.Flow) bool { return false }, 1<<20)
	few := 0
	cut("few", 100, func(kernel.Flow) bool { few++; return few%1000 == 0 }, 1<<20)
	cut("all the rest", entries-100, func(kernel.Flow) bool { return true }, 64<<20)
	cut("nothing left", 0, func(kernel.Flow) bool { return true }, 1<<20)
}

// TestCutMayBeCalledByMany: each flow is ended once, whoever asks.
func TestCutMayBeCalledByMany(t *testing.T) {
	const entries = 5000
	s := newSpace(t)
	s.fill(entries, netip.MustParseAddr("10.1.0.0"), netip.MustParseAddr("10.2.0.1"))
	d, other := s.driver(), s.driver()
	var ended atomic.Int64
	var callers sync.WaitGroup
	for i := range 6 {
		callers.Go(func() {
			who := d
			if i%2 == 0 {
				who = other
			}
			n, err := who.Cut(t.Context(), func(kernel.Flow) bool { return true }, func(netip.Addr) *os.File { return nil })
			if err != nil {
				t.Error(err)
			}
			ended.Add(int64(n))
		})
	}
	callers.Wait()
	if ended.Load() != entries {
		t.Errorf("%d ended, want %d", ended.Load(), entries)
	}
}
