package netlink

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// applyLinks makes the plan's links, bridges and tunnels first: the workloads' veths hang on them.
func (r *round) applyLinks() {
	before := r.changed
	for i := range r.p.Links {
		if w := &r.p.Links[i]; w.Kind != plan.LinkVeth {
			r.applyDevice(w)
		}
	}
	if r.changed != before {
		if err := r.load(); err != nil {
			r.unread("links", err)
		}
		before = r.changed
	}
	for i := range r.p.Links {
		if w := &r.p.Links[i]; w.Kind == plan.LinkVeth {
			r.applyVeth(w)
		}
	}
	if r.changed != before {
		if err := r.load(); err != nil {
			r.unread("links", err)
		}
	}
	r.usable, r.tunnels = map[string]*link{}, nil
	for i := range r.p.Links {
		w := &r.p.Links[i]
		l := r.links.byName[w.Name]
		if l == nil || !l.ours() || !l.up() || r.differs(l, w) != "" {
			continue
		}
		r.usable[w.Name] = l
		if w.Kind == plan.LinkVXLAN {
			r.tunnels = append(r.tunnels, l)
		}
	}
	r.markStrays()
}

// differs says in what a device is another one than the plan's, so that it cannot be changed into it;
// "" when it can.
func (r *round) differs(l *link, w *plan.Link) string {
	if want := kernelKind(w); l.kind != string(want) {
		kind := l.kind
		if kind == "" {
			kind = "hardware"
		}
		return fmt.Sprintf("it is of kind %s, not %s", kind, want)
	}
	if w.Kind == plan.LinkIPIP {
		return inIPDiffers(l)
	}
	if w.Kind != plan.LinkVXLAN {
		return ""
	}
	if want := r.vxlanOf(w); l.vxlan != want {
		return fmt.Sprintf("it has %s, not %s", r.vxlanText(l.vxlan), r.vxlanText(want))
	}
	return ""
}

// vxlanOf is a plan's device in the kernel's terms; uplink -1 when there is no such link.
func (r *round) vxlanOf(w *plan.Link) vxlan {
	if w.VXLAN == nil {
		return vxlan{}
	}
	x := vxlan{vni: w.VXLAN.VNI, port: w.VXLAN.Port, local: w.VXLAN.Local, gbp: w.VXLAN.GBP, learning: w.VXLAN.Learning, uplink: -1}
	if l := r.links.byName[w.VXLAN.Uplink]; l != nil {
		x.uplink = l.index
	}
	return x
}

func (r *round) vxlanText(x vxlan) string {
	s := fmt.Sprintf("VNI %d port %d local %s", x.vni, x.port, x.local)
	if l := r.links.byIndex[x.uplink]; l != nil {
		s += " dev " + l.name
	}
	if x.gbp {
		s += " gbp"
	}
	if x.learning {
		s += " learning"
	}
	return s
}

// applyDevice makes one bridge or VXLAN device as the plan has it. A device without our mark that is
// already what we want is taken over, with what hangs on it: so Flannel's devices are.
func (r *round) applyDevice(w *plan.Link) {
	l := r.links.byName[w.Name]
	if l != nil {
		diff := r.differs(l, w)
		switch {
		case diff == "":
		case !l.ours():
			r.fail("foreign-device", "link "+w.Name, fmt.Errorf("a device of that name is there that Heddle did not make, and %s", diff), "ip -d link show "+w.Name)
			return
		default:
			if !r.one(op{req: delLink(l.index), code: "link-failed", subject: "link " + w.Name, next: "ip -d link show " + w.Name}) {
				return
			}
			r.d.log.Info("link removed, to be made anew", "link", w.Name, "because", diff)
			l = nil
		}
	}
	if l == nil {
		if l = r.create(w); l == nil {
			return
		}
	}
	r.settle(l, w)
}

func (r *round) create(w *plan.Link) *link {
	subject := "link " + w.Name
	mac, err := attrMAC(w.MAC)
	if err != nil {
		r.fail("link-failed", subject, err, "")
		return nil
	}
	var data *nl.RtAttr
	next := "ip -d link show"
	if w.Kind == plan.LinkVXLAN {
		if w.VXLAN == nil {
			r.fail("link-failed", subject, errors.New("the plan has no VXLAN settings for it"), "")
			return nil
		}
		x := r.vxlanOf(w)
		if x.uplink < 0 {
			r.fail("link-failed", subject, fmt.Errorf("there is no link %s to carry it", w.VXLAN.Uplink), "ip link show")
			return nil
		}
		data, next = attrVXLAN(x), "ip -d link show type vxlan"
	}
	if w.Kind == plan.LinkIPIP {
		return r.createInIP(w)
	}
	mtu := w.MTU
	if w.Kind == plan.LinkBridge {
		// A bridge follows the least MTU of its ports until its own is changed by hand: let settle change it.
		mtu--
	}
	if !r.one(op{req: newLink(w.Name, w.Kind, data, attrMTU(mtu), mac), code: "link-failed", subject: subject, next: next}) {
		return nil
	}
	l, err := r.c.link(w.Name)
	if err != nil || l == nil {
		r.fail("link-failed", subject, fmt.Errorf("made, and gone at once: %w", errors.Join(err, unix.ENODEV)), next)
		return nil
	}
	r.d.log.Info("link made", "link", w.Name, "kind", w.Kind, "mtu", w.MTU)
	return l
}

