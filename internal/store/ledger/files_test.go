package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/heddle-net/heddle/internal/ipam"
)

func contents(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func closed(t testing.TB, l *Ledger) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func released(t testing.TB, l *Ledger, id string, now time.Time) {
	t.Helper()
	if _, ok, err := l.Release(t.Context(), id+"/eth0", now); !ok || err != nil {
		t.Fatal(ok, err)
	}
}

func lent(t testing.TB, l *Ledger, addr string) {
	t.Helper()
	if err := l.Lend(t.Context(), block4, netip.MustParseAddr(addr), "another", nil, dawn); err != nil {
		t.Fatal(err)
	}
}

// onRecord says who holds which address.
func onRecord(l *Ledger) string {
	var b strings.Builder
	for _, w := range l.List() {
		fmt.Fprint(&b, w.ContainerID, w.Addresses, " ")
	}
	fmt.Fprint(&b, "lent ", l.Lent())
	return b.String()
}

func opened(t testing.TB, path string, opts Options) string {
	t.Helper()
	l := open(t, path, opts)
	defer closed(t, l)
	return onRecord(l)
}

// older makes a file of format 1, in which all records are in one, of what two files say.
func older(t testing.TB, path string, files ...string) {
	t.Helper()
	to, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = to.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{oldFormat, recordsBucket, metaBucket} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		for _, f := range files {
			from, err := bbolt.Open(f, 0o600, &bbolt.Options{ReadOnly: true})
			if err != nil {
				return err
			}
			err = from.View(func(old *bbolt.Tx) error {
				for _, name := range []string{recordsBucket, metaBucket} {
					if err := old.Bucket([]byte(name)).ForEach(tx.Bucket([]byte(name)).Put); err != nil {
						return err
					}
				}
				return nil
			})
			if err := errors.Join(err, from.Close()); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, to.Close()); err != nil {
		t.Fatal(err)
	}
}

// filled has a workload at .2, one that went from .3, one at .4, and has lent .9.
func filled(t testing.TB, path string, opts Options) {
	t.Helper()
	l := open(t, path, opts)
	for _, id := range []string{"a", "b", "c"} {
		reserve(t, l, id, dawn, block4)
	}
	released(t, l, "b", dawn)
	lent(t, l, "10.244.1.9")
	if err := l.SetMeta(t.Context(), "node-id", []byte("x")); err != nil {
		t.Fatal(err)
	}
	closed(t, l)
}

const ofFilled = "a[10.244.1.2] c[10.244.1.4] lent map[10.244.1.9:another]"

// An agent of the version before is replaced under running pods, and the new one is killed while it takes over.
func TestFileOfTheFormatBeforeIsTakenOverUnderWorkloads(t *testing.T) {
	dir := t.TempDir()
	filled(t, filepath.Join(dir, "filled"), Options{})
	path := filepath.Join(dir, "ledger.db")
	older(t, path, filepath.Join(dir, "filled"), filepath.Join(dir, "filled.run"))
	before := contents(t, path)
	check := func(opts Options) {
		t.Helper()
		l := open(t, path, opts)
		defer closed(t, l)
		if got := onRecord(l); got != ofFilled || string(l.Meta("node-id")) != "x" {
			t.Fatalf("on record: %s, meta %q; want %s", got, l.Meta("node-id"), ofFilled)
		}
		if _, rests := l.addresses.cooling[netip.MustParseAddr("10.244.1.3")]; !rests {
			t.Error("the address that was released does not rest")
		}
		if w := reserve(t, l, "next", dawn, block4); w.Addresses[0].As4()[3] < 10 {
			t.Errorf("the round begins anew: got %v", w.Addresses)
		}
		released(t, l, "next", dawn.Add(-time.Hour))
	}
	if _, err := Open(path, Options{RunPath: filepath.Join(dir, "none/run")}); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a folder for the run file: %v", err)
	}
	put(t, path+".run.new", []byte("of one that was killed before"))
	check(Options{})
	check(Options{})
	check(Options{Boot: "the next"})
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.View(func(tx *bbolt.Tx) error {
		if tx.Bucket([]byte(oldFormat)) != nil {
			t.Error("the version before takes the file for its own")
		}
		return tx.Bucket([]byte(recordsBucket)).ForEach(func(k, _ []byte) error {
			if string(k) != "l/10.244.1.9" {
				t.Errorf("record %s stayed in the state file", k)
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	// Killed when the run file was made, and the state file was not changed yet.
	put(t, path, before)
	check(Options{Boot: "the next"})
	put(t, path, before)
	check(Options{Boot: "the one after"})

	// The version before was put back for a while: b got the address that a had held, and a's pod is gone.
	l := open(t, filepath.Join(dir, "back"), Options{})
	reserve(t, l, "b", dawn, block4)
	closed(t, l)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	older(t, path, filepath.Join(dir, "back.run"))
	if got, want := opened(t, path, Options{Boot: "the one after"}), "b[10.244.1.2] c[10.244.1.4] lent map[]"; got != want {
		t.Errorf("on record: %s, want %s", got, want)
	}
}

func TestRunFileThatWasRemovedUnderWorkloadsIsMissed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	run := path + ".run"
	first := Options{Boot: "first"}
	filled(t, path, first)
	old := contents(t, run)
	refused := func(opts Options, why error) {
		t.Helper()
		_, err := Open(path, opts)
		if !errors.Is(err, why) || !strings.Contains(err.Error(), run+": ") || !strings.Contains(err.Error(), "reboot the machine, or remove this node's pods") {
			t.Fatalf("error %v, want one that is %v", err, why)
		}
	}
	remove := func() {
		t.Helper()
		if err := os.Remove(run); err != nil {
			t.Fatal(err)
		}
	}
	remove()
	for range 2 {
		refused(first, ErrMissing)
	}
	if _, err := os.Stat(run); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a refused Open made the file: %v", err)
	}
	put(t, run, old)
	if got := opened(t, path, first); got != ofFilled {
		t.Fatalf("when the file is back: %s", got)
	}

	// A reboot empties /run; from then on it is missed again.
	remove()
	second := Options{Boot: "second", Attached: func() bool { t.Error("nobody needs to know after a reboot"); return true }}
	if got := opened(t, path, second); got != "lent map[10.244.1.9:another]" {
		t.Fatalf("after a reboot: %s", got)
	}
	second.Attached = nil
	put(t, run, old) // which is not of this boot
	refused(second, ErrMissing)
	remove()
	second.Attached = func() bool { return true }
	refused(second, ErrMissing)
	// No interface, no workload: a container that was started anew is a machine of its own, but no other boot.
	second.Attached = func() bool { return false }
	l := open(t, path, second)
	if got := onRecord(l); got != "lent map[10.244.1.9:another]" {
		t.Fatalf("without workloads: %s", got)
	}
	reserve(t, l, "d", dawn, block4)
	closed(t, l)

	// The state file alone was removed: what workloads hold is known all the same.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l = open(t, path, Options{Boot: "second"})
	if got := onRecord(l); got != "d[10.244.1.2] lent map[]" {
		t.Fatalf("without the state file: %s", got)
	}
	closed(t, l)
	remove()
	refused(Options{Boot: "second"}, ErrMissing)
}

func TestRunFileOfAnEarlierBootIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	filled(t, path, Options{Boot: "first"})
	// As if killed on the way to the new one.
	before := contents(t, path+".run")
	if err := os.MkdirAll(path+".run.new/x", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{Boot: "second"}); err == nil || !bytes.Equal(contents(t, path+".run"), before) {
		t.Fatalf("error %v; the old file is changed before there is a new one", err)
	}
	if err := os.RemoveAll(path + ".run.new"); err != nil {
		t.Fatal(err)
	}
	for _, boot := range []string{"second", "second", "third"} {
		l := open(t, path, Options{Boot: boot})
		if got := onRecord(l); got != ofFilled {
			t.Fatalf("in boot %s: %s", boot, got)
		}
		closed(t, l)
	}
	l := open(t, path, Options{Boot: "fourth"})
	for _, w := range l.List() {
		released(t, l, w.ContainerID, dawn)
	}
	closed(t, l)
	if got := opened(t, path, Options{Boot: "fourth"}); got != "lent map[10.244.1.9:another]" {
		t.Fatalf("after clean-up: %s", got)
	}
}

func TestDamagedRunFileIsRefusedInItsBootAndPutAsideInTheNext(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good.db")
	l := open(t, good, Options{Boot: "first"})
	for i := range 40 {
		reserve(t, l, fmt.Sprintf("c%d", i), dawn, block4)
	}
	lent(t, l, "10.244.1.100")
	closed(t, l)
	for name, f := range damage() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			run := path + ".run"
			put(t, path, contents(t, good))
			broken := f(contents(t, good+".run"))
			put(t, run, broken)
			var log bytes.Buffer
			opts := Options{Boot: "first", Log: slog.New(slog.NewTextHandler(&log, nil))}
			for _, state := range []string{"there", "gone"} {
				if state == "gone" { // so that nobody knows which boot the other is of
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
				_, err := Open(path, opts)
				if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), run+": ") || !strings.Contains(err.Error(), "reboot the machine") {
					t.Fatalf("state file %s: error %v", state, err)
				}
				if !bytes.Equal(contents(t, run), broken) || log.Len() > 0 {
					t.Fatalf("state file %s: the file that is refused was changed, or passed over: %s", state, &log)
				}
			}
			put(t, path, contents(t, good))

			opts.Boot = "second"
			l := open(t, path, opts)
			if got := onRecord(l); got != "lent map[10.244.1.100:another]" {
				t.Fatalf("after a reboot: %s", got)
			}
			if !bytes.Equal(contents(t, run+".damaged"), broken) || !strings.Contains(log.String(), run+".damaged") {
				t.Fatalf("the damaged file was not put aside with a warning: %s", &log)
			}
			reserve(t, l, "a", dawn, block4)
			closed(t, l)
			if got := opened(t, path, opts); got != "a[10.244.1.2] lent map[10.244.1.100:another]" {
				t.Fatalf("opened again: %s", got)
			}
		})
	}
}

