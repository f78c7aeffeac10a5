package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
)

// TestFlowsThatANewPolicyDeniesAreCut: connections and datagrams that a policy denies from now on end, on both
// ends, idle or busy, on one node and across two; those that stay allowed lose nothing.
func TestFlowsThatANewPolicyDeniesAreCut(t *testing.T) {
	for _, tt := range []struct{ attachment, topology, netConf string }{
		{"bridge", "flat", hostGW}, {"routed", "two-segments", vxlan},
	} {
		t.Run(tt.attachment, func(t *testing.T) {
			ctx, l := up(t, tt.topology, tt.netConf, func(s *lab.Spec) { s.Attachment, s.Pods = tt.attachment, 0 })
			w := &walkthrough{t: t, ctx: ctx, l: l, ip: map[string]lab.Pod{}}
			for pod, node := range map[string]string{"dev/server": "n1", "default/near": "n1", "default/far": "n3", "default/friend": "n3"} {
				p, err := l.AddPod(ctx, node, pod, "name="+pod[len(pod)-3:])
				if err != nil {
					t.Fatal(err)
				}
				w.ip[pod] = p
			}
			w.apply("{apiVersion: v1, kind: Namespace, metadata: {name: dev}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: default}}")
			for _, f := range families(w.ip["dev/server"]) {
				w.cut(f)
				w.command("n1", "", "heddle", "delete", "networkpolicy", "friends", "-n", "dev")
				w.settled()
			}
		})
	}
}

// settled waits until every node's kernel holds what the store does.
func (w *walkthrough) settled() {
	w.t.Helper()
	var want int64
	for _, n := range w.l.Nodes() {
		s, err := w.l.Status(w.ctx, n)
		if err != nil {
			w.t.Fatal(err)
		}
		want = max(want, int64(s.Policy.Revision))
	}
	time.Sleep(300 * time.Millisecond)
	for _, n := range w.l.Nodes() {
		eventually(w.t, 10*time.Second, n+" enforces it", func() error {
			s, err := w.l.Status(w.ctx, n)
			if err == nil && int64(s.Policy.Revision) < want {
				err = fmt.Errorf("revision %d of %d", s.Policy.Revision, want)
			}
			return err
		})
	}
}

func (w *walkthrough) cut(f model.Family) {
	t, server := w.t, w.ip["dev/server"]
	file := func(pod string) string { return netnsOf(t, w.l, w.ip[pod]) }
	address := net.JoinHostPort(server.Address(f).String(), "7100")
	l := listenTCP(t, file("dev/server"), address)

	type pair struct{ client, server net.Conn }
	var idle, busy []pair
	for _, from := range []string{"default/near", "default/far"} {
		for _, to := range []*[]pair{&idle, &busy} {
			c, s := connect(w.ctx, t, file(from), l, address)
			*to = append(*to, pair{c, s})
		}
	}
	friend, atServer := connect(w.ctx, t, file("default/friend"), l, address)
	ctx, cancel := context.WithCancel(w.ctx)
	var background, talking sync.WaitGroup
	for _, p := range busy {
		background.Go(func() { pump(p.client) })
		background.Go(func() { _, _ = io.Copy(io.Discard, p.server) })
	}
	var lost error
	background.Go(func() { _, _ = io.Copy(atServer, atServer) })
	talking.Go(func() { lost = talk(ctx, friend) })

	udp, err := socket(file("dev/server"), address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = udp.Close() }()
	far, err := socket(file("default/far"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()
	// An answer that the server sent after the cut would begin a flow of its own, which no policy denies.
	datagram := func(answer bool) bool {
		_, _ = far.WriteTo([]byte("x"), udp.LocalAddr())
		_ = udp.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, from, err := udp.ReadFrom(make([]byte, 8))
		if err == nil && answer {
			_, _ = udp.WriteTo([]byte("y"), from) // seen in both directions: an established flow
		}
		return n > 0
	}
	for range 2 {
		if !datagram(true) {
			t.Fatal("UDP does not pass before there is a policy")
		}
	}
	time.Sleep(200 * time.Millisecond)

	w.apply(networkPolicy("dev", "friends", `podSelector: {}, policyTypes: [Ingress],
  ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {name: end}}}]}]`))
	for i, p := range idle {
		for end, c := range map[string]net.Conn{"client": p.client, "server": p.server} {
			if err := resets(c); err != nil {
				t.Errorf("IPv%d, idle connection %d, %s: %v", f, i, end, err)
			}
		}
	}
	eventually(t, 10*time.Second, "UDP stops", func() error {
		if datagram(false) {
			return errors.New("a datagram passed")
		}
		return nil
	})
	time.Sleep(300 * time.Millisecond)
	cancel()
	talking.Wait()
	_ = friend.Close()
	ended := make(chan struct{})
	go func() { background.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("a busy connection goes on")
		for _, p := range busy {
			_ = p.client.Close()
			_ = p.server.Close()
		}
		<-ended
	}
	if lost != nil {
		t.Errorf("the connection that stays allowed: %v", lost)
	}
}

// pump writes until the connection ends.
func pump(c net.Conn) {
	b := make([]byte, 16<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// talk sends and gets back numbers until ctx ends, and tells what went wrong.
func talk(ctx context.Context, c net.Conn) error {
	for i := 0; ctx.Err() == nil; i++ {
		want := fmt.Sprintf("%08d", i)
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := io.WriteString(c, want); err != nil {
			return err
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if string(got) != want {
			return fmt.Errorf("got %s, want %s", got, want)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}

// resets wants a connection on which nothing is sent to end with a reset.
func resets(c net.Conn) error {
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err := c.Read(make([]byte, 1))
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED) {
		return fmt.Errorf("%v, want a reset", err) //nolint:errorlint // may be nil
	}
	return nil
}
