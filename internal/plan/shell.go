package plan

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Shell prints the plan as the commands that would make it by hand, in an order that works when they are
// pasted into a shell on an empty host (sh -eu). What hangs on workloads' veths is made with the workload:
// ShellPod prints that; Shell only names them. Every value stands as one quoted word.
func Shell(p Plan) string {
	s := &script{}
	veths := map[string]bool{}
	for _, l := range p.Links {
		veths[l.Name] = l.Kind == LinkVeth
	}
	s.heading("node %s: be a router", p.Node)
	for _, c := range p.Sysctls {
		if c.device() == "" {
			s.sysctl(c)
		}
	}
	for _, l := range p.Links {
		if l.Kind == LinkVeth {
			continue
		}
		s.heading("%s: %s", l.Name, linkPurpose(l.Kind))
		s.link(l)
		for _, a := range p.Addresses {
			if a.Link == l.Name {
				s.add("ip", append([]string{"address", "add"}, addressWords(a.Prefix, a.Link)...)...)
			}
		}
		for _, c := range p.Sysctls {
			if c.device() == l.Name {
				s.sysctl(c)
			}
		}
	}
	s.peers(p)
	first := true
	for _, r := range p.Routes {
		if r.Type == RouteBlackhole {
			if first {
				s.heading("own blocks: what no workload has goes nowhere")
				first = false
			}
			s.route(r)
		}
	}
	for i, r := range p.Rules {
		if i == 0 {
			s.heading("rules")
		}
		words := append([]string{"rule", "add"}, ruleWords(r)...)
		s.add("ip", append(words, "protocol", fmt.Sprint(RouteProtocol))...)
	}
	s.heading("forwarding and masquerade")
	s.raw("nft -f - <<'EOF'\n" + p.Filter.NFT() + "EOF\n")
	s.speech(p.BGP)
	for _, l := range p.Links {
		if veths[l.Name] {
			s.heading("%s belongs to workload %s, whose commands are printed with it", l.Name, strings.TrimPrefix(l.Alias, AliasPrefix))
		}
	}
	return s.String()
}

// peers prints the ways to the other nodes, one paragraph for each.
func (s *script) peers(p Plan) {
	routes, learned := make(map[string]Route, len(p.Routes)), map[string]bool{}
	for _, r := range p.Routes {
		routes[r.Dst.String()] = r
		if r.Learned {
			learned[r.Dst.String()] = true
		}
	}
	neighbors := make(map[string]Neighbor, len(p.Neighbors))
	for _, n := range p.Neighbors {
		neighbors[n.Link+" "+n.IP.String()] = n
	}
	fdb := make(map[string]FDB, len(p.FDB))
	for _, f := range p.FDB {
		fdb[f.Link+" "+f.MAC] = f
	}
	node := ""
	for _, peer := range p.Peers {
		if peer.Node != node || peer.Path == "" {
			how := string(peer.Path) + " via " + peer.Via.String()
			if !peer.Via.IsValid() {
				how = "no route"
			}
			s.heading("node %s: %s, %s", peer.Node, how, peer.Reason)
			node = peer.Node
		}
		r, ok := routes[peer.Block.String()]
		if !ok || peer.Path == "" {
			continue
		}
		delete(learned, peer.Block.String())
		if n, ok := neighbors[r.Link+" "+r.Via.String()]; ok {
			if f, ok := fdb[n.Link+" "+n.MAC]; ok {
				s.add("bridge", append([]string{"fdb", "add"}, fdbWords(f)...)...)
				delete(fdb, n.Link+" "+n.MAC)
			}
			s.add("ip", append([]string{"neighbor", "add"}, neighborWords(n)...)...)
			delete(neighbors, n.Link+" "+n.IP.String())
		}
		s.route(r)
	}
	for i, r := range slices.DeleteFunc(slices.Clone(p.Routes), func(r Route) bool { return !learned[r.Dst.String()] }) {
		if i == 0 {
			s.heading("what BGP tells of besides")
		}
		s.route(r)
	}
}

