package lab

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/store"
)

// applyTimeout is how long the store may take to come up.
const applyTimeout = 30 * time.Second

// apply has the first node with a store write the lab's objects, as a person would, once the store answers. It
// returns what the command said, on one line.
func (l *Lab) apply(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	node := l.storeNodes()[0]
	for {
		cmd, err := l.Command(ctx, node, insideBin, "apply", "-f", "-")
		if err != nil {
			return "", err
		}
		cmd.Stdin = strings.NewReader(l.Spec.Objects)
		out, err := cmd.CombinedOutput()
		said := strings.Join(strings.Split(strings.TrimSpace(string(out)), "\n"), ", ")
		if err == nil {
			return said, nil
		}
		if !strings.Contains(said, store.ErrUnavailable.Error()) || !store.Pause(ctx, 200*time.Millisecond) {
			return "", fmt.Errorf("apply on %s: %w: %s", node, err, said)
		}
	}
}
