package bgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"

	"github.com/heddle-net/heddle/internal/bfd"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// Apply implements Speaker.
func (s *Server) Apply(_ context.Context, p *peering.Plan) []model.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil
	}
	if p == nil {
		s.stop(false)
		s.plan = nil
		clear(s.sessions)
		return s.watch(nil)
	}
	var problems []model.Problem
	fail := func(subject string, err error, next string) {
		problems = append(problems, model.Problem{Code: "bgp", Severity: model.Failure, Subject: subject, Detail: err.Error(), Next: next})
	}
	listen, err := s.listenable(p)
	for _, e := range err {
		fail("BGP", e, "ss -ltnp 'sport = :"+strconv.Itoa(int(p.Port))+"'")
	}
	restart := s.bgp == nil || s.plan == nil
	if old := s.plan; !restart && (old.ASN != p.ASN || old.RouterID != p.RouterID || old.Port != p.Port || !slices.Equal(s.listen, listen)) {
		s.log.Info("BGP starts anew: its AS, router id or addresses changed", "as", p.ASN, "router", p.RouterID)
		s.stop(true)
		restart = true
	}
	if s.plan == nil {
		s.since, s.settled = time.Now(), false
	}
	old := s.plan
	s.plan = p
	if restart {
		s.listen = listen
		if err := s.start(p); err != nil {
			s.stop(false)
			s.plan = nil
			fail("BGP", fmt.Errorf("cannot start: %w", err), "heddle status")
			return problems
		}
	}
	secrets := map[string]bool{}
	for i := range p.Neighbors {
		if n := &p.Neighbors[i]; n.Password != "" {
			secrets[string(n.Password)] = true
		}
	}
	s.listener.hide(secrets)
	again, e := s.judge(p)
	if e != nil {
		fail("BGP filters", e, "heddle plan")
	}
	for _, e := range s.meet(old, p, restart) {
		fail("BGP neighbor", e, "heddle status")
	}
	for _, e := range s.announce(old, p) {
		fail("BGP announcement", e, "heddle status")
	}
	for a, d := range again {
		if n := s.sessions[a]; n != nil && n.added {
			if err := s.bgp.ResetPeer(context.Background(), &api.ResetPeerRequest{Address: a.String(), Soft: true, Direction: d}); err != nil {
				fail("BGP filters", fmt.Errorf("neighbor %s: %w", a, err), "heddle status")
			}
		}
	}
	s.change()
	return append(problems, s.watch(p)...)
}

// listenable are the plan's addresses on which can be listened.
func (s *Server) listenable(p *peering.Plan) (out []netip.Addr, errs []error) {
	held := s.bgp != nil && s.plan != nil && s.plan.Port == p.Port
	for _, a := range p.Listen {
		if held && slices.Contains(s.listen, a) {
			out = append(out, a)
			continue
		}
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, p.Port)))
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot listen: %w", err))
			continue
		}
		_ = l.Close()
		out = append(out, a)
	}
	return out, errs
}

// judge makes gobgp judge as the plan does, and returns which neighbours' routes are to be judged again.
func (s *Server) judge(p *peering.Plan) (again map[netip.Addr]api.ResetPeerRequest_Direction, err error) {
	rules, old := newRuleset(p), s.rules
	if old != nil && rules.same(old) {
		return nil, nil
	}
	ctx := context.Background()
	if err := s.bgp.SetPolicies(ctx, rules.request()); err != nil {
		return nil, err
	}
	if old == nil {
		for d, name := range map[api.PolicyDirection]string{api.PolicyDirection_POLICY_DIRECTION_IMPORT: "import", api.PolicyDirection_POLICY_DIRECTION_EXPORT: "export"} {
			a := &api.PolicyAssignment{Name: "global", Direction: d, Policies: []*api.Policy{{Name: name}}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT}
			if err := s.bgp.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: a}); err != nil {
				return nil, err
			}
		}
		s.rules = rules
		return nil, nil
	}
	s.rules = rules
	again = map[netip.Addr]api.ResetPeerRequest_Direction{}
	for a := range rules.judgedIn {
		in, out := rules.judgedIn[a] != old.judgedIn[a], rules.judgeOut[a] != old.judgeOut[a]
		switch {
		case in && out:
			again[a] = api.ResetPeerRequest_DIRECTION_BOTH
		case in:
			again[a] = api.ResetPeerRequest_DIRECTION_IN
		case out:
			again[a] = api.ResetPeerRequest_DIRECTION_OUT
		}
	}
	return again, nil
}

