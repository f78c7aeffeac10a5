package bgp

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

const (
	// connectRetry is how long a try to connect may take, and about the time until the next: gobgp's default of
	// two minutes keeps a node out for as long after its neighbour came up.
	connectRetry = 5 * time.Second
	// deferral is how long a restarted speaker waits for all its neighbours before it tells what it knows itself
	// (RFC 4724 section 4.1). Reflectors wait longer: what they have not yet heard from one client, others lose.
	deferral          = 5 * time.Second
	deferralReflector = 10 * time.Second
)

// peer is a neighbour in gobgp's words. restarting: this is the first session since the start.
func peer(p *peering.Plan, n *peering.Neighbor, restarting bool) *api.Peer {
	hold := cmp.Or(n.HoldTime, 90*time.Second)
	wait := deferral
	if p.ClusterID.IsValid() {
		wait = deferralReflector
	}
	restart := min(cmp.Or(n.RestartTime, peering.DefaultRestartTime), 4095*time.Second)
	out := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: n.Address.String(), PeerAsn: cmp.Or(n.RemoteASN, p.ASN), LocalAsn: cmp.Or(n.LocalASN, p.ASN),
			AuthPassword: string(n.Password), AllowOwnAsn: uint32(min(n.AllowOwnAS, 255)), Description: n.Name,
		},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: seconds(hold), KeepaliveInterval: seconds(cmp.Or(n.KeepAlive, hold/3)), ConnectRetry: seconds(connectRetry),
			IdleHoldTimeAfterReset: 1,
		}},
		Transport: &api.Transport{RemotePort: uint32(cmp.Or(n.Port, peering.DefaultPort)), PassiveMode: n.Passive},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(seconds(restart)), DeferralTime: uint32(seconds(wait)),
			LonglivedEnabled: n.LongLived > 0, LocalRestarting: restarting,
		},
	}
	if n.Source.IsValid() {
		out.Transport.LocalAddress = n.Source.String()
	}
	switch {
	case n.TTLSecurity > 0:
		out.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 256 - uint32(n.TTLSecurity)}
	case n.Multihop > 0 && n.Kind(p.ASN) == peering.External:
		out.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(n.Multihop)}
	}
	if n.Client {
		out.RouteReflector = &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: cmp.Or(p.ClusterID, p.RouterID).String()}
	}
	for _, f := range families {
		af := &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: safi(f)[0], Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		}
		if n.LongLived > 0 {
			af.LongLivedGracefulRestart = &api.LongLivedGracefulRestart{Config: &api.LongLivedGracefulRestartConfig{
				Enabled: true, RestartTime: uint32(min(seconds(n.LongLived), 1<<24-1)), // RFC 9494 section 3.1
			}}
		}
		out.AfiSafis = append(out.AfiSafis, af)
	}
	return out
}

func maxPrefixes(n *peering.Neighbor) int { return cmp.Or(n.MaxPrefixes, peering.DefaultMaxPrefixes) }

func seconds(d time.Duration) uint64 { return uint64(max(d, time.Second) / time.Second) }

// wired is a neighbour without what its session does not depend on: what filters, names and next hops say can
// change while it stands.
func wired(n peering.Neighbor) peering.Neighbor {
	n.Name, n.Node, n.Filters, n.NextHop, n.BFD = "", "", nil, "", nil
	return n
}

