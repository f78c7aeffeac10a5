package calico

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// Bounds of BGP's timers: RFC 4724 section 3 (12 bits), RFC 9494 section 3 (24 bits), RFC 4271 section 4.2.
const (
	mostRestart   = 4095 * time.Second
	mostLongLived = (1<<24 - 1) * time.Second
	leastHold     = 3 * time.Second
	mostHold      = 65535 * time.Second
)

// anyHops is how far away eBGP neighbours may be: other than BGP itself, Calico asks no segment in common.
const anyHops = 255

func (p place) bgpConfiguration(o *BGPConfiguration, part func(error)) (func(*reading), error) {
	spec, at := &o.Spec, p.field("spec")
	port, err := at.port("listenPort", spec.ListenPort)
	if err != nil {
		return nil, err
	}
	if node, is := strings.CutPrefix(o.Name, "node."); is && node != "" {
		// Calico has the same fields for all nodes only.
		for _, f := range []struct {
			name  string
			given bool
		}{
			{"nodeToNodeMeshEnabled", spec.NodeToNodeMeshEnabled != nil},
			{"asNumber", spec.ASNumber != nil},
			{"serviceClusterIPs", len(spec.ServiceClusterIPs) > 0},
			{"serviceExternalIPs", len(spec.ServiceExternalIPs) > 0},
			{"serviceLoadBalancerIPs", len(spec.ServiceLoadBalancerIPs) > 0},
			{"communities", len(spec.Communities) > 0},
			{"prefixAdvertisements", len(spec.PrefixAdvertisements) > 0},
			{"nodeMeshPassword", spec.NodeMeshPassword != nil},
			{"nodeMeshMaxRestartTime", spec.NodeMeshMaxRestartTime != ""},
		} {
			if f.given {
				part(at.field(f.name).bad(given{}, "nothing: only the BGPConfiguration default may say it"))
			}
		}
		return func(r *reading) { r.BGP.Settings.PerNode[node] = peering.NodeSettings{ListenPort: port} }, nil
	}
	if err := p.only(o, "default", "node.NAME"); err != nil {
		return nil, err
	}
	s := peering.Settings{Mesh: spec.NodeToNodeMeshEnabled == nil || *spec.NodeToNodeMeshEnabled, MeshLimit: peering.DefaultMeshLimit, ListenPort: port}
	if s.ASN, err = at.field("asNumber").asn(spec.ASNumber); err != nil {
		return nil, err
	}
	if s.ASN == 0 {
		s.ASN = peering.DefaultASN
	}
	if s.ListenPort == 0 {
		s.ListenPort = peering.DefaultPort
	}
	for _, of := range []struct {
		field string
		from  []CIDRBlock
		to    *[]netip.Prefix
	}{
		{"serviceClusterIPs", spec.ServiceClusterIPs, &s.ClusterIPs},
		{"serviceExternalIPs", spec.ServiceExternalIPs, &s.ExternalIPs},
		{"serviceLoadBalancerIPs", spec.ServiceLoadBalancerIPs, &s.LoadBalancerIPs},
	} {
		for i, b := range of.from {
			n, err := at.field(of.field).item(i).field("cidr").network(b.CIDR)
			if err != nil {
				return nil, err
			}
			*of.to = append(*of.to, n)
		}
	}
	if s.Advertisements, err = at.advertisements(spec); err != nil {
		return nil, err
	}
	if s.MeshPasswordRef, err = at.field("nodeMeshPassword").password(spec.NodeMeshPassword); err != nil {
		return nil, err
	}
	if s.MeshRestartTime, err = at.field("nodeMeshMaxRestartTime").duration(spec.NodeMeshMaxRestartTime, 0, mostRestart); err != nil {
		return nil, err
	}
	if spec.BindMode != "" && spec.BindMode != "NodeIP" {
		part(at.field("bindMode").bad(spec.BindMode, "NodeIP: Heddle listens on the node's addresses only"))
	}
	if text := spec.LoadBalancerAggregated; text != "" && text != "Enabled" {
		part(at.field("serviceLoadBalancerAggregation").bad(text, "Enabled: ranges are announced, not single services"))
	}
	if err := p.annotations(&o.Meta, map[string]func(place, string) error{
		"mesh-limit": func(at place, text string) (err error) {
			s.MeshLimit, err = at.count(text, 0, 1_000_000)
			return err
		},
	}); err != nil {
		return nil, err
	}
	return func(r *reading) {
		s.PerNode = r.BGP.Settings.PerNode
		r.BGP.Settings, r.configured = s, true
	}, nil
}

// port is a port, or 0 for none.
func (p place) port(field string, n int) (uint16, error) {
	if n < 0 || n > 65535 {
		return 0, p.field(field).bad(n, "1..65535")
	}
	return uint16(n), nil
}

