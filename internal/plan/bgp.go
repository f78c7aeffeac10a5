package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/peering"
)

// speak adds what the node's BGP speaker does.
func (b *builder) speak() {
	c := b.in.Cluster
	c.Pools = b.blocks.pools
	config := b.in.BGP
	// While a node still sends where BGP says, as after a change of mode, nobody falls silent.
	config.Wanted = config.Wanted || slices.ContainsFunc(c.Nodes, func(n model.Node) bool { return slices.Contains(n.Sends, model.PathBGP) })
	in := peering.Input{Self: b.self, Cluster: &c, Config: config, Learned: b.in.Learned, Elected: b.in.Elected, Silent: b.in.Silent}
	for i := range b.in.Workloads {
		in.Addresses = append(in.Addresses, b.in.Workloads[i].Addresses...)
	}
	p, problems := peering.Build(in)
	b.plan.BGP = p
	b.plan.Problems = append(b.plan.Problems, problems...)
}

// speech prints what the speaker does. No command makes it, so it stands as comments.
func (s *script) speech(p *peering.Plan) {
	if p == nil {
		return
	}
	s.heading("BGP: %s", speakerLine(p))
	for _, n := range p.Neighbors {
		s.raw("# " + printable("  neighbour "+neighborLine(n)) + "\n")
	}
	for _, a := range p.Announced {
		s.raw("# " + printable("  announces "+announcementLine(a)) + "\n")
	}
}

func speakerLine(p *peering.Plan) string {
	w := []string{fmt.Sprintf("AS %d", p.ASN), "router ID " + p.RouterID.String()}
	if p.ClusterID.IsValid() {
		w = append(w, "reflects routes, cluster ID "+p.ClusterID.String())
	}
	for _, a := range p.Listen {
		w = append(w, fmt.Sprintf("listens at %s port %d", a, p.Port))
	}
	return strings.Join(append(w, p.Mode), ", ")
}

// neighborLine is a neighbour in words; of a password it says that there is one.
func neighborLine(n peering.Neighbor) string {
	as := []string{fmt.Sprintf("%s port %d AS %d", n.Address, n.Port, n.RemoteASN)}
	add := func(is bool, format string, args ...any) {
		if is {
			as = append(as, fmt.Sprintf(format, args...))
		}
	}
	after := func(name string, d time.Duration) { add(d != 0, "%s %s", name, d) }
	add(n.Node != "", "node %s", n.Node)
	add(n.Name != "", "of %s", n.Name)
	add(n.LocalASN != 0, "own AS %d", n.LocalASN)
	add(n.Source.IsValid(), "from %s", n.Source)
	add(n.Client, "reflected to")
	add(n.Passive, "waits to be called")
	add(n.Password != "", "with a password")
	add(n.TTLSecurity != 0, "TTL security %d", n.TTLSecurity)
	add(n.Multihop != 0, "multihop %d", n.Multihop)
	after("hold time", n.HoldTime)
	after("keepalive", n.KeepAlive)
	after("restart time", n.RestartTime)
	after("long-lived", n.LongLived)
	add(n.NextHop != "", "next hop %s", n.NextHop)
	add(n.AllowOwnAS != 0, "own AS allowed %d times", n.AllowOwnAS)
	add(n.MaxPrefixes != 0, "at most %d prefixes", n.MaxPrefixes)
	add(len(n.Filters) > 0, "filters %s", strings.Join(n.Filters, " "))
	if n.BFD != nil {
		add(true, "BFD %s/%s x %d", n.BFD.Transmit, n.BFD.Receive, n.BFD.Multiplier)
	}
	return strings.Join(as, ", ")
}

func announcementLine(a peering.Announcement) string {
	s := a.Prefix.String() + ": " + a.Reason
	if len(a.Communities) > 0 {
		s += fmt.Sprintf(", communities %v", a.Communities)
	}
	return s
}

// diffBGP compares what two speakers do.
func diffBGP(out []Change, old, new *peering.Plan) []Change {
	var none peering.Plan
	speakers := func(p **peering.Plan) []*peering.Plan {
		if *p == nil {
			*p = &none
			return nil
		}
		return []*peering.Plan{*p}
	}
	was, is := speakers(&old), speakers(&new)
	out = diff(out, "bgp", was, is, func(*peering.Plan) string { return "speaker" }, speakerLine)
	out = diff(out, "bgp", old.Neighbors, new.Neighbors, func(n peering.Neighbor) string { return n.Address.String() },
		func(n peering.Neighbor) string { return "neighbour " + neighborLine(n) })
	out = diff(out, "bgp", old.Announced, new.Announced, func(a peering.Announcement) string { return a.Prefix.String() },
		func(a peering.Announcement) string { return "announces " + announcementLine(a) })
	return diff(out, "bgp", old.Filters, new.Filters, func(f peering.Filter) string { return f.Name },
		func(f peering.Filter) string { return fmt.Sprintf("filter %s: %+v", f.Name, f.Rules) })
}
