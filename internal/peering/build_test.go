package peering

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
)

// network is n nodes with IPv4 addresses, a block each, and a pool that BGP carries.
func network(n int) *model.Cluster {
	c := &model.Cluster{Pools: []model.Pool{{Name: "p", CIDR: pfx("10.244.0.0/16"), BlockSize: 26, Path: model.PathBGP, Encap: model.EncapNever}}}
	for i := range n {
		name := fmt.Sprintf("n%03d", i)
		c.Nodes = append(c.Nodes, model.Node{Name: name, Address4: netip.AddrFrom4([4]byte{192, 168, byte(i / 250), byte(i%250 + 1)})})
		c.Blocks = append(c.Blocks, model.Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i / 4), byte(i % 4 * 64)}), 26), Pool: "p", Node: name})
	}
	return c
}

func mesh() Config {
	return Config{Settings: Settings{ASN: 64512, Mesh: true, MeshLimit: DefaultMeshLimit}}
}

// plans builds every node's plan.
func plans(t interface{ Fatalf(string, ...any) }, c *model.Cluster, config Config, elected bool) map[string]*Plan {
	all := map[string]*Plan{}
	for i := range c.Nodes {
		p, problems := Build(Input{Self: &c.Nodes[i], Cluster: c, Config: config, Elected: elected})
		if p == nil || len(problems) > 0 {
			t.Fatalf("node %s: %v, %v", c.Nodes[i].Name, p, problems)
		}
		all[c.Nodes[i].Name] = p
	}
	return all
}

// addresses of a plan's neighbours, with what one looks at.
func sessions(p *Plan) string {
	var out []string
	for _, n := range p.Neighbors {
		s := fmt.Sprintf("%s/%d", n.Address, n.RemoteASN)
		if n.Client {
			s += " client"
		}
		out = append(out, s+" "+n.Name)
	}
	return strings.Join(out, ", ")
}

