package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestExecKillsWhatItStartedWhenTheContextEnds(t *testing.T) {
	t.Parallel()
	l := upBare(t, bareSpec(t, "flat"))
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if out, err := l.Exec(ctx, "n1", "sleep", "98765"); err == nil {
		t.Fatalf("sleep ended by itself: %s", out)
	}
	if err := poll(bounded(t), func() error {
		if out, err := l.Exec(t.Context(), "n1", "pgrep", "-f", "^sleep 98765"); err == nil {
			return fmt.Errorf("still runs: %s", out)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	_, err := l.Exec(t.Context(), "n9", "true")
	if err == nil || !strings.Contains(err.Error(), "n1, n2, n3") {
		t.Errorf("got %v, want an error that names the machines", err)
	}
}

func TestKillingAnEnteredCommandTakesItAlong(t *testing.T) {
	t.Parallel()
	l := upBare(t, bareSpec(t, "flat"))
	cmd, err := l.Command(t.Context(), "n1", "sleep", "87654")
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	runs := func() bool {
		_, err := l.Exec(t.Context(), "n1", "pgrep", "-f", "^sleep 87654")
		return err == nil
	}
	wait := func(want bool) {
		t.Helper()
		if err := poll(bounded(t), func() error {
			if runs() != want {
				return errors.New("not yet")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	wait(true)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "killed"
	wait(false)
}
