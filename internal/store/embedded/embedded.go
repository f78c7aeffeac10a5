// Package embedded runs the store itself: go.etcd.io/etcd/server/v3 as one member, in the process that
// calls Run. It decides nothing about what is stored.
//
// Agents and members prove themselves by certificates of one authority (TLS 1.3 both ways); plain text
// is served on loopback addresses only. Every acknowledged write is on disk before it is acknowledged,
// so that data survives kill -9.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap/zapcore"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/store/zaplog"
)

// Run runs one member until ctx ends, then stops it in an orderly way and returns nil; or returns why
// it could not go on.
func Run(ctx context.Context, o Options) error {
	if err := o.complete(); err != nil {
		return err
	}
	dir, err := prepareDir(o.DataDir)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // and with it the lock
	if err := o.probePorts(); err != nil {
		return err
	}
	var stopping atomic.Bool
	e, err := embed.StartEtcd(o.config(dir, &stopping))
	if err != nil {
		return o.explain(err)
	}
	stopped := false
	defer func() {
		if !stopped {
			e.Close()
		}
	}()
	waiting := time.NewTicker(10 * time.Second)
	defer waiting.Stop()
	ready := e.Server.ReadyNotify()
	for {
		select {
		case <-ready:
			ready = nil
			waiting.Stop()
			if err := o.closeSockets(); err != nil {
				return err
			}
			o.Logger.Info("store serves", "name", o.Name, "listen", strings.Join(o.Listen, " "), "dataDir", o.DataDir)
			if o.Ready != nil {
				o.Ready()
			}
		case <-waiting.C:
			o.Logger.Warn("store waits for the other members: no majority yet", "name", o.Name, "cluster", o.memberList())
		case <-ctx.Done():
			stopping.Store(true)
			e.Close()
			stopped = true
			return nil
		case <-e.Server.StopNotify():
			return fmt.Errorf("store %q: stopped by itself: was this member removed from its cluster?", o.Name)
		case err := <-e.Err():
			return o.explain(err)
		}
	}
}

// noNews are warnings that etcd gives at every start. Nobody speaks HTTP to a store, so that one port
// for both is no burden; and it knows no passwords, so that the kind of their tokens is of no matter.
var noNews = []string{"Running http and grpc server on single port", "simple token is not cryptographically signed"}

// farewell are warnings and errors that etcd gives when a listener of its own is closed, with what it
// then says of the listener.
var (
	farewell = []string{"setting up serving from embedded etcd failed", "stopping insecure grpc server", "stopped insecure grpc server", "stopping secure grpc server", "stopped secure grpc server"}
	closed   = []string{"mux: server closed", "http: Server closed", "use of closed network connection", "the server has been stopped"}
)

// isNoNews judges a record of etcd; stopping tells that it is being stopped in an orderly way.
func isNoNews(message, err string, stopping bool) bool {
	begins := func(text string) bool { return strings.HasPrefix(message, text) }
	ends := func(text string) bool { return strings.HasSuffix(err, text) }
	return slices.ContainsFunc(noNews, begins) || stopping && slices.ContainsFunc(farewell, begins) && slices.ContainsFunc(closed, ends)
}

func (o *Options) config(dir *os.File, stopping *atomic.Bool) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = o.Name, o.DataDir
	cfg.InitialClusterToken = "heddle-store"
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = urls(o.Listen), urls(o.Advertise)
	advertisePeer := o.PeerAdvertise
	switch {
	case o.PeerListen == "":
		cfg.ListenPeerUrls = []url.URL{peerSocket(dir)}
		advertisePeer = "http://localhost:2380" // only a name: there is nobody to follow it
	case advertisePeer == "":
		advertisePeer = o.PeerListen
		fallthrough
	default:
		cfg.ListenPeerUrls = urls([]string{o.PeerListen})
	}
	cfg.AdvertisePeerUrls = urls([]string{advertisePeer})
	cfg.InitialCluster = o.Name + "=" + advertisePeer
	if len(o.Cluster) > 0 {
		cfg.InitialCluster = o.memberList()
	}
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = tlsInfo(o.TLS), tlsInfo(o.PeerTLS)
	cfg.TlsMinVersion = "TLS1.3"
	cfg.TickMs = uint(o.Heartbeat.Milliseconds())
	cfg.ElectionMs = uint(o.Election.Milliseconds())
	cfg.QuotaBackendBytes = o.QuotaBytes
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, o.CompactPeriod.String()
	cfg.GRPCKeepAliveMinTime = 2 * time.Second
	cfg.WatchProgressNotifyInterval = time.Minute
	cfg.EnableGRPCGateway = false // nobody here speaks JSON to it
	// A machine's disk that was slow for a moment is no news.
	cfg.WarningApplyDuration, cfg.WarningUnaryRequestDuration = time.Second, time.Second
	cfg.LogLevel = "warn"
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zaplog.New(o.Logger, zapcore.WarnLevel, func(message, err string) bool {
		return isNoNews(message, err, stopping.Load())
	}))
	return cfg
}

