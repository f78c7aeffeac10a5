package e2e

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
)

// TestFlowsOfAPodThatIsGoneAreForgotten: a flow that was let through to a pod does not outlive it, however much
// its other end goes on sending; else it would pass to the pod that gets the address next, whatever policies say.
func TestFlowsOfAPodThatIsGoneAreForgotten(t *testing.T) {
	for _, attachment := range []string{"bridge", "routed"} {
		t.Run(attachment, func(t *testing.T) {
			ctx, l := up(t, "flat", hostGW, func(s *lab.Spec) { s.Attachment, s.Pods = attachment, 0 })
			add := func(node, name string) lab.Pod {
				p, err := l.AddPod(ctx, node, name)
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			far, former := add("n2", "default/far"), add("n1", "default/former")
			address := former.Address(4)
			to := netip.AddrPortFrom(address, 7300)
			server, err := socket(netnsOf(t, l, former), to.String())
			if err != nil {
				t.Fatal(err)
			}
			client, err := socket(netnsOf(t, l, far), "")
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 8)
			for range 3 { // in both directions: an established flow
				_, _ = client.WriteToUDPAddrPort([]byte("x"), to)
				_ = server.SetReadDeadline(time.Now().Add(2 * time.Second))
				_, from, err := server.ReadFrom(b)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = server.WriteTo([]byte("y"), from)
			}
			_ = server.Close()
			var sender sync.WaitGroup
			defer sender.Wait()
			defer func() { _ = client.Close() }()
			sender.Go(func() {
				for {
					if _, err := client.WriteToUDPAddrPort([]byte("x"), to); errors.Is(err, net.ErrClosed) {
						return
					}
					time.Sleep(500 * time.Microsecond)
				}
			})
			if err := l.DelPod(ctx, "n1/former"); err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, "the flow is forgotten", func() error {
				flows, err := l.Exec(ctx, "n1", "conntrack", "-L", "-p", "udp", "--orig-port-dst", "7300")
				for line := range strings.Lines(flows) { // what is sent on is a new one, without a reply
					if strings.HasPrefix(line, "udp") && !strings.Contains(line, "UNREPLIED") {
						return errors.New(line)
					}
				}
				return err
			})
		})
	}
}