// count is a number in an annotation.
func (p place) count(text string, least, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, p.bad(text, strconv.Itoa(least)+".."+strconv.Itoa(most))
	}
	return n, nil
}

// advertisements are those of a BGPConfiguration, with the values of communities that have names.
func (p place) advertisements(spec *BGPConfigurationSpec) ([]peering.Advertisement, error) {
	named := map[string]peering.Community{}
	for i, c := range spec.Communities {
		at := p.field("communities").item(i)
		v, err := at.field("value").community(c.Value)
		if err != nil {
			return nil, err
		}
		if _, twice := named[c.Name]; twice || c.Name == "" {
			return nil, at.field("name").bad(c.Name, "a name that no other community has")
		}
		named[c.Name] = v
	}
	var out []peering.Advertisement
	for i, a := range spec.PrefixAdvertisements {
		at := p.field("prefixAdvertisements").item(i)
		n, err := at.field("cidr").network(a.CIDR)
		if err != nil {
			return nil, err
		}
		one := peering.Advertisement{CIDR: n}
		for k, text := range a.Communities {
			c, ok := named[text]
			if !ok {
				if c, err = at.field("communities").item(k).community(text); err != nil {
					return nil, err
				}
			}
			one.Communities = append(one.Communities, c)
		}
		out = append(out, one)
	}
	return out, nil
}

func (p place) community(text string) (peering.Community, error) {
	var c peering.Community
	if c.UnmarshalText([]byte(text)) != nil {
		return c, p.bad(text, "AA:NN of 0..65535, AA:BB:CC of 0..4294967295, or the name of one of spec.communities")
	}
	return c, nil
}

var secretKeyRE = regexp.MustCompile(`^[-._a-zA-Z0-9]{1,253}$`)

// password is the name of the file with a password, below the folder that the agent is told; "" for none.
func (p place) password(b *BGPPassword) (string, error) {
	if b == nil {
		return "", nil
	}
	at := p.field("secretKeyRef")
	if b.SecretKeyRef == nil {
		return "", at.bad("", "name and key: the password is the file NAME/KEY in the folder bgp.passwords of heddle.yaml")
	}
	if !model.ValidName(b.SecretKeyRef.Name) {
		return "", at.field("name").bad(b.SecretKeyRef.Name, "a lower-case RFC 1123 name")
	}
	// No way leads out of the folder: a name begins with a letter or digit, and a key is neither . nor ..
	if key := b.SecretKeyRef.Key; !secretKeyRE.MatchString(key) || strings.HasPrefix(key, "..") || key == "." {
		return "", at.field("key").bad(key, "letters, digits, - _ and ., not beginning with two dots")
	}
	return b.SecretKeyRef.Name + "/" + b.SecretKeyRef.Key, nil
}

func (p place) bgpPeer(o *BGPPeer) (func(*reading), error) {
	spec, at := &o.Spec, p.field("spec")
	out := peering.Peer{Name: o.Name, Node: spec.Node, NodeSelector: spec.NodeSelector, PeerSelector: spec.PeerSelector}
	out.Filters = slices.Clone(spec.Filters)
	if err := at.peerPlace(spec, &out); err != nil {
		return nil, err
	}
	var err error
	if out.RemoteASN, err = at.field("asNumber").asn(spec.ASNumber); err != nil {
		return nil, err
	}
	if out.LocalASN, err = at.field("localASNumber").asn(spec.LocalASNumber); err != nil {
		return nil, err
	}
	if out.PasswordRef, err = at.field("password").password(spec.Password); err != nil {
		return nil, err
	}
	source, err := at.field("sourceAddress").oneOf(spec.SourceAddress, "UseNodeIP", "None")
	if err != nil {
		return nil, err
	}
	out.AnySource = source == "None"
	if out.RestartTime, err = at.field("maxRestartTime").duration(spec.MaxRestartTime, 0, mostRestart); err != nil {
		return nil, err
	}
	if out.KeepAlive, err = at.field("keepaliveTime").duration(spec.KeepaliveTime, time.Second, mostHold/3); err != nil {
		return nil, err
	}
	if out.AllowOwnAS, err = at.field("numAllowedLocalASNumbers").number(spec.AllowedLocalASNumber, 0, 10); err != nil {
		return nil, err
	}
	hops, err := at.field("ttlSecurity").number(spec.TTLSecurity, 1, 254)
	if err != nil {
		return nil, err
	}
	if out.TTLSecurity = uint8(hops); hops == 0 {
		out.Multihop = anyHops
	}
	mode, err := at.field("nextHopMode").oneOf(spec.NextHopMode, "Auto", "Self", "Keep")
	if err != nil {
		return nil, err
	}
	if spec.KeepOriginalNextHop {
		if spec.NextHopMode != "" {
			return nil, at.field("keepOriginalNextHop").bad(given{}, "nothing beside nextHopMode, which replaces it")
		}
		mode = "Keep"
	}
	out.NextHop = peering.NextHop(mode)
	reverse, err := at.field("reversePeering").oneOf(spec.ReversePeering, "Auto", "Manual")
	if err != nil {
		return nil, err
	}
	out.OneSided = reverse == "Manual"
	if err := p.peerAnnotations(o, &out); err != nil {
		return nil, err
	}
	if out.HoldTime != 0 && out.KeepAlive > out.HoldTime/3 {
		return nil, at.field("keepaliveTime").bad(spec.KeepaliveTime, "at most a third of the hold time "+out.HoldTime.String())
	}
	return func(r *reading) { r.BGP.Peers = append(r.BGP.Peers, out) }, nil
}