// settle changes what can be changed on a living device, each by itself, so that a refusal names it.
func (r *round) settle(l *link, w *plan.Link) {
	set := func(what, next string, up bool, attrs ...*nl.RtAttr) {
		r.one(op{req: setLink(l.index, up, attrs...), code: "link-failed", subject: "link " + w.Name + ": " + what, next: next})
	}
	show := "ip -d link show " + w.Name
	if l.alias != w.Alias {
		set("alias", show, false, attrAlias(w.Alias))
	}
	// Link-local addresses that are wanted stand in the plan, without duplicate address detection.
	if l.genMode >= 0 && l.genMode != nl.IN6_ADDR_GEN_MODE_NONE {
		set("no link-local address", show, false, attrNoLinkLocal())
	}
	if l.mtu != w.MTU {
		set(fmt.Sprintf("mtu %d", w.MTU), show, false, attrMTU(w.MTU))
	}
	if w.MAC != "" && l.mac != w.MAC {
		mac, err := attrMAC(w.MAC)
		if err != nil {
			r.fail("link-failed", "link "+w.Name, err, "")
			return
		}
		restore := r.announce(l)
		set("mac "+w.MAC, show, false, mac)
		restore()
	}
	if w.VXLAN != nil {
		r.settleTxChecksum(w)
	}
	if w.Kind == plan.LinkBridge {
		r.settleNFCall(l, w)
	}
	if !l.up() {
		next := show
		if w.VXLAN != nil {
			next = fmt.Sprintf("ss -lunp 'sport = :%d'", w.VXLAN.Port)
		}
		set("up", next, true)
	}
}

// settleNFCall has a bridge hand what it carries to the packet filter, or not.
func (r *round) settleNFCall(l *link, w *plan.Link) {
	subject, next := "link "+w.Name+": hand packets to the packet filter", "ip -d link show "+w.Name
	if w.NFCall && !(l.nfCall.known && r.bridgeFilter()) {
		r.fail("link-failed", subject, errors.New("the kernel cannot: policy between workloads on the bridge has no effect"), "modprobe br_netfilter")
		return
	}
	if l.nfCall.known && (l.nfCall.v4 != w.NFCall || l.nfCall.v6 != w.NFCall) {
		r.one(op{req: setLink(l.index, false, attrNFCall(w.NFCall)), code: "link-failed", subject: subject, next: next})
	}
}

// bridgeFilter tells whether the kernel's bridge filter is loaded. Without it the bridges' settings are there
// and do nothing.
func (r *round) bridgeFilter() (loaded bool) {
	err := Do(r.d.ns, func() error {
		_, err := readSysctl("net/bridge/bridge-nf-call-iptables")
		return err
	})
	return err == nil
}

// announce makes the kernel tell the neighbours when the MAC of a running bridge changes: workloads
// would otherwise talk to the old one until their entries age. It returns what ends it.
func (r *round) announce(l *link) (restore func()) {
	restore = func() {}
	if l.kind != string(plan.LinkBridge) || !l.up() {
		return restore
	}
	keys := []string{"net/ipv4/conf/" + l.name + "/arp_notify", "net/ipv6/conf/" + l.name + "/ndisc_notify"}
	old := map[string]string{}
	err := Do(r.d.ns, func() error {
		for _, k := range keys {
			v, err := readSysctl(k)
			if errors.Is(err, os.ErrNotExist) {
				continue // no IPv6
			}
			if err != nil {
				return err
			}
			old[k] = v
			if err := writeSysctl(k, "1"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.d.log.Warn("a new MAC will not be announced", "link", l.name, "error", err)
	}
	return func() {
		err := Do(r.d.ns, func() error {
			var errs []error
			for k, v := range old {
				errs = append(errs, writeSysctl(k, v))
			}
			return errors.Join(errs...)
		})
		if err != nil {
			r.d.log.Warn("announcing new MACs stays on", "link", l.name, "error", err)
		}
	}
}

// applyVeth keeps the settings of a workload's host end. A missing one is reported: only an attachment
// makes it.
func (r *round) applyVeth(w *plan.Link) {
	l := r.links.byName[w.Name]
	if l == nil {
		r.problems = append(r.problems, model.Problem{
			Code: "workload-link-missing", Severity: model.Warning, Subject: "link " + w.Name,
			Detail: "the host end of a workload's interface is gone: its namespace ended, or somebody removed it",
			Next:   "delete the workload and let it be made again (CNI DEL, or GC)",
		})
		return
	}
	if diff := r.differs(l, w); diff != "" || !l.ours() {
		if diff == "" {
			diff = "it carries no mark of Heddle"
		}
		r.fail("foreign-device", "link "+w.Name, fmt.Errorf("a device of that name is there that Heddle did not make: %s", diff), "ip -d link show "+w.Name)
		return
	}
	r.settle(l, w)
	set := func(what string, attrs ...*nl.RtAttr) bool {
		return r.one(op{req: setLink(l.index, false, attrs...), code: "link-failed", subject: "link " + w.Name + ": " + what, next: "bridge -d link show dev " + w.Name})
	}
	master := 0
	if w.Master != "" {
		b := r.links.byName[w.Master]
		if b == nil || b.kind != string(plan.LinkBridge) || !b.ours() {
			return // the bridge's own problem says it
		}
		master = b.index
	}
	hairpin := l.hairpin
	if l.master != master {
		if !set("master "+w.Master, attrMaster(master)) {
			return
		}
		hairpin = false
	}
	if master != 0 && hairpin != w.Hairpin {
		set("hairpin", attrHairpin(w.Hairpin))
	}
}
