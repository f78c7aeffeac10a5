// Package labstore opens the store of a lab from outside of the lab, for tests that write to it or look into it.
package labstore

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/store/etcd"
)

// Open opens it through a hole to the lab's first node: inside runs a function in that node's network namespace. The
// store is closed at the test's end.
func Open(ctx context.Context, tb testing.TB, l *lab.Lab, inside func(func() error) error) *etcd.Store {
	tb.Helper()
	node := l.Nodes()[0]
	address := netip.AddrPortFrom(l.Spec.Topology.Nodes[0].Addresses[0], 2379).String()
	hole, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = hole.Close() })
	go func() {
		for {
			outer, err := hole.Accept()
			if err != nil {
				return
			}
			var inner net.Conn
			err = inside(func() (err error) {
				inner, err = net.DialTimeout("tcp", address, 5*time.Second)
				return err
			})
			if err != nil {
				_ = outer.Close()
				continue
			}
			go func() { _, _ = io.Copy(inner, outer); _ = inner.Close() }()
			go func() { _, _ = io.Copy(outer, inner); _ = outer.Close() }()
		}
	}()
	file := func(name string) string {
		path, err := l.Node(node).File("/etc/heddle/pki/" + name)
		if err != nil {
			tb.Fatal(err)
		}
		return path
	}
	s, err := etcd.New(ctx, etcd.Options{
		Endpoints: []string{"https://" + hole.Addr().String()}, CallTimeout: 30 * time.Second,
		TLS: cert.Files{CA: file("ca.crt"), Cert: file("agent.crt"), Key: file("agent.key")},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}
