package flow

import (
	"encoding/binary"
	"fmt"
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

const nested = unix.NLA_F_NESTED

// direction is one of an entry, as the kernel writes it. Of ICMP, dport is type<<8|code.
func direction(protocol uint8, src, dst netip.Addr, sport, dport uint16) []byte {
	var ip, proto []byte
	first := uint16(ctaIPv4Src)
	if src.Is6() {
		first = ctaIPv6Src
	}
	ip = attribute(ip, first, src.AsSlice())
	ip = attribute(ip, first+1, dst.AsSlice())
	proto = attribute(proto, ctaProtoNum, []byte{protocol})
	switch protocol {
	case unix.IPPROTO_ICMP:
		proto = attribute(proto, ctaICMPType, []byte{byte(dport >> 8)})
		proto = attribute(proto, ctaICMPCode, []byte{byte(dport)})
	case unix.IPPROTO_ICMPV6:
		proto = attribute(proto, ctaICMPv6Type, []byte{byte(dport >> 8)})
		proto = attribute(proto, ctaICMPv6Code, []byte{byte(dport)})
	default:
		proto = attribute(proto, ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, sport))
		proto = attribute(proto, ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, dport))
	}
	return attribute(attribute(nil, ctaTupleIP|nested, ip), ctaTupleProto|nested, proto)
}

// entryMessage is a message about an entry.
func entryMessage(orig, reply []byte) []byte {
	b := []byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}
	if orig != nil {
		b = attribute(b, ctaTupleOrig|nested, orig)
	}
	if reply != nil {
		b = attribute(b, ctaTupleReply|nested, reply)
	}
	return attribute(b, ctaID, []byte{1, 2, 3, 4})
}

// TestEntriesAreReadAsPolicySeesThem: from who began it, after destination NAT, before source NAT.
func TestEntriesAreReadAsPolicySeesThem(t *testing.T) {
	ip := netip.MustParseAddr
	pod, service, backend, node := ip("10.1.0.1"), ip("10.96.0.1"), ip("10.1.0.2"), ip("192.0.2.1")
	pod6, backend6 := ip("fd00::1"), ip("fd00::2")
	for _, c := range []struct {
		name string
		data []byte
		want string // empty: no flow
	}{
		{"plain", entryMessage(direction(6, pod, backend, 999, 80), direction(6, backend, pod, 80, 999)), "{6 10.1.0.1:999 10.1.0.2:80}"},
		{"NAT of both", entryMessage(direction(17, pod, service, 999, 53), direction(17, backend, node, 5353, 4444)), "{17 10.1.0.1:999 10.1.0.2:5353}"},
		{"ICMP", entryMessage(direction(1, pod, backend, 0, 8<<8), direction(1, backend, pod, 0, 0)), "{1 10.1.0.1:0 10.1.0.2:2048}"},
		{"ICMPv6", entryMessage(direction(58, pod6, backend6, 0, 128<<8), direction(58, backend6, pod6, 0, 129<<8)), "{58 [fd00::1]:0 [fd00::2]:32768}"},
		{"GRE has keys", entryMessage(direction(47, pod, backend, 7, 8), direction(47, backend, pod, 8, 7)), "{47 10.1.0.1:0 10.1.0.2:0}"},
		{"no answers' direction", entryMessage(direction(6, pod, backend, 999, 80), nil), ""},
		{"no direction", entryMessage(nil, direction(6, pod, backend, 999, 80)), ""},
		{"half an address", entryMessage(direction(6, pod, backend, 999, 80), direction(6, backend, pod, 80, 999)[:10]), ""},
		{"nothing", nil, ""},
	} {
		var e entry
		got := ""
		if parseEntry(c.data, &e) {
			got = fmt.Sprint(e.flow())
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// fill puts n UDP entries into the namespace's table, from src's addresses on to dst.
func (s space) fill(n int, src, dst netip.Addr) {
	s.t.Helper()
	const (
		ctNew      = unix.NFNL_SUBSYS_CTNETLINK << 8 // IPCTNL_MSG_CT_NEW
		ctaTimeout = 7
	)
	c, err := dial(s.t.Context(), s.fd, unix.NETLINK_NETFILTER)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.close()
	err = c.ask(ctNew, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, n, func(i int, b []byte) []byte {
		if i%60000 == 0 {
			src = src.Next()
		}
		port := uint16(1024 + i%60000)
		b = append(b, unix.AF_INET, unix.NFNETLINK_V0, 0, 0)
		b = attribute(b, ctaTupleOrig|nested, direction(unix.IPPROTO_UDP, src, dst, port, 53))
		b = attribute(b, ctaTupleReply|nested, direction(unix.IPPROTO_UDP, dst, src, 53, port))
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
