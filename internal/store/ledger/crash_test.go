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

// wish is one call of a history: a workload's, or a node's that borrows an address.
type wish struct {
	id   string
	addr netip.Addr // of a loan
	end  bool       // Release, Returned
}

// history plays random calls on a ledger whose every commit is also cut off, by a kill and by a power failure: the
// files as they might be then are opened and compared with what callers had been told.
type history struct {
	t     *rapid.T
	dir   string
	page  int
	block netip.Prefix
	now   time.Time

	before   files                 // the files before the commit under way
	stale    [][]byte              // run files of before
	acked    map[string]netip.Addr // what callers were told is theirs
	lent     map[netip.Addr]bool   // and what other nodes were
	inFlight map[string]wish       // what workloads have asked for and heard nothing of
	loans    map[netip.Addr]bool   // what other nodes have asked for, or given back, likewise
	released map[netip.Addr]time.Time
	crashes  int
}

// files are what is in the two files; no run file is nil.
type files struct{ run, state []byte }

func TestCrashAtAnyWriteLosesNothingAndDoublesNothing(t *testing.T) {
	dir := t.TempDir()
	crashes := 0
	rapid.Check(t, func(t *rapid.T) {
		h := &history{
			t: t, dir: dir, page: os.Getpagesize(), now: dawn,
			block:    netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.0/29", "fd00::/125"}).Draw(t, "block")),
			acked:    map[string]netip.Addr{},
			lent:     map[netip.Addr]bool{},
			inFlight: map[string]wish{},
			loans:    map[netip.Addr]bool{},
			released: map[netip.Addr]time.Time{},
		}
		h.play()
		crashes += h.crashes
	})
	if crashes < 1000 {
		t.Errorf("only %d crashes", crashes)
	}
	t.Logf("%d crashes", crashes)
}

const (
	coolDown = 10 * time.Second
	borrower = "another"
)

