package netlink

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// Tunnel devices of IP in IP. IPv4's, tunl0, is made by the kernel in every namespace as soon as it can do such
// tunnels, and cannot be removed: it is taken over and given back. (A kernel that is told not to make it, by
// net.core.fb_tunnels_only_for_init_net, takes one of that name that is just like it.) IPv6's is one that asks
// each route for the other end; a namespace has one such device at most.

// inIPDiffers says in what a device is another one than a plan's of its kind; "" when it is not.
func inIPDiffers(l *link) string {
	external := l.kind == string(kindIP6TNL)
	switch {
	case l.inIP.external && !external:
		return "it takes the other end from each route"
	case !l.inIP.external && external:
		return "it does not take the other end from each route"
	case l.inIP.remote.IsValid():
		return fmt.Sprintf("it leads to %s alone", l.inIP.remote)
	}
	return ""
}

// createInIP makes the device, or has the kernel make it. A kernel without such tunnels is a problem of its own.
func (r *round) createInIP(w *plan.Link) *link {
	subject, next := "link "+w.Name, "ip -d link show"
	req := newLink(w.Name, kernelKind(w), nil, attrMTU(w.MTU))
	if kernelKind(w) == kindIP6TNL {
		req = newLink(w.Name, kindIP6TNL, attrIP6TNL(), attrMTU(w.MTU))
	}
	err := r.c.do(req)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		module := "ipip"
		if kernelKind(w) == kindIP6TNL {
			module = "ip6_tunnel"
		}
		r.problems = append(r.problems, model.Problem{
			Code: "kernel-lacks-ipip", Severity: model.Failure, Subject: subject,
			Detail: fmt.Sprintf("the kernel has no tunnels of IP in IP (module %s): %s", module, err),
			Next:   "modprobe " + module + ", or use vxlan instead of ipip",
		})
		return nil
	case kernelKind(w) == kindIP6TNL && errors.Is(err, unix.EEXIST):
		// The name is free, or this would not be tried: so it is the other thing of which there is only one.
		r.fail("foreign-device", subject, errors.New("another program has the only device of IPv6 tunnels whose routes name the other end"), "ip -d link show type ip6tnl")
		return nil
	case err != nil && !errors.Is(err, unix.EEXIST): // the kernel made it when it heard of its kind
		r.fail("link-failed", subject, err, next)
		return nil
	}
	r.changed++
	l, err := r.c.link(w.Name)
	if err != nil || l == nil {
		r.fail("link-failed", subject, fmt.Errorf("made, and gone at once: %w", errors.Join(err, unix.ENODEV)), next)
		return nil
	}
	if diff := r.differs(l, w); diff != "" {
		r.fail("foreign-device", subject, errors.New(diff), "ip -d link show "+w.Name)
		return nil
	}
	r.d.log.Info("link made", "link", w.Name, "kind", w.Kind, "mtu", w.MTU)
	return l
}

// drop removes a link of ours, or gives tunl0 back as it was found: down, without address or mark. The answer of the
// kernel that tunl0 is removed does not make it so.
func (r *round) drop(l *link) error {
	if l.kind == string(kindIPIP) {
		all, err := r.c.addresses()
		if err != nil {
			return err
		}
		for _, a := range all {
			if a.index != l.index || a.prefix.Addr().Is6() && a.prefix.Addr().IsLinkLocalUnicast() {
				continue
			}
			if err := r.c.do(delAddress(l.index, netip.PrefixFrom(a.prefix.Addr(), a.prefix.Bits()))); err != nil && !isGone(err) {
				return err
			}
		}
		if err := r.c.do(downLink(l.index)); err != nil {
			return err
		}
	}
	return r.c.do(delLink(l.index))
}