// ShellPod prints the commands that make one workload's interface: the veth, the workload's own end in
// netns (a name that `ip netns` knows, or a path) and the node's end. They are for the node's shell, after
// those of Shell.
func ShellPod(p Pod, netns string) string {
	s := &script{}
	in := inside(netns)
	host, links := p.Host, append([]string{"ip", "link", "add"}, linkWords(p.Host)...)
	s.heading("workload %s: %s in %s", strings.TrimPrefix(host.Alias, AliasPrefix), p.IfName, netns)
	links = append(links, "peer", "name", p.IfName)
	if p.MAC != "" {
		links = append(links, "address", p.MAC)
	}
	if p.MTU > 0 {
		links = append(links, "mtu", fmt.Sprint(p.MTU))
	}
	name := netns
	if in.name != "" {
		name = in.name
	}
	s.raw(command(append(links, "netns", name)...) + "\n")
	s.add("ip", "link", "set", "dev", host.Name, "alias", host.Alias)
	if host.Master != "" {
		s.add("ip", "link", "set", "dev", host.Name, "master", host.Master)
		if host.Hairpin {
			s.add("bridge", "link", "set", "dev", host.Name, "hairpin", "on")
		}
	}
	for _, c := range p.HostSysctls {
		s.sysctl(c)
	}
	if p.HostQueue != nil {
		s.add("tc", queueWords(p.HostQueue, host.Name)...)
	}
	s.add("ip", "link", "set", "dev", host.Name, "up")
	s.raw(in.ip("link", "set", "dev", "lo", "up"))
	if p.Queue != nil {
		s.raw(in.run("tc", queueWords(p.Queue, p.IfName)...))
	}
	s.raw(in.ip("link", "set", "dev", p.IfName, "up"))
	for _, a := range p.Addresses {
		s.raw(in.ip(append([]string{"address", "add"}, addressWords(a, p.IfName)...)...))
	}
	for _, n := range p.Neighbors {
		s.raw(in.ip(append([]string{"neighbor", "add"}, neighborWords(n)...)...))
	}
	for _, r := range p.Routes {
		s.raw(in.ip(append(routeCommand(r), routeWords(r)...)...))
	}
	for _, a := range p.HostAddresses {
		s.add("ip", append([]string{"address", "add"}, addressWords(a, host.Name)...)...)
	}
	for _, r := range p.HostRoutes {
		s.route(r)
	}
	return s.String()
}

// namespace is how a command gets into a network namespace: by the name that `ip netns` gave it, or by
// nsenter where it has only a path.
type namespace struct{ name, path string }

func inside(netns string) namespace {
	dir, base := path.Split(netns)
	if dir == "" || dir == "/run/netns/" || dir == "/var/run/netns/" {
		return namespace{name: base}
	}
	return namespace{path: netns}
}

func (n namespace) ip(words ...string) string { return n.run("ip", words...) }

// run is a command of a tool that takes the namespace's name: ip, tc.
func (n namespace) run(tool string, words ...string) string {
	if n.name != "" {
		return command(append([]string{tool, "-n", n.name}, words...)...) + "\n"
	}
	return command(append([]string{"nsenter", "--net=" + n.path, tool}, words...)...) + "\n"
}

func linkPurpose(k LinkKind) string {
	if k == LinkBridge {
		return "the bridge that workloads hang on"
	}
	if k == LinkIPIP {
		return "the tunnel to nodes in other segments, IP in IP"
	}
	return "the tunnel to nodes in other segments"
}

// device is the link that a per-device setting belongs to; "" for the others.
func (c Sysctl) device() string {
	parts := strings.Split(c.Key, "/")
	if len(parts) == 5 && parts[0] == "net" && parts[2] == "conf" && parts[3] != "all" && parts[3] != "default" {
		return parts[3]
	}
	return ""
}

// script gathers commands under headings.
type script struct{ strings.Builder }

// heading is a comment: one line, whatever the names in it hold.
func (s *script) heading(format string, args ...any) {
	if s.Len() > 0 {
		s.WriteByte('\n')
	}
	s.WriteString("# " + printable(fmt.Sprintf(format, args...)) + "\n")
}

func (s *script) raw(text string) { s.WriteString(text) }

func (s *script) add(tool string, words ...string) {
	s.WriteString(command(append([]string{tool}, words...)...) + "\n")
}

func (s *script) sysctl(c Sysctl) { s.add("sysctl", "-qw", c.Key+"="+c.Value) }

func (s *script) link(l Link) {
	if l.IPIP != nil && l.IPIP.Local.Is4() { // the kernel makes it, without IPv6 addresses, and keeps anybody from making another
		s.add("modprobe", "ipip")
		s.add("ip", "link", "set", "dev", l.Name, "alias", l.Alias, "mtu", fmt.Sprint(l.MTU), "up")
		return
	}
	s.add("ip", append([]string{"link", "add"}, linkWords(l)...)...)
	if l.VXLAN != nil && l.VXLAN.NoTxChecksum {
		s.add("ethtool", "-K", l.Name, "tx-checksum-ip-generic", "off")
	}
	s.add("ip", "link", "set", "dev", l.Name, "alias", l.Alias, "addrgenmode", "none", "up")
}

func (s *script) route(r Route) {
	words := append(routeCommand(r), routeWords(r)...)
	s.add("ip", append(words, protocolWords(r)...)...)
}

// routeCommand names the family where the destination does not: "default" could be either.
func routeCommand(r Route) []string {
	if family(r.Dst) == model.IPv6 {
		return []string{"-6", "route", "add"}
	}
	return []string{"route", "add"}
}
