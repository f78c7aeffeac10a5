package etcd_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/internal/store/storetest/etcdproc"
)

// server listens and does to every connection what it is told, then closes it.
func server(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = c.Close() }()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

func authority(t *testing.T) func(name string) cert.Files {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tls")
	err := errors.Join(cert.MakeCA(dir, cert.Options{}),
		cert.Issue(dir, cert.Request{Name: "store", Kind: cert.Server, Hosts: []string{"127.0.0.1"}}, cert.Options{}),
		cert.Issue(dir, cert.Request{Name: "elsewhere", Kind: cert.Server, Hosts: []string{"192.0.2.1"}}, cert.Options{}),
		cert.Issue(dir, cert.Request{Name: "agent", Kind: cert.Client}, cert.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	return func(name string) cert.Files {
		return cert.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	}
}

// handshakes serves TLS as etcd does: it hangs up on who shows no good certificate.
func handshakes(t *testing.T, f cert.Files) string {
	t.Helper()
	config, err := f.ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	config.NextProtos = []string{"h2"}
	return server(t, func(c net.Conn) { _ = tls.Server(c, config).Handshake() })
}

// TestUnreachableStoreIsExplainedOnceInPlainWords, the same each time.
func TestUnreachableStoreIsExplainedOnceInPlainWords(t *testing.T) {
	t.Parallel()
	ours, theirs := authority(t), authority(t)
	nobody := fmt.Sprintf("127.0.0.1:%d", etcdproc.FreePort(t))
	deaf := server(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); time.Sleep(time.Second) })
	silent := server(t, func(net.Conn) {})
	picky, elsewhere := handshakes(t, ours("store")), handshakes(t, ours("elsewhere"))
	socket := filepath.Join(t.TempDir(), "none.sock")
	foreign := theirs("agent")
	foreign.CA = ours("").CA
	var turns sync.WaitGroup
	for _, c := range []struct {
		name, want string
		endpoints  []string
		tls        cert.Files
	}{
		{"nobody listens", nobody + ": connection refused", []string{"http://" + nobody}, cert.Files{}},
		{"no socket", socket + ": no such file or directory", []string{"unix://" + socket}, cert.Files{}},
		{"three members", nobody + ": connection refused, " + silent + ": it closed the connection without a word", []string{"http://" + nobody, "http://" + silent}, cert.Files{}},
		{"no answer", deaf + ": it does not answer", []string{"http://" + deaf}, cert.Files{}},
		{"foreign authority", picky + ": its certificate is not of the authority in ca (x509: certificate signed by unknown authority)", []string{"https://" + picky}, theirs("agent")},
		{"wrong host", elsewhere + ": x509: certificate is valid for 192.0.2.1, not 127.0.0.1", []string{"https://" + elsewhere}, ours("agent")},
		{"no certificate", picky + ": it wants a certificate, and none was shown: set cert and key", []string{"https://" + picky}, cert.Files{CA: ours("").CA}},
		{"foreign certificate", picky + ": it refuses our certificate: unknown certificate authority", []string{"https://" + picky}, foreign},
	} {
		for range 3 {
			turns.Go(func() {
				s, err := etcd.New(context.Background(), etcd.Options{Endpoints: c.endpoints, TLS: c.tls, DialTimeout: 500 * time.Millisecond, CallTimeout: 2 * time.Second})
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = s.Close() }()
				_, err = s.Get(context.Background(), model.KindNode, "a")
				if want := "get nodes a: store unavailable: " + c.want; !errors.Is(err, store.ErrUnavailable) || err.Error() != want {
					t.Errorf("%s: got  %v\nwant %s", c.name, err, want)
				}
			})
		}
	}
	turns.Wait()
}

// TestRenewedCertificateIsTakenByARunningClient: what refused the old one takes the new one, without a
// new store.
func TestRenewedCertificateIsTakenByARunningClient(t *testing.T) {
	t.Parallel()
	files := authority(t)
	config, err := files("store").ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	config.NextProtos = []string{"h2"}
	shown := make(chan string, 100)
	at := server(t, func(c net.Conn) {
		s := tls.Server(c, config)
		if s.Handshake() == nil {
			shown <- s.ConnectionState().PeerCertificates[0].SerialNumber.String()
		}
	})
	s, err := etcd.New(context.Background(), etcd.Options{Endpoints: []string{"https://" + at}, TLS: files("agent"), CallTimeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	serial := func() string {
		t.Helper()
		for range 20 {
			for len(shown) > 0 {
				<-shown
			}
			_, _ = s.Get(context.Background(), model.KindNode, "a")
			if len(shown) > 0 {
				return <-shown
			}
		}
		t.Fatal("the client never connected")
		return ""
	}
	before := serial()
	dir := filepath.Dir(files("").CA)
	if err := cert.Issue(dir, cert.Request{Name: "agent", Kind: cert.Client}, cert.Options{Overwrite: true}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); serial() == before; {
		if time.Now().After(end) {
			t.Fatal("the old certificate is still shown after the renewal")
		}
	}
}