// meet makes the neighbours those of the plan.
func (s *Server) meet(old, p *peering.Plan, restarting bool) (errs []error) {
	wanted := map[netip.Addr]*peering.Neighbor{}
	for i := range p.Neighbors {
		wanted[p.Neighbors[i].Address] = &p.Neighbors[i]
	}
	paused := s.pause(old, p, wanted)
	for _, a := range s.addresses() {
		n, w := s.sessions[a], wanted[a]
		switch {
		case w == nil:
			errs = append(errs, s.remove(n))
			s.listener.forget(a)
			delete(s.sessions, a)
		case !reflect.DeepEqual(wired(n.Neighbor), wired(*w)) || reflectsAnew(old, p, &n.Neighbor, w):
			errs = append(errs, s.remove(n))
			if k := paused[a]; k != nil {
				s.kept[a] = k
			}
			s.sessions[a] = &session{Neighbor: *w, state: peering.Idle, since: time.Now(), flaps: n.flaps, lost: n.lost}
		default:
			n.Neighbor = *w
			if n.added {
				s.limits.set(w, s.line(w))
			}
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(wanted), netip.Addr.Compare) {
		if s.sessions[a] == nil {
			s.sessions[a] = &session{Neighbor: *wanted[a], state: peering.Idle, since: time.Now()}
		}
		if n := s.sessions[a]; !n.added && !time.Now().Before(n.held) {
			errs = append(errs, s.add(n, restarting || paused[a] != nil))
		}
	}
	return slices.DeleteFunc(errs, func(e error) bool { return e == nil })
}

func (s *Server) add(n *session, restarting bool) error {
	s.limits.set(&n.Neighbor, s.line(&n.Neighbor))
	if err := s.bgp.AddPeer(context.Background(), &api.AddPeerRequest{Peer: peer(s.plan, &n.Neighbor, restarting)}); err != nil {
		return fmt.Errorf("neighbor %s (%s): %w", n.Address, n.Name, err)
	}
	n.added = true
	return nil
}

// remove ends a session: the neighbour hears of it, and its routes are gone.
func (s *Server) remove(n *session) error {
	if n.asking != nil {
		n.asking()
		n.asking = nil
		n.answered.Store(false)
	}
	if !n.added {
		return nil
	}
	n.added = false
	s.limits.forget(n.Address)
	delete(s.kept, n.Address)
	ctx := context.Background()
	if n.Password != "" {
		// gobgp takes a password off its listeners only when it replaces a neighbour: with one that is not to be.
		bare := peer(s.plan, &n.Neighbor, false)
		bare.Conf.AuthPassword, bare.Conf.AdminDown = "", true
		_, _ = s.bgp.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: bare})
	}
	if err := s.bgp.DeletePeer(ctx, &api.DeletePeerRequest{Address: n.Address.String()}); err != nil {
		return fmt.Errorf("neighbor %s (%s): %w", n.Address, n.Name, err)
	}
	if n.state != peering.Idle {
		n.state, n.since = peering.Idle, time.Now()
	}
	return nil
}

// announce makes the own prefixes those of the plan.
func (s *Server) announce(old, p *peering.Plan) (errs []error) {
	wanted := map[netip.Prefix]peering.Announcement{}
	for _, a := range p.Announced {
		wanted[a.Prefix] = a
	}
	renewed := old != nil && !slices.Equal(old.Listen, p.Listen) // which may be next hops
	var add, del []*apiutil.Path
	for x, a := range s.told {
		if _, ok := wanted[x]; !ok {
			del = append(del, announcement(p, &a))
			delete(s.told, x)
		}
	}
	for x, a := range wanted {
		if had, ok := s.told[x]; ok && !renewed && slices.Equal(had.Communities, a.Communities) {
			continue
		}
		add = append(add, announcement(p, &a))
		s.told[x] = a
	}
	if len(del) > 0 {
		errs = append(errs, s.bgp.DeletePath(apiutil.DeletePathRequest{Paths: del}))
	}
	if len(add) > 0 {
		_, err := s.bgp.AddPath(apiutil.AddPathRequest{Paths: add})
		errs = append(errs, err)
	}
	return slices.DeleteFunc(errs, func(e error) bool { return e == nil })
}

// watch has the neighbours watched that ask for it.
func (s *Server) watch(p *peering.Plan) []model.Problem {
	var list []bfd.Session
	if p != nil {
		for i := range p.Neighbors {
			if n := &p.Neighbors[i]; n.BFD != nil {
				list = append(list, bfd.Session{Peer: n.Address, Local: n.Source, Multihop: n.Multihop > 1, Timers: *n.BFD})
			}
		}
	}
	err := error(nil)
	switch {
	case s.bfd != nil:
		err = s.bfd.Set(list)
	case len(list) > 0:
		err = errors.New("neighbors ask for it, and nothing here can do it")
	}
	if err == nil {
		return nil
	}
	return []model.Problem{{Code: "bfd", Severity: model.Failure, Subject: "liveness detection (BFD)", Detail: err.Error(), Next: "heddle status"}}
}
