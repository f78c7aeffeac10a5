package e2e

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/heddle-net/heddle/internal/lab"
)

// syncBuffer collects a running command's output.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *syncBuffer) has(text string) error {
	if got := s.String(); !strings.Contains(got, text) {
		return fmt.Errorf("%q has no %q", got, text)
	}
	return nil
}

func mustTopology(t *testing.T, name string) lab.Topology {
	t.Helper()
	top, err := lab.LoadTopology(name)
	if err != nil {
		t.Fatal(err)
	}
	return top
}

func setNetConf(ctx context.Context, t *testing.T, l *lab.Lab, text string) {
	t.Helper()
	if err := l.SetNetConf(ctx, text); err != nil {
		t.Fatal(err)
	}
}

// problem wants a node to have a problem of that code whose detail has the text.
func problem(ctx context.Context, l *lab.Lab, node, code, text string) error {
	s, err := l.Status(ctx, node)
	if err != nil {
		return err
	}
	for _, p := range s.Problems {
		if p.Code == code && strings.Contains(p.Detail, text) {
			return nil
		}
	}
	return fmt.Errorf("problems of %s: %v, want %s with %q", node, s.Problems, code, text)
}