func TestWhoSpeaksWithWhom(t *testing.T) {
	rr := ip("10.0.0.1")
	for _, c := range []struct {
		name   string
		change func(*model.Cluster, *Config)
		self   int
		want   string // of node self; "none" when it does not speak
		mode   string
	}{
		{"mesh", nil, 0, "192.168.0.2/64512 mesh, 192.168.0.3/64512 mesh", "full mesh of 3 nodes"},
		{"no pool of BGP and nobody asked", func(n *model.Cluster, _ *Config) { n.Pools[0].Path = model.PathVXLAN }, 0, "none", ""},
		{"somebody asked", func(n *model.Cluster, c *Config) { n.Pools, c.Wanted = nil, true }, 0, "192.168.0.2/64512 mesh, 192.168.0.3/64512 mesh", "full mesh"},
		{"no mesh", func(_ *model.Cluster, c *Config) { c.Settings.Mesh = false }, 0, "", "no mesh"},
		{"a node with an AS of its own", func(n *model.Cluster, _ *Config) { n.Nodes[1].ASN = 65001 }, 0, "192.168.0.2/65001 mesh, 192.168.0.3/64512 mesh", ""},
		{"that node", func(n *model.Cluster, _ *Config) { n.Nodes[1].ASN = 65001 }, 1, "192.168.0.1/64512 mesh, 192.168.0.3/64512 mesh", ""},
		{"IPv6 where there is no IPv4", func(n *model.Cluster, _ *Config) {
			n.Nodes[0].Address6, n.Nodes[2].Address4, n.Nodes[2].Address6 = ip("fd00::1"), netip.Addr{}, ip("fd00::3")
			n.Nodes[1].Address6 = ip("fd00::2")
		}, 0, "192.168.0.2/64512 mesh, fd00::3/64512 mesh", ""},
		{"a reflector in the mesh", func(n *model.Cluster, _ *Config) { n.Nodes[1].ClusterID = rr }, 1, "192.168.0.1/64512 client mesh, 192.168.0.3/64512 client mesh", "reflects routes, cluster 10.0.0.1"},
		{"reflectors of one cluster are no clients", func(n *model.Cluster, _ *Config) { n.Nodes[1].ClusterID, n.Nodes[2].ClusterID = rr, rr }, 1, "192.168.0.1/64512 client mesh, 192.168.0.3/64512 mesh", ""},
		{"a peer by address", func(_ *model.Cluster, c *Config) {
			c.Settings.Mesh = false
			c.Peers = []Peer{{Name: "rack", Address: ip("192.168.9.9"), Session: Session{RemoteASN: 65000}}}
		}, 0, "192.168.9.9/65000 rack", "no mesh; 1 peer"},
		{"a peer of one node, here", func(_ *model.Cluster, c *Config) {
			c.Settings.Mesh = false
			c.Peers = []Peer{{Name: "rack", Node: "n000", Address: ip("192.168.9.9")}}
		}, 0, "192.168.9.9/64512 rack", ""},
		{"a peer of one node, elsewhere", func(_ *model.Cluster, c *Config) {
			c.Settings.Mesh = false
			c.Peers = []Peer{{Name: "rack", Node: "n000", Address: ip("192.168.9.9")}}
		}, 1, "", ""},
		{"a peer by selector", func(n *model.Cluster, c *Config) {
			c.Settings.Mesh = false
			n.Nodes[0].Labels = map[string]string{"rack": "1"}
			c.Peers = []Peer{{Name: "rack", NodeSelector: "rack == '1'", Address: ip("192.168.9.9")}}
		}, 0, "192.168.9.9/64512 rack", ""},
		{"the more special peer wins", func(_ *model.Cluster, c *Config) {
			c.Settings.Mesh = false
			c.Peers = []Peer{{Name: "a", Address: ip("192.168.9.9")}, {Name: "b", NodeSelector: "all()", Address: ip("192.168.9.9")}, {Name: "c", Node: "n000", Address: ip("192.168.9.9")}}
		}, 0, "192.168.9.9/64512 c", ""},
		{"everybody to the reflectors", reflectors, 0, "192.168.0.2/64512 rr", "no mesh; 1 peer"},
		{"the reflector to everybody", reflectors, 1, "192.168.0.1/64512 client rr, 192.168.0.3/64512 client rr", "reflects"},
		{"a BGPPeer goes before the mesh", func(n *model.Cluster, c *Config) { reflectors(n, c); c.Settings.Mesh = true }, 0, "192.168.0.2/64512 rr, 192.168.0.3/64512 mesh", "full mesh of 2 nodes; 1 peer"},
		{"a peer that is a node", func(_ *model.Cluster, c *Config) {
			c.Settings.Mesh = false
			c.Peers = []Peer{{Name: "rr", Address: ip("192.168.0.2")}}
		}, 0, "192.168.0.2/64512 rr", ""},
		{"and its other end", func(_ *model.Cluster, c *Config) {
			c.Settings.Mesh = false
			c.Peers = []Peer{{Name: "rr", Address: ip("192.168.0.2")}}
		}, 1, "192.168.0.1/64512 rr, 192.168.0.3/64512 rr", ""},
		{"local AS", func(n *model.Cluster, c *Config) {
			c.Settings.Mesh = false
			c.Peers = []Peer{{Name: "x", Node: "n000", PeerSelector: "all()", Session: Session{LocalASN: 65009}}}
		}, 1, "192.168.0.1/65009 x", ""},
		{"a password that is missing", func(_ *model.Cluster, c *Config) { c.Settings.MeshPasswordRef = "s/k" }, 0, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, config := network(3), mesh()
			if c.change != nil {
				c.change(n, &config)
			}
			p, _ := Build(Input{Self: &n.Nodes[c.self], Cluster: n, Config: config})
			if p == nil {
				if c.want != "none" {
					t.Fatal("it does not speak")
				}
				return
			}
			if got := sessions(p); got != c.want || !strings.Contains(p.Mode, c.mode) {
				t.Errorf("got %s (%s)\nwant %s (…%s…)", got, p.Mode, c.want, c.mode)
			}
		})
	}
}