func (h *history) play() {
	path := filepath.Join(h.dir, "ledger.db")
	_, _ = os.Remove(path), os.Remove(path+".run")
	read := func() files { return files{h.read(path + ".run"), h.read(path)} }
	opts := Options{CoolDown: coolDown, noSync: true, Boot: "this", hook: func(point string) {
		now := read()
		if point != "applied" {
			h.cutOff(h.before, now)
			h.stale = append(h.stale, h.before.run)
		}
		h.before = now
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
			wishes = append(wishes, h.wish(i, j))
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
		if !maps.Equal(got, h.acked) || !maps.Equal(borrowed(l), h.lent) {
			h.t.Fatalf("on record %v and %v: callers were told %v and %v", got, l.Lent(), h.acked, h.lent)
		}
	}
}

func borrowed(l *Ledger) map[netip.Addr]bool {
	lent := map[netip.Addr]bool{}
	for a := range l.Lent() {
		lent[a] = true
	}
	return lent
}

func (h *history) wish(i, j int) wish {
	held := slices.Sorted(maps.Keys(h.acked))
	lent := slices.SortedFunc(maps.Keys(h.lent), netip.Addr.Compare)
	switch what := rapid.SampledFrom([]string{"reserve", "reserve", "release", "lend", "return"}).Draw(h.t, "what"); {
	case what == "release" && len(held) > j:
		return wish{id: held[j], end: true}
	case what == "lend":
		a, _, _ := ipam.Range(h.block)
		for range rapid.IntRange(0, 4).Draw(h.t, "which") {
			a = a.Next()
		}
		if !h.lent[a] { // or one call lends what another gives back
			return wish{addr: a}
		}
	case what == "return" && len(lent) > j:
		return wish{addr: lent[j], end: true}
	}
	return wish{id: fmt.Sprintf("c%d-%d", i, j)}
}

// together makes the calls at once and notes their answers when all are over.
func (h *history) together(l *Ledger, wishes []wish) {
	for _, w := range wishes {
		if w.id != "" {
			h.inFlight[w.id] = w
		} else {
			h.loans[w.addr] = true
		}
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
			switch {
			case w.id == "" && w.end:
				a.err = l.Returned(context.Background(), w.addr, borrower, h.now)
			case w.id == "":
				a.err = l.Lend(context.Background(), h.block, w.addr, borrower, nil, h.now)
			case w.end:
				_, a.ok, a.err = l.Release(context.Background(), w.id+"/eth0", h.now)
			default:
				got, _, err := l.Reserve(context.Background(), workload(w.id), []netip.Prefix{h.block}, h.now)
				if a.err = err; err == nil {
					a.addr, a.ok = got.Addresses[0], true
				}
			}
		})
	}
	wg.Wait()
	clear(h.inFlight)
	clear(h.loans)
	for i, w := range wishes {
		switch a := answers[i]; {
		case a.err != nil && !errors.Is(a.err, ipam.ErrBlockFull) && !errors.Is(a.err, ipam.ErrAddressInUse):
			h.t.Fatal(a.err)
		case a.err != nil:
		case w.id == "" && w.end:
			h.released[w.addr] = h.now
			delete(h.lent, w.addr)
		case w.id == "":
			h.lent[w.addr] = true
		case w.end:
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

// cutOff opens the files that a crash may leave of one commit, which is of one of the two files.
func (h *history) cutOff(before, after files) {
	for name, image := range h.images(before.run, after.run) {
		h.recover("killed: run file: "+name, files{image, before.state}, "this")
	}
	for name, image := range h.images(before.state, after.state) {
		h.recover("killed: state file: "+name, files{after.run, image}, "this")
		// A power cut takes a run file away that is in memory. On a disk it is as it was at any time before, or a
		// mixture.
		left := map[string]func() []byte{
			"no": func() []byte { return nil }, "an old": h.old(before.run, after.run), "a mixed": func() []byte {
				mixed, old := bytes.Clone(after.run), h.old(before.run, after.run)
				for at := 0; at < len(mixed); at += h.page {
					if from := old(); at < len(from) {
						copy(mixed[at:at+h.page], from[at:])
					}
				}
				return mixed
			},
		}
		for what, run := range left { // the first that comes
			h.recover("power cut: "+what+" run file, state file: "+name, files{run(), image}, "the next")
			break
		}
	}
}

// old returns the run file as it was at any time before.
func (h *history) old(more ...[]byte) func() []byte {
	all := slices.Concat(h.stale, more)
	return func() []byte { return all[rand.IntN(len(all))] }
}

// images are what a crash may leave of a commit to a file. bbolt writes data pages, syncs, writes a meta page, syncs
// (or does not sync, and is killed): so any of the data pages may be missing as long as the meta page is the old one,
// and the meta page may be torn when they are all there.
func (h *history) images(before, after []byte) map[string][]byte {
	if bytes.Equal(before, after) {
		return map[string][]byte{"unchanged": after}
	}
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
	return map[string][]byte{"nothing written": before, "some pages written": some, "all but the meta page written": all, "meta page torn": torn, "all written": after}
}

// recover opens what is left and checks it against what callers know.
func (h *history) recover(name string, left files, boot string) {
	h.crashes++
	fail := func(format string, args ...any) { panic(name + ": " + fmt.Sprintf(format, args...)) }
	path := filepath.Join(h.dir, "image.db")
	for file, b := range map[string][]byte{path: left.state, path + ".run": left.run} {
		err := os.Remove(file)
		if b != nil {
			err = os.WriteFile(file, b, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			fail("%v", err)
		}
	}
	l, err := Open(path, Options{CoolDown: coolDown, noSync: true, Boot: boot})
	if err != nil {
		fail("%v", err)
	}
	defer func() { _ = l.Close() }()
	lent := borrowed(l)
	owner := map[netip.Addr]string{}
	for _, w := range l.List() {
		a := w.Addresses[0]
		if other, twice := owner[a]; twice || lent[a] {
			fail("%s belongs to %s and %q; lent %t", a, w.ContainerID, other, lent[a])
		}
		owner[a] = w.ContainerID
		told, known := h.acked[w.ContainerID]
		if _, asked := h.inFlight[w.ContainerID]; boot == "this" && !known && !asked {
			fail("%s came from nowhere", w.ContainerID)
		}
		if boot == "this" && known && told != a {
			fail("%s has %s: was told %s", w.ContainerID, a, told)
		}
	}
	for a := range lent {
		if !h.lent[a] && !h.loans[a] {
			fail("the loan of %s came from nowhere", a)
		}
	}
	for a := range l.addresses.cooling {
		if who := l.addresses.owner[a]; who != "" {
			fail("%s rests, and belongs to %s", a, who)
		}
	}
	rests := maps.Clone(h.released)
	for a := range h.lent {
		if !lent[a] && !h.loans[a] {
			fail("%s is not lent any more", a)
		}
		if !lent[a] {
			rests[a] = h.now // it was given back a moment ago
		}
	}
	for id, a := range h.acked {
		if boot == "this" && owner[a] != id && !h.inFlight[id].end {
			fail("%s lost %s", id, a)
		}
		if owner[a] != id {
			rests[a] = h.now
		}
	}
	for i := range 6 {
		probe, _, err := l.Reserve(context.Background(), workload(fmt.Sprint("probe", i)), []netip.Prefix{h.block}, h.now)
		if errors.Is(err, ipam.ErrBlockFull) {
			break
		} else if err != nil {
			fail("%v", err)
		}
		a := probe.Addresses[0]
		if other, used := owner[a]; used || lent[a] {
			fail("%s is given out: it belongs to %q; lent %t", a, other, lent[a])
		}
		if since, was := rests[a]; boot == "this" && was && h.now.Sub(since) < coolDown {
			fail("%s is given out %s after its release", a, h.now.Sub(since))
		}
		owner[a] = "probe"
	}
	h.emptied(l, fail)
}

// emptied looks that after GC, what the agent does with loans, and a rest, every address can be had.
func (h *history) emptied(l *Ledger, fail func(string, ...any)) {
	for _, w := range l.List() {
		if _, _, err := l.Release(context.Background(), w.Key(), h.now); err != nil {
			fail("%v", err)
		}
	}
	for a := range l.Lent() {
		if err := l.Returned(context.Background(), a, borrower, h.now); err != nil {
			fail("%v", err)
		}
	}
	for i := 0; ; i++ {
		_, _, err := l.Reserve(context.Background(), workload(fmt.Sprint("again", i)), []netip.Prefix{h.block}, h.now.Add(coolDown))
		if errors.Is(err, ipam.ErrBlockFull) {
			if want := map[bool]int{true: 5, false: 6}[h.block.Addr().Is4()]; i != want {
				fail("%d addresses can be had: want %d", i, want)
			}
			return
		}
		if err != nil {
			fail("%v", err)
		}
	}
}
