package netlink

import (
	"context"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// Verify implements kernel.Pods. What is there beyond the plan is not an error: workloads may add
// addresses and routes of their own.
func (p *Pods) Verify(ctx context.Context, netns *os.File, pod plan.Pod) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := p.take()
	if err != nil {
		return err
	}
	defer p.give(c)
	host, err := c.link(pod.Host.Name)
	if err != nil {
		return err
	}
	if err := p.verifyHost(c, host, &pod); err != nil {
		return fmt.Errorf("host end %s: %w", pod.Host.Name, err)
	}
	in, err := dialIn(int(netns.Fd()))
	if err != nil {
		return err
	}
	defer in.close()
	if err := verifyInside(in, host, &pod); err != nil {
		return fmt.Errorf("interface %s: %w", pod.IfName, err)
	}
	return nil
}

func (p *Pods) verifyHost(c *conn, l *link, pod *plan.Pod) error {
	w := &pod.Host
	switch {
	case l == nil:
		return fmt.Errorf("is missing")
	case l.kind != string(plan.LinkVeth) || l.alias != w.Alias:
		return fmt.Errorf("is a %s with alias %q, want a veth with alias %q", l.kind, l.alias, w.Alias)
	case !l.up():
		return fmt.Errorf("is down")
	case l.mtu != w.MTU:
		return fmt.Errorf("mtu is %d, want %d", l.mtu, w.MTU)
	case w.MAC != "" && l.mac != w.MAC:
		return fmt.Errorf("mac is %s, want %s", l.mac, w.MAC)
	}
	master := 0
	if w.Master != "" {
		b, err := c.link(w.Master)
		if err != nil {
			return err
		}
		if b == nil {
			return fmt.Errorf("its bridge %s is missing", w.Master)
		}
		master = b.index
	}
	if l.master != master {
		return fmt.Errorf("is not a port of bridge %q", w.Master)
	}
	if master != 0 && l.hairpin != w.Hairpin {
		return fmt.Errorf("hairpin is %t, want %t", l.hairpin, w.Hairpin)
	}
	if err := verifyQueue(c, l.index, pod.HostQueue); err != nil {
		return err
	}
	if err := verifyAddresses(c, l.index, pod.HostAddresses); err != nil {
		return err
	}
	if err := verifyRoutes(c, l.index, pod.HostRoutes, false); err != nil {
		return err
	}
	return Do(p.ns, func() error {
		for _, s := range pod.HostSysctls {
			have, err := readSysctl(s.Key)
			if err != nil {
				return fmt.Errorf("sysctl %s: %w", s.Key, bare(err))
			}
			if !sameSysctl(have, s.Value) {
				return fmt.Errorf("sysctl %s is %s, want %s", s.Key, have, s.Value)
			}
		}
		return nil
	})
}

func verifyInside(c *conn, host *link, pod *plan.Pod) error {
	l, err := c.link(pod.IfName)
	switch {
	case err != nil:
		return err
	case l == nil:
		return fmt.Errorf("is missing")
	case l.kind != string(plan.LinkVeth) || l.index != host.parent || l.parent != host.index:
		return fmt.Errorf("is not the other end of %s", host.name)
	case !l.up():
		return fmt.Errorf("is down")
	case l.mtu != pod.MTU:
		return fmt.Errorf("mtu is %d, want %d", l.mtu, pod.MTU)
	case pod.MAC != "" && l.mac != pod.MAC:
		return fmt.Errorf("mac is %s, want %s", l.mac, pod.MAC)
	}
	if err := verifyQueue(c, l.index, pod.Queue); err != nil {
		return err
	}
	if err := verifyAddresses(c, l.index, pod.Addresses); err != nil {
		return err
	}
	if err := verifyRoutes(c, l.index, pod.Routes, true); err != nil {
		return err
	}
	return verifyNeighbors(c, l.index, pod.Neighbors)
}

func verifyAddresses(c *conn, index int, want []netip.Prefix) error {
	if len(want) == 0 {
		return nil
	}
	as, err := c.addresses()
	if err != nil {
		return err
	}
	have := map[netip.Prefix]bool{}
	for _, a := range as {
		have[a.prefix] = have[a.prefix] || a.index == index
	}
	for _, w := range want {
		if !have[w] {
			return fmt.Errorf("address %s is missing", w)
		}
	}
	return nil
}

func verifyRoutes(c *conn, index int, want []plan.Route, anyProto bool) error {
	have := map[int][]route{}
	for i := range want {
		w := &want[i]
		family := familyOf(w.Dst.Addr())
		if _, read := have[family]; !read {
			rs, err := c.routes(family, unix.RT_TABLE_MAIN, anyProto)
			if err != nil {
				return err
			}
			have[family] = rs
		}
		found, other := false, ""
		for j := range have[family] {
			r := &have[family][j]
			if r.dst != w.Dst {
				continue
			}
			if r.same(w, index) {
				found = true
				break
			}
			other = fmt.Sprintf(": there is one via %s", r.via)
			if !r.via.IsValid() {
				other = ": there is one without a gateway"
			}
		}
		if !found {
			return fmt.Errorf("route %s is missing%s", routeText(w), other)
		}
	}
	return nil
}

func routeText(r *plan.Route) string {
	if r.Via.IsValid() {
		return fmt.Sprintf("%s via %s", r.Dst, r.Via)
	}
	return r.Dst.String()
}

func verifyNeighbors(c *conn, index int, want []plan.Neighbor) error {
	for _, w := range want {
		ns, err := c.neighbors(familyOf(w.IP), index)
		if err != nil {
			return err
		}
		mac := ""
		for _, n := range ns {
			if n.ip == w.IP && n.permanent {
				mac = n.mac
			}
		}
		if mac == "" {
			return fmt.Errorf("neighbor %s is missing", w.IP)
		}
		if mac != w.MAC {
			return fmt.Errorf("neighbor %s is %s, want %s", w.IP, mac, w.MAC)
		}
	}
	return nil
}
