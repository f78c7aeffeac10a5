package cni_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/cni"
	"github.com/heddle-net/heddle/internal/cni/wire"
	"github.com/heddle-net/heddle/internal/store/ledger"
)

var dawn = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const goodConf = `{"cniVersion":"1.1.0","name":"heddle"}`

func TestSocketIsForRootOnly(t *testing.T) {
	s := serve(t)
	for path, want := range map[string]os.FileMode{s.socket: 0o600, filepath.Dir(s.socket): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, error %v: want %v", path, info.Mode().Perm(), err, want)
		}
	}
	// With the modes out of the way, the server itself refuses another user.
	for dir := filepath.Dir(s.socket); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(s.socket, 0o666), os.Chmod(pluginDir, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(pluginDir, cni.PluginType))
	cmd.Env = request("DEL", "c1", "", "HEDDLE_CNI_SOCKET="+s.socket)
	cmd.Stdin = strings.NewReader(goodConf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); err == nil || !strings.Contains(out.String(), `"code": 11`) {
		t.Errorf("error %v, output %s", err, out.String())
	}
}

func TestStaleSocketIsReplacedAndALivingOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "cni.sock")
	first, err := cni.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cni.Listen(path); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), path) {
		t.Errorf("a second server: %v", err)
	}
	_ = first.Close() // leaves the socket's file, as a kill does
	second, err := cni.Listen(path)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	_ = second.Close()
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("mine"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := cni.Listen(path); err == nil || !strings.Contains(err.Error(), "found a file") {
		t.Errorf("over somebody's file: %v", err)
	}
}

// The first agent takes the request and dies without an answer.
func TestPluginAsksAgainWhenTheAgentDiesInTheMiddle(t *testing.T) {
	s := serve(t)
	ns := netns(t)
	s.stop()
	listener, err := cni.Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	died := make(chan error, 1)
	go func() {
		conn, err := listener.AcceptUnix()
		if err == nil {
			_, err = conn.Read(make([]byte, 100))
			_ = conn.Close()
		}
		died <- errors.Join(err, listener.Close())
	}()
	type answer struct {
		out  string
		exit int
	}
	answers := make(chan answer, 1)
	go func() {
		out, exit := plugin(t, request("ADD", "c1", ns, "HEDDLE_CNI_SOCKET="+s.socket), goodConf)
		answers <- answer{out, exit}
	}()
	if err := <-died; err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // the plugin knocks at a dead socket
	s.start(t)
	if a := <-answers; a.exit != 0 || !strings.Contains(a.out, "10.244.1.2/24") {
		t.Errorf("exit %d: %s", a.exit, a.out)
	}
}

func TestWithoutAnAgentEachVerbHasItsCode(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	var wg sync.WaitGroup
	for command, code := range map[string]int{"ADD": 11, "DEL": 11, "CHECK": 11, "GC": 11, "STATUS": 50} {
		wg.Go(func() {
			out, exit := plugin(t, request(command, "c1", "/proc/self/ns/net"), fmt.Sprintf(`{"cniVersion":"1.0.0","name":"heddle","socket":%q}`, socket))
			want := fmt.Sprintf("{\n    \"cniVersion\": \"1.0.0\",\n    \"code\": %d,\n    \"msg\": \"heddle's agent did not answer on %s: connect: no such file or directory; try: systemctl status heddle-agent\"\n}\n", code, socket)
			if exit != 1 || out != want {
				t.Errorf("%s: exit %d: %s", command, exit, out)
			}
		})
	}
	wg.Wait()
}

// TestStatusHoldsWhileAnAgentIsReplaced: a runtime that asks in that moment does not take its node for not ready.
func TestStatusHoldsWhileAnAgentIsReplaced(t *testing.T) {
	s := serve(t)
	ready := filepath.Join(filepath.Dir(s.socket), wire.ReadyFile)
	status := func() (string, int) {
		return plugin(t, request("STATUS", "", "", "HEDDLE_CNI_SOCKET="+s.socket), goodConf)
	}
	touched := func(ago time.Duration) {
		t.Helper()
		if err := errors.Join(os.WriteFile(ready, nil, 0o600), os.Chtimes(ready, time.Time{}, time.Now().Add(-ago))); err != nil {
			t.Fatal(err)
		}
	}
	s.pods.mu.Lock()
	s.pods.notReady = errors.New("waiting for the store")
	s.pods.mu.Unlock()
	for _, agent := range []string{"one that has just started", "none"} {
		if agent == "none" {
			s.stop()
		}
		for _, x := range []struct {
			said string
			ago  time.Duration
			exit int
		}{{"not long ago", wire.ReadyFor / 2, 0}, {"long ago", wire.ReadyFor + time.Second, 1}, {"in times to come", -time.Hour, 1}} {
			touched(x.ago)
			out, exit := status()
			if exit != x.exit || (exit == 0) != (out == "") || exit != 0 && !strings.Contains(out, `"code": 50`) {
				t.Errorf("agent: %s; it was ready %s: exit %d, %q; want exit %d", agent, x.said, exit, out, x.exit)
			}
		}
		if err := os.Remove(ready); err != nil {
			t.Fatal(err)
		}
		if out, exit := status(); exit != 1 {
			t.Errorf("agent: %s; it never was ready: exit %d, %q", agent, exit, out)
		}
	}
	touched(0)
	if out, exit := plugin(t, request("ADD", "c1", "/proc/self/ns/net", "HEDDLE_CNI_SOCKET="+s.socket), goodConf); exit != 1 || !strings.Contains(out, `"code": 11`) {
		t.Errorf("ADD without an agent: exit %d, %q", exit, out)
	}
}

