package agent

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/internal/store"
)

// selfNode is this node as it is now: configured or observed addresses, and what it last published of
// its paths. It returns nil, with the problem first, when the node has no usable address.
func (a *Agent) selfNode(ctx context.Context, host model.Host, c *model.Cluster) (*model.Node, []model.Problem) {
	n := &model.Node{Name: a.Config.Node, ID: a.id, Version: a.Version, Uplinks: host.Uplinks}
	a.overlay(n)
	old := a.registered(c)
	if old != nil {
		n.Accepts, n.Sends, n.Lacks, n.VTEP4, n.VTEP6 = old.Accepts, old.Sends, old.Lacks, old.VTEP4, old.VTEP6
	}
	var issues []model.Problem
	for _, f := range []model.Family{model.IPv4, model.IPv6} {
		addr, err := a.address(ctx, f, host, c, old)
		if err != nil {
			issues = append(issues, model.Problem{
				Code: "node-address", Severity: model.Failure, Subject: fmt.Sprintf("node %q", n.Name), Detail: err.Error(),
				Next: "set address: in heddle.yaml, or heddle agent --address",
			})
			continue
		}
		if f == model.IPv4 {
			n.Address4 = addr
		} else {
			n.Address6 = addr
		}
	}
	for _, p := range a.Config.PublicAddress {
		if p.Is4() {
			n.Public4 = p
		} else {
			n.Public6 = p
		}
	}
	if len(issues) == 0 && !n.Address4.IsValid() && !n.Address6.IsValid() {
		issues = append(issues, model.Problem{
			Code: "node-address", Severity: model.Failure, Subject: fmt.Sprintf("node %q", n.Name),
			Detail: "address (empty): want an address on a device that is up and is not a bridge or tunnel; none was found",
			Next:   "ip -brief address",
		})
	}
	if len(issues) > 0 && !n.Address4.IsValid() && !n.Address6.IsValid() {
		return nil, issues
	}
	return n, issues
}

// accepts are the paths on which this node receives: those of the plan whose devices are really there. (VXLAN's show
// in what is published of their MACs.)
func accepts(p *plan.Plan, issues []model.Problem) []model.Path {
	broken := slices.ContainsFunc(p.Links, func(l plan.Link) bool {
		return l.Kind == plan.LinkIPIP && slices.ContainsFunc(issues, func(i model.Problem) bool {
			return i.Severity == model.Failure && i.Subject == "link "+l.Name
		})
	})
	return slices.DeleteFunc(plan.Accepts(p), func(a model.Path) bool { return broken && a == model.PathIPIP })
}

// lacks are the paths that this kernel turned out not to have, so that peers can say why nothing goes there.
func lacks(issues []model.Problem) []model.Path {
	if slices.ContainsFunc(issues, func(i model.Problem) bool { return i.Code == "kernel-lacks-ipip" }) {
		return []model.Path{model.PathIPIP}
	}
	return nil
}

// address is the node's address of a family: from the configuration, else the only one there is, else
// the one by which the kernel reaches the peers and the store. When these disagree, a node that already
// runs keeps what it has published (old, nil for none) while the host has it: a network card more must
// not cut it off. Otherwise several are an error that lists them.
func (a *Agent) address(ctx context.Context, f model.Family, host model.Host, c *model.Cluster, old *model.Node) (netip.Addr, error) {
	for _, addr := range a.Config.Address {
		if model.FamilyOf(addr) != f {
			continue
		}
		if host.Uplink(addr) == nil {
			return netip.Addr{}, fmt.Errorf("address %s: want an address of this host: %s", addr, choices(host, f))
		}
		return addr, nil
	}
	if len(a.Config.Address) > 0 {
		return netip.Addr{}, nil // the other family was chosen on purpose
	}
	if s, ok := a.Store.(store.Placed); ok {
		for _, addr := range s.NodeAddresses(a.Config.Node) {
			if model.FamilyOf(addr) == f && host.Uplink(addr) != nil {
				return addr, nil
			}
		}
	}
	var all []netip.Addr
	for _, u := range host.Uplinks {
		if model.FamilyOf(u.Prefix.Addr()) == f {
			all = append(all, u.Prefix.Addr())
		}
	}
	if len(all) <= 1 {
		return first(all), nil
	}
	used := a.sources(ctx, f, host, c)
	if len(used) == 1 {
		return used[0], nil
	}
	if old != nil && slices.Contains(all, old.Address(f)) {
		return old.Address(f), nil
	}
	return netip.Addr{}, fmt.Errorf("address (empty): want one to be chosen, as this host has several %s addresses: %s", f, choices(host, f))
}

// sources are the host's addresses that the kernel uses towards the peers and the store.
func (a *Agent) sources(ctx context.Context, f model.Family, host model.Host, c *model.Cluster) []netip.Addr {
	var targets, used []netip.Addr
	for _, e := range a.Config.Store.Endpoints {
		if u, err := url.Parse(e); err == nil {
			if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
				targets = append(targets, ip)
			}
		}
	}
	for i := range c.Nodes {
		if n := &c.Nodes[i]; n.Name != a.Config.Node {
			targets = append(targets, n.Public(f))
		}
		if len(targets) > 16 {
			break // enough to see whether they agree
		}
	}
	for _, t := range targets {
		if !t.IsValid() || model.FamilyOf(t) != f || t.IsLoopback() {
			continue
		}
		if src, err := a.Facts.SourceFor(ctx, t); err == nil && host.Uplink(src) != nil && !slices.Contains(used, src) {
			used = append(used, src)
		}
	}
	return used
}

func choices(host model.Host, f model.Family) string {
	var out []string
	for _, u := range host.Uplinks {
		if model.FamilyOf(u.Prefix.Addr()) == f {
			out = append(out, fmt.Sprintf("%s (%s)", u.Prefix.Addr(), u.Link))
		}
	}
	if len(out) == 0 {
		return "it has no " + f.String() + " address on an uplink"
	}
	return strings.Join(out, ", ")
}

func first(s []netip.Addr) netip.Addr {
	if len(s) == 0 {
		return netip.Addr{}
	}
	return s[0]
}
