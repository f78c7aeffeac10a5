package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/ipam"
)

// churnEnv makes the test binary a process that reserves and releases until it is killed.
const churnEnv = "HEDDLE_LEDGER_CHURN"

const churners = 4

// blockLent is where churn lends addresses.
var blockLent = netip.MustParsePrefix("10.244.2.0/28")

// churn prints "reserve ID" and "release ID" before each call, and "reserved ID ADDRESS" and
// "released ID" after it. An id belongs to one goroutine. One more lends addresses and has them back: "lend ADDRESS",
// "lent ADDRESS", "return ADDRESS", "returned ADDRESS".
func churn(path string) {
	l, err := Open(path, Options{CoolDown: time.Millisecond})
	if err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	say := func(words ...any) { _, _ = os.Stdout.WriteString(fmt.Sprintln(words...)) }
	var wg sync.WaitGroup
	for g := range churners {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("g%d-%d-%d", g, os.Getpid(), i)
				say("reserve", id)
				w, _, err := l.Reserve(context.Background(), workload(id), []netip.Prefix{block4, block6}, time.Now())
				if err != nil {
					say("failed", err)
					return
				}
				say("reserved", id, w.Addresses[0])
				if rand.IntN(4) == 0 && i < 20 { // some stay
					continue
				}
				say("release", id)
				if _, _, err := l.Release(context.Background(), id+"/eth0", time.Now()); err != nil {
					say("failed", err)
					return
				}
				say("released", id)
			}
		})
	}
	wg.Go(func() {
		for i := 0; ; i++ {
			addr := blockLent.Addr().Next().Next()
			for range i % 8 {
				addr = addr.Next()
			}
			if _, is := l.Lent()[addr]; is {
				say("return", addr)
				if err := l.Returned(context.Background(), addr, borrower, time.Now()); err != nil {
					say("failed", err)
				}
				say("returned", addr)
				continue
			}
			say("lend", addr)
			switch err := l.Lend(context.Background(), blockLent, addr, borrower, nil, time.Now()); {
			case errors.Is(err, ipam.ErrAddressInUse):
				say("returned", addr) // it rests still
			case err != nil:
				say("failed", err)
			default:
				say("lent", addr)
			}
		}
	})
	wg.Wait()
}

func TestKillAtRandomPointsKeepsWhatCallersWereTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	told := map[string]string{} // id to address
	lent := map[string]bool{}
	calls := 0
	for round := range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), churnEnv+"="+path)
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+rand.IntN(80)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()

		unsure, loans := map[string]bool{}, map[string]bool{}
		for line := range strings.Lines(out.String()) {
			f := strings.Fields(line)
			if !strings.HasSuffix(line, "\n") || len(f) < 2 {
				continue
			}
			switch f[0] {
			case "reserve", "release":
				unsure[f[1]] = true
			case "reserved":
				told[f[1]] = f[2]
				delete(unsure, f[1])
			case "released":
				delete(told, f[1])
				delete(unsure, f[1])
			case "lend", "return":
				loans[f[1]] = true
			case "lent":
				lent[f[1]] = true
				delete(loans, f[1])
			case "returned":
				delete(lent, f[1])
				delete(loans, f[1])
			default:
				t.Fatalf("round %d: %s", round, line)
			}
			calls++
		}
		if len(unsure) > churners || len(loans) > 1 {
			t.Fatalf("round %d: %d and %d calls under way", round, len(unsure), len(loans))
		}

		l := open(t, path, Options{})
		owner := map[string]string{}
		for _, w := range l.List() {
			a, id := w.Addresses[0].String(), w.ContainerID
			if other, twice := owner[a]; twice {
				t.Fatalf("round %d: %s belongs to %s and %s", round, a, other, id)
			}
			owner[a] = id
			if known, ok := told[id]; ok && known != a {
				t.Fatalf("round %d: %s has %s: was told %s", round, id, a, known)
			} else if !ok && !unsure[id] {
				t.Fatalf("round %d: %s came from nowhere", round, id)
			}
		}
		for id, a := range told {
			if owner[a] != id && !unsure[id] {
				t.Fatalf("round %d: %s lost %s", round, id, a)
			}
		}
		now := map[string]bool{}
		for a := range l.Lent() {
			now[a.String()] = true
			if !lent[a.String()] && !loans[a.String()] {
				t.Fatalf("round %d: the loan of %s came from nowhere", round, a)
			}
		}
		for a := range lent {
			if !now[a] && !loans[a] {
				t.Fatalf("round %d: %s is not lent any more", round, a)
			}
		}
		lent = now
		// A runtime deletes what it got no answer for; and this one then leaves little behind.
		for _, w := range l.List() {
			if unsure[w.ContainerID] || rand.IntN(2) == 0 {
				if _, ok, err := l.Release(t.Context(), w.Key(), time.Now()); !ok || err != nil {
					t.Fatal(ok, err)
				}
				delete(told, w.ContainerID)
			}
		}
		for id := range unsure {
			delete(told, id)
		}
		if len(l.List()) != len(told) {
			t.Fatalf("round %d: %d on record: want %d", round, len(l.List()), len(told))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if calls < 1000 {
		t.Errorf("only %d calls", calls)
	}
	t.Logf("%d calls", calls/2)
}