func TestManyAtOnceGetDifferentAddresses(t *testing.T) {
	s := serve(t)
	ns := netns(t)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			if out, exit := plugin(t, request("ADD", fmt.Sprintf("c%d", i), ns, "HEDDLE_CNI_SOCKET="+s.socket), goodConf); exit != 0 {
				t.Errorf("exit %d: %s", exit, out)
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, w := range s.ledger.List() {
		seen[w.Addresses[0].String()] = true
	}
	if len(seen) != 40 {
		t.Errorf("%d addresses: want 40", len(seen))
	}
}

func TestLabelsOfTheConfigurationStayOnRecord(t *testing.T) {
	s := serve(t)
	conf := `{"cniVersion":"1.1.0","name":"heddle","args":{"cni":{"labels":[{"key":"app","value":"web"},{"key":"example.org/canary","value":""}],"other":1}}}`
	out, exit := plugin(t, request("ADD", "c1", netns(t), "HEDDLE_CNI_SOCKET="+s.socket, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=dev;K8S_POD_NAME=web-1"), conf)
	if exit != 0 {
		t.Fatalf("exit %d: %s", exit, out)
	}
	s.stop()
	path := s.ledger.Path()
	if err := s.ledger.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(path, ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	w, ok := l.Get("c1/eth0")
	if want := map[string]string{"app": "web", "example.org/canary": ""}; !ok || !maps.Equal(w.Labels, want) || w.Namespace != "dev" || w.Name != "web-1" {
		t.Errorf("on record after a restart: %+v, want labels %v", w, want)
	}
}

func TestStopLetsRequestsUnderWayFinish(t *testing.T) {
	s := serve(t)
	ns := netns(t)
	begun := make(chan struct{})
	goOn := make(chan struct{})
	s.setBefore(func(string) { close(begun); <-goOn })
	exits := make(chan int, 1)
	go func() {
		_, exit := plugin(t, request("ADD", "c1", ns, "HEDDLE_CNI_SOCKET="+s.socket), goodConf)
		exits <- exit
	}()
	<-begun
	stopped := make(chan struct{})
	go func() { s.stop(); close(stopped) }()
	time.Sleep(50 * time.Millisecond)
	close(goOn)
	<-stopped
	if exit := <-exits; exit != 0 {
		t.Errorf("exit %d", exit)
	}
}

func TestRequestThatTakesTooLongIsToTryAgain(t *testing.T) {
	s := serve(t)
	s.stop()
	listener, err := cni.Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	codes := make(chan uint, 1)
	done := make(chan error, 1)
	server := &cni.Server{Pods: slowPods{s.pods}, Timeout: 50 * time.Millisecond, Observe: func(command string, code uint, took time.Duration) {
		if command == "DEL" && took > 0 {
			codes <- code
		}
	}}
	go func() { done <- server.Serve(ctx, listener) }()
	out, exit := plugin(t, request("DEL", "c1", "", "HEDDLE_CNI_SOCKET="+s.socket), goodConf)
	if code := <-codes; exit != 1 || code != cni.CodeTryAgainLater {
		t.Errorf("exit %d, code %d: %s", exit, code, out)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// slowPods waits for its context's end.
type slowPods struct{ *pods }

func (slowPods) Del(ctx context.Context, _, _ string) error {
	<-ctx.Done()
	return fmt.Errorf("container: %w", ctx.Err())
}

func TestServerOutlivesGarbage(t *testing.T) {
	s := serve(t)
	good := (&wire.Request{Command: "STATUS", Stdin: []byte(goodConf)}).AppendFrame(nil)
	huge := append([]byte(nil), good...)
	huge[4] = 0xff
	tampered := append([]byte(nil), good...)
	tampered[wire.HeaderSize] = 0xff
	for name, c := range map[string]struct {
		bytes []byte
		fds   int
		want  string
	}{
		"http":            {[]byte("GET / HTTP/1.1\r\n\r\n"), 0, "not a heddle frame"},
		"other version":   {append([]byte("HDL\x09"), good[4:]...), 0, "different versions"},
		"oversize":        {huge, 0, "larger than its limit"},
		"bad field":       {tampered, 0, "larger than its limit"},
		"two descriptors": {good, 2, "2 descriptors: want one"},
		"six descriptors": {good, 6, "descriptors: want one"},
		"good":            {good, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close() //nolint:errcheck // a test's
			fds := make([]int, c.fds)
			var oob []byte
			if c.fds > 0 {
				oob = unix.UnixRights(fds...) // standard input, several times
			}
			if _, _, err := conn.WriteMsgUnix(c.bytes, oob, nil); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			var got bytes.Buffer
			if _, err := got.ReadFrom(conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Fatal(err)
			}
			if !strings.Contains(got.String(), c.want) {
				t.Errorf("answer %q: want %q", got.String(), c.want)
			}
		})
	}
}

func TestStdinIsBounded(t *testing.T) {
	s := serve(t)
	fits := `{"cniVersion":"1.1.0","name":"heddle"` + strings.Repeat(" ", wire.MaxStdin-len(goodConf)) + `}`
	if out, exit := plugin(t, request("DEL", "c1", "", "HEDDLE_CNI_SOCKET="+s.socket), fits); exit != 0 {
		t.Errorf("%d bytes: exit %d: %s", len(fits), exit, out)
	}
	out, exit := plugin(t, request("DEL", "c1", "", "HEDDLE_CNI_SOCKET="+s.socket), fits+" ")
	if exit != 1 || !strings.Contains(out, "standard input: larger than heddle takes") {
		t.Errorf("exit %d: %s", exit, out)
	}
}