// peerSocket is the listener of a member that is alone: etcd insists on one. A Unix socket in the data
// directory takes no port, and nobody else may open it. The way over the open directory keeps its name
// below the 108 bytes that a socket's may have.
func peerSocket(dir *os.File) url.URL {
	// etcd listens on Host and leaves Path out.
	return url.URL{Scheme: "unix", Host: fmt.Sprintf("/proc/self/fd/%d/peer.sock", dir.Fd())}
}

func urls(list []string) []url.URL {
	var out []url.URL
	for _, s := range list {
		if u, err := url.Parse(s); err == nil { // checked by Options.complete
			out = append(out, *u)
		}
	}
	return out
}

func tlsInfo(f cert.Files) transport.TLSInfo {
	if f.Empty() {
		return transport.TLSInfo{}
	}
	return transport.TLSInfo{CertFile: f.Cert, KeyFile: f.Key, TrustedCAFile: f.CA, ClientCertAuth: true}
}

// closeSockets leaves the Unix sockets to root alone.
func (o *Options) closeSockets() error {
	for _, u := range urls(o.Listen) {
		if u.Scheme != "unix" {
			continue
		}
		if err := os.Chmod(u.Path, 0o600); err != nil {
			return fmt.Errorf("store: --listen %s: %w", u.String(), err)
		}
	}
	return nil
}

// prepareDir makes the data directory, proves that it can be written, and locks it. etcd itself would
// wait without end for another process to let go of the database.
func prepareDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, dirError(dir, err)
	}
	f, err := os.CreateTemp(dir, ".writable-*")
	if err != nil {
		return nil, dirError(dir, err)
	}
	if err := errors.Join(f.Close(), os.Remove(f.Name()), os.Chmod(dir, 0o700)); err != nil {
		return nil, dirError(dir, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, dirError(dir, err)
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = d.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("store: --data-dir %s: another store runs over it: stop that one, or choose another --data-dir", dir)
		}
		return nil, dirError(dir, err)
	}
	return d, nil
}

func dirError(dir string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("store: --data-dir %s: no permission to write there: run as root, or choose another --data-dir: %w", dir, err)
	}
	return fmt.Errorf("store: --data-dir %s: %w", dir, err)
}

// probePorts finds a taken port before etcd does: its own error comes late and names no way out.
func (o *Options) probePorts() error {
	for _, s := range append([]string{o.PeerListen}, o.Listen...) {
		u, err := url.Parse(s)
		if err != nil {
			return err
		}
		if s == "" || u.Scheme == "unix" {
			continue
		}
		l, err := net.Listen("tcp", u.Host)
		if err != nil {
			return listenError(u.Host, err)
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

func listenError(host string, err error) error {
	_, port, _ := net.SplitHostPort(host)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("store: --listen %s: another process has this port: see `ss -ltnp sport = :%s`, stop it or choose another --listen: %w", host, port, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("store: --listen %s: no device of this machine has this address: see `ip address`: %w", host, err)
	}
	return fmt.Errorf("store: --listen %s: %w", host, err)
}

// explain adds what to do next to the errors of etcd that people meet.
func (o *Options) explain(err error) error {
	msg := err.Error()
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return listenError(strings.Join(o.Listen, " "), err)
	case errors.Is(err, fs.ErrPermission):
		return dirError(o.DataDir, err)
	case strings.Contains(msg, "member count is unequal") || strings.Contains(msg, "unmatched member") || strings.Contains(msg, "cluster ID mismatch"):
		return fmt.Errorf("store: --initial-cluster %s: the members do not agree about who they are: give every one the same list: %w", o.memberList(), err)
	}
	return fmt.Errorf("store %q: %w", o.Name, err)
}
