package bgp

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/api"
	gobgp "github.com/osrg/gobgp/v4/pkg/server"

	"github.com/heddle-net/heddle/internal/bfd"
	"github.com/heddle-net/heddle/internal/peering"
)

// Options of a Server. All may be left out.
type Options struct {
	Log *slog.Logger
	// BFD watches the neighbours that ask for it. What it has lost is closed at once, and its routes go: a session
	// that shares its fate with the forwarding plane does not count as restarting (RFC 5882 section 4.3, C bit clear).
	BFD bfd.Detector
	// SettleTime bounds how long Settled waits for neighbours. 0: 30 s.
	SettleTime time.Duration
}

// Server is a Speaker on gobgp, which runs in this process and listens for nobody but BGP neighbours.
type Server struct {
	log     *slog.Logger
	bfd     bfd.Detector
	settle  time.Duration
	changed chan struct{}
	dirty   atomic.Bool // routes are to be read again
	limits  limits

	mu       sync.Mutex // held over calls of gobgp, whose events and logs do not wait for it
	over     bool       // Run has returned
	plan     *peering.Plan
	bgp      *gobgp.BgpServer
	listener *listener
	events   sync.WaitGroup
	life     context.Context // of gobgp
	unwatch  context.CancelFunc
	listen   []netip.Addr // those of the plan that could be
	rules    *ruleset
	sessions map[netip.Addr]*session
	told     map[netip.Prefix]peering.Announcement
	routes   []path
	counts   map[netip.Addr]count
	kept     map[netip.Addr]*keepsake // of sessions that this node made anew
	since    time.Time                // of the first plan
	settled  bool
}

// session is a neighbour of the plan.
type session struct {
	peering.Neighbor
	added    bool // gobgp knows it
	state    peering.State
	since    time.Time
	flaps    int
	short    int // sessions in a row that did not last
	overruns int // times in a row that it told too much
	held     time.Time
	failure  note
	upAt     time.Time       // when it was established
	wanted   map[uint32]bool // families of which the end was not told yet
	restarts bool            // it knows RFC 4724, and tells the end
	lost     bool            // BFD was up and is not
	says     atomic.Uint32   // the AS it has, when it is not the one that was expected
	asked    time.Time
	asking   context.CancelFunc // of the question which AS it has
	answered atomic.Bool        // that question, since the last round
}

// New makes a speaker that does nothing until it has a plan.
func New(o Options) *Server {
	return &Server{
		log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), bfd: o.BFD, settle: cmp.Or(o.SettleTime, 30*time.Second),
		changed: make(chan struct{}, 1), sessions: map[netip.Addr]*session{}, told: map[netip.Prefix]peering.Announcement{},
		kept: map[netip.Addr]*keepsake{}, limits: limits{of: map[netip.Addr]*tally{}},
	}
}

var _ Speaker = (*Server)(nil)

// Run implements Speaker.
func (s *Server) Run(ctx context.Context) error {
	var watching sync.WaitGroup
	if s.bfd != nil {
		watching.Go(func() {
			if err := s.bfd.Run(ctx, s.detected); err != nil && ctx.Err() == nil {
				s.log.Error("liveness detection ended", "error", err)
			}
		})
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			s.round()
		}
	}
	watching.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.stop(true)
	return nil
}

// Changed implements Speaker.
func (s *Server) Changed() <-chan struct{} { return s.changed }

