package netlink

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/plan"
)

// frToTable is FR_ACT_TO_TBL of linux/fib_rules.h; struct fib_rule_hdr has the layout of struct rtmsg.
const frToTable = 1

type rule struct {
	family int
	plan.Rule
}

// rules lists our rules of both families, those that look up a table.
func (c *conn) rules() ([]rule, error) {
	var out []rule
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		msgs, err := c.dump(request(unix.RTM_GETRULE, 0, &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family)}}))
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		for _, m := range msgs {
			if r, proto := parseRule(m); proto == plan.RouteProtocol && r.family == family {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

func parseRule(b []byte) (r rule, proto uint8) {
	if len(b) < unix.SizeofRtMsg {
		return r, 0
	}
	msg := nl.DeserializeRtMsg(b)
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofRtMsg:])
	if err != nil {
		return r, 0
	}
	r.family, r.Table = int(msg.Family), int(msg.Table)
	for _, a := range attrs {
		switch a.Attr.Type & attrTypeMask {
		case nl.FRA_PRIORITY:
			r.Priority = int(nl.NativeEndian().Uint32(a.Value))
		case nl.FRA_SRC:
			r.From = netip.PrefixFrom(addrOf(a.Value), int(msg.Src_len))
		case nl.FRA_DST:
			r.To = netip.PrefixFrom(addrOf(a.Value), int(msg.Dst_len))
		case nl.FRA_TABLE:
			r.Table = int(nl.NativeEndian().Uint32(a.Value))
		case nl.FRA_PROTOCOL:
			proto = a.Value[0]
		}
	}
	return r, proto
}

func ruleRequest(proto, flags uint16, r rule) *nl.NetlinkRequest {
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(r.family), Type: frToTable}}
	req := request(proto, flags, msg,
		nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(r.Priority))),
		nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(uint32(r.Table))),
		nl.NewRtAttr(nl.FRA_PROTOCOL, []byte{plan.RouteProtocol}))
	if r.From.IsValid() {
		msg.Src_len = uint8(r.From.Bits())
		req.AddData(nl.NewRtAttr(nl.FRA_SRC, r.From.Addr().AsSlice()))
	}
	if r.To.IsValid() {
		msg.Dst_len = uint8(r.To.Bits())
		req.AddData(nl.NewRtAttr(nl.FRA_DST, r.To.Addr().AsSlice()))
	}
	return req
}

// diffRules compares our rules. One without addresses counts for both families.
func (r *round) diffRules() {
	have := map[rule]bool{}
	rules, err := r.c.rules()
	if err != nil {
		r.unread("rules", err)
		return
	}
	for _, k := range rules {
		have[k] = true
	}
	want := map[rule]bool{}
	for _, w := range r.p.Rules {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			if w.From.IsValid() && familyOf(w.From.Addr()) != family || w.To.IsValid() && familyOf(w.To.Addr()) != family {
				continue
			}
			k := rule{family, w}
			want[k] = true
			if !have[k] {
				r.add(op{req: ruleRequest(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, k), code: "rule-failed", subject: fmt.Sprintf("rule %d", w.Priority), next: "ip rule show"})
			}
		}
	}
	for k := range have {
		if !want[k] {
			r.remove(op{req: ruleRequest(unix.RTM_DELRULE, 0, k), code: "rule-failed", subject: fmt.Sprintf("rule %d", k.Priority), next: "ip rule show"})
		}
	}
}
