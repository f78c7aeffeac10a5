package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-net/heddle/internal/ipam"
)

// wish is one call of a history.
type wish struct {
	id      string
	release bool
}

// history plays random calls on a ledger whose every commit is also cut off by a power failure: the
// file as it might be then is opened and compared with what callers had been told.
type history struct {
	t     *rapid.T
	dir   string
	page  int
	block netip.Prefix
	now   time.Time

	before   []byte                // the file before the commit under way
	acked    map[string]netip.Addr // what callers were told is theirs
	inFlight map[string]wish       // what callers have asked for and heard nothing of
	released map[netip.Addr]time.Time
	crashes  int
}

func TestPowerFailureAtAnyWriteLosesNothingAndDoublesNothing(t *testing.T) {
	dir := t.TempDir()
	crashes := 0
	rapid.Check(t, func(t *rapid.T) {
		h := &history{
			t: t, dir: dir, page: os.Getpagesize(), now: dawn,
			block:    netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.0/29", "fd00::/125"}).Draw(t, "block")),
			acked:    map[string]netip.Addr{},
			inFlight: map[string]wish{},
			released: map[netip.Addr]time.Time{},
		}
		h.play()
		crashes += h.crashes
	})
	if crashes < 1000 {
		t.Errorf("only %d power failures", crashes)
	}
	t.Logf("%d power failures", crashes)
}

const coolDown = 10 * time.Second

func (h *history) play() {
	path := filepath.Join(h.dir, "ledger.db")
	_ = os.Remove(path)
	opts := Options{CoolDown: coolDown, noSync: true, hook: func(point string) {
		switch point {
		case "applied":
			h.before = h.read(path)
		case "committed":
			h.cutOff(h.before, h.read(path))
		}
	}}
	l, err := Open(path, opts)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for i := range rapid.IntRange(1, 8).Draw(h.t, "steps") {
		h.now = h.now.Add(time.Duration(rapid.IntRange(0, 12).Draw(h.t, "seconds")) * time.Second)
		var wishes []wish
		for j := range rapid.IntRange(1, 3).Draw(h.t, "together") {
			wishes = append(wishes, wish{id: fmt.Sprintf("c%d-%d", i, j)})
			held := slices.Sorted(maps.Keys(h.acked))
			if len(held) > 0 && rapid.Bool().Draw(h.t, "release") {
				wishes[j] = wish{id: held[min(j, len(held)-1)], release: true}
			}
		}
		h.together(l, wishes)
		if rapid.IntRange(0, 3).Draw(h.t, "reopen") == 0 {
			if err := l.Close(); err != nil {
				h.t.Fatal(err)
			}
			if l, err = Open(path, opts); err != nil {
				h.t.Fatal(err)
			}
		}
		got := map[string]netip.Addr{}
		for _, w := range l.List() {
			got[w.ContainerID] = w.Addresses[0]
		}
		if !maps.Equal(got, h.acked) {
			h.t.Fatalf("on record %v: callers were told %v", got, h.acked)
		}
	}
}

// together makes the calls at once and notes their answers when all are over.
func (h *history) together(l *Ledger, wishes []wish) {
	for _, w := range wishes {
		h.inFlight[w.id] = w
	}
	type answer struct {
		addr netip.Addr
		ok   bool
		err  error
	}
	answers := make([]answer, len(wishes))
	var wg sync.WaitGroup
	for i, w := range wishes {
		wg.Go(func() {
			a := &answers[i]
			if w.release {
				_, a.ok, a.err = l.Release(context.Background(), w.id+"/eth0", h.now)
				return
			}
			got, _, err := l.Reserve(context.Background(), workload(w.id), []netip.Prefix{h.block}, h.now)
			if a.err = err; err == nil {
				a.addr, a.ok = got.Addresses[0], true
			}
		})
	}
	wg.Wait()
	clear(h.inFlight)
	for i, w := range wishes {
		switch a := answers[i]; {
		case a.err != nil && !errors.Is(a.err, ipam.ErrBlockFull):
			h.t.Fatal(a.err)
		case w.release:
			if a.ok {
				h.released[h.acked[w.id]] = h.now
			}
			delete(h.acked, w.id)
		case a.ok:
			h.acked[w.id] = a.addr
		}
	}
}

