package ledger

import (
	"bytes"
	"context"
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
)

// churnEnv makes the test binary a process that reserves and releases until it is killed.
const churnEnv = "HEDDLE_LEDGER_CHURN"

const churners = 4

// churn prints "reserve ID" and "release ID" before each call, and "reserved ID ADDRESS" and
// "released ID" after it. An id belongs to one goroutine.
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
	wg.Wait()
}

func TestKillAtRandomPointsKeepsWhatCallersWereTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	told := map[string]string{} // id to address
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

		unsure := map[string]bool{}
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
			default:
				t.Fatalf("round %d: %s", round, line)
			}
			calls++
		}
		if len(unsure) > churners {
			t.Fatalf("round %d: %d calls under way", round, len(unsure))
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
