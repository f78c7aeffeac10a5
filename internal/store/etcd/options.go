package etcd

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store/zaplog"
)

// DefaultPrefix is where Heddle's keys begin. The version is that of the layout.
const DefaultPrefix = "/heddle/v1"

// callTimeout bounds every single request, so that a dead store never hangs its caller.
const callTimeout = 5 * time.Second

// Options say which etcd, and where in it.
type Options struct {
	// Endpoints are the members' client URLs: https://192.168.0.4:2379, http://127.0.0.1:2379,
	// unix:///run/heddle/store.sock.
	Endpoints []string
	// TLS names the files for https:// endpoints; Cert and Key may be empty for an etcd that asks for
	// no client certificate.
	TLS cert.Files
	// Prefix is where the keys begin; DefaultPrefix when empty.
	Prefix string
	// DialTimeout bounds one attempt to connect; 3 s when 0.
	DialTimeout time.Duration
	// CallTimeout bounds one request, 5 s when 0.
	CallTimeout time.Duration
	// Logger gets what was skipped and why; nothing is logged when nil.
	Logger *slog.Logger
}

var prefixRE = regexp.MustCompile(`^(/[A-Za-z0-9._-]+)+$`)

func (o *Options) complete() error {
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 3 * time.Second
	}
	if o.CallTimeout == 0 {
		o.CallTimeout = callTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if !prefixRE.MatchString(o.Prefix) {
		return &model.FieldError{Noun: "store", Field: "prefix", Value: fmt.Sprintf("%.64q", o.Prefix), Want: "a path such as " + DefaultPrefix}
	}
	if len(o.Endpoints) == 0 {
		return &model.FieldError{Noun: "store", Field: "endpoints", Want: "at least one URL, such as https://192.168.0.4:2379"}
	}
	for _, e := range o.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.User != nil {
			return &model.FieldError{Noun: "store", Field: "endpoints", Value: fmt.Sprintf("%.64q", e), Want: "a URL such as https://192.168.0.4:2379"}
		}
		switch {
		case u.Scheme == "https" && u.Host != "":
			if o.TLS.CA == "" {
				return &model.FieldError{Noun: "store", Field: "ca", Want: "the file of the authority that signed the certificate of " + e}
			}
		case (u.Scheme == "http" && u.Host != "") || (u.Scheme == "unix" && strings.HasPrefix(e, "unix:///")):
			if !o.TLS.Empty() {
				return &model.FieldError{Noun: "store", Field: "endpoints", Value: e, Want: "https:// since TLS files are given"}
			}
		default:
			return &model.FieldError{Noun: "store", Field: "endpoints", Value: fmt.Sprintf("%.64q", e), Want: "a URL that begins with https://, http:// or unix:///"}
		}
	}
	return nil
}

// dial makes the etcd client that the options ask for. It waits for nobody: a store that is down shows
// at the first request, and in f.
func dial(ctx context.Context, o Options, f *faults) (*clientv3.Client, error) {
	var tlsConfig *tls.Config
	creds := insecure.NewCredentials()
	if !o.TLS.Empty() {
		var err error
		if tlsConfig, err = o.TLS.ClientConfig(); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		creds = credentials.NewTLS(tlsConfig)
	}
	log := zap.NewNop()
	if o.Logger.Enabled(ctx, slog.LevelDebug) {
		log = zaplog.New(o.Logger, zapcore.WarnLevel, nil)
	}
	c, err := clientv3.New(clientv3.Config{
		Context:   context.WithoutCancel(ctx),
		Endpoints: o.Endpoints,
		TLS:       tlsConfig,
		Logger:    log,
		// A peer that vanished without a word is noticed within 8 s. etcd cuts off clients that ping
		// more often than every 5 s.
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{
				// gRPC's own maximum of two minutes is too long to wait for a store that came back.
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
				MinConnectTimeout: o.DialTimeout,
			}),
			grpc.WithChainUnaryInterceptor(rememberReason),
			grpc.WithContextDialer(f.dial),
			grpc.WithTransportCredentials(transport{creds, f}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return c, nil
}