func (h *history) read(path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	return b
}

// cutOff makes the files that a power failure may leave of one commit. bbolt writes data pages, syncs,
// writes a meta page, syncs: so any of the data pages may be missing as long as the meta page is the
// old one, and the meta page may be torn when they are all there.
func (h *history) cutOff(before, after []byte) {
	before = append(bytes.Clone(before), make([]byte, max(0, len(after)-len(before)))...)
	const metas = 2
	some, all := bytes.Clone(before), bytes.Clone(before)
	for p := metas; p*h.page < len(after); p++ {
		from, to := p*h.page, (p+1)*h.page
		copy(all[from:to], after[from:to])
		if rand.IntN(2) == 0 {
			copy(some[from:to], after[from:to])
		}
	}
	torn := bytes.Clone(all)
	for p := range metas {
		from, to := p*h.page, (p+1)*h.page
		if !bytes.Equal(before[from:to], after[from:to]) {
			copy(torn[from:from+16+rand.IntN(64)], after[from:to]) // the header of 16 bytes, and part of 64
		}
	}
	for name, image := range map[string][]byte{"nothing written": before, "some pages written": some, "all but the meta page written": all, "meta page torn": torn, "all written": after} {
		h.crashes++
		h.recover(name, image)
	}
}

// recover opens what is left and checks it against what callers know.
func (h *history) recover(name string, image []byte) {
	path := filepath.Join(h.dir, "image.db")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		panic(err)
	}
	l, err := Open(path, Options{CoolDown: coolDown, noSync: true})
	if err != nil {
		panic(fmt.Sprintf("%s: %v", name, err))
	}
	defer func() { _ = l.Close() }()
	owner := map[netip.Addr]string{}
	for _, w := range l.List() {
		a := w.Addresses[0]
		if other, twice := owner[a]; twice {
			panic(fmt.Sprintf("%s: %s belongs to %s and %s", name, a, other, w.ContainerID))
		}
		owner[a] = w.ContainerID
		told, known := h.acked[w.ContainerID]
		if _, asked := h.inFlight[w.ContainerID]; !known && !asked {
			panic(fmt.Sprintf("%s: %s came from nowhere", name, w.ContainerID))
		}
		if known && told != a {
			panic(fmt.Sprintf("%s: %s has %s: was told %s", name, w.ContainerID, a, told))
		}
	}
	for id, a := range h.acked {
		if owner[a] != id && !h.inFlight[id].release {
			panic(fmt.Sprintf("%s: %s lost %s", name, id, a))
		}
	}
	probe, _, err := l.Reserve(context.Background(), workload("probe"), []netip.Prefix{h.block}, h.now)
	if err == nil {
		if since, rests := h.released[probe.Addresses[0]]; rests && h.now.Sub(since) < coolDown {
			panic(fmt.Sprintf("%s: %s is given out %s after its release", name, probe.Addresses[0], h.now.Sub(since)))
		}
	}
	// GC, a rest, and every address can be had.
	for _, w := range l.List() {
		if _, _, err := l.Release(context.Background(), w.Key(), h.now); err != nil {
			panic(err)
		}
	}
	for i := 0; ; i++ {
		_, _, err := l.Reserve(context.Background(), workload(fmt.Sprint("again", i)), []netip.Prefix{h.block}, h.now.Add(coolDown))
		if errors.Is(err, ipam.ErrBlockFull) {
			if want := map[bool]int{true: 5, false: 6}[h.block.Addr().Is4()]; i != want {
				panic(fmt.Sprintf("%s: %d addresses can be had: want %d", name, i, want))
			}
			return
		}
		if err != nil {
			panic(err)
		}
	}
}
