package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(churnEnv); path != "" {
		churn(path)
		return
	}
	goleak.VerifyTestMain(m)
}

var (
	block4 = netip.MustParsePrefix("10.244.1.0/24")
	block6 = netip.MustParsePrefix("fd00:244:0:1::/64")
	dawn   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func workload(id string) model.Workload {
	return model.Workload{ContainerID: id, IfName: "eth0", Attachment: model.AttachBridge, HostLink: model.HostLinkName(id, "eth0"), MTU: 1450}
}

func open(t testing.TB, path string, opts Options) *Ledger {
	t.Helper()
	l, err := Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func reserve(t testing.TB, l *Ledger, id string, now time.Time, blocks ...netip.Prefix) model.Workload {
	t.Helper()
	w, existed, err := l.Reserve(t.Context(), workload(id), blocks, now)
	if err != nil || existed {
		t.Fatalf("reserve %s: existed %v, error %v", id, existed, err)
	}
	return w
}

func TestReservationSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := open(t, path, Options{})
	w := reserve(t, l, "a", dawn, block4, block6)
	if got := fmt.Sprint(w.Addresses); got != "[10.244.1.2 fd00:244:0:1::2]" {
		t.Fatalf("addresses %s", got)
	}
	reserve(t, l, "b", dawn, block4)
	if _, ok, err := l.Release(t.Context(), "b/eth0", dawn); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := l.SetMeta(t.Context(), "node-id", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Reserve(t.Context(), workload("z"), []netip.Prefix{block4}, dawn); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}

	l = open(t, path, Options{})
	if got := l.List(); len(got) != 1 || got[0].Key() != "a/eth0" || fmt.Sprint(got[0].Addresses) != fmt.Sprint(w.Addresses) {
		t.Fatalf("list after reopening: %v", got)
	}
	if string(l.Meta("node-id")) != "x" {
		t.Fatalf("meta after reopening: %q", l.Meta("node-id"))
	}
	if got := l.ByContainer("a"); len(got) != 1 {
		t.Fatalf("by container: %v", got)
	}
	if got, existed, err := l.Reserve(t.Context(), workload("a"), []netip.Prefix{block4}, dawn); err != nil || !existed || got.Addresses[0] != w.Addresses[0] {
		t.Fatalf("the same key again: %v %v %v", got, existed, err)
	}
	// The round goes on after the restart: .3 rests, and .2 is in use.
	if got := reserve(t, l, "c", dawn.Add(time.Hour), block4); got.Addresses[0].String() != "10.244.1.4" {
		t.Fatalf("after reopening the round begins anew: %v", got.Addresses)
	}
}

func TestReleasedAddressRestsAlsoOverReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	tiny := netip.MustParsePrefix("10.0.0.0/30") // one address
	l := open(t, path, Options{CoolDown: time.Minute})
	reserve(t, l, "a", dawn, tiny)
	if _, _, err := l.Release(t.Context(), "a/eth0", dawn); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, _, err := l.Reserve(t.Context(), workload("b"), []netip.Prefix{tiny}, dawn.Add(59*time.Second))
		var full *ipam.BlockFullError
		if !errors.As(err, &full) || full.Cooling != 1 || !full.Until.Equal(dawn.Add(time.Minute)) {
			t.Fatalf("error %v", err)
		}
		if want := "workload b: block 10.0.0.0/30: no free address: 0 in use, 1 cooling down, the first until 2026-01-01T00:01:00Z"; err.Error() != want {
			t.Fatalf("error %q", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, path, Options{CoolDown: time.Minute})
	}
	reserve(t, l, "b", dawn.Add(time.Minute), tiny)
}

func TestClockSetBackDoesNotStarveABlock(t *testing.T) {
	tiny := netip.MustParsePrefix("10.0.0.0/30")
	l := open(t, filepath.Join(t.TempDir(), "ledger.db"), Options{CoolDown: time.Minute})
	reserve(t, l, "a", dawn, tiny)
	if _, _, err := l.Release(t.Context(), "a/eth0", dawn); err != nil {
		t.Fatal(err)
	}
	yesterday := dawn.Add(-24 * time.Hour)
	if _, _, err := l.Reserve(t.Context(), workload("b"), []netip.Prefix{tiny}, yesterday); !errors.Is(err, ipam.ErrBlockFull) {
		t.Fatalf("error %v", err)
	}
	reserve(t, l, "b", yesterday.Add(time.Minute), tiny)
}