// A power cut takes back what the run file on a disk had, but not what the state file has.
func TestLoanOutlivesARunFileThatIsOlder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	tiny := netip.MustParsePrefix("10.0.0.0/30") // one address, .2
	l := open(t, path, Options{Boot: "first", CoolDown: time.Second})
	reserve(t, l, "a", dawn, tiny)
	stale := contents(t, path+".run")
	released(t, l, "a", dawn)
	if err := l.Lend(t.Context(), tiny, netip.MustParseAddr("10.0.0.2"), "another", nil, dawn.Add(2*time.Second)); err != nil {
		t.Fatal(err)
	}
	closed(t, l)
	put(t, path+".run", stale)
	l = open(t, path, Options{Boot: "second"})
	if got := onRecord(l); got != "lent map[10.0.0.2:another]" {
		t.Fatalf("on record: %s", got)
	}
	if _, _, err := l.Reserve(t.Context(), workload("b"), []netip.Prefix{tiny}, dawn.Add(time.Hour)); !errors.Is(err, ipam.ErrBlockFull) {
		t.Fatalf("error %v for an address that is lent", err)
	}
}

// What waits for a disk is the state file alone: another's write of it is held up here for good.
func TestWorkloadsDoNotWaitForTheDisk(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "ledger.db"), Options{})
	slow, err := l.state.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	w := reserve(t, l, "a", dawn, block4)
	if err := l.Update(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	released(t, l, "a", dawn)
	if err := slow.Rollback(); err != nil {
		t.Fatal(err)
	}
	if !l.run.NoSync || !l.run.NoGrowSync || l.state.NoSync || l.state.NoGrowSync {
		t.Error("the run file waits for a disk, or the state file does not")
	}
}
