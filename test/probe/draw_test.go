package probe

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/test/oracle"
)

// flow is what connection tracking knows a flow by.
type flow struct {
	protocol uint8
	src, dst netip.AddrPort
}

// drawer chooses what to ask.
type drawer struct {
	*cluster
	used map[flow]bool
	next uint16 // source port or identifier
}

// draw chooses some shots at random, but so that each kind of packet and each outcome is among them, and in
// each of these each kind of reason, as far as the world has them.
func (d *drawer) draw(w *oracle.World, seed uint64, many int) []*shot {
	r := rand.New(rand.NewPCG(seed, 107))
	o, q := oracle.New(w), w.Questions()
	classes := map[string]map[string][]*shot{}
	for range 25 * many {
		s := d.random(r, q)
		if s == nil {
			continue
		}
		s.egress, s.ingress = o.Verdict(s.src, s.dst, s.protocol, s.sport, s.dport)
		s.want = expected(s)
		if !s.from.pod && portMatters(o, q, s) {
			continue
		}
		class := s.kind() + " " + string(s.want)
		if classes[class] == nil {
			classes[class] = map[string][]*shot{}
		}
		reason := reasons(s)
		classes[class][reason] = append(classes[class][reason], s)
	}
	var shots []*shot
	names, turn := slices.Sorted(maps.Keys(classes)), map[string]int{}
	for range 25 * many {
		for _, name := range names {
			byReason := classes[name]
			all := slices.Sorted(maps.Keys(byReason))
			if len(all) == 0 || len(shots) == many {
				continue
			}
			reason := all[turn[name]%len(all)]
			turn[name]++
			s := byReason[reason][0]
			if byReason[reason] = byReason[reason][1:]; len(byReason[reason]) == 0 {
				delete(byReason, reason)
			}
			if d.take(s) {
				shots = append(shots, s)
			}
		}
	}
	return shots
}

// portMatters reports whether another source port would meet another end. What a node itself sends to pods
// elsewhere is masqueraded as the node that it comes from, and gets a port by chance.
func portMatters(o *oracle.Oracle, q *oracle.Questions, s *shot) bool {
	if s.protocol != unix.IPPROTO_TCP && s.protocol != unix.IPPROTO_UDP {
		return false
	}
	for _, port := range append([]uint16{1, 1024, 10000, 32768, 50000, 65535}, q.Ports...) {
		other := *s
		other.egress, other.ingress = o.Verdict(s.src, s.dst, s.protocol, port, s.dport)
		if expected(&other) != s.want {
			return true
		}
	}
	return false
}

func expected(s *shot) outcome {
	switch {
	case !s.egress.Allow || !s.ingress.Allow:
		return silent
	case s.protocol != unix.IPPROTO_TCP && s.protocol != unix.IPPROTO_UDP, slices.Contains(openPorts, s.dport):
		return open
	}
	return refused
}

// reasons name what kinds of policies decide, at both ends.
func reasons(s *shot) string {
	text := ""
	for _, v := range []oracle.Verdict{s.egress, s.ingress} {
		if v.Why == oracle.ByRule || v.Why == oracle.ByTier {
			text += fmt.Sprintf("%s %s %t", v.Why, v.Policy.Kind, v.Allow)
		}
		text += "; "
	}
	return text
}

// random is a shot that nothing forbids but policies; nil when it is none.
func (d *drawer) random(r *rand.Rand, q *oracle.Questions) *shot {
	pick := func(from []*place) *place { return from[r.IntN(len(from))] }
	s := &shot{from: pick(d.pods), to: pick(d.pods)}
	switch r.IntN(60) {
	case 0:
		s.to = s.from
	case 1, 2, 3, 4, 5:
		s.from = pick(d.hosts[:len(d.hosts)-1]) // nobody outside has a way in
	case 6, 7, 8, 9, 10:
		s.to = pick(d.hosts)
	default:
		if s.from == s.to {
			return nil
		}
	}
	is4 := r.IntN(2) == 0
	s.dst = pickAddress(r, s.to, is4)
	if s.src = pickAddress(r, s.from, is4); !s.from.pod {
		var err error
		if s.src, err = s.from.sourceTowards(s.dst); err != nil {
			d.t.Fatalf("%s to %s: %v", s.from.name, s.dst, err)
		}
	}
	if d.next++; d.next < 10000 {
		d.next = 10000
	}
	s.sport = d.next
	switch r.IntN(5) {
	case 0:
		if s.protocol, s.dport = unix.IPPROTO_ICMP, 8<<8; !is4 {
			s.protocol, s.dport = unix.IPPROTO_ICMPV6, 128<<8
		}
		return s // its identifier is no port, but nobody asks for one
	case 1, 2:
		s.protocol = unix.IPPROTO_TCP
	default:
		s.protocol = unix.IPPROTO_UDP
	}
	s.dport = openPorts[r.IntN(len(openPorts))]
	if r.IntN(2) == 0 {
		s.dport = q.Ports[r.IntN(len(q.Ports))]
	}
	if r.IntN(5) == 0 {
		s.sport = q.Ports[r.IntN(len(q.Ports))]
	}
	if s.from == s.to && s.sport == s.dport { // a socket can be its own other end
		return nil
	}
	if s.dport == 0 || s.sport == 0 || slices.Contains(openPorts, s.sport) || !s.to.pod && slices.Contains(busyPorts, s.dport) {
		return nil
	}
	return s
}

// busyPorts are those on which nodes themselves listen.
var busyPorts = []uint16{2379, 2380, 8472}

// pickAddress is one of a place's addresses: machines have several.
func pickAddress(r *rand.Rand, of *place, is4 bool) netip.Addr {
	all := slices.DeleteFunc(slices.Clone(of.addrs), func(a netip.Addr) bool { return a.Is4() != is4 })
	return all[r.IntN(len(all))]
}

// take is false when the flow, or its other direction, is one that was there before: connection tracking
// may remember it.
func (d *drawer) take(s *shot) bool {
	f := flow{s.protocol, netip.AddrPortFrom(s.src, s.sport), netip.AddrPortFrom(s.dst, s.dport)}
	if s.protocol == unix.IPPROTO_ICMP || s.protocol == unix.IPPROTO_ICMPV6 {
		f.dst = netip.AddrPortFrom(s.dst, s.sport)
	}
	if d.used[f] || d.used[flow{f.protocol, f.dst, f.src}] {
		return false
	}
	d.used[f] = true
	return true
}
