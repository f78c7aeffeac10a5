// Package kube is a store.Store on the API server of Kubernetes. What Kubernetes has an object for is read
// from that object: nodes and their blocks from Node objects, endpoints from Pods, resources from namespaces
// and policies of every language. What a node says of itself is written as annotations of its own Node, and blocks of
// pools that Kubernetes gives nothing out of are Block objects, of a CustomResourceDefinition of our own.
// Pools are the configuration of each agent; they are kept here, in memory only.
//
// Every kind is followed by a reflector of client-go. An object is reduced when it arrives to what the model
// needs, and nothing else of it is kept; readers share what is kept and never write to it. Revisions are of
// this store alone: each change of any object is the next one, in the order in which it was learned. Node
// objects are learned in the order of their writes, which the protocol of internal/agent/announce.go needs.
//
// What has no place there, heartbeats above all, is store.ErrUnsupported.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// Options say which API server, and for whom.
type Options struct {
	// Kubeconfig is a file; empty: the service account of the pod that this process runs in.
	Kubeconfig string
	// Node is the name of this node's Node object. Pools are listed with the size of its blocks.
	Node string
	// Pools are filed from the start. Blocks are not listed before there is any pool.
	Pools []model.Pool
	// Version is told to the API server in the name of this client.
	Version string
	Log     *slog.Logger // nil: no log
}

// Limits of what one agent asks of the API server.
const (
	requestsPerSecond = 20
	requestsAtOnce    = 50
	// requestTimeout is for one request that is no watch.
	requestTimeout = 10 * time.Second
)

// silence is how long a connection may be silent before it is asked whether it is alive, and then how long the
// answer may take.
const silence = 5 * time.Second

// Store is the store on the API server.
type Store struct {
	*catalog
	clients clients
	texts   *texts

	ctx    context.Context // of all reflectors
	cancel context.CancelFunc
	loops  sync.WaitGroup

	poke chan struct{} // look at once for what is served
	// optional are the sources that run now, beside the ones that always do.
	optional map[schema.GroupVersionResource]*source
}

// clients share one connection.
type clients struct {
	host     string
	core     rest.Interface
	policy   rest.Interface // networking.k8s.io
	slices   rest.Interface // discovery.k8s.io
	dynamic  dynamic.Interface
	metadata metadata.Interface
}

var (
	_ store.Store   = (*Store)(nil)
	_ store.Placed  = (*Store)(nil)
	_ store.Readier = (*Store)(nil)
)

// New returns a store that begins to follow the API server. It does not wait for it, and it is an error only
// when the options cannot be understood.
func New(ctx context.Context, o Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c, err := connect(o)
	if err != nil {
		return nil, err
	}
	s := &Store{
		catalog: newCatalog(o.Node, o.Log), clients: c, texts: newTexts(),
		poke: make(chan struct{}, 1), optional: map[schema.GroupVersionResource]*source{},
	}
	for _, p := range o.Pools {
		if _, err := s.putPool(p, store.AnyRevision); err != nil {
			return nil, err
		}
	}
	// The reflectors' own log would repeat what is logged here.
	s.ctx, s.cancel = context.WithCancel(klog.NewContext(context.Background(), logr.Discard()))
	for _, src := range s.always() {
		s.start(src)
	}
	s.loops.Go(s.discoverLoop)
	return s, nil
}

// connect makes the clients; it opens no connection.
func connect(o Options) (clients, error) {
	var cfg *rest.Config
	var err error
	if o.Kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	}
	if err != nil {
		return clients{}, fmt.Errorf("store kubernetes: %w", err)
	}
	cfg.UserAgent = "heddle/" + o.Version
	cfg.QPS, cfg.Burst = requestsPerSecond, requestsAtOnce
	cfg.Dial = dialer().DialContext
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return honest{rt} })
	// client-go takes the times after which a silent HTTP/2 connection is asked, and given up, from nowhere
	// else. Its own are 30 s and 15 s.
	for _, name := range []string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS", "HTTP2_PING_TIMEOUT_SECONDS"} {
		if os.Getenv(name) == "" {
			if err := os.Setenv(name, fmt.Sprint(int(silence/time.Second))); err != nil {
				return clients{}, err
			}
		}
	}
	one, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return clients{}, fmt.Errorf("store kubernetes: %w", err)
	}
	c := clients{host: cfg.Host}
	for _, g := range []struct {
		to   *rest.Interface
		path string
		gv   schema.GroupVersion
	}{{&c.core, "/api", coreV1}, {&c.policy, "/apis", networkV1}, {&c.slices, "/apis", discoveryV1}} {
		if *g.to, err = typed(cfg, one, g.path, g.gv); err != nil {
			return clients{}, err
		}
	}
	if c.dynamic, err = dynamic.NewForConfigAndClient(cfg, one); err != nil {
		return clients{}, err
	}
	c.metadata, err = metadata.NewForConfigAndClient(cfg, one)
	return c, err
}

// dialer notices a peer that is gone also while there is something to send to it.
func dialer() *net.Dialer {
	return &net.Dialer{
		Timeout:         requestTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence, Interval: silence, Count: 2},
		ControlContext: func(_ context.Context, _, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int((2 * silence).Milliseconds()))
			}); cerr != nil {
				return cerr
			}
			return err
		},
	}
}

// errSilence and errLost are what honest makes of errors that client-go takes for the end of a watch.
var (
	errSilence = errors.New("no answer in time")
	errLost    = errors.New("the connection was lost")
)

// honest lets nobody take a server that does not answer for one that has nothing to tell: client-go makes an
// empty watch of a timeout, and of a connection that is lost before there is an answer.
type honest struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (h honest) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := h.RoundTripper.RoundTrip(r)
	switch {
	case err == nil || r.Context().Err() != nil:
		return resp, err
	case utilnet.IsTimeout(err):
		return resp, errSilence
	case utilnet.IsProbableEOF(err):
		return resp, errLost
	}
	return resp, err
}

// typed is a client for the built-in types of one group, in Protobuf.
func typed(cfg *rest.Config, one *http.Client, path string, gv schema.GroupVersion) (rest.Interface, error) {
	c := rest.CopyConfig(cfg)
	c.APIPath, c.GroupVersion = path, &gv
	c.NegotiatedSerializer = codecs.WithoutConversion()
	c.ContentType, c.AcceptContentTypes = protobuf, protobuf+",application/json"
	return rest.RESTClientForConfigAndClient(c, one)
}

// Endpoint implements store.Placed: the URL of the API server.
func (s *Store) Endpoint() string { return s.clients.host }

// Close implements store.Store.
func (s *Store) Close() error {
	s.cancel()
	s.close()
	s.loops.Wait()
	return nil
}