// announcement is an own prefix in gobgp's words.
func announcement(p *peering.Plan, a *peering.Announcement) *apiutil.Path {
	f := family(a.Prefix)
	hop, ok := ownAddress(p, f)
	if !ok {
		hop = everything(f).Addr() // the session's own address
	}
	nlri, _ := bgp.NewIPAddrPrefix(a.Prefix) // fails for no prefix only
	path := &apiutil.Path{Family: wire(f), Nlri: nlri, Age: time.Now().Unix(), Attrs: []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP)}}
	if f == model.IPv4 {
		attr, _ := bgp.NewPathAttributeNextHop(hop)
		path.Attrs = append(path.Attrs, attr)
	} else {
		attr, _ := bgp.NewPathAttributeMpReachNLRI(path.Family, []bgp.PathNLRI{{NLRI: nlri}}, hop)
		path.Attrs = append(path.Attrs, attr)
	}
	var small []uint32
	var large []*bgp.LargeCommunity
	for _, c := range a.Communities {
		if c.Large {
			large = append(large, &bgp.LargeCommunity{ASN: c.A, LocalData1: c.B, LocalData2: c.C})
		} else {
			small = append(small, c.A<<16|c.B)
		}
	}
	if small != nil {
		path.Attrs = append(path.Attrs, bgp.NewPathAttributeCommunities(small))
	}
	if large != nil {
		path.Attrs = append(path.Attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return path
}

func wire(f model.Family) bgp.Family {
	if f == model.IPv6 {
		return bgp.RF_IPv6_UC
	}
	return bgp.RF_IPv4_UC
}

// path is a route of gobgp's with what decides between several.
type path struct {
	peering.Route
	origin   uint8
	length   int // of the AS path, as it is compared
	external bool
	id       netip.Addr
	all      []uint32 // ASes of the whole path, sets too
	origID   netip.Addr
}

// route reads a path. ASPath ends where the first set begins: those are not in order.
func route(prefix netip.Prefix, p *apiutil.Path, asn uint32) path {
	out := path{
		Route:    peering.Route{Prefix: prefix, Neighbor: p.PeerAddress, Preference: 100, Best: p.Best, Stale: p.Stale},
		external: p.PeerASN != asn, id: p.PeerID,
	}
	for _, attr := range p.Attrs {
		switch a := attr.(type) {
		case *bgp.PathAttributeOrigin:
			out.origin = a.Value
		case *bgp.PathAttributeNextHop:
			out.NextHop = a.Value
		case *bgp.PathAttributeMpReachNLRI:
			out.NextHop = a.Nexthop
		case *bgp.PathAttributeLocalPref:
			out.Preference = a.Value
		case *bgp.PathAttributeMultiExitDisc:
			out.MED = a.Value
		case *bgp.PathAttributeOriginatorId:
			out.origID = a.Value
		case *bgp.PathAttributeAsPath:
			ordered := true
			for _, s := range a.Value {
				ordered = ordered && s.GetType() == bgp.BGP_ASPATH_ATTR_TYPE_SEQ
				if ordered {
					out.ASPath = append(out.ASPath, s.GetAS()...)
				}
				out.all = append(out.all, s.GetAS()...)
				out.length += s.ASLen()
			}
		case *bgp.PathAttributeCommunities:
			for _, c := range a.Value {
				out.Communities = append(out.Communities, peering.Community{A: c >> 16, B: c & 0xffff})
			}
		case *bgp.PathAttributeLargeCommunities:
			for _, c := range a.Values {
				out.Communities = append(out.Communities, peering.Community{Large: true, A: c.ASN, B: c.LocalData1, C: c.LocalData2})
			}
		}
	}
	// They are a set; gobgp adds one that is there already once more.
	slices.SortFunc(out.Communities, func(a, b peering.Community) int {
		return cmp.Or(cmp.Compare(b2i(a.Large), b2i(b.Large)), cmp.Compare(a.A, b.A), cmp.Compare(a.B, b.B), cmp.Compare(a.C, b.C))
	})
	out.Communities = slices.Compact(out.Communities)
	out.LongLived = slices.Contains(out.Communities, peering.LLGRStale)
	return out
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// looped says why gobgp does not take a path whatever filters say; "" when it does.
func looped(x *path, p *peering.Plan, n *peering.Neighbor) string {
	own, times := cmp.Or(n.LocalASN, p.ASN), 0
	for _, as := range x.all {
		if as == own {
			times++
		}
	}
	switch {
	case times > n.AllowOwnAS:
		return "this node's own AS is in its path"
	case x.origID == p.RouterID && n.Kind(p.ASN) == peering.Internal:
		return "this node told it first, and it was reflected"
	}
	return ""
}

// compare says why a counts more than b, as gobgp decides (RFC 4271 section 9.1.2.2, RFC 9494 section 4.3).
func compare(a, b *path) string {
	switch {
	case a.LongLived != b.LongLived:
		return "a neighbor that is there"
	case a.Preference != b.Preference:
		return "a higher preference"
	case a.length != b.length:
		return "a shorter AS path"
	case a.origin != b.origin:
		return "a better origin"
	case a.MED != b.MED:
		return "a lower MED"
	case a.external != b.external:
		return "told from outside the AS"
	case a.id != b.id:
		return "an older or lower router id"
	}
	return "a lower address"
}

func sortRoutes(rs []path) {
	slices.SortStableFunc(rs, func(a, b path) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()),
			rank(&a)-rank(&b), a.Neighbor.Compare(b.Neighbor))
	})
}

func rank(p *path) int {
	switch {
	case p.Best:
		return 0
	case !p.Rejected:
		return 1
	}
	return 2
}