func reflectors(n *model.Cluster, c *Config) {
	n.Nodes[1].ClusterID, n.Nodes[1].Labels = ip("10.0.0.1"), map[string]string{"rr": ""}
	c.Settings.Mesh = false
	c.Peers = []Peer{{Name: "rr", NodeSelector: "all()", PeerSelector: "has(rr)"}}
}

func TestSessionsAreSpokenAsWritten(t *testing.T) {
	n, config := network(2), mesh()
	config.Settings.ListenPort, config.Settings.PerNode = 1790, map[string]NodeSettings{"n001": {ListenPort: 1791}}
	config.Settings.MeshPassword, config.Settings.MeshPasswordRef = "secret", "bgp/mesh"
	config.Peers = []Peer{
		{Name: "far", Address: ip("10.9.9.9"), Port: 1179, Session: Session{RemoteASN: 65000, Source: ip("10.1.1.1"), Multihop: 4}},
		{Name: "near", Address: ip("10.9.9.8"), AnySource: true, Session: Session{TTLSecurity: 1}},
	}
	p, problems := Build(Input{Self: &n.Nodes[0], Cluster: n, Config: config})
	if len(problems) > 0 || p.Port != 1790 || len(p.Neighbors) != 3 {
		t.Fatalf("%+v, %v", p, problems)
	}
	near, far, other := p.Neighbors[0], p.Neighbors[1], p.Neighbors[2]
	if near.Source.IsValid() || near.Port != 179 || near.TTLSecurity != 1 || far.Source != ip("10.1.1.1") || far.Port != 1179 || far.Multihop != 4 {
		t.Errorf("%+v\n%+v", near, far)
	}
	if other.Port != 1791 || other.Source != ip("192.168.0.1") || other.Password != "secret" || other.Multihop != 0 {
		t.Errorf("%+v", other)
	}
	if text, err := json.Marshal(p); err != nil || strings.Contains(string(text), "secret") || strings.Contains(fmt.Sprintf("%v %+v %#v", p, other, other), "secret") {
		t.Errorf("%v: the password is in %s", err, text)
	}
}