// peerPlace reads which nodes, and with whom.
func (p place) peerPlace(spec *BGPPeerSpec, out *peering.Peer) error {
	if spec.Node != "" && spec.NodeSelector != "" {
		return p.field("nodeSelector").bad(spec.NodeSelector, "nothing beside node")
	}
	if spec.Node != "" && !model.ValidName(spec.Node) {
		return p.field("node").bad(spec.Node, "a node's name")
	}
	for _, s := range []struct{ field, text string }{{"nodeSelector", spec.NodeSelector}, {"peerSelector", spec.PeerSelector}} {
		if err := p.field(s.field).selector(s.text); err != nil {
			return err
		}
	}
	for i, f := range spec.Filters {
		if !model.ValidName(f) {
			return p.field("filters").item(i).bad(f, "the name of a BGPFilter")
		}
	}
	switch {
	case spec.PeerIP == "" && spec.PeerSelector == "":
		return p.field("peerIP").bad("", "the neighbour's address, or a peerSelector")
	case spec.PeerIP != "" && spec.PeerSelector != "":
		return p.field("peerSelector").bad(spec.PeerSelector, "nothing beside peerIP")
	case spec.PeerSelector != "" && spec.ASNumber != nil && *spec.ASNumber != "0":
		return p.field("asNumber").bad(string(*spec.ASNumber), "nothing beside peerSelector: nodes have theirs")
	case spec.ReachableBy != "":
		return p.field("reachableBy").bad(spec.ReachableBy, "nothing: a neighbour is reached by the routes that the node has; add one there")
	}
	if spec.PeerSelector != "" {
		spec.ASNumber = nil
		return nil
	}
	if a, err := netip.ParseAddr(spec.PeerIP); err == nil {
		out.Address = a
	} else if ap, err := netip.ParseAddrPort(spec.PeerIP); err == nil && ap.Port() > 0 {
		out.Address, out.Port = ap.Addr(), ap.Port()
	}
	if a := out.Address; !a.IsValid() || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() {
		return p.field("peerIP").bad(spec.PeerIP, "a unicast address, with a port or without: 192.0.2.1, 192.0.2.1:179, [2001:db8::1]:179")
	}
	return nil
}

var bfdRE = regexp.MustCompile(`^([0-9]+ms|[0-9]+s)(?: ?x ?([0-9]+))?$`)

// Timers of BFD where nothing else is said: a neighbour that is gone is noticed within a second.
const (
	bfdInterval   = 300 * time.Millisecond
	bfdMultiplier = 3
)

// peerAnnotations reads what Calico has no field for.
func (p place) peerAnnotations(o *BGPPeer, out *peering.Peer) error {
	return p.annotations(&o.Meta, map[string]func(place, string) error{
		"bfd": func(at place, text string) error {
			b := peering.BFD{Transmit: bfdInterval, Receive: bfdInterval, Multiplier: bfdMultiplier}
			if text != "true" {
				const want = `true, or an interval of 10ms to 60s with the number of packets that may be missed: "300ms x3"`
				m := bfdRE.FindStringSubmatch(text)
				if m == nil {
					return at.bad(text, want)
				}
				d, err := time.ParseDuration(m[1])
				n := bfdMultiplier
				if m[2] != "" && err == nil {
					n, err = strconv.Atoi(m[2])
				}
				if err != nil || d < 10*time.Millisecond || d > time.Minute || n < 1 || n > 255 {
					return at.bad(text, want)
				}
				b = peering.BFD{Transmit: d, Receive: d, Multiplier: uint8(n)}
			}
			out.BFD = &b
			return nil
		},
		"hold-time": func(at place, text string) (err error) {
			out.HoldTime, err = at.duration(text, leastHold, mostHold)
			return err
		},
		"long-lived-restart-time": func(at place, text string) (err error) {
			out.LongLived, err = at.duration(text, 0, mostLongLived)
			return err
		},
		"max-prefixes": func(at place, text string) (err error) {
			out.MaxPrefixes, err = at.count(text, 1, 1_000_000)
			return err
		},
		"passive": func(at place, text string) (err error) {
			if out.Passive, err = strconv.ParseBool(text); err != nil {
				return at.bad(text, "true or false")
			}
			return nil
		},
	})
}