func (s *Server) change() {
	s.dirty.Store(true)
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// start makes a gobgp that listens, and knows no neighbours.
func (s *Server) start(p *peering.Plan) error {
	s.listener = newListener(s.log)
	s.bgp = gobgp.NewBgpServer(gobgp.LoggerOption(slog.New(&handler{listener: s.listener}), nil))
	s.events.Go(s.bgp.Serve)
	g := &api.Global{
		Asn: p.ASN, RouterId: p.RouterID.String(), ListenPort: -1, UseMultiplePaths: true,
		Families: []uint32{0, 1}, // unicast of IPv4 and IPv6, in gobgp's numbers
	}
	if len(s.listen) > 0 {
		g.ListenPort = int32(p.Port)
		for _, a := range s.listen {
			g.ListenAddresses = append(g.ListenAddresses, a.String())
		}
	}
	if err := s.begin(g); err != nil {
		s.stop(false)
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.life, s.unwatch = ctx, cancel
	return s.bgp.WatchEvent(ctx, gobgp.WatchEventMessageCallbacks{
		OnPathUpdate: s.updateEvent, OnBestPath: s.bestEvent, OnPathEor: s.endEvent, OnPeerUpdate: s.peerEvent,
	}, gobgp.WatchPeer(), gobgp.WatchEor(false), gobgp.WatchUpdate(false, "", ""), gobgp.WatchBestPath(false))
}

// starting keeps several speakers in one process from starting at once: gobgp keeps how it selects routes, which
// is the same for all of ours, in variables of its package.
var starting sync.Mutex

func (s *Server) begin(g *api.Global) error {
	starting.Lock()
	defer starting.Unlock()
	return s.bgp.StartBgp(context.Background(), &api.StartBgpRequest{Global: g})
}

// stop ends gobgp; quietly: without a word to the neighbours, as if the process had died.
func (s *Server) stop(quietly bool) {
	if s.bgp == nil {
		return
	}
	s.listener.close()
	if quietly {
		s.cut()
	}
	if s.unwatch != nil {
		s.unwatch()
		s.unwatch = nil
	}
	// Neighbours that do not know of restarts get a notification.
	_ = s.bgp.StopBgp(context.Background(), &api.StopBgpRequest{AllowGracefulRestart: quietly})
	s.bgp.Stop()
	s.events.Wait()
	s.bgp, s.rules, s.listen, s.routes, s.counts = nil, nil, nil, nil, nil
	clear(s.told)
	clear(s.kept)
	for a, n := range s.sessions {
		n.added = false
		s.limits.forget(a)
		if n.state != peering.Idle {
			n.state, n.since = peering.Idle, time.Now()
		}
	}
	s.change()
}

// Settled implements Speaker.
func (s *Server) Settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settling()
}

// settling reports whether all was told; once it was, it stays so.
func (s *Server) settling() bool {
	switch {
	case s.settled || s.plan == nil:
		return s.settled
	case time.Since(s.since) < s.settle:
		for _, n := range s.sessions {
			if !n.told() {
				return false
			}
		}
	}
	s.settled = true
	return true
}

// told reports whether a neighbour has told all. One that does not tell the end is waited for as long as it
// would take.
func (n *session) told() bool {
	switch {
	case time.Now().Before(n.held):
		return true // given up on for now
	case n.state != peering.Established:
		return false
	case n.restarts:
		return len(n.wanted) == 0
	}
	return time.Since(n.since) > 5*time.Second
}

// round is what time brings: neighbours that were held off are tried again.
func (s *Server) round() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan == nil || s.over {
		return
	}
	for _, a := range s.addresses() {
		n := s.sessions[a]
		if n.answered.Swap(false) && !n.added {
			n.held = time.Time{}
		}
		if s.bgp != nil && !n.added && !time.Now().Before(n.held) {
			if err := s.add(n, false); err != nil {
				s.log.Error("BGP neighbor cannot be added again", "error", err)
				n.held = time.Now().Add(holdFlaps)
			}
		}
		if n.added && n.state != peering.Established {
			s.ask(n)
		}
		if n.added && n.state == peering.OpenConfirm && time.Since(n.since) > confirming {
			s.listener.note(a, crossedCause)
			s.shut(map[netip.Addr]bool{a: true})
		}
		// A session that lasts is forgiven what was before.
		if n.state == peering.Established && time.Since(n.since) > lasting {
			n.short, n.overruns = 0, 0
		}
	}
	if !s.settled && s.settling() || len(s.kept) > 0 {
		s.change()
	}
}

func (s *Server) addresses() []netip.Addr {
	out := make([]netip.Addr, 0, len(s.sessions))
	for a := range s.sessions {
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