func TestWhatIsAnnouncedAndBelieved(t *testing.T) {
	n, config := network(2), mesh()
	n.Pools = append(n.Pools,
		model.Pool{Name: "hidden", CIDR: pfx("10.245.0.0/16"), Path: model.PathBGP, NoBGPExport: true},
		model.Pool{Name: "none", CIDR: pfx("10.246.0.0/16"), Path: model.PathNone})
	n.Blocks = append(n.Blocks,
		model.Block{CIDR: pfx("10.244.0.7/32"), Pool: "p", Node: "n001"},
		model.Block{CIDR: pfx("10.244.0.8/32"), Pool: "p", Node: "n000"},
		model.Block{CIDR: pfx("10.244.0.71/32"), Pool: "p", Node: "n000"},
		model.Block{CIDR: pfx("10.244.8.0/26"), Pool: "p", Node: "n000"},
		model.Block{CIDR: pfx("10.245.0.0/26"), Pool: "hidden", Node: "n000"},
		model.Block{CIDR: pfx("10.246.0.0/26"), Pool: "none", Node: "n000"})
	n.Nodes[0].Uplinks = []model.Uplink{{Link: "eth1", Prefix: pfx("172.16.0.1/24")}}
	config.Settings.ClusterIPs = []netip.Prefix{pfx("10.96.0.0/12")}
	config.Settings.LoadBalancerIPs = []netip.Prefix{pfx("192.0.2.0/24")}
	c1, c2 := community(t, "65000:1"), community(t, "65000:1:2")
	config.Settings.Advertisements = []Advertisement{
		{CIDR: pfx("10.244.0.0/16"), Communities: []Community{c2, c1}},
		{CIDR: pfx("10.244.8.0/26"), Communities: []Community{c1, community(t, "9:9")}},
		{CIDR: pfx("10.244.8.0/27"), Communities: []Community{community(t, "8:8")}},
	}
	p, problems := Build(Input{Self: &n.Nodes[0], Cluster: n, Config: config, Addresses: []netip.Addr{ip("10.244.0.9"), ip("10.244.0.70"), ip("10.244.0.71"), ip("203.0.113.1")}})
	var got []string
	for _, a := range p.Announced {
		got = append(got, fmt.Sprintf("%s %v %s", a.Prefix, a.Communities, a.Reason))
	}
	want := []string{
		"10.96.0.0/12 [] range of services' cluster IPs",
		`10.244.0.0/26 [65000:1 65000:1:2] block of pool "p"`,
		`10.244.0.70/32 [65000:1 65000:1:2] address of pool "p", in a block of another node`,
		`10.244.0.71/32 [65000:1 65000:1:2] address of pool "p", in a block of another node`,
		`10.244.8.0/26 [9:9 65000:1 65000:1:2] block of pool "p"`,
		"192.0.2.0/24 [] range of services' load balancer IPs",
	}
	if !slices.Equal(got, want) || len(problems) > 0 {
		t.Errorf("%v; got\n%s\nwant\n%s", problems, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got, want := fmt.Sprint(p.Own), "[10.96.0.0/12 10.244.0.0/26 10.244.0.8/32 10.244.0.71/32 10.244.8.0/26 10.245.0.0/26 10.246.0.0/26 172.16.0.1/32 192.0.2.0/24 192.168.0.1/32]"; got != want {
		t.Errorf("own: got %s, want %s", got, want)
	}
	if fmt.Sprint(p.Believed) != "[10.244.0.0/16 10.245.0.0/16]" || fmt.Sprint(p.Lent) != "[10.244.0.7/32]" {
		t.Errorf("believed %v, lent %v", p.Believed, p.Lent)
	}
	lent := Route{Prefix: pfx("10.244.0.7/32"), NextHop: ip("192.168.0.2"), Neighbor: ip("192.168.0.2")}
	if _, ok, why := p.Believe(&p.Neighbors[0], lent); !ok {
		t.Error("what was lent is not believed:", why)
	}
	p.Lent = append(p.Lent, pfx("192.168.0.1/32"))
	lent.Prefix = pfx("192.168.0.1/32")
	if _, ok, _ := p.Believe(&p.Neighbors[0], lent); ok {
		t.Error("this node's own address was lent")
	}
	lent.Prefix = pfx("10.244.0.8/32")
	if _, ok, _ := p.Believe(&p.Neighbors[0], lent); ok {
		t.Error("what was not lent is believed")
	}
}

func TestWhatCannotBeHonouredIsAProblem(t *testing.T) {
	for _, c := range []struct {
		name, code, detail string
		change             func(*model.Cluster, *Config)
	}{
		{"unknown filter", "bgp-filter", `filter "x" is not there`, func(_ *model.Cluster, c *Config) {
			c.Peers = []Peer{{Name: "rack", Address: ip("10.9.9.9"), Session: Session{Filters: []string{"x"}}}}
		}},
		{"no address of the family", "bgp-no-address", "no IPv6 address", func(_ *model.Cluster, c *Config) { c.Peers = []Peer{{Name: "rack", Address: ip("fd00::9")}} }},
		{"no common family", "bgp-no-address", "no address of one family", func(n *model.Cluster, _ *Config) {
			n.Nodes[1].Address4, n.Nodes[1].Address6 = netip.Addr{}, ip("fd00::2")
		}},
		{"same router id", "bgp-router-id", "192.168.0.1", func(n *model.Cluster, _ *Config) { n.Nodes[1].Address4 = n.Nodes[0].Address4 }},
		{"selector", "bgp-selector", "nodeSelector: position 6", func(_ *model.Cluster, c *Config) {
			c.Peers = []Peer{{Name: "rack", NodeSelector: "rack (", Address: ip("10.9.9.9")}}
		}},
		{"password of a peer", "bgp-password", "s/k: no such file", func(_ *model.Cluster, c *Config) {
			c.Peers = []Peer{{Name: "rack", Address: ip("10.9.9.9"), Session: Session{PasswordRef: "s/k"}}}
			c.Unlock(func(string) (Secret, error) { return "", fmt.Errorf("no such file") })
		}},
		{"empty password of the mesh", "bgp-password", "it is empty", func(_ *model.Cluster, c *Config) {
			c.Settings.MeshPasswordRef = "s/k"
			c.Unlock(func(string) (Secret, error) { return "", nil })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, config := network(2), mesh()
			c.change(n, &config)
			p, problems := Build(Input{Self: &n.Nodes[0], Cluster: n, Config: config})
			if c.code == "bgp-password" && slices.ContainsFunc(p.Neighbors, func(n Neighbor) bool { return n.PasswordRef != "" }) {
				t.Error("a session without its password:", sessions(p))
			}
			if p == nil || len(problems) != 1 || problems[0].Code != c.code || !strings.Contains(problems[0].Detail, c.detail) || problems[0].Next == "" {
				t.Errorf("got %+v", problems)
			}
		})
	}
}

func TestPasswordsArePutInAgain(t *testing.T) {
	c := Config{Settings: Settings{MeshPasswordRef: "m/k"}, Peers: []Peer{{Session: Session{PasswordRef: "p/k"}}, {}}}
	c.Unlock(func(ref string) (Secret, error) { return Secret("of " + ref), nil })
	if c.Settings.MeshPassword != "of m/k" || c.Peers[0].Password != "of p/k" || c.Peers[1].Password != "" {
		t.Errorf("%#v %#v", string(c.Settings.MeshPassword), string(c.Peers[0].Password))
	}
	c.Unlock(func(string) (Secret, error) { return "", fmt.Errorf("gone") })
	if c.Peers[0].Password != "" || c.Peers[0].Locked != "gone" || c.Settings.MeshLocked != "gone" || c.Peers[1].Locked != "" {
		t.Errorf("%+v", c.Peers)
	}
}

func TestElectedReflectorsStandForALargeMesh(t *testing.T) {
	count := func(n int, elected bool) (total, most int, chosen []string) {
		for name, p := range plans(t, network(n), mesh(), elected) {
			total += len(p.Neighbors)
			most = max(most, len(p.Neighbors))
			if p.ClusterID.IsValid() {
				chosen = append(chosen, name)
			}
		}
		return total / 2, most, chosen
	}
	for _, c := range []struct {
		n         int
		elected   bool
		sessions  int
		reflected int
	}{
		{80, false, 80 * 79 / 2, 0},
		{81, false, 81 * 80 / 2, 2}, // reflectors are at work before the mesh goes, and until it is back
		{90, true, 90 * 89 / 2, 2},
		{91, true, 2*89 + 1, 2}, // a node less does not bring the mesh back
		{100, false, 100 * 99 / 2, 2},
		{101, false, 2*99 + 1, 2},
		{501, false, 3*498 + 3, 3},
		{3, true, 3, 2},
	} {
		total, _, chosen := count(c.n, c.elected)
		if total != c.sessions || len(chosen) != c.reflected {
			t.Errorf("%d nodes: %d sessions, want %d; reflectors %v", c.n, total, c.sessions, chosen)
		}
	}
	// Nodes of another AS are apart from the election.
	others := network(103)
	others.Nodes[7].ASN, others.Nodes[8].ASN = 65001, 65002
	all := plans(t, others, mesh(), false)
	for i, n := range others.Nodes {
		p := all[n.Name]
		if own := i == 7 || i == 8; own && (len(p.Neighbors) != 102 || p.ClusterID.IsValid()) || !own && !p.ClusterID.IsValid() && len(p.Neighbors) != 4 {
			t.Errorf("%s: %d neighbours", n.Name, len(p.Neighbors))
		}
		for _, m := range p.Neighbors {
			if far := m.Kind(p.ASN) == External; far != (m.Multihop > 1) {
				t.Errorf("%s: %+v", n.Name, m)
			}
		}
	}
	config := mesh()
	config.Settings.MeshLimit = 0
	if p := plans(t, network(150), config, false)["n000"]; len(p.Neighbors) != 149 {
		t.Errorf("without a limit: %d neighbours", len(p.Neighbors))
	}
}

func TestReflectorsAreElectedInZonesApart(t *testing.T) {
	c := network(120)
	for i := range c.Nodes {
		c.Nodes[i].Labels = map[string]string{zoneLabel: "a"}
	}
	c.Nodes[77].Labels[zoneLabel] = "b"
	c.Nodes[5].Address6 = ip("fd00::5") // the only one with both families
	all := plans(t, c, mesh(), false)
	if !all["n077"].ClusterID.IsValid() || !all["n005"].ClusterID.IsValid() {
		t.Error(all["n000"].Mode)
	}
}

// A session of the mesh goes only when all that it tells is told by others.
func TestReflectorsAreHeardBeforeTheMeshGoes(t *testing.T) {
	c := network(101)
	all := plans(t, c, mesh(), false)
	self := slices.IndexFunc(c.Nodes, func(n model.Node) bool { return !all[n.Name].ClusterID.IsValid() })
	reflector := all[c.Nodes[self].Name].Neighbors[0].Address
	var old *model.Node
	for i := range c.Nodes {
		if i != self && !all[c.Nodes[i].Name].ClusterID.IsValid() {
			old = &c.Nodes[i]
		}
	}
	has := func(learned ...Route) bool {
		p, _ := Build(Input{Self: &c.Nodes[self], Cluster: c, Config: mesh(), Learned: learned})
		there := slices.ContainsFunc(p.Neighbors, func(n Neighbor) bool { return n.Address == old.Address4 })
		if there != strings.Contains(p.Mode, "1 sessions of the mesh stay") {
			t.Error(p.Mode)
		}
		return there
	}
	mine := Route{Prefix: pfx("10.244.9.0/26"), Neighbor: old.Address4}
	theirs := Route{Prefix: pfx("10.244.9.0/26"), Neighbor: reflector}
	another := Route{Prefix: pfx("10.244.10.0/26"), Neighbor: old.Address4}
	rejected, unbelieved := theirs, mine
	rejected.Rejected, unbelieved.Rejected = true, true
	switch {
	case has():
		t.Error("a session that tells nothing stays")
	case !has(mine):
		t.Error("the only one that tells goes")
	case has(mine, theirs):
		t.Error("it stays although the reflector tells the same")
	case !has(mine, another, theirs):
		t.Error("it goes although it tells more")
	case !has(mine, rejected):
		t.Error("it goes although the reflector is not believed")
	case has(unbelieved):
		t.Error("it stays although it is not believed")
	}
	// The same when people turn the mesh off, but only with a reflector to take over.
	config := mesh()
	config.Settings.Mesh = false
	p, _ := Build(Input{Self: &c.Nodes[self], Cluster: c, Config: config, Learned: []Route{mine}})
	if p != nil && len(p.Neighbors) > 0 {
		t.Error("the mesh is off, and no reflector there: got", sessions(p))
	}
	c.Nodes[self].Labels, old.Labels = map[string]string{"x": ""}, map[string]string{"x": ""}
	rr := &c.Nodes[(self+1)%len(c.Nodes)]
	rr.ClusterID = ip("10.0.0.1")
	config.Peers = []Peer{{Name: "rr", Node: rr.Name, PeerSelector: "has(x)"}}
	p, _ = Build(Input{Self: &c.Nodes[self], Cluster: c, Config: config, Learned: []Route{mine}})
	if len(p.Neighbors) != 2 {
		t.Error("the mesh is off, and the reflector has not told yet: got", sessions(p))
	}
}