func TestBothFamiliesOrNothing(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "ledger.db"), Options{})
	tiny, more := netip.MustParsePrefix("10.0.0.0/30"), netip.MustParsePrefix("10.0.0.4/30")
	reserve(t, l, "a", dawn, tiny, block6)
	if _, _, err := l.Reserve(t.Context(), workload("b"), []netip.Prefix{block6, tiny}, dawn); !errors.Is(err, ipam.ErrBlockFull) {
		t.Fatalf("error %v", err)
	}
	if n := len(l.List()); n != 1 {
		t.Fatalf("%d workloads after a refused one", n)
	}
	w := reserve(t, l, "b", dawn, tiny, block6, more)
	if got := fmt.Sprint(w.Addresses); got != "[10.0.0.6 fd00:244:0:1::3]" {
		t.Fatalf("the second block of a family was not asked: %s", got)
	}
}

func TestAddressesOfOthersArePassedOverWhileTheyHaveThem(t *testing.T) {
	others := map[string]bool{"10.244.1.2": true, "10.244.1.3": true, "fd00:244:0:1::2": true}
	l := open(t, filepath.Join(t.TempDir(), "ledger.db"), Options{Taken: func(a netip.Addr) bool { return others[a.String()] }})
	if got := fmt.Sprint(reserve(t, l, "a", dawn, block4, block6).Addresses); got != "[10.244.1.4 fd00:244:0:1::3]" {
		t.Fatalf("addresses %s", got)
	}
	small := netip.MustParsePrefix("10.244.2.0/29") // .2 to .6
	for i := range 5 {
		others[fmt.Sprintf("10.244.2.%d", i+2)] = true
	}
	var full *ipam.BlockFullError
	if _, _, err := l.Reserve(t.Context(), workload("b"), []netip.Prefix{small}, dawn); !errors.As(err, &full) {
		t.Fatalf("a block that others fill: %v", err)
	}
	delete(others, "10.244.2.5")
	if got := fmt.Sprint(reserve(t, l, "b", dawn, small).Addresses); got != "[10.244.2.5]" {
		t.Fatalf("addresses %s, want the one that was let go", got)
	}
}

func TestUpdateKeepsAddresses(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "ledger.db"), Options{})
	w := reserve(t, l, "a", dawn, block4)
	w.MAC = "0a:00:00:00:00:01"
	if err := l.Update(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if got, _ := l.Get("a/eth0"); got.MAC != w.MAC {
		t.Fatalf("got %+v", got)
	}
	w.Addresses = []netip.Addr{netip.MustParseAddr("10.244.1.9")}
	if err := l.Update(t.Context(), w); err == nil {
		t.Fatal("an address was changed")
	}
	if err := l.Update(t.Context(), workload("z")); !errors.Is(err, ErrUnknown) {
		t.Fatalf("error %v", err)
	}
}

func TestWritersThatComeTogetherShareACommit(t *testing.T) {
	var mu sync.Mutex
	commits := 0
	l := open(t, filepath.Join(t.TempDir(), "ledger.db"), Options{noSync: true, hook: func(point string) {
		if point == "workloads committed" {
			mu.Lock()
			commits++
			mu.Unlock()
			time.Sleep(5 * time.Millisecond) // a slow disk
		}
	}})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() { reserve(t, l, fmt.Sprintf("c%d", i), dawn, block4) })
	}
	wg.Wait()
	seen := map[netip.Addr]bool{}
	for _, w := range l.List() {
		if seen[w.Addresses[0]] {
			t.Fatalf("%v twice", w.Addresses)
		}
		seen[w.Addresses[0]] = true
	}
	if len(seen) != 100 || commits >= 50 {
		t.Fatalf("%d addresses in %d commits", len(seen), commits)
	}
}

func TestFailedWriteChangesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := open(t, path, Options{maxSize: 128 << 10})
	reserve(t, l, "a", dawn, block4)
	// One commit for both: the value that does not fit takes the reservation with it.
	err := l.commit(t.Context(), func(b *batch) error {
		picked, err := l.addresses.pick(b, Ask{Blocks: []netip.Prefix{block4}}, dawn)
		if err != nil {
			return err
		}
		l.addresses.take(b, picked[0], "b/eth0")
		b.putWorkload(workload("b"))
		b.put(workloadPrefix+"large/eth0", make([]byte, 1<<20))
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), path+".run") {
		t.Fatalf("error %v", err)
	}
	lend := netip.MustParseAddr("10.244.1.9")
	if err := l.Lend(t.Context(), block4, lend, strings.Repeat("n", 1<<20), nil, dawn); err == nil || strings.Contains(err.Error(), path+".run") {
		t.Fatalf("error %v", err)
	}
	if len(l.Lent()) != 0 {
		t.Fatal("the loan is on record")
	}
	if _, _, err := l.Take(t.Context(), workload("d"), Ask{Blocks: []netip.Prefix{block4}, Fixed: []netip.Addr{lend}}, dawn); err != nil {
		t.Fatalf("the failed loan keeps its address: %v", err)
	}
	if err := l.SetMeta(t.Context(), "snapshot", make([]byte, 1<<20)); err == nil || l.Meta("snapshot") != nil {
		t.Fatalf("error %v", err)
	}
	if _, ok := l.Get("b/eth0"); ok {
		t.Fatal("the reservation is on record")
	}
	if w := reserve(t, l, "c", dawn, block4); w.Addresses[0].String() != "10.244.1.10" {
		t.Fatalf("the failed reservation keeps its address: got %v", w.Addresses)
	}
}

func TestCallerWhoLeftBeforeItsTurnGetsNothing(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "ledger.db"), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := l.Reserve(ctx, workload("a"), []netip.Prefix{block4}, dawn); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if len(l.List()) != 0 {
		t.Fatal("it was reserved all the same")
	}
}

func TestSecondOpenerIsRefusedByName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	open(t, path, Options{})
	_, err := Open(path, Options{LockWait: 20 * time.Millisecond})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Fatalf("error %v", err)
	}
	other := filepath.Join(t.TempDir(), "ledger.db")
	_, err = Open(other, Options{RunPath: path + ".run", LockWait: 20 * time.Millisecond})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path+".run") {
		t.Fatalf("error %v", err)
	}
}

// damage is what may have become of a file.
func damage() map[string]func([]byte) []byte {
	page := os.Getpagesize()
	return map[string]func([]byte) []byte{
		"text":      func([]byte) []byte { return []byte(strings.Repeat("not a ledger\n", 1000)) },
		"nothing":   func([]byte) []byte { return nil },
		"empty":     func([]byte) []byte { return make([]byte, 32768) },
		"metas":     func(b []byte) []byte { clear(b[:2*page]); return b },
		"pages":     func(b []byte) []byte { clear(b[2*page:]); return b },
		"garbage":   func(b []byte) []byte { fill(b[2*page:]); return b },
		"truncated": func(b []byte) []byte { return b[:3*page] },
		"record": func(b []byte) []byte {
			return []byte(strings.NewReplacer(`{"containerID":"c3"`, `{"containerID":"x3"`, "l/10.244.1.3", "x/10.244.1.3").Replace(string(b)))
		},
	}
}

func TestDamagedStateFileIsNamedWithTheWayOut(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good.db")
	l := open(t, good, Options{})
	for a := block4.Addr().Next().Next(); a.As4()[3] < 42; a = a.Next() {
		if err := l.Lend(t.Context(), block4, a, "another", nil, dawn); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data := contents(t, good)
	for name, f := range damage() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			if err := os.WriteFile(path, f(append([]byte(nil), data...)), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path, Options{})
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "move the file away") {
				t.Fatalf("error %v", err)
			}
		})
	}
}

func fill(b []byte) {
	for i := range b {
		b[i] = byte(i*7 + i/256*13)
	}
}

func BenchmarkReserveAndRelease(b *testing.B) {
	for _, writers := range []int{1, 10} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			dir := b.TempDir()
			if d := os.Getenv("HEDDLE_BENCH_DIR"); d != "" {
				dir = d
			}
			l := open(b, filepath.Join(dir, fmt.Sprintf("bench-%d-%d.db", os.Getpid(), time.Now().UnixNano())), Options{CoolDown: time.Nanosecond})
			b.Cleanup(func() { _, _ = os.Remove(l.Path()), os.Remove(l.Path()+".run") })
			var wg sync.WaitGroup
			b.ResetTimer()
			for n := range writers {
				wg.Go(func() {
					for i := range b.N / writers {
						id := fmt.Sprintf("c%d-%d", n, i)
						reserve(b, l, id, time.Now(), block4)
						if _, _, err := l.Release(context.Background(), id+"/eth0", time.Now()); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
