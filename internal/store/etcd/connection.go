package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"google.golang.org/grpc/credentials"
)

// faults keeps why each endpoint cannot be used at the moment. gRPC tells of the last attempt only,
// wrapped several times; and not at all of what a server says before it hangs up: under TLS 1.3 a client
// has done its part of the handshake before the server refuses its certificate.
type faults struct {
	mu   sync.Mutex
	last map[string]fault // by endpoint: host:port, or the path of a Unix socket
}

type fault struct {
	text string
	said bool // by the other end, in words
}

const (
	hungUp   = "it closed the connection without a word"
	noAnswer = "it does not answer"
)

func (f *faults) set(endpoint string, err error) {
	now := fault{plain(err), remoteAlert(err) != nil}
	f.mu.Lock()
	defer f.mu.Unlock()
	// Which of its words, its hanging up, and our giving up is seen last is a matter of luck: the first of
	// these counts most.
	switch old := f.last[endpoint]; {
	case old.said && (now.text == hungUp || now.text == noAnswer), old.text == hungUp && now.text == noAnswer:
		return
	}
	if f.last == nil {
		f.last = map[string]fault{}
	}
	f.last[endpoint] = now
}

func (f *faults) clear(endpoint string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.last, endpoint)
}

// list lists the endpoints' faults in the order of the endpoints; empty when there is none.
func (f *faults) list(endpoints []string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, e := range endpoints {
		_, address, _ := strings.Cut(e, "://")
		address = strings.TrimSuffix(address, "/")
		if now, ok := f.last[address]; ok {
			all = append(all, address+": "+now.text)
		}
	}
	return strings.Join(all, ", ")
}

// dial is a dialer for grpc.WithContextDialer.
func (f *faults) dial(ctx context.Context, address string) (net.Conn, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		network, address = "unix", path
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil && !errors.Is(err, context.Canceled) {
		f.set(address, err)
	}
	return c, err
}

// transport watches what becomes of the connections that it makes out of raw ones. The raw ones stay what
// they are: gRPC sets TCP's own timeout on them.
type transport struct {
	credentials.TransportCredentials
	faults *faults
}

// ClientHandshake implements credentials.TransportCredentials.
func (t transport) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	endpoint := authority
	if raw.RemoteAddr().Network() == "unix" {
		endpoint = raw.RemoteAddr().String()
	}
	c, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		t.faults.set(endpoint, err)
		return nil, nil, err
	}
	return &conn{Conn: c, endpoint: endpoint, faults: t.faults}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (t transport) Clone() credentials.TransportCredentials {
	return transport{t.TransportCredentials.Clone(), t.faults}
}

// conn is a connection on which the first answer, or what comes in its place, is noticed.
type conn struct {
	net.Conn
	endpoint string
	faults   *faults
	answered atomic.Bool
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	switch {
	case n > 0 && !c.answered.Swap(true):
		c.faults.clear(c.endpoint)
	case err != nil && !(c.answered.Load() && errors.Is(err, net.ErrClosed)):
		c.faults.set(c.endpoint, err)
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		c.faults.set(c.endpoint, err)
	}
	return n, err
}

// remoteAlert returns what the other end said by a TLS alert, or nil.
func remoteAlert(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return op.Err
	}
	return nil
}

// plain says in a few words why a connection failed. Its endpoint is said elsewhere.
func plain(err error) string {
	var (
		errno   syscall.Errno
		dns     *net.DNSError
		timeout net.Error
		unknown x509.UnknownAuthorityError
		invalid *tls.CertificateVerificationError
		record  tls.RecordHeaderError
	)
	if alert := remoteAlert(err); alert != nil {
		text := strings.TrimPrefix(alert.Error(), "tls: ")
		switch {
		case text == "certificate required":
			return "it wants a certificate, and none was shown: set cert and key"
		case strings.Contains(text, "certificate"):
			return "it refuses our certificate: " + text
		}
		return "it refuses TLS: " + text
	}
	switch {
	case errors.As(err, &unknown):
		return "its certificate is not of the authority in ca (x509: certificate signed by unknown authority)"
	case errors.As(err, &invalid):
		return invalid.Err.Error()
	case errors.As(err, &record):
		return "it does not speak TLS"
	case errors.As(err, &dns):
		return dns.Err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return hungUp
	case errors.Is(err, net.ErrClosed), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return noAnswer
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}
