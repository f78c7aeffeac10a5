package embedded_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/heddle-net/heddle/internal/store/embedded"
	"github.com/heddle-net/heddle/internal/store/storetest/etcdproc"
)

// serveEnv, when set, turns the test binary into the store: its value is the Options in JSON.
const serveEnv = "HEDDLE_TEST_STORE"

func TestMain(m *testing.M) {
	text := os.Getenv(serveEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var o embedded.Options
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := embedded.Run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// process returns a store of its own process, not yet started.
func process(t testing.TB, o embedded.Options) *etcdproc.Process {
	t.Helper()
	// Func and Logger have no JSON form.
	o.Ready, o.Logger = nil, nil
	text, err := json.Marshal(struct {
		embedded.Options
		Ready, Logger any `json:",omitempty"`
	}{Options: o})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return etcdproc.New(t, o.Listen[0], []string{self}, []string{serveEnv + "=" + string(text)})
}

func loopback(t testing.TB) embedded.Options {
	return embedded.Options{DataDir: t.TempDir() + "/store", Listen: []string{fmt.Sprintf("http://127.0.0.1:%d", etcdproc.FreePort(t))}}
}
