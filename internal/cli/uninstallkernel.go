package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	nl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel/filter"
	"github.com/heddle-net/heddle/internal/kernel/nft"
	"github.com/heddle-net/heddle/internal/plan"
)

// leftovers are what the kernel has of Heddle's, in words. What goes with a link (addresses, neighbours, forwarding
// entries) is not listed by itself.
type leftovers struct {
	objects []string
	// workloads are the host ends of workloads' interfaces: Heddle's own, and what others hung on its bridges.
	workloads []string
}

// inKernel looks for Heddle's marks, as ARCHITECTURE.md lists them.
func inKernel() (l leftovers, err error) {
	return l, errors.Join(l.links(), l.routes(), l.tables())
}

func (l *leftovers) links() error {
	all, err := nl.LinkList()
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	bridges := map[int]bool{}
	for _, link := range all {
		a := link.Attrs()
		veth := link.Type() == string(plan.LinkVeth)
		if !strings.HasPrefix(a.Alias, plan.AliasPrefix) && !(veth && a.Group == plan.RouteProtocol) {
			continue
		}
		l.objects = append(l.objects, "link "+a.Name)
		if veth {
			l.workloads = append(l.workloads, a.Name)
		}
		bridges[a.Index] = link.Type() == string(plan.LinkBridge)
	}
	for _, link := range all {
		if a := link.Attrs(); bridges[a.MasterIndex] && !slices.Contains(l.objects, "link "+a.Name) {
			l.workloads = append(l.workloads, a.Name)
		}
	}
	return nil
}

func (l *leftovers) routes() error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		// Table 0 stands for all of them.
		routes, err := nl.RouteListFiltered(family, &nl.Route{Protocol: plan.RouteProtocol}, nl.RT_FILTER_PROTOCOL|nl.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("routes: %w", err)
		}
		for i := range routes {
			l.objects = append(l.objects, fmt.Sprintf("route %s table %d", routes[i].Dst, routes[i].Table))
		}
		rules, err := nl.RuleList(family)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("rules: %w", err)
		}
		for i := range rules {
			if rules[i].Protocol == plan.RouteProtocol {
				l.objects = append(l.objects, fmt.Sprintf("rule %d", rules[i].Priority))
			}
		}
	}
	return nil
}

// ownTables are Heddle's nftables tables.
var ownTables = []nftables.Table{
	{Name: plan.Table, Family: nftables.TableFamilyINet},
	{Name: filter.TableName, Family: nftables.TableFamilyINet},
	{Name: filter.TableName, Family: nftables.TableFamilyBridge},
}

func (l *leftovers) tables() error {
	c := &nftables.Conn{}
	tables, err := c.ListTables()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, t := range tables {
		if slices.ContainsFunc(ownTables, func(o nftables.Table) bool { return o.Name == t.Name && o.Family == t.Family }) {
			l.objects = append(l.objects, "table "+tableText(t))
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, ch := range chains {
		if ch.Name != "FORWARD" {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return fmt.Errorf("nftables: rules of %s %s: %w", tableText(ch.Table), ch.Name, err)
		}
		for _, r := range rules {
			if markedRule(r) {
				l.objects = append(l.objects, fmt.Sprintf("rule %d in chain %s of table %s", r.Handle, ch.Name, tableText(ch.Table)))
			}
		}
	}
	return nil
}

// markedRule tells whether a rule carries Heddle's comment, in nft's way or in that of iptables.
func markedRule(r *nftables.Rule) bool {
	if text, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && text == nft.Mark {
		return true
	}
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		m, ok := e.(*expr.Match)
		if !ok || m.Name != "comment" {
			return false
		}
		c, ok := m.Info.(*xt.Comment)
		return ok && string(*c) == nft.Mark
	})
}

func tableText(t *nftables.Table) string {
	names := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyBridge: "bridge", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
	}
	return names[t.Family] + " " + t.Name
}
